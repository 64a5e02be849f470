#!/usr/bin/env bash
# From nothing to a model that writes verse, on a CPU: installs, prepares the embedded texts, trains
# the tiny CPM-Bee, measures it and lets it write. Run it again: what is done already is kept.
#   scripts/quickstart.sh [key=value ...]       the settings win over configs/cpm_bee/tiny.yaml
#   RUN=folder      where the run is written, default runs/cpm_bee_tiny
#   POEMS=number    poems that are sampled and checked for their form, default 64
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

run=${RUN:-runs/cpm_bee_tiny} poems=${POEMS:-64} config=configs/cpm_bee/tiny.yaml
cd "$ROOT"
prepare core
mindplm() { "$PYTHON" -m mindplm "$@"; }

say "1/5 Texts into rows"
mindplm preprocess -c "$config" "$@"

say "2/5 Training"
mindplm pretrain -c "$config" train.output="$run" "$@"

say "3/5 Validation"
mindplm evaluate -m "$run"

say "4/5 Writing: two poems to continue, a blank in a line, a poem from nothing, an English sentence"
mindplm generate -m "$run" --file scripts/quickstart_prompts.jsonl --seed 7

say "5/5 The form of $poems poems from nothing"
"$PYTHON" tools/poems.py "$run" --count "$poems" --show 4

say "Where everything is"
newest=$("$PYTHON" -c 'import sys
from mindplm.checkpoint import RunFolder
print(RunFolder(sys.argv[1]).newest().folder)' "$run")
cat <<END
checkpoint   $newest
loss curve   $run/loss.png
metrics      $run/metrics.jsonl
TensorBoard  $(dirname "$(find "$run" -name 'events.out.*' | head -n 1)")

Write more:  $(printf '%q ' "$PYTHON" -m mindplm generate -m "$run")--input 明月
END
