#!/usr/bin/env bash
# bench/bundle.sh FOLDER: the programs that bench/gpu.sh runs, with the shared libraries they need, for a machine that has
# none of them. Its C library must not be older than this machine's.
set -euo pipefail
to=$1 from=${BUILD:-build}
rm -rf "$to" && mkdir -p "$to/bench" "$to/tests" "$to/lib"
cp "$from/graft" "$from/libgraft_cuda.so" "$to/"
cp "$from"/bench/{gpu_step,random_base,gpu_decode} "$to/bench/"
cp "$from"/tests/{test_cuda,test_cuda_decode,make_tiny} "$to/tests/"
for f in "$to/graft" "$to"/bench/* "$to"/tests/*; do
    ldd "$f" | awk '/=> \// {print $3}' | grep -Ev '/(libc|libm|libpthread|libdl|librt|ld-linux[^/]*)\.so' || true
done | sort -u | while read -r library; do cp -L "$library" "$to/lib/"; done
find "$to" -type f ! -name '*.sh' -exec strip --strip-unneeded {} + 2>/dev/null || true
du -sh "$to"
