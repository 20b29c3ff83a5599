#!/usr/bin/env bash
# Sets up the Python environment of the live comparisons in $GRAFT_VENV (default build/venv): exactly the versions in
# requirements.txt. Does nothing when that has been done. Exit code 77: the package index cannot be reached.
set -euo pipefail
cd "$(dirname "$0")/../.."
. tests/peers/pip.sh
venv=${GRAFT_VENV:-build/venv}
pins=tests/peers/requirements.txt
stamp=$venv/pins

if cmp -s "$pins" "$stamp" && "$venv/bin/python" -c pass 2>/dev/null; then
    echo "venv: $venv is up to date"
    exit 0
fi
python=${PYTHON:-$(command -v python3.11 || command -v python3)}
"$python" -c 'import sys; sys.exit(sys.version_info[:2] < (3, 11))' ||
    { echo "$0: Python 3.11 or newer is needed, $python is older" >&2; exit 1; }
echo "venv: creating $venv (about 4 GB and one to three minutes)"
start=$SECONDS
rm -rf "$venv"
"$python" -m venv "$venv"
pip_run "$venv/bin/python" install --quiet --no-compile --no-cache-dir --no-deps -r "$pins"
"$venv/bin/python" -c 'import torch, transformers, peft, bitsandbytes, gguf, xllamacpp'
cp "$pins" "$stamp"
echo "venv: $venv is ready after $((SECONDS - start)) s, $(du -sh "$venv" | cut -f1)"
