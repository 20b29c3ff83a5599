#!/usr/bin/env python3
"""What bitsandbytes makes of a base's linears on the CPU, tensor by tensor, beside what `graft quantize` writes.

    quantized.py --golden FILE          sums of the committed bases, for tests/test_base_source.c
    quantized.py --graft GRAFT          live: bases made anew with another seed, every tensor equal

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

HERE = os.path.dirname(os.path.abspath(__file__))
TYPES = {"nf4": ("nf4", True, []), "nf4-single": ("nf4", False, ["--no-double-quant"]), "fp4": ("fp4", True, ["--type", "fp4"]),
         "int8": ("int8", False, ["--type", "int8"])}
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


def live(graft, seed):
    sys.path.insert(0, os.path.join(HERE, "..", "oracle"))
    import families

    print(f"seed {seed}")
    passed = failed = 0
    with tempfile.TemporaryDirectory() as scratch:
        for base in BASES:
            families.make(base, scratch, seed)
            for name, (kind, nested, options) in TYPES.items():
                out = os.path.join(scratch, f"{base}-{name}")
                run = subprocess.run([graft, "quantize", os.path.join(scratch, base), out, *options], capture_output=True, text=True)
                want = expected(os.path.join(scratch, base), kind, nested)
                got = load_file(os.path.join(out, "model.safetensors")) if run.returncode == 0 else {}
                wrong = [k for k in want.keys() | got.keys() if k not in want or k not in got or want[k].shape != got[k].shape
                         or want[k].dtype != got[k].dtype or not torch.equal(want[k], got[k])]
                passed, failed = passed + (not wrong), failed + bool(wrong)
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
