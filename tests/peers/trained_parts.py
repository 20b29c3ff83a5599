"""What is trained beside A and B, live against PEFT: all biases, DoRA on the head. Three steps of AdamW from the same adapter must end at the
same numbers, under the same names, and PEFT's count of what is trained must be the plan's."""
import json
import os
import subprocess
import tempfile
import warnings

os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")
warnings.filterwarnings("ignore")
import torch
from peft import PeftModel, get_peft_model_state_dict
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

FAMILIES = "tests/fixtures/families"
CASES = {
    "lora-biases": "peft_bias: all",
    "lora-biases-gpt-oss": "peft_bias: all",
    "lora-biases-phimoe": "peft_bias: all",
    "lora-dora-head": "peft_use_dora: true",
    "lora-dora-head-tied": "peft_use_dora: true",
    "lora-dora-head-bias": "peft_use_dora: true\npeft_bias: lora_only",
}
STEPS, RATE, DECAY, TOLERANCE = 3, 0.01, 0.1, 2e-4
CONFIG = f"""base_model: BASE
adapter: lora
lora_model_dir: BASE/adapter
KEYS
datasets:
  - path: FOLDER/rows.jsonl
sequence_len: 64
micro_batch_size: 2
max_steps: {STEPS}
learning_rate: {RATE}
weight_decay: {DECAY}
max_grad_norm: 0.0
lr_scheduler: constant
shuffle_merged_datasets: false
float32: true
output_dir: FOLDER/out
"""


def ours(base, keys, rows, folder):
    with open(f"{folder}/rows.jsonl", "w") as f:
        for ids, labels in rows:
            f.write(json.dumps({"input_ids": ids.tolist(), "labels": labels.tolist()}) + "\n")
    path = f"{folder}/config.yml"
    with open(path, "w") as f:
        f.write(CONFIG.replace("BASE", base).replace("KEYS", keys).replace("FOLDER", folder))
    graft = os.path.join(os.environ.get("BUILD", "build"), "graft")
    plan = json.loads(subprocess.run([graft, "plan", path, "--json"], check=True, capture_output=True).stdout)
    subprocess.run([graft, "train", path], check=True, capture_output=True)
    return plan["trainable_parameters"], load_file(f"{folder}/out/adapter_model.safetensors")


def theirs(base, rows):
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32, attn_implementation="eager")
    model = PeftModel.from_pretrained(model, f"{base}/adapter", is_trainable=True).eval()  # phimoe's routers are noisy in training
    groups = [{"params": [], "weight_decay": DECAY}, {"params": [], "weight_decay": 0.0}]
    for name, p in model.named_parameters():
        if p.requires_grad:
            groups[name.endswith("bias")]["params"].append(p)
    optimizer = torch.optim.AdamW(groups, lr=RATE, betas=(0.9, 0.999), eps=1e-8)
    trained = sum(int((labels[1:] != -100).sum()) for _, labels in rows)
    for _ in range(STEPS):
        optimizer.zero_grad()
        for ids, labels in rows:
            logits = model(input_ids=ids[None]).logits[0]
            loss = torch.nn.functional.cross_entropy(logits[:-1], labels[1:], ignore_index=-100, reduction="sum") / trained
            loss.backward()
        optimizer.step()
    copies = (".base_layer.weight", ".original_module.bias", ".modules_to_save.bias")
    saved = {k: v.detach() for k, v in get_peft_model_state_dict(model).items() if not k.endswith(copies)}
    return sum(p.numel() for p in model.parameters() if p.requires_grad), saved


def main():
    failed = 0
    for name, keys in CASES.items():
        base = f"{FAMILIES}/{name}"
        start = load_file(f"{base}/adapter/adapter_model.safetensors")
        expected = load_file(f"{base}/expected.safetensors")
        rows = [(expected[f"row{i}.ids"].long(), expected[f"row{i}.labels"].long()) for i in range(2)]
        with tempfile.TemporaryDirectory() as folder:
            count, mine = ours(base, keys, rows, folder)
        wanted, other = theirs(base, rows)
        off = max((float((mine[k] - v).abs().max()) for k, v in other.items() if k in mine), default=9)
        still = [k for k, v in mine.items() if torch.equal(v, start[k])]
        good = set(mine) == set(other) and count == wanted and off < TOLERANCE and not still
        failed += not good
        print(f"{'ok  ' if good else 'FAIL'} {name}: {len(mine)} tensors, PEFT {len(other)}; {count} trained, PEFT {wanted}; "
              f"after {STEPS} steps off by {off:.2g}{'; not trained: ' + ', '.join(still) if still else ''}")
    print(f"{len(CASES) - failed} passed, {failed} failed, 0 skipped")
    return failed > 0


if __name__ == "__main__":
    raise SystemExit(main())
