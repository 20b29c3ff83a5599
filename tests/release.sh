#!/usr/bin/env bash
# `make test-release`: what takes too long for every change. Fuzzers of every reader (SECONDS_EACH, default 600), the corpora
# they start from grown in build/fuzz/corpus; 200 kills of a run; closes with "N passed, N failed, N skipped".
set -uo pipefail
cd "$(dirname "$0")/.."
each=${SECONDS_EACH:-600} kills=${KILLS:-200} build=${BUILD:-build}/fuzz
passed=0 failed=0
flags="-fsanitize=address,undefined -fno-sanitize-recover=all"

say() {
    if [ "$1" = 0 ]; then passed=$((passed + 1)) verdict="ok  "; else failed=$((failed + 1)) verdict=FAIL; fi
    echo "$verdict $2"
}

make --no-print-directory -j2 CC=clang BUILD="$build" OPT=-O1 SAN="-fsanitize=fuzzer-no-link,address,undefined -fno-sanitize-recover=all" \
    "$build/libgraft.a" >"$build.log" 2>&1 || { tail -20 "$build.log"; echo "0 passed, 1 failed, 0 skipped"; exit 1; }
for source in tests/fuzz/fuzz_*.c; do
    name=$(basename "$source" .c)
    name=${name#fuzz_}
    program=$build/fuzz_$name corpus=$build/corpus/$name
    mkdir -p "$corpus"
    # shellcheck disable=SC2086
    clang -std=c11 -D_GNU_SOURCE -g -O1 -I. -ffp-contract=off -fsanitize=fuzzer $flags -o "$program" "$source" "$build/libgraft.a" \
        -lcjson -lyaml -lpcre2-8 -lutf8proc -lcrypto -lm -lpthread
    [ $? = 0 ] || { say 1 "fuzz $name does not build"; continue; }
    seeds=() dict=()
    [ -d "tests/fuzz/$name" ] && seeds=("tests/fuzz/$name")
    [ "$name" = shapes ] && seeds+=(configs/shapes)
    [ -f "tests/fuzz/$name.dict" ] && dict=("-dict=tests/fuzz/$name.dict")
    log=$build/$name.log
    "$program" -max_total_time="$each" -max_len=8192 -rss_limit_mb=4096 -artifact_prefix="$build/crash-$name-" "${dict[@]}" "$corpus" \
        "${seeds[@]}" >"$log" 2>&1
    code=$?
    [ $code = 0 ] || tail -30 "$log"
    say $code "fuzz $name, $each s ($(grep -oE '^#[0-9]+' "$log" | tail -1) inputs)"
done
rm -rf /dev/shm/graft-fuzz-* # a fuzzer that stops removes nothing
python3 tests/test_nvcc.py --targets 80,89,90,100
say $? "CUDA kernels for sm_80, sm_89, sm_90, sm_100"
KILLS=$kills python3 tests/test_program.py killed_twenty_times
say $? "$kills kills"
echo "$passed passed, $failed failed, 0 skipped"
[ "$failed" = 0 ]
