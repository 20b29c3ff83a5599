#!/usr/bin/env python3
"""Adapters on routers and experts, trained here, loaded by PEFT: the same log-probabilities, under the names that the installed
transformers has.  Where PEFT loads an adapter and leaves parts of it out, the run has said so before its first step.  Old names
of routers load here.  The bases are the committed tiny ones.

    experts.py [--graft build/graft]
"""
import argparse, json, os, shutil, subprocess, sys, tempfile, warnings

os.environ["CUDA_VISIBLE_DEVICES"] = ""
warnings.filterwarnings("ignore")
import peft
import torch
import transformers
from safetensors.torch import load_file, save_file

transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()
FAMILIES = "tests/fixtures/families"
LIMIT = 2e-5  # of a log-probability
ROWS = [[(7 * i + j) % 90 + 3 for j in range(24)] for i in range(6)]
SAID = "PEFT with transformers 5 will load this adapter without"
EXPERTS = {"lora_target_parameters": ["experts.gate_up_proj", "experts.down_proj"], "lora_target_modules": ["o_proj"]}
MLP = ["gate_proj", "up_proj", "down_proj", "o_proj"]
# Base, keys, does PEFT apply all of it?
CASES = [("mixtral", {"lora_target_parameters": ["mlp.gate.weight"]}, True), ("mixtral", EXPERTS, True),
         ("mixtral", {"lora_target_modules": ["w1", "w2", "w3", "o_proj"]}, True), ("mixtral", {"lora_target_linear": True}, True),
         ("gpt-oss", {"lora_target_parameters": ["mlp.router.weight"], "lora_target_modules": ["q_proj"]}, True), ("gpt-oss", EXPERTS, True),
         ("qwen3-moe", {"lora_target_parameters": ["mlp.gate.weight"]}, True), ("qwen3-moe", EXPERTS, True),
         ("qwen3-moe", {"lora_target_modules": MLP}, True),
         ("granitemoe", {"lora_target_parameters": ["router.weight"]}, True),
         ("phimoe", {"lora_target_parameters": ["mlp.router.weight"]}, True), ("phimoe", EXPERTS, True),
         ("phimoe", {"lora_target_modules": ["w1", "w2", "w3", "o_proj"]}, False),
         ("llama4", {"lora_target_parameters": ["router.weight"]}, True), ("llama4", EXPERTS, True),
         ("qwen2-moe", {"lora_target_parameters": ["mlp.gate.weight"]}, True), ("qwen2-moe", EXPERTS, True),
         ("qwen2-moe", {"lora_target_modules": ["shared_expert.down_proj"]}, True), ("qwen2-moe", {"lora_target_modules": MLP}, False),
         ("deepseek-v3", {"lora_target_parameters": ["mlp.gate.weight"]}, True), ("deepseek-v3", EXPERTS, True),
         ("deepseek-v3", {"lora_target_modules": ["shared_experts.up_proj", "shared_experts.gate_proj", "shared_experts.down_proj"]}, False)]
OLD = {"mixtral": ("mlp.gate", "block_sparse_moe.gate"), "phimoe": ("mlp.router", "block_sparse_moe.gate"),
       "granitemoe": ("block_sparse_moe.router", "block_sparse_moe.router.layer")}


def run(graft, *arguments):
    r = subprocess.run([graft, *arguments], capture_output=True, text=True)
    if r.returncode:
        raise RuntimeError(f"{arguments[0]}: {r.stderr[-300:]}")
    return r.stdout + r.stderr


def train(graft, work, base, keys):
    config = {"base_model": f"{FAMILIES}/{base}", "adapter": "lora", "lora_r": 4, "lora_alpha": 8, "learning_rate": 0.05, "sequence_len": 64,
              "max_steps": 3, "micro_batch_size": 2, "generate_samples": False, "float32": True, "lr_scheduler": "constant",
              "datasets": [{"path": f"{work}/rows.jsonl"}], "output_dir": f"{work}/out", **keys}
    with open(f"{work}/config.json", "w") as f:
        json.dump(config, f)
    shutil.rmtree(f"{work}/out", ignore_errors=True)
    return run(graft, "train", f"{work}/config.json")


