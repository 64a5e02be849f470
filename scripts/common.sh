# shellcheck shell=bash
# Read by the other scripts: finds or makes the Python environment and installs this project there.
#
#   MINDPLM_PYTHON=/path/to/python   use this interpreter as it is and install nothing
#   VIRTUAL_ENV (an active venv)     install there
#   MINDPLM_VENV=folder              otherwise use or make this environment; default: .venv here
#
# After `prepare core` or `prepare dev`, $PYTHON is the interpreter and $ROOT this repository.

ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
PYTHON=
export PIP_DISABLE_PIP_VERSION_CHECK=1

say() { printf '\n== %s\n' "$*"; }

fail() {
    printf 'error: %s\n' "$*" >&2
    exit 2
}

# is_accepted PYTHON: it runs, and its version is one that MindSpore has packages for
is_accepted() {
    "$1" -c 'import sys; sys.exit(not (3, 9) <= sys.version_info[:2] <= (3, 12))' 2>/dev/null
}

# Prints the name of the first acceptable interpreter.
find_python() {
    local name
    for name in python3 python3.11 python3.12 python3.10 python3.9; do
        if command -v "$name" >/dev/null && is_accepted "$name"; then
            printf '%s\n' "$name"
            return
        fi
    done
    fail "no Python 3.9, 3.10, 3.11 or 3.12 found (python3 is $(python3 --version 2>&1 || true));" \
        "install one of them or name it with MINDPLM_PYTHON"
}

# pip_install PYTHON ARGUMENTS ...: without the warnings of setuptools about each editable package
pip_install() {
    local python=$1
    shift
    PYTHONWARNINGS=ignore "$python" -m pip install -q "$@"
}

# make_venv FOLDER: leaves a whole environment or nothing
make_venv() {
    local folder=$1 python
    python=$(find_python)
    say "Making a virtual environment in $folder"
    if ! "$python" -m venv --clear "$folder"; then
        rm -rf "$folder"
        fail "$python could not make a virtual environment in $folder;" \
            "Debian and Ubuntu have what is missing in the package python3-venv"
    fi
    pip_install "$folder/bin/python" --upgrade pip
}

# install_project core|dev: editable, once for each state of pyproject.toml
install_project() {
    local what=$1 stamp wanted target size
    stamp=$("$PYTHON" -c 'import sys; print(sys.prefix)')/mindplm-installed
    wanted=$("$PYTHON" -c 'import hashlib, sys
print(hashlib.sha256(open(sys.argv[1], "rb").read()).hexdigest(), sys.argv[2])' \
        "$ROOT/pyproject.toml" "$ROOT")
    if [ -f "$stamp" ]; then
        case $(cat "$stamp") in
            "dev $wanted" | "$what $wanted") return ;;
        esac
    fi
    target=$ROOT size="about 0.6 GB"
    [ "$what" = core ] || target="${ROOT}[$what]"
    say "Installing ($size of packages, unless they were downloaded before)"
    rm -f "$stamp"
    pip_install "$PYTHON" -e "$target"
    printf '%s %s\n' "$what" "$wanted" >"$stamp"
}

# prepare core|dev: sets PYTHON
prepare() {
    if [ -n "${MINDPLM_PYTHON:-}" ]; then
        PYTHON=$(command -v "$MINDPLM_PYTHON") || fail "MINDPLM_PYTHON=$MINDPLM_PYTHON: not found"
        return
    fi
    local folder=${VIRTUAL_ENV:-}
    if [ -n "$folder" ]; then
        is_accepted "$folder/bin/python" ||
            fail "the active environment $folder does not have Python 3.9 to 3.12;" \
                "deactivate it or activate another one"
    else
        folder=${MINDPLM_VENV:-$ROOT/.venv}
        if ! is_accepted "$folder/bin/python" || ! "$folder/bin/python" -m pip -V >/dev/null 2>&1
        then
            make_venv "$folder"
        fi
    fi
    PYTHON=$folder/bin/python
    install_project "$1"
}
