#!/usr/bin/env bash
# Trains BERT on masked words, from scratch or from a checkpoint, or goes on with a run:
#   scripts/pretrain_bert.sh configs/bert/tiny.yaml [key=value ...]
# NPUS, NODES, NODE_RANK, MASTER_ADDR and so on as for scripts/pretrain_cpm_bee.sh.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

[ $# -ge 1 ] || fail "usage: [NPUS=1] scripts/pretrain_bert.sh CONFIG [key=value ...]"
config=$1
shift
prepare core
exec "$PYTHON" -m mindplm.launch -c "$config" "$@"
