#!/usr/bin/env python3
"""Every model family beside transformers and PEFT, with other tiny models in each run: logits, loss and adapter gradients, from the
folder that transformers wrote (also in shards), from the GGUF that llama.cpp's converter makes of it (also in parts), and
adapter.gguf beside what llama.cpp's converter makes of the PEFT folder.

    families.py --dump build/tests/peers/families_dump --llama-cpp FOLDER [--seed N] [--keep FOLDER]
"""
import argparse, glob, json, os, shutil, subprocess, sys, tempfile

HERE = os.path.dirname(os.path.abspath(__file__))
ORACLE = os.path.join(HERE, "../oracle")
sys.path.insert(0, ORACLE)
import families
import gguf
import numpy as np
from transformers import AutoModelForCausalLM

BOUND, WIDE = 1e-4, 5e-4  # relative to the largest; wide: mixtures of experts, latent attention
SHARDED, IN_PARTS = "llama3", "qwen3-moe"
# llama.cpp's converter of adapters fails on these: parameters instead of modules (formats of PEFT it does not know), or a class it
# cannot build without a tokenizer.
NO_LORA = ["ministral3", "mixtral-modules"]


class Count:
    passed = failed = skipped = 0

    def check(self, what, problem):
        if problem:
            self.failed += 1
            print(f"FAIL {what}: {problem}")
        else:
            self.passed += 1


def python(*arguments):
    done = subprocess.run([sys.executable, *arguments], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if done.returncode:
        sys.exit(f"{arguments[0]} failed:\n{done.stdout[-3000:]}")
    return done.stdout


def bound_of(name):
    experts = families.CASES[name][3].get("parameters") or "moe" in name or "mixtral" in name or "deepseek" in name or "llama4" in name
    return WIDE if experts else BOUND


def compare(c, dump, out, base, folders, worst):
    """families_dump over the folders; base None: the folder itself."""
    scratch = os.path.join(out, "scratch")
    os.makedirs(scratch, exist_ok=True)
    command = [dump, scratch] + (["--base", base] if base else []) + [os.path.join(out, f) for f in folders]
    lines = subprocess.run(command, stdout=subprocess.PIPE, text=True).stdout.splitlines()
    if len(lines) != len(folders):
        c.check("families_dump", f"{len(lines)} answers for {len(folders)} folders")
    for line in lines:
        d = json.loads(line)
        name = os.path.basename(d["folder"])
        what = f"{name}, {base or 'folder'}"
        if "error" in d:
            c.check(what, d["error"])
            continue
        limit = bound_of(name.split("+")[0])
        c.check(what + ", logits", None if d["logits"] <= limit else f"off by {d['logits']}")
        c.check(what + ", loss", None if d["loss"] <= limit else f"off by {d['loss']}")
        c.check(what + ", gradients", None if d["gradient"] <= limit and d["gradients"] > 0 else f"{d['worst']} is off by {d['gradient']}")
        for key in worst:
            worst[key] = max(worst[key], d[key])


def beside(out, name, more):
    """A folder for the same model in another form: with its adapter and expectations."""
    folder = os.path.join(out, f"{name}+{more}")
    shutil.copytree(os.path.join(out, name, "adapter"), os.path.join(folder, "adapter"))
    shutil.copy(os.path.join(out, name, "expected.safetensors"), folder)
    return folder


def tensors(path):
    return {t.name: np.array(t.data) for t in gguf.GGUFReader(path).tensors}


def compare_adapters(c, a, out, names):
    """Our adapter.gguf and llama.cpp's of the same PEFT folder: the same tensors, bit by bit."""
    theirs = json.loads(python(os.path.join(HERE, "lora_gguf.py"), a.llama_cpp, out, *names).splitlines()[-1])
    for name in names:
        folder = os.path.join(out, name)
        ours = os.path.join(folder, "ours.gguf")
        done = subprocess.run([a.graft, "export", os.path.join(folder, "adapter"), "--to", "gguf", "--base", folder, "--out", ours],
                              stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        if done.returncode or theirs[name]:
            c.check(f"{name}, adapter.gguf", done.stderr.strip() or f"llama.cpp's converter: {theirs[name]}")
            continue
        got, want = tensors(ours), tensors(os.path.join(folder, "theirs.gguf"))
        bad = sorted(set(got) ^ set(want)) or [k for k in want if not np.array_equal(got[k], want[k])]
        c.check(f"{name}, adapter.gguf", f"{len(bad)} of {len(want)} tensors differ: {bad[0]}" if bad else None)


def plain_adapter(name):
    """Has it modules alone that both write?"""
    options = families.CASES[name][3]
    return not ("parameters" in options or "deepseek" in name or name in NO_LORA or "packed" in options)


def run(a, c, out, seed):
    python(os.path.join(ORACLE, "families.py"), out, "--seed", str(seed))
    sharded = beside(out, SHARDED, "shards")
    AutoModelForCausalLM.from_pretrained(os.path.join(out, SHARDED), dtype="bfloat16").save_pretrained(sharded, max_shard_size="20KB")
    c.check("shards", None if len(glob.glob(sharded + "/model-0*.safetensors")) > 2 else "there are not several")
    names = list(families.CASES)
    worst = {"logits": 0, "loss": 0, "gradient": 0}
    compare(c, a.dump, out, None, names + [os.path.basename(sharded)], worst)
    made = [n for n in names if n not in families.LACKS]
    convert = os.path.join(ORACLE, "gguf_families.py")
    python(convert, a.llama_cpp, out, *made)
    compare(c, a.dump, out, "model.gguf", made, worst)
    parts = beside(out, IN_PARTS, "parts")
    for file in ("config.json", "model.safetensors"):
        shutil.copy(os.path.join(out, IN_PARTS, file), parts)
    python(convert, "--parts", "9", a.llama_cpp, out, os.path.basename(parts))
    first = sorted(glob.glob(parts + "/model-00001-of-*.gguf"))
    if len(first) == 1:
        compare(c, a.dump, out, os.path.basename(first[0]), [os.path.basename(parts)], worst)
    else:
        c.check("parts", "no model-00001-of-*.gguf")
    compare_adapters(c, a, out, [n for n in made if plain_adapter(n)])
    print(f"{len(names)} models, {len(made)} of them also as GGUF; largest differences: " +
          ", ".join(f"{k} {v:.1e}" for k, v in worst.items()))


def main():
    p = argparse.ArgumentParser()
    p.add_argument("--dump", required=True)
    p.add_argument("--llama-cpp", required=True)
    p.add_argument("--graft", default=os.environ.get("GRAFT", "build/graft"))
    p.add_argument("--seed", type=int, default=int.from_bytes(os.urandom(3), "little"))
    p.add_argument("--keep", help="a new folder for the models, which is kept")
    a = p.parse_args()
    print(f"seed {a.seed}, transformers {families.transformers.__version__}", flush=True)
    c = Count()
    with tempfile.TemporaryDirectory() as scratch:
        run(a, c, a.keep or scratch, a.seed)
    print(f"{c.passed} passed, {c.failed} failed, {c.skipped} skipped")
    return 1 if c.failed else 0


if __name__ == "__main__":
    sys.exit(main())
