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
# A process for each part: the graphs that all of them compile fill the memory of a small machine.
parts=(tests/unit tests/contract tests/parity tests/dist tests/docs)
for word in "$@"; do
    if [ -e "${word%%::*}" ]; then
        parts=("")
    fi
done
status=0
for part in "${parts[@]}"; do
    code=0
    "$PYTHON" -m pytest ${part:+"$part"} "$@" || code=$?
    if [ "$code" != 0 ] && [ "$code" != 5 ]; then # 5: no test of that name there
        status=$code
    fi
done
exit "$status"
