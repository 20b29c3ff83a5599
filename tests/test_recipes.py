#!/usr/bin/env python3
"""The recipes: each loads, and the numbers in its header and in configs/recipes/README.md are what the command in the
header says now. `test_recipes.py --write` writes both anew. Closes with "N passed, N failed, N skipped". BUILD names the
build folder (default build)."""
import json
import os
import re
import subprocess
import sys

GRAFT = os.environ.get("GRAFT", f"{os.environ.get('BUILD', 'build')}/graft")
FOLDER, README = "configs/recipes/models", "configs/recipes/README.md"
TABLE = re.compile(r"(?:^\|.*\n)+", re.M)  # of the README: the only one
failed = []


def fail(message):
    failed.append(message)
    print(f"FAIL {message}")


def gib(n):
    return f"{n / 2**30:.2f}"


def plan(command):
    r = subprocess.run([GRAFT, *command.split()[1:], "--json"], capture_output=True, text=True, timeout=120)
    if r.returncode:
        raise ValueError(f"exit {r.returncode}: {r.stderr[-400:]}")
    return json.loads(r.stdout)


class Recipe:
    def __init__(self, name):
        self.name, self.path = name, f"{FOLDER}/{name}"
        self.text = open(self.path).read()
        lines = self.text.split("\n")
        self.title = lines[0].lstrip("# ").split(":")[0]
        self.command = lines[1].lstrip("# ").strip()
        m = re.fullmatch(rf"graft plan +{re.escape(self.path)} base_model=configs/shapes/([\w.-]+)\.json threads=8", self.command)
        if not m:
            raise ValueError(f"its second line is no plan from a shape: {lines[1]}")
        if lines[2].split() != ["#", "graft", "train", self.path]:
            raise ValueError(f"its third line does not say how to train it: {lines[2]}")
        self.shape = m.group(1)
        p = plan(self.command)
        self.planned = (f"# Planned from configs/shapes/{self.shape}.json: {p['trainable_parameters']:,} trainable parameters of "
                        f"{p['total_parameters']:,};\n# {gib(p['classes']['base'])} GiB of base and "
                        f"{gib(p['peak_bytes'] - p['classes']['base'])} GiB beside it, {gib(p['peak_bytes'])} GiB in all.\n")
        get = lambda key: re.search(rf"^{key}: *(.+?)(?: #.*)?$", self.text, re.M).group(1)
        where = "all linears" if "lora_target_linear: true" in self.text else get("lora_target_modules").strip("[]").replace(", ", " ")
        packed = p["base_format"].split(",")[0] if "packed" in p["base_bytes"] else None  # as published: FP8, MXFP4
        bits = packed or ("4 bits" if "load_in_4bit: true" in self.text else "16 bits")
        self.row = (f"| {self.title} | [{name}](models/{name}) | {bits} | {get('lora_r')} on {where} | {get('sequence_len')} x {get('micro_batch_size')} "
                    f"| {p['trainable_parameters']:,} | {gib(p['classes']['base'])} | {gib(p['peak_bytes'])} |")

    def header(self):
        return re.search(r"(?:^# .*\n){3}((?:^# .*\n)*)", self.text, re.M).group(1)


def covered(recipes):
    """Every family of the program has a recipe."""
    source = open("model/families.c").read()
    families = [m.split("|") for m in re.findall(r'\.model_types = "([^"]+)"', source)]
    types = set()
    for shape in {r.shape for r in recipes}:
        raw = json.load(open(f"configs/shapes/{shape}.json"))
        types.add(raw.get("text_config", raw)["model_type"])
    for family in families:
        if not types & set(family):
            fail(f"no recipe is of the family {'|'.join(family)}")
    return len(families)


def main():
    write = "--write" in sys.argv
    recipes, passed = [], 0
    for name in sorted(os.listdir(FOLDER)):
        before = len(failed)
        try:
            r = Recipe(name)
            recipes.append(r)
            if write:
                open(r.path, "w").write(r.text.replace(r.header(), r.planned, 1))
            elif r.header() != r.planned:
                fail(f"{r.path}: its header says\n{r.header()}the plan says\n{r.planned}(tests/test_recipes.py --write)")
        except (ValueError, OSError, AttributeError, KeyError, subprocess.TimeoutExpired) as problem:
            fail(f"{FOLDER}/{name}: {problem}")
        passed += len(failed) == before
    text = open(README).read()
    wanted = "\n".join(["| model | recipe | base | adapter | tokens | trainable | base, GiB | peak, GiB |",
                        "| --- | --- | --- | --- | --- | --- | --- | --- |", *(r.row for r in recipes), ""])
    if write:
        open(README, "w").write(TABLE.sub(lambda m: wanted, text))
    elif TABLE.findall(text) != [wanted]:
        fail(f"{README}: its table is not that of the recipes (tests/test_recipes.py --write)")
    if "6,815,744" not in wanted:
        fail("the recipe of rank 16 on q_proj and v_proj of Mistral 7B has not 6,815,744 trainable parameters")
    passed += 2 if covered(recipes) > 20 else 0
    print(f"{passed if not failed else passed - 1} passed, {len(failed)} failed, 0 skipped")
    return bool(failed)


sys.exit(main())
