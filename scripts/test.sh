#!/usr/bin/env bash
# Installs what the tests need and runs all checks: format, lint, types, tests.
#   scripts/test.sh [pytest arguments ...]
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

prepare dev
cd "$ROOT"
say "Format, lint and types"
"$PYTHON" -m ruff format --check .
"$PYTHON" -m ruff check .
"$PYTHON" -m mypy
say "Tests"
"$PYTHON" -m pytest "$@"
