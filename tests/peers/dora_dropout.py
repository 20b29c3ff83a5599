"""DoRA with dropout, live against PEFT: its dropout layers draw our masks (Philox by seed, step, module, row, token, element), then
loss and gradient norm of three steps must be the same."""
import json
import math
import os
import subprocess
import tempfile
import warnings

os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")
warnings.filterwarnings("ignore")
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

BASE = "tests/fixtures/families/lora-dora"
MODULES = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]  # of the only layer, by number
P, SEED, STEPS, TOLERANCE = 0.25, 11, 3, 1e-5
LOW = 0xFFFFFFFF
CONFIG = f"""base_model: {BASE}
adapter: lora
lora_model_dir: {BASE}/adapter
peft_use_dora: true
lora_dropout: {P}
datasets:
  - path: FOLDER/rows.jsonl
sequence_len: 64
micro_batch_size: 2
max_steps: {STEPS}
learning_rate: 0.0
lr_scheduler: constant
shuffle_merged_datasets: false
float32: true
seed: {SEED}
output_dir: FOLDER/out
"""


def philox(step, module, row, token, element):
    k0, k1 = SEED & LOW, (SEED >> 32) ^ (step * 0x9E3779B1 & LOW)
    c = [element // 4, token, row, 2 << 24 | module]
    for _ in range(10):
        a, b = 0xD2511F53 * c[0], 0xCD9E8D57 * c[2]
        c = [(b >> 32) ^ c[1] ^ k0, b & LOW, (a >> 32) ^ c[3] ^ k1, a & LOW]
        k0, k1 = k0 + 0x9E3779B9 & LOW, k1 + 0xBB67AE85 & LOW
    return c


class Dropout(torch.nn.Module):
    step = row = 0

    def __init__(self, module):
        super().__init__()
        self.module = module

    def forward(self, x):
        mask = torch.zeros(x.shape[-2:])
        for t in range(mask.shape[0]):
            for e in range(0, mask.shape[1], 4):
                for i, bits in enumerate(philox(Dropout.step, self.module, Dropout.row, t, e)[: mask.shape[1] - e]):
                    mask[t, e + i] = 0 if (bits >> 8) / 2**24 < P else 1 / (1 - P)
        return x * mask


def main():
    saved = load_file(f"{BASE}/expected.safetensors")
    rows = [(saved[f"row{i}.ids"].long(), saved[f"row{i}.labels"].long()) for i in range(2)]
    with tempfile.TemporaryDirectory() as folder:
        with open(f"{folder}/rows.jsonl", "w") as f:
            for ids, labels in rows:
                f.write(json.dumps({"input_ids": ids.tolist(), "labels": labels.tolist()}) + "\n")
        with open(f"{folder}/config.yml", "w") as f:
            f.write(CONFIG.replace("FOLDER", folder))
        subprocess.run(["build/graft", "train", f"{folder}/config.yml"], check=True, capture_output=True)
        with open(f"{folder}/out/log.jsonl") as f:
            ours = [x for x in map(json.loads, f) if "grad_norm" in x]
    base = AutoModelForCausalLM.from_pretrained(BASE, dtype=torch.float32, attn_implementation="eager")
    model = PeftModel.from_pretrained(base, f"{BASE}/adapter", is_trainable=True).train()
    for name, module in model.named_modules():
        if hasattr(module, "lora_dropout"):
            module.lora_dropout["default"] = Dropout(MODULES.index(name.rsplit(".", 1)[-1]))
    trained = sum(int((labels[1:] != -100).sum()) for _, labels in rows)
    failed = 0
    for Dropout.step in range(STEPS):
        model.zero_grad()
        total = 0
        for Dropout.row, (ids, labels) in enumerate(rows):
            logits = model(input_ids=ids[None]).logits[0]
            total = total + torch.nn.functional.cross_entropy(logits[:-1], labels[1:], ignore_index=-100, reduction="sum") / trained
        total.backward()
        norm = math.sqrt(sum(float((p.grad**2).sum()) for p in model.parameters() if p.requires_grad))
        mine = ours[Dropout.step]
        good = abs(mine["loss"] - total.item()) < TOLERANCE * total.item() and abs(mine["grad_norm"] - norm) < TOLERANCE * norm
        failed += not good
        print(f"{'ok  ' if good else 'FAIL'} step {Dropout.step}: loss {mine['loss']:.6f}, PEFT {total.item():.6f}; "
              f"gradient {mine['grad_norm']:.6f}, PEFT {norm:.6f}")
    print(f"{STEPS - failed} passed, {failed} failed, 0 skipped")
    return failed > 0


if __name__ == "__main__":
    raise SystemExit(main())
