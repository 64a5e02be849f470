#!/usr/bin/env bash
# Trains a model of any family, from scratch or from a checkpoint, or goes on with a run:
#   scripts/pretrain.sh configs/bert/tiny.yaml [key=value ...]
#   NPUS=8 scripts/pretrain.sh configs/cpt/pretrain_base.yaml train.start=FOLDER_OF_A_BERT
#   NPUS=8 NODES=4 NODE_RANK=0 MASTER_ADDR=10.0.0.1 scripts/pretrain.sh ...   on each machine
# NPUS         devices of this machine, default 1; on a CPU as many processes
# NODES        machines, default 1; they share the folders of data and of the run
# NODE_RANK    number of this machine, 0 to NODES - 1
# MASTER_ADDR  address of machine 0; MASTER_PORT, default 8118, where its processes meet
# LOG_DIR      a log for each rank, default <train.output>/logs
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

[ $# -ge 1 ] || fail "usage: [NPUS=1] scripts/pretrain.sh CONFIG [key=value ...]"
config=$1
shift
prepare core
exec "$PYTHON" -m mindplm.launch -c "$config" "$@"
