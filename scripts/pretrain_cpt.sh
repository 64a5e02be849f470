#!/usr/bin/env bash
# Trains CPT on masked and permuted sentences, or goes on with a run:
#   scripts/pretrain_cpt.sh configs/cpt/tiny.yaml [train.start=FOLDER_OF_A_BERT] [key=value ...]
# NPUS, NODES, NODE_RANK, MASTER_ADDR and so on as for scripts/pretrain_cpm_bee.sh.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

[ $# -ge 1 ] || fail "usage: [NPUS=1] scripts/pretrain_cpt.sh CONFIG [key=value ...]"
config=$1
shift
prepare core
exec "$PYTHON" -m mindplm.launch -c "$config" "$@"
