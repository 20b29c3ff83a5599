#!/usr/bin/env python3
"""`graft export --to merged` of safetensors bases: transformers loads the folder, alone, and computes the logits that
transformers and PEFT gave for the base with the adapter.

    merged.py --graft GRAFT [--seed N]

Tiny models of tests/oracle/families.py, made anew, their numbers as float32 (so that merging rounds nothing) and in shards; and as they
are, in bf16, where the merged numbers are those that torch rounds.
"""
import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.join(HERE, "../oracle"))
import families
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText

import peer

LOGITS = 1e-4  # of the largest
# Fixtures whose files have names that this transformers does not read itself (a model's own code, an old layout).
OTHER_NAMES = [n for n, c in families.CASES.items() if "rename" in c[3]]


def widen(source, target, shards):
    """The same base with float32 numbers, in some files."""
    os.makedirs(target)
    config = json.load(open(os.path.join(source, "config.json")))
    for c in (config, config.get("text_config") or {}):
        for key in ("dtype", "torch_dtype"):
            if key in c:
                c[key] = "float32"
    json.dump(config, open(os.path.join(target, "config.json"), "w"))
    tensors = {k: v.float() if v.dtype == torch.bfloat16 else v for k, v in load_file(os.path.join(source, "model.safetensors")).items()}
    names = sorted(tensors)
    files = {}
    for i in range(shards):
        file = f"model-{i + 1:05d}-of-{shards:05d}.safetensors" if shards > 1 else "model.safetensors"
        part = names[i::shards]
        save_file({k: tensors[k].contiguous() for k in part}, os.path.join(target, file), metadata={"format": "pt"})
        files |= dict.fromkeys(part, file)
    if shards > 1:
        size = sum(t.numel() * t.element_size() for t in tensors.values())
        json.dump({"metadata": {"total_size": size}, "weight_map": files}, open(os.path.join(target, "model.safetensors.index.json"), "w"))


def merge(graft, base, adapter, out):
    done = subprocess.run([graft, "export", adapter, "--to", "merged", "--base", base, "--out", out], capture_output=True, text=True)
    return None if done.returncode == 0 else done.stderr.strip()


def largest_difference(folder, merged, name):
    kind = AutoModelForImageTextToText if "vision_config" in families.CASES[name][1] else AutoModelForCausalLM
    model = kind.from_pretrained(merged, attn_implementation="eager", dtype=torch.float32).eval()
    expected = load_file(os.path.join(folder, "expected.safetensors"))
    worst = largest = 0.0
    with torch.no_grad():
        for i in range(8):
            if f"row{i}.ids" not in expected:
                break
            want = expected[f"row{i}.logits"]
            got = model(input_ids=expected[f"row{i}.ids"].long()[None]).logits[0].float()
            worst, largest = max(worst, (got - want).abs().max().item()), max(largest, want.abs().max().item())
    return worst / largest


def check_bf16(c, graft, folder, scratch):
    """Of a llama in bf16: every merged tensor is what torch makes of W + scale B A, rounded once."""
    merged = os.path.join(scratch, "rounded")
    problem = merge(graft, folder, os.path.join(folder, "adapter"), merged)
    if problem:
        return c.check("llama in bf16", False, problem)
    base, got = (load_file(os.path.join(f, "model.safetensors")) for f in (folder, merged))
    adapter = load_file(os.path.join(folder, "adapter", "adapter_model.safetensors"))
    config = json.load(open(os.path.join(folder, "adapter", "adapter_config.json")))
    off = total = 0
    for name, w in base.items():
        stem = "base_model.model." + name.removesuffix(".weight")
        want = w
        if stem + ".lora_A.weight" in adapter:
            a, b = adapter[stem + ".lora_A.weight"].double(), adapter[stem + ".lora_B.weight"].double()
            want = (w.double() + config["lora_alpha"] / config["r"] * b @ a).to(torch.bfloat16)
        off += int((got[name] != want).sum())  # a sum in float32 may fall on the other side of a half
        total += w.numel()
    same = set(base) == set(got) and all(got[k].dtype == base[k].dtype for k in base)
    c.check("llama in bf16: every number as torch rounds it", same and off <= total / 2000, f"{off} of {total} differ")


def main():
    p = argparse.ArgumentParser()
    p.add_argument("--graft", default=peer.GRAFT)
    p.add_argument("--seed", type=int, default=int.from_bytes(os.urandom(3), "little"))
    a = p.parse_args()
    print(f"seed {a.seed}", flush=True)
    c = peer.Checks()
    refused = 0
    with tempfile.TemporaryDirectory() as scratch:
        subprocess.run([sys.executable, os.path.join(HERE, "../oracle/families.py"), scratch, "--seed", str(a.seed)], check=True, capture_output=True)
        check_bf16(c, a.graft, os.path.join(scratch, "llama"), scratch)
        for i, name in enumerate(n for n in families.CASES if n not in OTHER_NAMES):
            folder, base, merged = (os.path.join(scratch, n) for n in (name, "base", "merged"))
            options = families.CASES[name][3]
            widen(folder, base, 1 + i % 3)
            problem = merge(a.graft, base, os.path.join(folder, "adapter"), merged)
            if problem:
                meant = "packing" in options and "is packed" in problem or "lora" in options and ("one matrix" in problem or "trained bias" in problem)
                c.check(f"{name} is refused by name", meant, problem[-200:])
                refused += 1
            else:
                d = largest_difference(folder, merged, name)
                c.check(f"{name}: merged, in transformers", d <= LOGITS, f"off by {d:.1e} of the largest")
            for f in (base, merged):
                shutil.rmtree(f, ignore_errors=True)
        # A planted error: an adapter of another strength is noticed.
        folder, base, merged, other = (os.path.join(scratch, n) for n in ("llama", "base", "merged", "other"))
        shutil.copytree(os.path.join(folder, "adapter"), other)
        path = os.path.join(other, "adapter_config.json")
        config = json.load(open(path))
        json.dump(config | {"lora_alpha": config["lora_alpha"] * 2}, open(path, "w"))
        widen(folder, base, 1)
        problem = merge(a.graft, base, other, merged)
        c.must_fail("alpha doubled", problem is None and largest_difference(folder, merged, "llama") <= LOGITS)
    c.check("some adapters cannot be merged", refused > 5, f"{refused}")
    return c.close()


if __name__ == "__main__":
    sys.exit(main())
