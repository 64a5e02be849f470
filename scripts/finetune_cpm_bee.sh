#!/usr/bin/env bash
# Finetunes CPM-Bee, or goes on with a run that was interrupted, and measures what came of it with
# the run's tasks, on all of their records:
#   scripts/finetune_cpm_bee.sh configs/cpm_bee/finetune_reviews.yaml [key=value ...]
#   NPUS=8 scripts/finetune_cpm_bee.sh my.yaml
# BATCH  records at once when it is measured, default 32
# NPUS, NODES, NODE_RANK, MASTER_ADDR and so on as for scripts/pretrain_cpm_bee.sh.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

[ $# -ge 1 ] || fail "usage: [NPUS=1] scripts/finetune_cpm_bee.sh CONFIG [key=value ...]"
config=$1
shift
prepare core
"$PYTHON" -m mindplm preprocess -c "$config" "$@"
"$PYTHON" -m mindplm.launch --verb finetune -c "$config" "$@"
[ "${NODE_RANK:-0}" = 0 ] || exit 0

# The run folder, and a line with task file and data for each task.
plan=$("$PYTHON" - "$config" "$@" <<'END'
import sys
from mindplm import families
config = families.load_config(sys.argv[1], sys.argv[2:])
print(config.train.output)
for item in config.finetune.tasks if config.finetune else []:
    print(item.task, item.path, sep="\t")
END
)
run=$(head -n 1 <<<"$plan")
tail -n +2 <<<"$plan" | while IFS=$'\t' read -r task data; do
    "$PYTHON" -m mindplm evaluate -m "$run" --task "$task" ${data:+--data "$data"} \
        --batch-size "${BATCH:-32}" --out "$run/results/$(basename "$task" .yaml)" </dev/null
done
