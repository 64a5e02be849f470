#!/usr/bin/env bash
# Turns texts and records into rows for training, as the settings say:
#   scripts/preprocess_dataset.sh configs/cpm_bee/tiny.yaml [key=value ...]
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

[ $# -ge 1 ] || fail "usage: scripts/preprocess_dataset.sh CONFIG [key=value ...]"
config=$1
shift
prepare core
exec "$PYTHON" -m mindplm preprocess -c "$config" "$@"
