#!/usr/bin/env python3
"""The table of bench/gpu.sh: FOLDER/*.json -> FOLDER/gpu.json and FOLDER/gpu.md, which is printed, too."""
import datetime
import json
import pathlib
import subprocess
import sys

PARTS = [("llama8b", "Llama-3.1-8B bf16, 2 x 4096"), ("llama8b-packed", "the same, 4 x 2048 packed"),
         ("nf4", "8B NF4, 4 x 2048 packed, decoded each time"), ("nf4-decoded", "the same, decoded copies kept"),
         ("70b", "70B NF4, 1 x 4096"), ("70b-streamed", "the same in 16 GB, streamed"),
         ("moe", "Qwen3-30B-A3B, 12 layers, 2 x 4096"), ("small", "Llama-3.2-1B bf16, 4 x 2048"),
         ("peft-eager", "PEFT eager, 8B bf16, 2 x 4096"), ("peft-compiled", "PEFT compiled, the same")]
CLASSES = {"linear_group": "products", "moe_linear_group": "products", "attention": "attention", "token_logprob": "head",
           "adamw": "optimiser", "grad_norm": "optimiser", "grad_add": "optimiser"}


def driver():
    try:
        r = subprocess.run(["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"], capture_output=True, text=True)
        return r.stdout.strip().split("\n")[0]
    except OSError:
        return "no nvidia-smi"


def cell(d, key, scale=1, form="{:.0f}"):
    return form.format(d[key] / scale) if d.get(key) else ""


def main():
    folder = pathlib.Path(sys.argv[1])
    found = {name: json.loads((folder / f"{name}.json").read_text()) for name, _ in PARTS if (folder / f"{name}.json").exists()}
    lines = [f"{datetime.date.today()}, {driver()}", "",
             "| run | tok/s | p10-p90 s | model TFLOP/s | of the product's rate | held GiB | planned GiB | first step s |", "|---|---|---|---|---|---|---|---|"]
    for name, title in PARTS:
        if name not in found:
            continue
        d = found[name]
        rate = d.get("product_tflops_after", 0)
        share = f"{100 * d['model_tflops'] / rate:.0f} % of {rate:.0f}" if rate else ""
        lines.append(f"| {title} | {d['tokens_per_second']:.0f} | {d['seconds_p10']:.3f}-{d['seconds_p90']:.3f} | {cell(d, 'model_tflops')} | {share} "
                     f"| {cell(d, 'held_bytes', 2**30, '{:.1f}')} | {cell(d, 'planned_bytes', 2**30, '{:.1f}')} | {cell(d, 'seconds_to_first_step', 1, '{:.1f}')} |")
    if "llama8b" in found:
        for mode in ("eager", "compiled"):
            if f"peft-{mode}" in found:
                ratio = found["llama8b"]["tokens_per_second"] / found[f"peft-{mode}"]["tokens_per_second"]
                lines += ["", f"{ratio:.2f} times PEFT {mode} on the same base and tokens"]
    for name, title in PARTS:
        if not found.get(name, {}).get("ops"):
            continue
        shares = {}
        for o in found[name]["ops"]:
            key = f"{CLASSES.get(o['op'], 'passes over rows')}"
            shares[key] = shares.get(key, 0) + o["share"]
        parts = ", ".join(f"{k} {100 * v:.0f} %" for k, v in sorted(shares.items(), key=lambda x: -x[1]))
        lines += ["", f"{title}, every op waited for: {parts}, between ops {100 * found[name]['outside_of_ops']:.0f} %"]
    text = "\n".join(lines) + "\n"
    (folder / "gpu.md").write_text(text)
    (folder / "gpu.json").write_text(json.dumps(found, indent=1))
    print(text)


main()
