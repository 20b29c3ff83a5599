#!/usr/bin/env python3
"""What bitsandbytes makes of a base's linears on the CPU, tensor by tensor, beside what `graft quantize` writes; and what
transformers computes with the folder, beside what graft does.

    quantized.py --golden FILE          sums of the committed bases, for tests/test_base_source.c
    quantized.py --graft GRAFT          live: bases made anew with another seed, every tensor equal;
                                        NF4 and FP4 folders loaded by transformers give our logits

Bases are the tiny ones of families.py.  Sums are SHA-256 over the tensors in order of name: the name, a line feed, the
bytes.
"""
import argparse
import hashlib
import json
import os
import random
import subprocess
import sys
import tempfile

os.environ["TORCHDYNAMO_DISABLE"] = "1"
import bitsandbytes.functional as bnb
import torch
from safetensors.torch import load_file

import four_bits

HERE = os.path.dirname(os.path.abspath(__file__))
TYPES = {"nf4": ("nf4", True, ["--to", "nf4"]), "nf4-single": ("nf4", False, ["--to", "nf4", "--no-double-quant"]),
         "fp4": ("fp4", True, ["--to", "fp4"]), "int8": ("int8", False, ["--to", "int8"])}
BASES = ["llama", "llama-old", "phi3", "qwen2", "gemma2", "starcoder2", "qwen3-moe", "deepseek-v3"]
EXPERTS = ["llama4", "granitemoe", "gpt-oss"]  # all experts in one tensor
EXPERT_TYPES = {"nf4-experts": ("nf4", True), "int8-experts": ("int8", False)}
KEPT = ("lm_head", "embed_tokens", "mlp.gate", "norm", "shared_expert_gate", "router", "router.layer")


def packed(stem, w, kind, nested):
    """What bitsandbytes makes of one linear."""
    key = f"{stem}.weight"
    if kind == "int8":
        codes, scb, _ = bnb.int8_vectorwise_quant(w.half())
        return {key: codes, f"{stem}.SCB": scb, f"{stem}.weight_format": torch.tensor(0, dtype=torch.uint8)}
    codes, state = bnb.quantize_4bit(w, blocksize=64, compress_statistics=nested, quant_type=kind)
    return {key: codes} | {f"{key}.{k}": v for k, v in state.as_dict(packed=True).items()}


def expected(folder, kind, nested, experts=False):
    """Every tensor of the base's folder as quantised; `experts`: slices of stacked ones, each as a linear (out, in)."""
    with open(os.path.join(folder, "config.json")) as f:
        turned = json.load(f)["model_type"] != "granitemoe"  # Llama 4 and gpt-oss store (in, out)
    out = {}
    for key, w in load_file(os.path.join(folder, "model.safetensors")).items():
        stem = key.removesuffix(".weight")
        if experts and w.dim() == 3:
            for i, one in enumerate(w.transpose(1, 2) if turned else w):
                out |= packed(f"{stem}.{i}", one.contiguous(), kind, nested)
        elif w.dim() != 2 or stem == key or stem.endswith(KEPT):
            out[key] = w
        else:
            out |= packed(stem, w, kind, nested)
    return out


