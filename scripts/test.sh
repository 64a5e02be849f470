#!/usr/bin/env bash
# Installs what the tests need and runs all checks: format, lint, types, tests.
#   scripts/test.sh [pytest arguments ...]
#   MINDPLM_TEST_WORKERS=N   tests that run side by side (default: 2; each takes up to 4 GB)
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

prepare dev
cd "$ROOT"
say "Format, lint and types"
"$PYTHON" -m ruff format --check .
"$PYTHON" -m ruff check .
"$PYTHON" -m mypy
say "Tests"
# A call for each part: the graphs that all of them compile fill the memory of a small machine.
# tests/dist and tests/docs start several processes themselves.
parts=(tests/unit tests/contract tests/parity tests/dist tests/docs)
beside=(-n "${MINDPLM_TEST_WORKERS:-2}" --dist worksteal)
for word in "$@"; do
    if [ -e "${word%%::*}" ]; then
        parts=("")
    fi
done
status=0
for part in "${parts[@]}"; do
    code=0
    case $part in
        tests/unit | tests/contract | tests/parity) workers=("${beside[@]}") ;;
        *) workers=(-n 0) ;;
    esac
    "$PYTHON" -m pytest "${workers[@]}" ${part:+"$part"} "$@" || code=$?
    if [ "$code" != 0 ] && [ "$code" != 5 ]; then # 5: no test of that name there
        status=$code
    fi
done
exit "$status"