def ours(graft, work, adapter):
    run(graft, "eval", f"{work}/config.json", "--adapter", adapter, "--data", f"{work}/rows.jsonl", "--logprobs", f"{work}/lp.jsonl")
    return [x for line in open(f"{work}/lp.jsonl") for x in json.loads(line)["logprobs"][1:]]


def theirs(base, adapter):
    model = transformers.AutoModelForCausalLM.from_pretrained(f"{FAMILIES}/{base}", dtype=torch.float32, attn_implementation="eager").eval()
    if adapter:
        model = peft.PeftModel.from_pretrained(model, adapter)
    out = []
    for ids in ROWS:
        with torch.no_grad():
            p = model(input_ids=torch.tensor([ids])).logits[0].log_softmax(-1)
        out += [p[i, t].item() for i, t in enumerate(ids[1:])]
    return out


def apart(a, b):
    return max(abs(x - y) for x, y in zip(a, b))


def check(graft, work, base, keys, applied):
    said = train(graft, work, base, keys)
    here = ours(graft, work, f"{work}/out")
    there, without = apart(here, theirs(base, f"{work}/out")), apart(here, theirs(base, None))
    if without < 100 * LIMIT:
        return f"the adapter does next to nothing ({without:.1e})"
    if applied != (there < LIMIT):
        return f"PEFT {'is off' if applied else 'agrees, and the table of families says it would not'}: {there:.1e}"
    return None if (SAID in said) != applied else "what the run says of PEFT is wrong"


def old_names(graft, work, base):
    new, old = OLD[base]
    train(graft, work, base, {"lora_target_parameters": [f"{new}.weight"]})
    want = ours(graft, work, f"{work}/out")
    for kind in ("parameter", "module"):
        folder = f"{work}/old"
        shutil.rmtree(folder, ignore_errors=True)
        os.makedirs(folder)
        save_file({k.replace(new, old): v for k, v in load_file(f"{work}/out/adapter_model.safetensors").items()},
                  f"{folder}/adapter_model.safetensors", metadata={"format": "pt"})
        config = json.load(open(f"{work}/out/adapter_config.json"))
        if kind == "parameter":
            config["target_parameters"] = [f"{old}.weight"]
        else:
            del config["target_parameters"]
            config["target_modules"] = [old.split(".")[-1]]
        with open(f"{folder}/adapter_config.json", "w") as f:
            json.dump(config, f)
        if apart(ours(graft, work, folder), want) != 0:
            return f"as a {kind}: another result"
    return None


def main():
    p = argparse.ArgumentParser()
    p.add_argument("--graft", default=os.environ.get("GRAFT", "build/graft"))
    a = p.parse_args()
    print(f"transformers {transformers.__version__}, PEFT {peft.__version__}", flush=True)
    passed = failed = 0
    with tempfile.TemporaryDirectory() as work:
        with open(f"{work}/rows.jsonl", "w") as f:
            f.writelines(json.dumps({"input_ids": ids, "labels": ids}) + "\n" for ids in ROWS)
        jobs = [(f"{base} {keys}", lambda base=base, keys=keys, applied=applied: check(a.graft, work, base, keys, applied))
                for base, keys, applied in CASES]
        jobs += [(f"{base}, old names", lambda base=base: old_names(a.graft, work, base)) for base in OLD]
        for name, job in jobs:
            try:
                problem = job()
            except Exception as e:
                problem = repr(e)[:400]
            passed, failed = passed + (not problem), failed + bool(problem)
            if problem:
                print(f"FAIL {name}: {problem}", flush=True)
    print(f"{passed} passed, {failed} failed, 0 skipped")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
