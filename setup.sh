#!/usr/bin/env bash
# ./setup.sh              make the environment
# ./setup.sh demo         make it if needed, then write three meshes and train one prompt (about 5 minutes on 2 cores)
# ./setup.sh test [ARGS]  make it if needed, then run the whole test suite; ARGS go to pytest
# ./setup.sh check [ARGS] the same after ruff and mypy, which are installed beside it: what continuous integration runs
# ./setup.sh docs         write the site of the documentation to outputs/docs
#
# PYTHON=python3.12 ./setup.sh chooses the interpreter. Nothing is compiled.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"

REQUIREMENTS=requirements.txt
CONSTRAINTS=scripts/constraints.txt
DEVELOPMENT=scripts/requirements-dev.txt
CPU_WHEELS=https://download.pytorch.org/whl/cpu

say() { printf 'setup.sh: %s\n' "$*" >&2; }
die() { say "$*"; exit 1; }

find_base_python() {
    local candidate
    for candidate in ${PYTHON:-python3 python3.13 python3.12 python3.11}; do
        if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
            command -v "$candidate"
            return
        fi
    done
    die "Python 3.11 or newer is needed (diffusers asks for it); install one or name it: PYTHON=/path/to/python ./setup.sh"
}

# Prints the version of a torch that works and is new enough; fails without one.
torch_version() {
    "$1" - 2>/dev/null <<'PYTHON'
import torch
assert tuple(map(int, torch.__version__.split(".")[:2])) >= (2, 11)
print(torch.__version__)
PYTHON
}

has_nvidia_gpu() { [ -e /proc/driver/nvidia/version ] || nvidia-smi -L >/dev/null 2>&1; }

reachable() { "$1" -c "import sys, urllib.request as r; r.urlopen(sys.argv[1], timeout=5)" "$2" 2>/dev/null; }

# An active environment that has a torch is used as it is; otherwise .venv is made, on top of a system torch if there is one.
choose_environment() {
    local base=$1
    if [ -n "${VIRTUAL_ENV:-}${CONDA_PREFIX:-}" ] && torch_version "$base" >/dev/null; then
        python=$base
        return
    fi
    python=.venv/bin/python
    [ -x "$python" ] && return
    say "making .venv with $base"
    local options=()
    torch_version "$base" >/dev/null && options=(--system-site-packages)
    "$base" -m venv ${options[@]+"${options[@]}"} .venv ||
        die "could not make .venv; on Debian and Ubuntu: sudo apt install python3-venv"
}

install_requirements() {
    local torch constraints=$CONSTRAINTS index=()
    if torch=$(torch_version "$python"); then
        say "keeping torch $torch; downloading the other packages of $REQUIREMENTS (up to 400 MB)"
        constraints=$(mktemp)
        printf 'torch==%s\n' "$torch" >"$constraints"
    else
        if has_nvidia_gpu || [ "$(uname -s)" != Linux ]; then
            say "downloading torch from the package index (about 3 GB with its CUDA libraries on Linux) and about 400 MB of other packages"
        else
            say "no NVIDIA driver here: downloading torch for CPU (about 200 MB) and about 400 MB of other packages"
            if reachable "$python" "$CPU_WHEELS/"; then
                index=(--extra-index-url "$CPU_WHEELS")
            else
                say "$CPU_WHEELS cannot be reached; torch comes from the package index, where it may bring CUDA libraries (3 GB)"
            fi
        fi
    fi
    "$python" -m pip install --disable-pip-version-check --quiet ${index[@]+"${index[@]}"} \
        -r "$REQUIREMENTS" -c "$constraints"
}

install() {
    local base stamp wanted
    base=$(find_base_python) || exit 1
    choose_environment "$base"
    stamp=$("$python" -c 'import sys; print(sys.prefix)')/triplaneturbo-requirements
    wanted=$(cat "$REQUIREMENTS" pyproject.toml "$CONSTRAINTS" | cksum)
    [ -f "$stamp" ] && [ "$(cat "$stamp")" = "$wanted" ] && return
    install_requirements
    printf '%s' "$wanted" >"$stamp"
    say "the environment is ready: $python"
}

# Nothing is downloaded if it is all there.
install_development() {
    say "installing what $DEVELOPMENT names, where it is not there"
    "$python" -m pip install --disable-pip-version-check --quiet -r "$DEVELOPMENT"
}

check_code() {
    "$python" -m ruff check .
    "$python" -m ruff format --check .
    "$python" -m mypy
}

build_site() {
    NO_MKDOCS_2_WARNING=1 "$python" -m mkdocs build --strict
    say "next: open outputs/docs/index.html"
}

run_tests() {
    # One thread a worker: the pictures are tiny, and more threads only wait for each other.
    local workers
    workers=$("$python" -c 'import os; print(min(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(), 4))')
    # What Python compiles is kept, whatever the shell says: tests start many processes, and with the checks of shapes each
    # of them would compile the package for twelve seconds.
    PYTHONDONTWRITEBYTECODE="" OMP_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false exec "$python" -m pytest -n "$workers" --dist worksteal "$@"
}

case "${1:-}" in
    "") install; say "next: ./setup.sh demo" ;;
    demo) install; shift; exec "$python" scripts/demo.py "$@" ;;
    test) install; shift; run_tests "$@" ;;
    check) install; install_development; shift; check_code; run_tests "$@" ;;
    docs) install; install_development; build_site ;;
    *) sed -n '2,8s/^# \{0,1\}//p' setup.sh; exit 2 ;;
esac
