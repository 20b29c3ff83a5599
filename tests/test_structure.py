#!/usr/bin/env python3
"""The shape of the tree: include directions, sizes, names, formatting, leftovers. Closes with "N passed, N failed, N
skipped"."""
import os
import re
import shutil
import subprocess
import sys

ARROWS = {  # folder -> what it may include
    "kernels": set(),
    "autograd": {"kernels"},
    "data": {"kernels/base.h", "kernels/random.h", "kernels/hash.h"},
    "configs": {"data/json.h", "kernels/base.h"},
    "model": {"autograd", "data", "kernels"},
    "adapters": {"model", "autograd", "data", "kernels"},
    "train": {"configs", "adapters", "model", "data", "autograd", "kernels"},
}
PARTS = {"kernels/error.h", "kernels/alloc.h", "kernels/text.h", "kernels/file.h", "kernels/clock.h"}  # = kernels/base.h
FILE_LINES, FUNCTION_LINES, TABLE_LINES, HEADER_PROTOTYPES, MAKEFILE_LINES = 800, 120, 200, 40, 130
failures = []


def fail(message):
    failures.append(message)


def sources(*folders):
    for folder in folders or ARROWS:
        for root, _, names in os.walk(folder):
            for name in sorted(names):
                if name.endswith((".c", ".h", ".cu", ".cuh", ".cpp")):
                    yield os.path.join(root, name)


def include_direction():
    for path in sources():
        own = path.split("/")[0]
        for number, line in enumerate(open(path), 1):
            m = re.match(r'#include "([^"]+)"', line)
            if not m:
                continue
            target = m.group(1)
            folder = target.split("/")[0]
            if not os.path.exists(target):
                fail(f"{path}:{number}: {target} is not written from the root")
            elif folder != own and folder not in ARROWS[own] and target not in ARROWS[own]:
                if not (target in PARTS and "kernels/base.h" in ARROWS[own]):
                    fail(f"{path}:{number}: {own} must not include {target}")
    cuda = [p for p in sources("autograd", "data", "configs", "model", "adapters", "train") if "CUDA" in open(p).read()]
    for path in cuda:
        if re.search(r"#\s*if.*CUDA", open(path).read()):
            fail(f"{path}: #ifdef CUDA above kernels/")


def sizes():
    for path in list(sources()) + list(sources("tests", "bench")):
        lines = open(path).read().split("\n")
        if len(lines) > FILE_LINES + 1:
            fail(f"{path}: {len(lines)} lines, at most {FILE_LINES}")
        start = None
        for i, line in enumerate(lines):
            if line.endswith("{") and line[:1].isalpha() and "(" in line and not line.startswith(("struct", "enum", "union")):
                start = i
            elif line.endswith("{") and line.startswith(" ") and start is None and i and lines[i - 1][:1].isalpha() and "(" in lines[i - 1]:
                start = i - 1
            elif line == "}" and start is not None:
                if i - start > FUNCTION_LINES:
                    fail(f"{path}:{start + 1}: a function of {i - start} lines, at most {FUNCTION_LINES}")
                start = None
    for path in sources():
        if path.endswith(".h"):
            prototypes = len(re.findall(r"^\w[\w \*]*\([^;{]*\);", open(path).read(), re.M))
            if prototypes > HEADER_PROTOTYPES:
                fail(f"{path}: {prototypes} prototypes, at most {HEADER_PROTOTYPES}")
    if len(open("Makefile").readlines()) > MAKEFILE_LINES:
        fail(f"Makefile: more than {MAKEFILE_LINES} lines")


def names():
    seen = {}
    for path in sources():
        name = os.path.basename(path)
        if name in seen:
            fail(f"{path}: the name is taken by {seen[name]}")
        seen[name] = path
        if re.match(r"(utils?|helpers?|misc|common)\.", name):
            fail(f"{path}: say what it is")
        text = open(path).read()
        if path.endswith(".h") and "#pragma once" not in text:
            fail(f"{path}: no #pragma once")
        if not text.startswith("//"):
            fail(f"{path}: does not begin with what it is")
        for word in re.findall(r"\b(?:TODO|FIXME|XXX|not implemented)\b", text):
            fail(f"{path}: {word}")


