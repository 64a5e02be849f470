#!/usr/bin/env bash
# Trains CPM-Bee; what there is to set is told in scripts/pretrain.sh:
#   scripts/pretrain_cpm_bee.sh configs/cpm_bee/tiny.yaml [key=value ...]
#   NPUS=8 scripts/pretrain_cpm_bee.sh configs/cpm_bee/pretrain_1b.yaml
set -euo pipefail
exec "$(dirname "${BASH_SOURCE[0]}")/pretrain.sh" "$@"
