#!/usr/bin/env bash
# bench/gpu.sh PART...: what the program does on a GPU. Parts, each under four minutes and on its own:
#   suite     the backend's tests on the device; compute-sanitizer on a tiny run
#   llama8b   Llama-3.1-8B shape, bf16, LoRA r 16 on all linears, 2 x 4096 tokens, nothing recomputed
#   nf4       the same shape in NF4: 4 x 2048 packed, decoded copies kept and not
#   70b       Llama-3.3-70B shape in NF4, 4096 tokens; resident, and streamed through 16 GB of GPU memory
#   moe       Qwen3-30B-A3B shape with 12 layers, bf16
#   small     Llama-3.2-1B shape, bf16
#   peft      transformers + PEFT on the base and tokens of llama8b, eager and compiled (needs Python with torch)
#   table     what the parts left in $GRAFT_BENCH_OUT, as one table (JSON, Markdown)
# $GRAFT_BENCH_OUT: where results go (bench/out). $GRAFT_BENCH_WORK: room for bases (/dev/shm/graft-bench, up to 60 GB).
# $GRAFT_BENCH_BIN: folder of the programs (build), as `make gpu-bundle` puts them together. No network is used.
set -euo pipefail
cd "$(dirname "$0")/.."
bin=${GRAFT_BENCH_BIN:-build} out=${GRAFT_BENCH_OUT:-bench/out} work=${GRAFT_BENCH_WORK:-/dev/shm/graft-bench}
[ -d "$bin/lib" ] && export LD_LIBRARY_PATH="$bin/lib${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}"
mkdir -p "$out" "$work"

rows() { # rows FILE VOCABULARY LENGTH|packed COUNT: random tokens, every one trained; packed: lengths as people's data has
    python3 - "$@" <<'P'
import json, random, sys
path, vocabulary, length, count = sys.argv[1], int(sys.argv[2]), sys.argv[3], int(sys.argv[4])
rng = random.Random(7)
with open(path, "w") as f:
    for _ in range(count):
        n = min(2048, max(16, int(rng.lognormvariate(5.9, 0.8)))) if length == "packed" else int(length)
        ids = [rng.randrange(100, vocabulary - 100) for _ in range(n)]
        mask = int(0.7 * n) if length == "packed" else 0
        f.write(json.dumps({"input_ids": ids, "labels": [-100] * mask + ids[mask:]}) + "\n")
P
}

config() { # config BASE ROWS SEQUENCE BATCH [key: value]...
    printf 'base_model: %s\ndatasets:\n  - path: %s\n    type:\nsequence_len: %s\nmicro_batch_size: %s\n' "$1" "$2" "$3" "$4"
    printf 'adapter: lora\nlora_r: 16\nlora_alpha: 32\nlora_target_linear: true\nlearning_rate: 1e-5\nnum_epochs: 1\nbf16: true\n'
    printf 'device: cuda\nsave_strategy: "no"\noutput_dir: %s/out\n' "$work"
    shift 4
    for line in "$@"; do printf '%s\n' "$line"; done
}

base() { # base NAME SHAPE bf16|nf4 [LAYERS]
    [ -f "$work/$1/config.json" ] && [ -f "$work/$1/done" ] || {
        rm -rf "${work:?}/$1"
        "$bin/bench/random_base" "configs/shapes/$2.json" "$work/$1" "$3" ${4:+"$4"} && touch "$work/$1/done"
    }
}

step() { # step NAME CONFIG [key=value]...
    local name=$1
    shift
    echo "== $name"
    "$bin/bench/gpu_step" "$@" > "$out/$name.json" || { rm -f "$out/$name.json"; return 1; }
    python3 -c 'import json,sys; d=json.load(open(sys.argv[1])); print(f"{d[\"tokens_per_second\"]:.0f} tok/s, {d[\"model_tflops\"]:.0f} TFLOP/s, first step after {d[\"seconds_to_first_step\"]:.1f} s, {d[\"held_bytes\"]/2**30:.1f} of {d[\"planned_bytes\"]/2**30:.1f} GiB planned")' "$out/$name.json"
}

