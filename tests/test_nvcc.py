#!/usr/bin/env python3
"""Every CUDA kernel compiled by nvcc: no warnings, and what ptxas says of each (registers, shared memory, stack, spills) is
no worse than tests/kernels.txt. Where there is no nvcc, or another version than the table's, that is skipped and counted.

    tests/test_nvcc.py                      sm_90
    tests/test_nvcc.py --targets 80,89,90,100
    tests/test_nvcc.py --golden             write the table again (sm_90)
"""
import concurrent.futures
import glob
import os
import re
import shutil
import subprocess
import sys
import tempfile

TABLE = "tests/kernels.txt"
FLAGS = ["-std=c++20", "-O3", "-fmad=false", "-I.", "-Werror", "all-warnings", "-Xcompiler", "-fPIC,-Wall", "-Xptxas", "-v"]
FIELDS = ("registers", "shared", "stack", "spills")


def nvcc():
    found = shutil.which("nvcc") or "/usr/local/cuda/bin/nvcc"
    if os.path.exists(found):
        return found
    wheels = glob.glob(os.path.join(os.environ.get("GRAFT_VENV", "build/venv"), "lib/python*/site-packages/nvidia/*/bin/nvcc"))
    return wheels[0] if wheels else None


def version(tool):
    return re.search(r"release ([\d.]+)", subprocess.run([tool, "--version"], capture_output=True, text=True).stdout).group(1)


def compile_one(tool, path, target):
    with tempfile.TemporaryDirectory() as work:
        r = subprocess.run([tool, *FLAGS, f"-arch=sm_{target}", "-c", path, "-o", f"{work}/o"], capture_output=True, text=True)
    return path, r.returncode, r.stdout + r.stderr


def kernels(log):
    """{name: {field: number}} of a ptxas log."""
    found, name = {}, None
    for line in log.splitlines():
        m = re.search(r"Compiling entry function '(\S+)'", line)
        if m:
            name = m.group(1)
            found[name] = dict.fromkeys(FIELDS, 0)
        if name is None:
            continue
        m = re.search(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", line)
        if m:
            found[name]["stack"], found[name]["spills"] = int(m.group(1)), int(m.group(2)) + int(m.group(3))
        m = re.search(r"Used (\d+) registers", line)
        if m:
            found[name]["registers"] = int(m.group(1))
            shared = re.search(r"(\d+) bytes smem", line)
            found[name]["shared"] = int(shared.group(1)) if shared else 0
    return found


def readable(names):
    """A kernel's name and template arguments; what it takes is left out, and what tells files of one name apart."""
    out = subprocess.run(["c++filt"], input="\n".join(re.sub(r"_GLOBAL__N__\w*?_cu_[0-9a-f]{8}(?=[a-z])", "_GLOBAL__N_1", n) for n in names),
                         capture_output=True, text=True).stdout.splitlines()
    short = []
    for n in out:
        n = re.sub(r"^void ", "", n).replace("(anonymous namespace)::", "")
        depth, cut = 0, len(n)
        for i, c in enumerate(n):
            depth += (c == "<") - (c == ">" and n[i - 1] != "-")
            if c == "(" and depth == 0:
                cut = i
                break
        short.append(n[:cut])
    return short


def measure(tool, target, problems):
    table = {}
    paths = sorted(glob.glob("kernels/cuda/*.cu"))
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        for path, code, log in pool.map(lambda p: compile_one(tool, p, target), paths):
            if code:
                problems.append(f"{path}, sm_{target}:\n{log[-1500:]}")
                continue
            found = kernels(log)
            for name, numbers in zip(readable(list(found)), found.values()):
                table[f"{os.path.basename(path)} {name}"] = numbers
    return table


def read_table():
    lines = open(TABLE).read().splitlines()
    head = re.search(r"nvcc ([\d.]+), sm_(\d+)", lines[0])
    rows = [line.split("\t") for line in lines[2:]]
    return head.group(1), head.group(2), {r[0]: dict(zip(FIELDS, map(int, r[1:]))) for r in rows}


def write_table(tool, table):
    with open(TABLE, "w") as f:
        f.write(f"# what ptxas says of each kernel: nvcc {version(tool)}, sm_90; made by tests/test_nvcc.py --golden\n")
        f.write("# kernel\t" + "\t".join(FIELDS) + "\n")
        for name in sorted(table):
            f.write(name + "\t" + "\t".join(str(table[name][k]) for k in FIELDS) + "\n")


def judge(table, committed, problems):
    for name, numbers in sorted(table.items()):
        if name not in committed:
            problems.append(f"{name} is not in {TABLE}: tests/test_nvcc.py --golden")
            continue
        for field in FIELDS:
            if numbers[field] > committed[name][field]:
                problems.append(f"{name}: {numbers[field]} {field}, {committed[name][field]} before")
    for name in sorted(set(committed) - set(table)):
        problems.append(f"{name} of {TABLE} is gone: tests/test_nvcc.py --golden")


def main():
    tool, passed, failed, skipped = nvcc(), 0, 0, 0
    targets = sys.argv[sys.argv.index("--targets") + 1].split(",") if "--targets" in sys.argv else ["90"]
    if not tool:
        print("skip: nvcc is not there\n0 passed, 0 failed, 1 skipped")
        return 0
    for target in targets:
        problems = []
        table = measure(tool, target, problems)
        if "--golden" in sys.argv and not problems:
            write_table(tool, table)
        made_by, made_for, committed = read_table()
        same = made_by == version(tool) and made_for == target
        if same:
            judge(table, committed, problems)
        for problem in problems:
            print(f"    {problem}")
        spills = sum(k["spills"] for k in table.values())
        print(f"{'FAIL' if problems else 'ok  '} sm_{target}: {len(table)} kernels, {spills} bytes of spills")
        failed += bool(problems)
        passed += not problems
        if not same and target == made_for:
            print(f"skip: the table is of nvcc {made_by}, this is {version(tool)}")
            skipped += 1
    print(f"{passed} passed, {failed} failed, {skipped} skipped")
    return 1 if failed else 0


sys.exit(main())
