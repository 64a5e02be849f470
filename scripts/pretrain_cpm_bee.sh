#!/usr/bin/env bash
# Trains CPM-Bee from scratch, or goes on with a run that was interrupted:
#   scripts/pretrain_cpm_bee.sh configs/cpm_bee/tiny.yaml [key=value ...]
# NPUS is the number of devices; this version trains on one.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

[ $# -ge 1 ] || fail "usage: [NPUS=1] scripts/pretrain_cpm_bee.sh CONFIG [key=value ...]"
npus=${NPUS:-1}
[[ $npus =~ ^[1-9][0-9]*$ ]] || fail "NPUS=$npus, expected a whole number from 1 on"
[ "$npus" -eq 1 ] || fail "NPUS=$npus: this version trains on one device; expected NPUS=1"
config=$1
shift
prepare core
exec "$PYTHON" -m mindplm pretrain -c "$config" "$@"
