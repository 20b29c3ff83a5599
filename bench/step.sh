#!/usr/bin/env bash
# bench/step.sh [fp32|bf16] [steps]: a LoRA step on SmolLM2-135M, T 512 x B 2, r 16 on all linears, beside PEFT in the same run.
set -euo pipefail
cd "$(dirname "$0")/.."
mode=${1:-fp32} steps=${2:-6}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 - "$work" "$steps" "$mode" <<'P'
import json, random, sys
work, steps, mode = sys.argv[1], int(sys.argv[2]), sys.argv[3]
rng = random.Random(1)
with open(f"{work}/rows.jsonl", "w") as f:
    for _ in range(2 * steps):
        ids = [rng.randrange(100, 49000) for _ in range(512)]
        f.write(json.dumps({"input_ids": ids, "labels": ids}) + "\n")
with open(f"{work}/bench.yml", "w") as f:
    f.write(f"""base_model: cache/SmolLM2-135M-Instruct.Q4_1.gguf
load_in_4bit: true
adapter: qlora
lora_r: 16
lora_alpha: 32
lora_target_linear: true
datasets:
  - path: {work}/rows.jsonl
    type:
sequence_len: 512
micro_batch_size: 2
learning_rate: 1e-4
num_epochs: 1
save_strategy: "no"
output_dir: {work}/out
{"float32: true" if mode == "fp32" else "bf16: true"}
""")
P
predicted=$(build/graft plan "$work/bench.yml" --json | python3 -c 'import json, sys; print(json.load(sys.stdin)["predicted_tokens_per_second"])')
build/graft train "$work/bench.yml" >/dev/null 2>"$work/err" || { cat "$work/err"; exit 1; }
python3 - "$work" "$mode" "$predicted" <<'P'
import json, statistics, sys
work, mode, predicted = sys.argv[1:]
log = [json.loads(x) for x in open(f"{work}/out/log.jsonl")]
rates = [x["tokens_per_second"] for x in log if "loss" in x][1:]
run = json.load(open(f"{work}/out/run.json"))
print(json.dumps({"program": "graft", "mode": mode, "backend": run["backend"], "best": max(rates), "median": statistics.median(rates), "predicted": float(predicted),
                  "peak_rss_mib": round(run["memory"]["peak_resident_bytes"] / 2**20), "planned_mib": round(run["memory"]["planned_bytes"] / 2**20)}))
P
if [ -x "${GRAFT_VENV:-build/venv}/bin/python" ] && [ -f bench/peft_step.py ]; then
    "${GRAFT_VENV:-build/venv}/bin/python" bench/peft_step.py --dtype "$mode" --steps "$steps"
else
    echo "PEFT: no venv (bash tests/peers/venv.sh makes one)"
fi