def one_file_each():
    """Allocation, files and time are called in one file each; no shell anywhere."""
    rules = [(r"\b(malloc|calloc|realloc|aligned_alloc|free|mmap)\(", {"kernels/alloc.c", "kernels/file.c"}),
             (r"\b(fopen|open|openat|creat|rename|unlink|mkdir|fsync|opendir)\(", {"kernels/file.c"}),
             (r"\b(clock_gettime|gettimeofday|time)\(", {"kernels/clock.c"}),
             (r"\b(system|popen|exec[lv]p?e?)\(", set())]
    for path in sources():
        if path.endswith(".h"):
            continue
        text = re.sub(r"//.*|\"(\\.|[^\"\\])*\"", "", open(path).read())
        for pattern, allowed in rules:
            for m in re.finditer(pattern, text):
                before = text[max(0, m.start() - 2):m.start()]
                if path not in allowed and not path.startswith("kernels/file") and not before.endswith((".", ">")):
                    fail(f"{path}: calls {m.group(1)}")


def formatted():
    tool = shutil.which("clang-format-14") or shutil.which("clang-format")
    if not tool or " 14." not in subprocess.run([tool, "--version"], capture_output=True, text=True).stdout:
        return "clang-format 14 is not there"
    files = list(sources()) + list(sources("tests", "bench"))
    r = subprocess.run([tool, "--dry-run", "-Werror", *files], capture_output=True, text=True)
    if r.returncode:
        bad = sorted({line.split(":")[0] for line in r.stderr.splitlines() if "error:" in line})
        fail("not formatted (make format): " + " ".join(bad))


def documents():
    for path in ("README.md", "docs/tour.md", "docs/decisions.md", "docs/pitfalls.md", "docs/config.md", "docs/model.md", "bench/README.md"):
        if not os.path.exists(path):
            fail(f"{path} is missing")
    tracked = subprocess.run(["git", "ls-files", "*.md"], capture_output=True, text=True).stdout.split()
    for path in tracked:
        inside = False
        for number, line in enumerate(open(path), 1):
            inside ^= line.startswith("```")
            if re.fullmatch(r"[A-Z_]{3,}|.*\b(TODO|FIXME|XXX)\b.*|<!--.*-->", line.strip()) or re.search(r"\| [A-Z]+_[A-Z]+ \|", line):
                if not inside:
                    fail(f"{path}:{number}: a place left to be filled: {line.strip()[:60]}")
        for name in re.findall(r"\]\(([^)#:]+)\)", open(path).read()):
            if not os.path.exists(os.path.join(os.path.dirname(path), name)):
                fail(f"{path}: {name} is not there")
    graft = os.environ.get("BUILD", "build") + "/graft"
    if os.path.exists(graft):
        now = subprocess.run([graft, "help", "--markdown"], capture_output=True, text=True).stdout
        if now != open("docs/config.md").read():
            fail("docs/config.md is not what `graft help --markdown` prints (make config-docs)")


def examples():
    r = subprocess.run([sys.executable, "examples/orders/generate.py", "--check"], capture_output=True, text=True)
    if r.returncode:
        fail("examples/orders: generate.py --check: " + (r.stderr or r.stdout)[-300:])


def main():
    passed = failed = skipped = 0
    for check in (include_direction, sizes, names, one_file_each, formatted, documents, examples):
        failures.clear()
        skip = check()
        for message in failures:
            print("    " + message)
        if skip:
            print("    skipped: " + skip)
            skipped += 1
        elif failures:
            failed += 1
        else:
            passed += 1
        print(("skip" if skip else "FAIL" if failures else "ok  ") + " " + check.__name__)
    print(f"{passed} passed, {failed} failed, {skipped} skipped")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