def sum_of(tensors):
    h = hashlib.sha256()
    for key in sorted(tensors):
        h.update(key.encode() + b"\n")
        h.update(tensors[key].contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return h.hexdigest()


def golden(path):
    families = os.path.join(HERE, "..", "fixtures", "families")
    rows = [{"base": b, "type": t, "sha256": sum_of(expected(os.path.join(families, b), TYPES[t][0], TYPES[t][1]))}
            for b in BASES for t in TYPES]
    rows += [{"base": b, "type": t, "sha256": sum_of(expected(os.path.join(families, b), *EXPERT_TYPES[t], experts=True))}
             for b in EXPERTS for t in EXPERT_TYPES]
    with open(path, "w") as f:
        f.write("[\n" + ",\n".join(json.dumps(r) for r in rows) + "\n]\n")


LOGITS = 1e-4  # of the largest log-probability


def logprobs_of_transformers(folder, rows):
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager", device_map="cpu").eval()
    kinds = {type(m).__name__ for m in model.modules()}
    if "Linear4bit" not in kinds:
        raise RuntimeError(f"loaded without 4-bit linears: {sorted(kinds)}")
    four_bits.in_float32(model)
    with torch.no_grad():
        out = []
        for row in rows:
            logits = torch.log_softmax(model(input_ids=torch.tensor([row])).logits[0].double(), -1)
            out += [float(logits[i - 1, row[i]]) for i in range(1, len(row))]
        return out


def logprobs_of_graft(graft, folder, rows, scratch):
    data, out = os.path.join(scratch, "rows.jsonl"), os.path.join(scratch, "logprobs.jsonl")
    with open(data, "w") as f:
        f.writelines(json.dumps({"input_ids": row, "labels": row, "attention_mask": [1] * len(row)}) + "\n" for row in rows)
    config = {"base_model": folder, "adapter": "lora", "lora_r": 2, "lora_alpha": 4, "lora_target_linear": True, "learning_rate": 1e-3,
              "float32": True, "device": "cpu", "sequence_len": 64, "micro_batch_size": 1, "datasets": [{"path": data}], "val_set_size": 0,
              "output_dir": os.path.join(scratch, "run")}
    with open(os.path.join(scratch, "eval.yml"), "w") as f:
        json.dump(config, f)
    run = subprocess.run([graft, "eval", os.path.join(scratch, "eval.yml"), "--data", data, "--no-generate", "--logprobs", out],
                         capture_output=True, text=True)
    if run.returncode:
        raise RuntimeError(run.stderr.strip())
    return [v for line in open(out) for v in json.loads(line)["logprobs"][1:]]


def same_logits(graft, folder, scratch, seed):
    """None, or what is wrong."""
    rows = torch.randint(3, 90, (3, 20), generator=torch.Generator().manual_seed(seed)).tolist()
    try:
        want, got = logprobs_of_transformers(folder, rows), logprobs_of_graft(graft, folder, rows, scratch)
    except Exception as e:  # whatever transformers makes of the folder
        return f"{type(e).__name__}: {str(e)[:300]}"
    worst = max(abs(a - b) for a, b in zip(want, got)) / max(map(abs, want))
    return None if len(want) == len(got) and worst <= LOGITS else f"log-probabilities are off by {worst:.1e} of the largest"


def live(graft, seed):
    sys.path.insert(0, os.path.join(HERE, "..", "oracle"))
    import families

    print(f"seed {seed}")
    four_bits.decode_as_defined()
    passed = failed = 0
    with tempfile.TemporaryDirectory() as scratch:
        for base in BASES:
            families.make(base, scratch, seed)
            for name, (kind, nested, options) in TYPES.items():
                out = os.path.join(scratch, f"{base}-{name}")
                run = subprocess.run([graft, "quantize", os.path.join(scratch, base), "--out", out, *options], capture_output=True, text=True)
                want = expected(os.path.join(scratch, base), kind, nested)
                got = load_file(os.path.join(out, "model.safetensors")) if run.returncode == 0 else {}
                wrong = [k for k in want.keys() | got.keys() if k not in want or k not in got or want[k].shape != got[k].shape
                         or want[k].dtype != got[k].dtype or not torch.equal(want[k], got[k])]
                passed, failed = passed + (not wrong), failed + bool(wrong)
                # LLM.int8 quantises activations, too, which is not done here.  Experts that are parameters stay as they are in
                # transformers, which then cannot load a file where each is quantised by itself.
                if kind != "int8" and base not in ("qwen3-moe", "deepseek-v3"):
                    problem = same_logits(graft, out, scratch, seed)
                    passed, failed = passed + (not problem), failed + bool(problem)
                    if problem:
                        print(f"FAILED {base} {name}: {problem}")
                if wrong:
                    print(f"FAILED {base} {name}: {len(wrong)} tensors, {wrong[0]}; {run.stderr.strip()}")
    print(f"{passed} passed, {failed} failed")
    return failed


p = argparse.ArgumentParser()
p.add_argument("--golden")
p.add_argument("--graft")
p.add_argument("--seed", type=int, default=random.randrange(10**6))
a = p.parse_args()
if a.golden:
    golden(a.golden)
if a.graft:
    sys.exit(live(a.graft, a.seed) > 0)
