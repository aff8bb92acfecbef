#!/usr/bin/env bash
# Makes .venv hold what requirements-cpu.lock names, and this package on top. Nothing to do where it already does.
set -euo pipefail
cd "$(dirname "$0")/.."

python=${PYTHON:-python3.11}
lock=requirements-cpu.lock
stamp=.venv/touchstone-stamp # first line: what the packages were installed for; second line: what this package was

pip() { .venv/bin/python -m pip -qq --disable-pip-version-check "$@"; }
uv() { .venv/bin/uv pip install --quiet --python .venv/bin/python --no-deps "$@"; }

create() {
    if [[ "$("$python" -c 'import sys; print(*sys.version_info[:2])' 2>/dev/null)" != "3 11" ]]; then
        printf '%s\n' "Touchstone needs Python 3.11, and $python is not it." \
            "Type 'sudo apt-get install python3.11 python3.11-venv', or 'make PYTHON=/path/to/python3.11 ...'." >&2
        exit 1
    fi
    echo "python: creating .venv (about 5 s)"
    "$python" -m ensurepip --version >/dev/null 2>&1 || scripts/apt-install.sh "its virtual environment" python3.11-venv
    "$python" -c 'import ctypes; ctypes.CDLL("libnuma.so.1")' 2>/dev/null || scripts/apt-install.sh "vLLM on CPU" libnuma1
    "$python" -m venv --clear .venv # what an interrupted run left may be half installed
}

# torch is asked for alone: its CPU build is on no index that uv knows by default, but pip may have been told of one.
install_packages() {
    local torch
    torch=$(grep '^torch==' "$lock")
    echo "python: installing $torch (about 10 s)"
    pip install "$(grep '^uv==' "$lock")"
    pip install --no-deps --no-compile "$torch" 2>/dev/null || uv --torch-backend cpu "$torch" # PyTorch's own index
    echo "python: installing the $(grep -c == "$lock") packages of $lock (about 15 s)"
    uv --requirement "$lock" || pip install --no-deps --no-compile --requirement "$lock"
}

# The bytecode would otherwise be written by the first run, or, under PYTHONDONTWRITEBYTECODE, compiled in every process.
import_once() {
    echo "python: importing the stack once, which caches its bytecode (about 20 s)"
    env --unset=PYTHONDONTWRITEBYTECODE .venv/bin/python - >.venv/import.log 2>&1 <<'PYTHON' || { cat .venv/import.log >&2; exit 1; }
import accelerate, datasets, docker, math_verify, matplotlib.pyplot, omegaconf, ray, rich, torch
import vllm.v1.engine.async_llm, vllm.v1.engine.core, vllm.v1.worker.cpu_worker
from transformers import CwmForCausalLM
from trl import SFTTrainer
PYTHON
}

packages="$(sha256sum <"$lock") in $PWD"
project=$(cat setup.cfg pyproject.toml | sha256sum)

if [[ "$(sed -n 1p "$stamp" 2>/dev/null)" != "$packages" ]] || ! .venv/bin/python -c '' 2>/dev/null; then
    create
    install_packages
    import_once
    echo "$packages" >"$stamp"
fi
if [[ "$(sed -n 2p "$stamp")" != "$project" ]]; then
    pip install --no-deps --no-build-isolation --editable .
    printf '%s\n' "$packages" "$project" >"$stamp"
fi
