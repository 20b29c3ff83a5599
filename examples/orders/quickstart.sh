#!/usr/bin/env bash
# `make quickstart`: the base's answers to 20 held-out mails, an adapter trained on the others, its answers to the same.
set -euo pipefail
cd "$(dirname "$0")/../.."
graft=${BUILD:-build}/graft
config=configs/recipes/quickstart.yml
out=outputs/quickstart
rows=20
begin=$SECONDS
mkdir -p outputs

field() { python3 -c 'import json,sys; print(json.load(open(sys.argv[1]))[sys.argv[2]])' "$1" "$2"; }
percent() { awk -v x="$1" 'BEGIN { printf "%.0f %%", 100 * x }'; }

echo "== the base on $rows held-out mails"
$graft eval $config --rows $rows --answers outputs/before.jsonl --json >outputs/before.json
echo "   valid JSON $(percent "$(field outputs/before.json valid_json)"), exact $(percent "$(field outputs/before.json exact)")"

echo "== training ($($graft plan $config --json | python3 -c '
import json, sys
p = json.load(sys.stdin)
print(p["steps"], "steps,", round(p["peak_bytes"] / 2**20), "MiB")'))"
$graft train $config --overwrite

echo "== the adapter on the same mails"
$graft eval $config --adapter $out --rows $rows --answers outputs/after.jsonl --json >outputs/after.json

python3 - "$rows" <<'P'
import json, sys
before, after = (json.load(open(f"outputs/{x}.json")) for x in ("before", "after"))
print()
print(f"{'on ' + sys.argv[1] + ' held-out mails':28} {'before':>9} {'after':>9}")
for name, key, unit in (("loss", "loss", ""), ("valid JSON", "valid_json", "%"), ("exact match", "exact", "%"), ("equal as JSON", "exact_json", "%")):
    a, b = (f"{100 * x[key]:.0f} %" if unit else f"{x[key]:.3f}" for x in (before, after))
    print(f"{name:28} {a:>9} {b:>9}")
print("\nOne of them:")
a, b = (json.loads(open(f"outputs/{x}.jsonl").readline()) for x in ("before", "after"))
mail = a["rendered"].split("<|im_start|>user\n")[1].split("<|im_end|>")[0]
cut = lambda s: s if len(s) < 400 else s[:400] + " ..."
print("  mail    ", mail.replace("\n", "\n           "))
print("  wanted  ", a["reference"])
print("  before  ", cut(a["answer"]).replace("\n", "\n           "))
print("  after   ", b["answer"])
P
minutes=$(awk -v s=$((SECONDS - begin)) 'BEGIN { printf "%.1f", s / 60 }')
cat <<T

$minutes minutes. In $out:
  adapter_config.json, adapter_model.safetensors   PEFT, vLLM, SGLang
  adapter.gguf                                     llama.cpp, Ollama
  report.html                                      curves, memory, settings
  README.md                                        model card
Try it:    $graft chat --adapter $out
Serve it:  llama-server -m cache/SmolLM2-135M-Instruct.Q4_1.gguf --lora $out/adapter.gguf
T