part_suite() {
    GRAFT_TEST_GPU=1 "$bin/tests/test_cuda" | tee "$out/suite.txt"
    GRAFT_TEST_GPU=1 "$bin/tests/test_cuda_decode" | tee -a "$out/suite.txt"
    "$bin/bench/gpu_decode" | tee "$out/decode.txt"
    "$bin/tests/make_tiny" "$work/tiny" >/dev/null
    if command -v compute-sanitizer >/dev/null; then
        for tool in memcheck racecheck; do
            compute-sanitizer --tool "$tool" --error-exitcode 9 "$bin/graft" train "$work/tiny/config.yml" device=cuda max_steps=2 \
                output_dir="$work/tiny/$tool" 2>&1 | tail -3 | tee -a "$out/suite.txt"
        done
    else
        echo "compute-sanitizer is not there" | tee -a "$out/suite.txt"
    fi
}
part_llama8b() {
    base llama8b llama-3.1-8b bf16
    rows "$work/full4096.jsonl" 128256 4096 52
    config "$work/llama8b" "$work/full4096.jsonl" 4096 2 > "$work/llama8b.yml"
    step llama8b "$work/llama8b.yml"
}
part_nf4() {
    base llama8b-nf4 llama-3.1-8b nf4
    rows "$work/packed.jsonl" 128256 packed 900
    config "$work/llama8b-nf4" "$work/packed.jsonl" 2048 4 "sample_packing: true" > "$work/nf4.yml"
    step nf4 "$work/nf4.yml" decoded_cache=off
    step nf4-decoded "$work/nf4.yml" decoded_cache=auto
    base llama8b llama-3.1-8b bf16
    config "$work/llama8b" "$work/packed.jsonl" 2048 4 "sample_packing: true" > "$work/packed.yml"
    step llama8b-packed "$work/packed.yml"
}
part_70b() {
    rm -rf "${work:?}/llama8b" "${work:?}/llama8b-nf4"
    base 70b llama-3.1-70b nf4
    rows "$work/full4096.jsonl" 128256 4096 26
    config "$work/70b" "$work/full4096.jsonl" 4096 1 "gradient_checkpointing: auto" > "$work/70b.yml"
    GRAFT_BENCH_WARMUP=3 GRAFT_BENCH_STEPS=7 step 70b "$work/70b.yml"
    GRAFT_BENCH_WARMUP=3 GRAFT_BENCH_STEPS=7 step 70b-streamed "$work/70b.yml" gpu_memory_limit=16GiB
    rm -rf "${work:?}/70b"
}
part_moe() {
    base moe qwen3-30b-a3b bf16 12
    rows "$work/moe4096.jsonl" 151936 4096 52
    config "$work/moe" "$work/moe4096.jsonl" 4096 2 > "$work/moe.yml"
    step moe "$work/moe.yml"
}
part_small() {
    base small llama-3.2-1b bf16
    rows "$work/full2048.jsonl" 128256 2048 104
    config "$work/small" "$work/full2048.jsonl" 2048 4 > "$work/small.yml"
    step small "$work/small.yml"
}
part_peft() {
    base llama8b llama-3.1-8b bf16
    rows "$work/full4096.jsonl" 128256 4096 52
    for mode in eager compiled; do
        echo "== peft, $mode"
        python3 bench/peft_gpu.py "$work/llama8b" "$work/full4096.jsonl" --batch 2 --mode "$mode" > "$out/peft-$mode.json" || rm -f "$out/peft-$mode.json"
        cat "$out/peft-$mode.json" 2>/dev/null || echo "did not run"
    done
}
part_table() { python3 bench/gpu_table.py "$out"; }

[ $# -gt 0 ] || { sed -n '2,14p' "$0"; exit 64; }
for part in "$@"; do
    declare -F "part_$part" >/dev/null || { echo "no part $part"; exit 64; }
    begin=$SECONDS
    "part_$part"
    echo "-- $part took $((SECONDS - begin)) s"
done
