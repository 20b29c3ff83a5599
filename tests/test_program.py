#!/usr/bin/env python3
"""The program as a user runs it, on a tiny model: bad input, interruption, resume, same bytes. Closes with
"N passed, N failed, N skipped". BUILD names the build folder (default build), GRAFT another binary (a sanitizer build)."""
import hashlib
import json
import os
import pty
import random
import re
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import time

BUILD = os.environ.get("BUILD", "build")
GRAFT = os.environ.get("GRAFT", f"{BUILD}/graft")
REAL_CONFIG = "configs/recipes/quickstart.yml"
REAL = "cache/SmolLM2-135M-Instruct.Q4_1.gguf"
NUMERIC = 79
work = tempfile.mkdtemp(prefix="graft-program-")
cases = []


def case(function):
    cases.append(function)
    return function


class Failed(Exception):
    pass


class Skipped(Exception):
    pass


def check(condition, message):
    if not condition:
        raise Failed(message)


def graft(*args, env=None, timeout=300, binary=GRAFT):
    return subprocess.run([binary, *map(str, args)], capture_output=True, text=True, timeout=timeout, errors="replace",
                          env={**os.environ, **(env or {})})


def expect(code, *words, args, env=None):
    """Runs and wants this exit code and one clear message that holds all words; no crash, no sanitizer report."""
    r = graft(*args, env=env)
    check(r.returncode == code, f"{args}: exit {r.returncode}, wanted {code}: {r.stderr[-600:]}")
    check("Sanitizer" not in r.stderr and "runtime error" not in r.stderr, r.stderr[-2000:])
    if code:
        check(r.stderr.splitlines()[-1].startswith("graft: "), f"{args}: no message: {r.stderr[-300:]}")
    for word in words:
        check(word in r.stderr, f"{args}: the message lacks {word!r}: {r.stderr[-600:]}")
    return r


def tiny(name, *layers):
    folder = os.path.join(work, name)
    subprocess.run([f"{BUILD}/tests/make_tiny", folder, *map(str, layers)], check=True)
    return folder


def sha(path):
    with open(path, "rb") as f:
        return hashlib.sha256(f.read()).hexdigest()


def adapter(folder):
    return sha(f"{folder}/adapter_model.safetensors") + sha(f"{folder}/adapter.gguf")


def train(folder, *args, env=None, out="out"):
    r = graft("train", f"{folder}/config.yml", f"output_dir={folder}/{out}", *args, env=env)
    check(r.returncode == 0, f"train {args}: exit {r.returncode}: {r.stderr[-800:]}")
    return f"{folder}/{out}"


def log(folder):
    with open(f"{folder}/log.jsonl") as f:
        return [json.loads(line) for line in f]


# --- bad input

@case
def wrong_command_lines():
    expect(64, "not a command", args=["trian"])
    expect(64, "not in this version", args=["publish", "x"])
    expect(64, "unknown option", args=["plan", "--jsn", "x"])
    expect(64, "which configuration", args=["train"])
    expect(66, "nothing.yml", args=["train", f"{work}/nothing.yml"])


@case
def wrong_configurations():
    t = tiny("config")
    c = f"{t}/config.yml"
    expect(78, "lora_rr", "lora_r", args=["train", c, "lora_rr=4"])
    expect(78, "lora_r", args=["train", c, "lora_r=many"])
    expect(78, "learning_rate", args=["train", c, "learning_rate=-1"])
    expect(78, "deepspeed", args=["train", c, "deepspeed=x.json"])
    expect(66, "none.gguf", args=["train", c, "base_model=" + t + "/none.gguf"])
    expect(66, "none.jsonl", args=["train", c, "datasets.0.path=" + t + "/none.jsonl"])
    with open(c) as f:
        text = f.read()
    with open(f"{t}/bad.yml", "w") as f:
        f.write(text.replace("num_epochs: 1", "num_epochs: often") + "lora_rr: 4\nlora_alfa: 3\n")
    lines = text.count("\n")
    r = expect(78, "lora_rr", "lora_alfa", "num_epochs", args=["plan", f"{t}/bad.yml"])
    check(f"bad.yml:{lines + 1}:" in r.stderr and f"bad.yml:{lines + 2}:" in r.stderr, "no line numbers: " + r.stderr)


@case
def truncated_base():
    t = tiny("truncated")
    with open(f"{t}/tiny.gguf", "rb") as f:
        data = f.read()
    rng = random.Random(7)
    offsets = sorted({0, 1, 4, 23, 24, 25, len(data) - 1} | {rng.randrange(len(data)) for _ in range(193)})
    check(len(offsets) >= 195, "too few offsets")
    for n in offsets:
        with open(f"{t}/cut.gguf", "wb") as f:
            f.write(data[:n])
        expect(65, "cut.gguf", args=["plan", f"{t}/config.yml", f"base_model={t}/cut.gguf"])


def tensor_place(data, name):
    """Where a tensor's bytes begin in a GGUF file: its place behind the descriptions, the last of which ends the header."""
    begins = {}
    for m in re.finditer(rb"(?:blk\.\d+\.)?[a-z_]+\.weight", data):
        n = struct.unpack_from("<I", data, m.end())[0]
        if n in (1, 2):
            end = m.end() + 4 + 8 * n + 12
            begins[m.group().decode()] = struct.unpack_from("<Q", data, end - 8)[0]
    return (end + 31) // 32 * 32 + begins[name]


@case
def nonfinite_is_named():
    """A NaN in one norm of the base: the update is skipped, layer, op and row are named, and the run ends with 79."""
    t = tiny("nonfinite")
    with open(f"{t}/tiny.gguf", "rb") as f:
        data = bytearray(f.read())
    struct.pack_into("<f", data, tensor_place(data, "blk.1.ffn_norm.weight") + 4 * 5, float("nan"))
    with open(f"{t}/tiny.gguf", "wb") as f:
        f.write(data)
    said = []
    for env in ({}, {"GRAFT_BACKEND": "late"}, {"GRAFT_CPU": "c"}):
        r = expect(NUMERIC, "3 gradients in a row", "layer 1, add_norm forward, data row", "no checkpoint",
                   args=["train", f"{t}/config.yml", "--overwrite"], env=env)
        said.append([line for line in r.stderr.splitlines() if "begins at" in line])
        check(len(said[-1]) == 3, f"{len(said[-1])} lines: {r.stderr[-500:]}")
    check(said[0] == said[1] == said[2], f"not the same place: {said}")
    check(all(row["loss"] is None for row in log(f"{t}/out")), "NaN in log.jsonl")


@case
def hostile_base():
    t = tiny("hostile")
    with open(f"{t}/tiny.gguf", "rb") as f:
        data = bytearray(f.read())
    huge = [(8, "tensor count"), (16, "key count")]
    for at, what in huge:
        for value in (2**63 - 1, 2**64 - 1, 2**32, 10**7):
            bad = bytearray(data)
            bad[at:at + 8] = value.to_bytes(8, "little")
            with open(f"{t}/bad.gguf", "wb") as f:
                f.write(bad)
            expect(65, "bad.gguf", args=["plan", f"{t}/config.yml", f"base_model={t}/bad.gguf"])
    rng = random.Random(9)
    for _ in range(150):  # any byte of the header: an error or, when it does not matter, success; never a crash
        bad = bytearray(data)
        for _ in range(rng.randrange(1, 4)):
            bad[rng.randrange(6000)] = rng.randrange(256)
        with open(f"{t}/bad.gguf", "wb") as f:
            f.write(bad)
        r = graft("plan", f"{t}/config.yml", f"base_model={t}/bad.gguf")
        check(r.returncode in (0, 65), f"exit {r.returncode}: {r.stderr[-500:]}")
        check("Sanitizer" not in r.stderr and "runtime error" not in r.stderr, r.stderr[-2000:])


@case
def bad_rows():
    t = tiny("rows")
    with open(f"{t}/train.jsonl") as f:
        good = f.read().splitlines()

    def with_row(row, at=2):
        with open(f"{t}/bad.jsonl", "w") as f:
            f.write("\n".join(good[:at] + [row] + good[at:]) + "\n")
        return ["train", f"{t}/config.yml", f"datasets.0.path={t}/bad.jsonl", f"output_dir={t}/o"]

    expect(65, "bad.jsonl:3:", args=with_row('{"messages": [{"role": "user", "content": "x"'))
    expect(65, "bad.jsonl:3", args=with_row('{"messages": [{"role": "user", "content": "no answer"}]}'))
    expect(65, "bad.jsonl:3", "content", args=with_row('{"messages": [{"role": "user"}, {"role": "assistant", "content": "x"}]}'))
    expect(65, "bad.jsonl:3", args=with_row('{"messages": []}'))
    check(not os.path.exists(f"{t}/o/adapter_model.safetensors"), "something was trained")
    long = json.dumps({"messages": [{"role": "user", "content": "x " * 400}, {"role": "assistant", "content": "y"}]})
    args = with_row(long)
    expect(65, "bad.jsonl:3", args=args + ["excess_length_strategy=raise"])
    r = graft("check", f"{t}/config.yml", f"datasets.0.path={t}/bad.jsonl")
    check(r.returncode == 0 and "1 dropped" in r.stdout, f"not counted: {r.stdout[-500:]} {r.stderr[-300:]}")
    r = graft("check", f"{t}/config.yml", f"datasets.0.path={t}/bad.jsonl", "--json")
    rows = [json.loads(line) for line in r.stdout.splitlines()]
    check(len(rows) == len(good) + 1 and rows[2]["dropped"] and rows[2]["ids"] is None, "dropped row not told")


@case
def output_folders():
    t = tiny("output")
    c = f"{t}/config.yml"
    r = graft("train", c, "output_dir=/proc/graft-cannot-be-here")
    check(r.returncode in (73, 77), f"exit {r.returncode}: {r.stderr}")
    with open(f"{t}/file", "w") as f:
        f.write("x")
    check(graft("train", c, f"output_dir={t}/file").returncode == 73, "a file as output folder")
    out = train(t, "max_steps=2")
    before = adapter(out)
    expect(73, "--resume", "--overwrite", args=["train", c, f"output_dir={out}"])
    check(adapter(out) == before, "the refused run changed something")
    r = graft("train", c, f"output_dir={out}", "max_steps=2", "--resume")
    check(r.returncode == 0 and adapter(out) == before, f"resume of a finished run: {r.returncode} {r.stderr}")
    train(t, "max_steps=3", "--overwrite")
    check(adapter(out) != before, "--overwrite did not train")


@case
def two_runs_at_once():
    t = tiny("lock")
    slow = subprocess.Popen([GRAFT, "train", f"{t}/config.yml", "num_epochs=400", f"output_dir={t}/out"], stderr=subprocess.DEVNULL)
    try:
        for _ in range(200):
            if os.path.exists(f"{t}/out/log.jsonl"):
                break
            time.sleep(0.02)
        expect(73, str(slow.pid), args=["train", f"{t}/config.yml", f"output_dir={t}/out", "--overwrite"])
    finally:
        slow.kill()
        slow.wait()


# --- results

@case
def whole_path():
    t = tiny("whole")
    out = train(t, "num_epochs=3", "save_steps=10", "eval_steps=10")
    lines = log(out)
    losses = [x["loss"] for x in lines if "loss" in x]
    evals = [x["eval_loss"] for x in lines if "eval_loss" in x]
    check(losses[-1] < 0.7 * losses[0] and evals[-1] < evals[0], f"nothing was learned: {losses[0]} {losses[-1]} {evals}")
    for name in ("adapter_config.json", "adapter_model.safetensors", "adapter.gguf", "README.md", "run.json", "report.html", "probe.jsonl"):
        check(os.path.getsize(f"{out}/{name}") > 0, name + " is missing")
    with open(f"{out}/run.json") as f:
        check(json.load(f)["status"] == "finished", "run.json")
    r = graft("verify", out)
    check(r.returncode == 0 and r.stdout.count(" ok ") == 2, r.stdout + r.stderr)
    # A planted error must be found: alpha doubled in the PEFT config.
    shutil.copytree(out, f"{t}/wrong")
    with open(f"{out}/adapter_config.json") as f:
        config = json.load(f)
    config["lora_alpha"] *= 2
    with open(f"{t}/wrong/adapter_config.json", "w") as f:
        json.dump(config, f)
    expect(80, "a file does not give the trainer's log-probabilities", args=["verify", f"{t}/wrong"])
    r = graft("eval", f"{t}/config.yml", "--adapter", out, "--json", "--logprobs", f"{t}/lp.jsonl")
    e = json.loads(r.stdout)
    check(abs(e["loss"] - evals[-1]) < 1e-6, f"eval says {e['loss']}, the run said {evals[-1]}")
    base = json.loads(graft("eval", f"{t}/config.yml", "--json").stdout)
    check(base["loss"] > e["loss"], "the adapter does not help")
    rows = [json.loads(x) for x in open(f"{t}/lp.jsonl")]
    total = sum(-p for x in rows for p, k in zip(x["logprobs"], x["trained"]) if k)
    count = sum(sum(x["trained"]) for x in rows)
    probe = [json.loads(x) for x in open(f"{out}/probe.jsonl")]
    for name, numbers in (("lp.jsonl", [x["row"] for x in rows]), ("probe.jsonl", [x["row"] for x in probe])):
        check(numbers == list(range(12)), f"{name} is not in file order: {numbers}")
    check(rows[0]["logprobs"][0] is None and abs(total / count - e["loss"]) < 1e-5, f"logprobs: {total / count} against {e['loss']}")
    merged = graft("export", out, "--to", "merged", "--type", "f32", "--base", f"{t}/tiny.gguf", "--out", f"{t}/merged-{name}.gguf")
    check(merged.returncode == 0, merged.stderr)
    m = json.loads(graft("eval", f"{t}/config.yml", f"base_model={t}/merged-{name}.gguf", "--json", "load_in_4bit=false").stdout)
    check(abs(m["loss"] - e["loss"]) < 1e-4, f"merged model: {m['loss']}, with adapter: {e['loss']}")
    for to in ("peft", "gguf", "mlx"):
        r = graft("export", out, "--to", to, "--base", f"{t}/tiny.gguf", "--out", f"{t}/exported-{to}")
        check(r.returncode == 0, f"{to}: {r.stderr}")
    again = json.loads(graft("eval", f"{t}/config.yml", "--adapter", f"{t}/exported-gguf", "--json").stdout)
    check(abs(again["loss"] - e["loss"]) < 1e-6, "adapter.gguf gives another loss")
    for path in (f"{t}/tiny.gguf", out, f"{out}/adapter_model.safetensors", f"{out}/adapter.gguf"):
        check(graft("inspect", path).returncode == 0 and json.loads(graft("inspect", path, "--json").stdout), "inspect " + path)
    r = graft("chat", "--base", f"{t}/tiny.gguf", "--adapter", out, "--prompt", "ann takes 3 cups", "--max-tokens", 40)
    check(r.returncode == 0 and "{" in r.stdout, "chat: " + r.stdout + r.stderr)


def chat(*args, typed, base):
    """A session whose standard input is `typed` (bytes). What went to the screen must be UTF-8."""
    r = subprocess.run([GRAFT, "chat", "--base", base, *map(str, args)], input=typed, capture_output=True, timeout=300)
    r.stderr = r.stderr.decode("utf-8", "replace")
    check("Sanitizer" not in r.stderr and "runtime error" not in r.stderr, r.stderr[-2000:])
    r.stdout = r.stdout.decode("utf-8")
    return r


@case
def chat_keeps_to_characters():
    """Answers that are cut or wrong inside a character, and such input, end neither the session nor the next turn."""
    t = tiny("characters")
    for seed in (1, 2, 3):  # the tiny model says random bytes
        r = chat("--max-tokens", 20, "--temperature", 1, "--seed", seed, typed=b"ann\nbob\ncleo\n", base=f"{t}/tiny.gguf")
        check(r.returncode == 0 and "\ufffd" in r.stdout, f"seed {seed}: exit {r.returncode}: {r.stderr[-300:]}")
        check(r.stdout.endswith("\n") and r.stderr == "", r.stderr[-300:])
    r = chat("--max-tokens", 3, typed=b"ann\nb\xf0\x9f\x98b\n\xff\ncleo", base=f"{t}/tiny.gguf")
    lines = r.stderr.splitlines()
    check(r.returncode == 0 and len(lines) == 2, f"exit {r.returncode}: {r.stderr[-500:]}")
    check("not valid UTF-8: byte 2 is 0xF0" in lines[0] and "byte 1 is 0xFF" in lines[1], r.stderr[-500:])
    said = chat("--max-tokens", 3, typed=b"ann\ncleo\n", base=f"{t}/tiny.gguf")
    check(said.stdout == r.stdout, f"a refused turn changes what follows: {said.stdout!r} {r.stdout!r}")
    for option in ("--prompt", "--system"):
        r = subprocess.run([GRAFT, "chat", "--base", f"{t}/tiny.gguf", option, b"\xff"], input="", capture_output=True, text=True)
        check(r.returncode == 65 and option in r.stderr, f"{option}: exit {r.returncode}: {r.stderr}")


@case
def chat_of_cut_emojis():
    if not os.path.exists(REAL):
        raise Skipped(f"{REAL} is not there (make base fetches it)")
    r = chat("--max-tokens", 1, typed=b"Write only smiling emojis.\nthanks\n", base=REAL)
    check(r.returncode == 0 and r.stdout.startswith("\ufffd\n"), f"exit {r.returncode}: {r.stdout} {r.stderr[-300:]}")
    check(len(r.stdout.splitlines()) == 2, r.stdout)


@case
def chat_goes_on():
    """What cannot be sent is told in one line, and the session goes on as if it had not been typed."""
    t = tiny("goes-on")
    base, few = f"{t}/tiny.gguf", ("--max-tokens", 3)
    plain = chat(*few, typed=b"ann\nbob\n", base=base)
    check(plain.returncode == 0 and plain.stderr == "", plain.stderr)
    long = b"a b " * 1000
    r = chat(*few, typed=b"ann\n" + long + b"\nbob\n", base=base)
    check(r.returncode == 0 and r.stdout == plain.stdout, f"exit {r.returncode}: {r.stdout!r} {r.stderr[-300:]}")
    check(len(r.stderr.splitlines()) == 1 and "tokens" in r.stderr and "/reset" in r.stderr, r.stderr)
    r = chat(*few, typed=b"", base=base)
    check(r.returncode == 0 and r.stdout == "", r.stderr)
    expect(65, "tokens does not fit", args=["chat", "--base", base, "--prompt", long.decode()])
    # Many turns fill the context; /reset starts again, with the answer that the first turn had.
    first = chat(*few, "--system", "be brief", typed=b"ann\n", base=base).stdout
    r = chat(*few, "--system", "be brief", typed=b"ann\n" + b"a b " * 380 + b"\n" + b"a b " * 380 + b"\n/reset\nann\n", base=base)
    check(r.returncode == 0 and len(r.stderr.splitlines()) == 1 and "/reset" in r.stderr, r.stderr[-500:])
    check(r.stdout.startswith(first) and r.stdout.endswith(first) and r.stdout.count("\n") == 3, repr(r.stdout))
    # Lines are read whole: one of 20,000 bytes is one turn, one of more than 1 MiB is refused as a whole.
    r = chat(*few, typed=b"ann\n" + b"x" * 20000 + b"\nbob\n", base=base)
    check(r.returncode == 0 and r.stdout == plain.stdout and len(r.stderr.splitlines()) == 1, r.stderr[-300:])
    r = chat(*few, typed=b"ann\r\n" + b"x" * (1 << 20) + b"y\nbob", base=base)
    check(r.returncode == 0 and r.stdout == plain.stdout, f"exit {r.returncode}: {r.stderr[-300:]}")
    check(len(r.stderr.splitlines()) == 1 and "more than 1048576 bytes" in r.stderr, r.stderr[-300:])
    # A conversation that is full refuses the question, not the answer.
    full = chat("--max-tokens", 1, "--system", "x", typed=b"a\n" * 127, base=base)
    r = chat("--max-tokens", 1, "--system", "x", typed=b"a\n" * 128, base=base)
    check(full.stderr == "" and r.stdout == full.stdout, full.stderr)
    check(r.returncode == 0 and "255 turns" in r.stderr and len(r.stderr.splitlines()) == 1, r.stderr)
    r = chat(*few, typed=b"/help\n/nothing\n/adapter \n/quit\nann\n", base=base)
    check(r.returncode == 0 and r.stdout == "", r.stdout)
    for word in ("/reset", "/adapter NAME", "/quit", "unknown: /nothing", "none (active)"):
        check(word in r.stderr, f"no {word!r}: {r.stderr}")


@case
def predicted_time():
    t = tiny("time")
    config = REAL_CONFIG if os.path.exists(REAL) else f"{t}/config.yml"
    for args in ([f"{t}/config.yml"], [config]):
        start = time.time()
        one = json.loads(graft("plan", *args, "num_epochs=1", "--json").stdout)
        took = time.time() - start
        many = json.loads(graft("plan", *args, "num_epochs=50", "--json").stdout)
        check(one["predicted_tokens_per_second"] > 0 and one["predicted_seconds"] > 0, f"no prediction: {one}")
        # The rate is measured anew each time; the work is 50 times as much.
        work_done = many["predicted_seconds"] * many["predicted_tokens_per_second"] / (one["predicted_seconds"] * one["predicted_tokens_per_second"])
        check(35 < work_done < 70, f"50 epochs: {work_done:.1f} times the work of one")
        check(took < 5, f"a plan took {took:.1f} s")  # well below 1 s where nothing else runs
        r = graft("plan", *args)
        check(re.search(r"^time +about \d+(\.\d)? (s|min|h) at \d+ tok/s", r.stdout, re.M), r.stdout)


@case
def verify_names_the_wrong_base():
    t = tiny("base")
    out = train(t, "max_steps=3")
    with open(f"{t}/tiny.gguf", "rb") as f:
        data = bytearray(f.read())
    place = tensor_place(data, "blk.0.ffn_norm.weight")
    for i in range(64):
        struct.pack_into("<f", data, place + 4 * i, 3.0)
    with open(f"{t}/same-header.gguf", "wb") as f:
        f.write(data)
    place = data.index(b"general.name") + 12 + 4 + 8
    data[place:place + 1] = b"X"
    with open(f"{t}/other.gguf", "wb") as f:
        f.write(data)
    check(graft("verify", out, "--base", f"{t}/tiny.gguf").returncode == 0, "the right base")
    r = expect(80, "other.gguf", "not the base", out, args=["verify", out, "--base", f"{t}/other.gguf"])
    check("a file does not give" not in r.stderr and "FAIL" not in r.stdout, f"the files are blamed: {r.stdout}{r.stderr}")
    expect(80, "a file does not give", args=["verify", out, "--base", f"{t}/same-header.gguf"])
    os.remove(f"{out}/run.json")  # nothing says which base it was
    expect(80, "a file does not give", args=["verify", out, "--base", f"{t}/other.gguf"])
    expect(64, "--base", args=["verify", out])
    check(graft("verify", out, "--base", f"{t}/tiny.gguf").returncode == 0, "without run.json")
    open(f"{out}/probe.jsonl", "w").close()
    expect(66, "not verifiable: probe.jsonl is empty", args=["verify", out, "--base", f"{t}/tiny.gguf"])
    os.remove(f"{out}/probe.jsonl")
    expect(66, "not verifiable", args=["verify", out, "--base", f"{t}/tiny.gguf"])


@case
def json_of_eval_and_plan():
    t = tiny("json")
    keys = ["rows", "tokens", "loss", "perplexity", "answers", "valid_json", "exact", "exact_json", "generated_tokens",
            "generated_tokens_per_second"]
    for more in ([], ["--no-generate"]):
        e = json.loads(graft("eval", f"{t}/config.yml", "--json", *more).stdout)
        check(list(e) == keys, f"eval {more}: {list(e)}")
        for key in keys:
            kind = type(None) if more and key in keys[4:] else int if key in ("rows", "tokens", "answers", "generated_tokens") else float
            check(type(e[key]) is kind, f"eval {more}: {key} is {e[key]!r}")
    p = json.loads(graft("plan", f"{t}/config.yml", "--json").stdout)
    whole = {"peak_bytes", "trainable_parameters", "total_parameters", "flops_per_token", "steps"}
    check(whole <= set(p) and all(type(p[key]) is int for key in whole), f"plan: {p}")


def on_terminal(*args):
    """Runs with stderr on a terminal: exit code, what was printed, what the terminal got."""
    master, slave = pty.openpty()
    p = subprocess.Popen([GRAFT, *map(str, args)], stdout=subprocess.PIPE, stderr=slave, text=True)
    os.close(slave)
    seen = b""
    while True:
        try:
            piece = os.read(master, 4096)
        except OSError:  # Linux says EIO when the other end is closed
            break
        if not piece:
            break
        seen += piece
    os.close(master)
    out, _ = p.communicate()
    return p.returncode, out, seen.decode()


@case
def progress_of_eval():
    t = tiny("progress")
    args = ["eval", f"{t}/config.yml", "--json", "--logprobs", f"{t}/lp.jsonl"]
    code, out, screen = on_terminal(*args)
    check(code == 0 and json.loads(out), f"exit {code}: {screen}")
    for phase in ("loss, micro-batch 1/", "log-probabilities, micro-batch 1/", "answers 0/12"):
        check("\r\033[K" + phase in screen, f"no {phase!r}: {screen!r}")
    check(re.search(r"loss, micro-batch 1/\d+  [\d.e+]+/s  ETA \d+:\d\d", screen), f"no rate, no ETA: {screen!r}")
    check(screen.endswith("\r\033[K"), f"the line stays: {screen!r}")
    check(graft(*args).stderr == "", "a progress line in a pipe")
    code, _, screen = on_terminal(*args[:-1], f"{t}/none/lp.jsonl")
    check(code != 0 and "\r\033[Kgraft: " in screen, f"the message stands behind the line: {screen!r}")


@case
def chat_adapter_names():
    t = tiny("names")
    base = f"{t}/tiny.gguf"
    a = train(t, "max_steps=8", out="a")
    b = train(t, "max_steps=8", "learning_rate=0.5", out="b")
    os.makedirs(f"{t}/other")
    shutil.copytree(b, f"{t}/other/a")
    shutil.copytree(b, f"{t}/x=y")

    def say(*adapters, lines, code=0):
        typed = "".join(f"{line}\n" for line in lines).encode()
        r = chat("--max-tokens", 12, *[x for path in adapters for x in ("--adapter", path)], typed=typed, base=base)
        check(r.returncode == code, f"{adapters}: exit {r.returncode}: {r.stderr[-500:]}")
        return r

    base_says, a_says, b_says = (say(*x, lines=["ann"]).stdout for x in ((), (a,), (b,)))
    check(len({base_says, a_says, b_says}) == 3, "the adapters make no difference")
    spellings = [(f"{a}/", "a"), (f"{a}//", "a/"), (f"first={a}/", "first"), (a, a), (a, f"{a}/"), (a, "2")]
    for argument, name in spellings:
        r = say(b, argument, lines=["ann", "/reset", f"/adapter {name}", "ann", "/reset", "/adapter none", "ann"])
        check(r.stdout == b_says + a_says + base_says and "no adapter" not in r.stderr, f"{argument}, {name}: {r.stderr}")
    # A number is a name first; a path that exists is a path, whatever is in it.
    r = say(f"2={b}", f"1={a}", lines=["/adapter 1", "ann", "/adapter third", "/adapter"])
    check(r.stdout == a_says and "no adapter 'third'" in r.stderr and "2:1 (active)" in r.stderr, r.stderr)
    r = say(a, f"{t}/x=y", lines=["/adapter x=y", "ann"])
    check(r.stdout == b_says, r.stderr)
    r = subprocess.run([os.path.abspath(GRAFT), "chat", "--base", base, "--adapter", "x=y", "--prompt", "ann", "--max-tokens", "12"],
                       cwd=t, capture_output=True, text=True, errors="replace")
    check(r.returncode == 0 and r.stdout == b_says, "an existing path with '=' is taken for a name: " + r.stderr)
    options = ["chat", "--base", base, "--prompt", "ann", "--adapter"]
    expect(64, "called 'a'", "NAME=", f"{t}/other/a", args=options + [a, "--adapter", f"{t}/other/a/"])
    check(say(a, f"b={t}/other/a/", lines=["/adapter b", "ann"]).stdout == b_says, "NAME=PATH")
    expect(64, "NAME=PATH", args=options + [f"={a}"])
    expect(64, "NAME=PATH", args=options + [f"none={a}"])
    expect(66, "nowhere", args=options + [f"a={t}/nowhere"])


@case
def embedding_and_head():
    """LoRA on both, both trained whole, rows of tokens: trained, stopped and resumed bit by bit, read again, merged or refused."""
    t = tiny("ends")
    kinds = {"lora": ["lora_target_linear=false", "lora_target_modules=[embed_tokens, lm_head, q_proj]", "lora_dropout=0.1",
                      "loraplus_lr_ratio=2", "loraplus_lr_embedding=1e-3"],
             "whole": ["lora_modules_to_save=[embed_tokens, lm_head]"],
             "rows": ["peft_trainable_token_indices=[5, 90, 17]"],
             "dora": ["peft_use_dora=true", "lora_rank_pattern={q_proj: 2}", "gradient_checkpointing=true"],
             "dora-dropout": ["peft_use_dora=true", "lora_dropout=0.1", "loraplus_lr_ratio=2"]}
    for name, keys in kinds.items():
        out = train(t, *keys, "save_steps=3", "save_total_limit=99", "eval_steps=4", out=name)
        plan = json.loads(graft("plan", f"{t}/config.yml", "--json", *keys).stdout)
        with open(f"{out}/run.json") as f:
            run = json.load(f)
        check(run["trainable_parameters"] == plan["trainable_parameters"] > 0, f"{name}: {plan['trainable_parameters']}")
        losses = [x["loss"] for x in log(out) if "loss" in x]
        check(losses[-1] < losses[0], f"{name}: {losses}")
        again = train(t, *keys, "save_steps=3", "save_total_limit=99", "eval_steps=4", f"resume_from_checkpoint={out}/checkpoints/step-000003", out=name + "-again")
        with open(f"{out}/adapter_model.safetensors", "rb") as f, open(f"{again}/adapter_model.safetensors", "rb") as g:
            check(f.read() == g.read(), f"{name}: resumed, it is another adapter")
        check(graft("verify", out).returncode == 0, f"{name}: {graft('verify', out).stderr}")
        r = graft("eval", f"{t}/config.yml", "--adapter", out, "--json")
        check(r.returncode == 0 and abs(json.loads(r.stdout)["loss"] - [x["eval_loss"] for x in log(out) if "eval_loss" in x][-1]) < 1e-5, r.stderr + r.stdout)
        r = graft("chat", "--base", f"{t}/tiny.gguf", "--adapter", out, "--prompt", "ann", "--max-tokens", 5)
        check(r.returncode == 0, r.stderr)
        train(t, "lora_target_linear=false", f"lora_model_dir={out}", "max_steps=2", *(k for k in keys if "pattern" in k), out=name + "-more")
        expect(65, "cannot hold", args=["export", out, "--to", "gguf", "--out", f"{t}/{name}.gguf"])
        check(not os.path.exists(f"{out}/adapter.gguf"), f"{name}: adapter.gguf of a tied base")
        if name in ("rows", "dora", "dora-dropout"):
            check(graft("export", out, "--to", "merged", "--type", "f32", "--out", f"{t}/merged-{name}.gguf").returncode == 0, "not merged")
            r = graft("eval", f"{t}/config.yml", f"base_model={t}/merged-{name}.gguf", "--json")
            check(abs(json.loads(r.stdout)["loss"] - [x["eval_loss"] for x in log(out) if "eval_loss" in x][-1]) < 1e-4, r.stdout)
        else:
            expect(65, "one matrix", args=["export", out, "--to", "merged", "--out", f"{t}/{name}.gguf"])
        expect(65, "MLX", args=["export", out, "--to", "mlx", "--out", f"{t}/{name}-mlx"])
    expect(78, "no DoRA", args=["train", f"{t}/config.yml", "lora_target_linear=false", "peft_use_dora=true", f"lora_model_dir={t}/lora", f"output_dir={t}/no"])
    expect(78, "DoRA on model.embed_tokens", args=["train", f"{t}/config.yml", "lora_target_modules=[embed_tokens]", "peft_use_dora=true", f"output_dir={t}/no"])
    expect(78, "norm", args=["train", f"{t}/config.yml", "lora_modules_to_save=[norm]", f"output_dir={t}/no"])
    expect(78, "99999", args=["train", f"{t}/config.yml", "peft_trainable_token_indices=[99999]", f"output_dir={t}/no"])
    expect(78, "trained already", args=["train", f"{t}/config.yml", "peft_trainable_token_indices=[9]", "lora_modules_to_save=[embed_tokens]", f"output_dir={t}/no"])


@case
def other_targets_and_options():
    t = tiny("options")
    train(t, "lora_target_linear=false", "lora_target_modules=[q_proj, v_proj]", "peft_use_rslora=true", out="a")
    train(t, "lora_target_linear=false", "lora_target_modules=.*mlp.(up|down)_proj", "lora_dropout=0.1", "gradient_checkpointing=true", out="b")
    train(t, "peft_layers_to_transform=[1]", "neftune_noise_alpha=5", "group_by_length=true", "sample_packing=false", "micro_batch_size=3", out="c")
    train(t, f"lora_model_dir={t}/a", "lora_target_linear=false", "peft_use_rslora=true", "generate_samples=true", "eval_steps=5", "num_generation_samples=2", "generation_max_new_tokens=10", out="d")
    again = ["train", f"{t}/config.yml", f"lora_model_dir={t}/a", f"output_dir={t}/no"]
    expect(78, "no adapter on model.layers.0.self_attn.k_proj, which the configuration selects", args=again)
    expect(78, "has rank 4 on model.layers.0.self_attn.q_proj, the configuration says 5", args=again + ["lora_target_linear=false", "lora_r=5"])
    expect(78, "scales by 4", args=again + ["lora_target_linear=false", "peft_use_rslora=true", "lora_alpha=6"])
    train(t, "lora_rank_pattern={q_proj: 2, 'layers.1.mlp.*': 6}", "lora_alpha_pattern={down_proj: 3}", out="p")
    with open(f"{t}/p/adapter_config.json") as f:
        config = json.load(f)
    check(config["rank_pattern"]["model.layers.0.self_attn.q_proj"] == 2 and config["rank_pattern"]["model.layers.1.mlp.up_proj"] == 6 and
          config["alpha_pattern"] == {f"model.layers.{i}.mlp.down_proj": 3 for i in range(2)}, f"patterns: {config}")
    expect(78, "'x_proj' matches no module", args=["train", f"{t}/config.yml", "lora_rank_pattern={x_proj: 2}", f"output_dir={t}/no"])
    expect(78, "the base has no parameter 'experts.w'; it is no mixture", args=["train", f"{t}/config.yml", "lora_target_parameters=experts.w", f"output_dir={t}/no"])
    check(any("samples" in x for x in log(f"{t}/d")), "no samples in the log")
    for scheduler in ("constant", "constant_with_warmup", "linear", "cosine", "rex", "one_cycle", "inverse_sqrt", "polynomial"):
        out = train(t, f"lr_scheduler={scheduler}", "max_steps=6", "warmup_steps=2", out=f"s-{scheduler}")
        check(all(0 <= x["lr"] <= 1e-2 * 1.0001 for x in log(out) if "lr" in x), scheduler)
    expect(78, "nothing_proj", args=["train", f"{t}/config.yml", "lora_target_linear=false", "lora_target_modules=[nothing_proj]", f"output_dir={t}/e"])
    expect(79, "loss_watchdog_threshold", args=["train", f"{t}/config.yml", "loss_watchdog_threshold=0.01", "loss_watchdog_patience=2", f"output_dir={t}/f"])
    out = train(t, "learning_rate=3", "lr_scheduler=constant", "num_epochs=20", "eval_steps=2", "early_stopping_patience=2", "load_best_model_at_end=true", "save_steps=2", out="g")
    with open(f"{out}/run.json") as f:
        run = json.load(f)
    check(run["step"] < run["steps"], "no early stop")
    evals = [x["eval_loss"] for x in log(out) if "eval_loss" in x]
    final = json.loads(graft("eval", f"{t}/config.yml", "--adapter", out, "--json", "--no-generate").stdout)["loss"]
    saved = [e for e in evals[1:]] or evals
    check(abs(final - min(saved)) < 1e-5, f"best evaluation {min(saved)}, final adapter {final}")


@case
def token_rows():
    t = tiny("tokens")
    rng = random.Random(3)
    with open(f"{t}/tokens.jsonl", "w") as f:
        for _ in range(20):
            ids = [rng.randrange(256) for _ in range(rng.randrange(5, 60))]
            f.write(json.dumps({"input_ids": ids, "labels": [-100] * 2 + ids[2:]}) + "\n")
    args = [f"datasets.0.path={t}/tokens.jsonl", "datasets.0.type=", f"test_datasets.0.path={t}/tokens.jsonl", "test_datasets.0.type="]
    args.append("lint_waive=[train-validation-overlap]")
    train(t, *args, out="tok")
    r = graft("eval", f"{t}/config.yml", *args, "--adapter", f"{t}/tok", "--logprobs", f"{t}/lp.jsonl", "--json")
    check(r.returncode == 0 and len(open(f"{t}/lp.jsonl").readlines()) == 20, r.stderr)
    with open(f"{t}/tokens.jsonl", "a") as f:
        f.write(json.dumps({"input_ids": [1, 99999], "labels": [1, 99999]}) + "\n")
    expect(65, "tokens.jsonl:21", args=["train", f"{t}/config.yml", *args, f"output_dir={t}/x"])


LLAMA = "tests/fixtures/families/llama"  # a folder without a tokenizer


def small_run(folder, base, **data):
    config = {"base_model": base, "adapter": "lora", "lora_target_linear": True, "datasets": [data], "val_set_size": 2, "sequence_len": 64,
              "num_epochs": 1, "micro_batch_size": 2, "learning_rate": 1e-3, "float32": True, "output_dir": f"{folder}/out"}
    with open(f"{folder}/config.yml", "w") as f:
        json.dump(config, f)
    return f"{folder}/config.yml"


@case
def base_without_a_tokenizer():
    folder = os.path.join(work, "bare")
    os.makedirs(folder)
    with open(f"{folder}/tokens.jsonl", "w") as f:
        f.writelines(json.dumps({"input_ids": [(i * k) % 100 for k in range(30)], "labels": [(i * k) % 100 for k in range(30)]}) + "\n" for i in range(1, 9))
    with open(f"{folder}/chat.jsonl", "w") as f:
        f.write(json.dumps({"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}) + "\n")
    with open(f"{folder}/alpaca.jsonl", "w") as f:
        f.write(json.dumps({"instruction": "a", "input": "", "output": "b"}) + "\n")
    config = small_run(folder, LLAMA, path=f"{folder}/tokens.jsonl")
    why = "the base has no tokenizer"
    expect(0, why, args=["train", config])
    expect(0, why, args=["eval", config, "--adapter", f"{folder}/out"])
    r = expect(0, args=["check", config])
    check("train  label" in r.stdout, r.stdout[:300])
    expect(65, why, "generate_samples", args=["train", config, f"output_dir={folder}/x", "generate_samples=true", "evals_per_epoch=1"])
    expect(65, why, args=["chat", "--base", LLAMA, "--prompt", "hi"])
    for kind in ("chat_template", "alpaca"):
        path = f"{folder}/{'chat' if kind == 'chat_template' else kind}.jsonl"
        expect(65, path, why, "input_ids and labels", args=["train", small_run(folder, LLAMA, path=path, type=kind), f"output_dir={folder}/x"])
    # A tokenizer that cannot be used is no better than none, and says why.
    base = f"{folder}/base"
    shutil.copytree(LLAMA, base)
    with open(f"{base}/tokenizer.json", "w") as f:
        f.write('{"model": {"type": "Unigram", "vocab": []}}')
    expect(0, "Unigram", args=["train", small_run(folder, base, path=f"{folder}/tokens.jsonl"), f"output_dir={folder}/y"])
    expect(65, "Unigram", args=["chat", "--base", base, "--prompt", "hi"])


def byte_tokenizer():
    """96 characters as tokens, ChatML's two, and no merges: it fits 101 rows."""
    characters = [chr(c) for c in range(0x21, 0x7f)] + ["\u0120", "\u010a"]
    added = [{"id": 96 + i, "content": t, "special": True, "normalized": False, "single_word": False, "lstrip": False, "rstrip": False}
             for i, t in enumerate(["<|im_start|>", "<|im_end|>"])]
    return {"version": "1.0", "added_tokens": added, "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False, "use_regex": True},
            "model": {"type": "BPE", "vocab": {t: i for i, t in enumerate(characters)}, "merges": []}}


@case
def folder_with_a_tokenizer():
    folder = os.path.join(work, "folder")
    base = f"{folder}/base"
    shutil.copytree(LLAMA, base)
    with open(f"{base}/tokenizer.json", "w") as f:
        json.dump(byte_tokenizer(), f)
    with open(f"{base}/tokenizer_config.json", "w") as f:
        json.dump({"eos_token": "<|im_end|>", "bos_token": None}, f)
    with open(f"{base}/chat_template.jinja", "w") as f:
        f.write("{% for message in messages %}{{'<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n'}}"
                "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}")
    with open(f"{folder}/chat.jsonl", "w") as f:
        f.writelines(json.dumps({"messages": [{"role": "user", "content": f"a{i}"}, {"role": "assistant", "content": f"b{i}"}]}) + "\n" for i in range(8))
    config = small_run(folder, base, path=f"{folder}/chat.jsonl", type="chat_template")
    r = expect(0, args=["check", config, "--json"])
    row = json.loads(r.stdout.splitlines()[0])
    n = row["row"]
    names = {0x20: 94, 0x0a: 95}
    def ids(text):
        return [names.get(ord(c), ord(c) - 0x21) for c in text]
    want = [96, *ids(f"user\na{n}"), 97, *ids("\n"), 96, *ids(f"assistant\nb{n}"), 97, *ids("\n")]
    check(row["ids"] == want, f"{row['ids']} {want}")
    check([i for i, t in zip(row["ids"], row["trained"]) if t] == [*ids(f"b{n}"), 97], row)
    expect(0, args=["train", config])
    expect(0, args=["chat", "--base", base, "--adapter", f"{folder}/out", "--prompt", "hi", "--max-tokens", "4"])


@case
def same_bytes_for_any_thread_count():
    t = tiny("threads")
    results = {adapter(train(t, f"threads={n}", "lora_dropout=0.1", out=f"t{n}")) for n in (1, 2, 3)}
    check(len(results) == 1, "the adapters differ")
    other = train(t, "seed=2", "lora_dropout=0.1", out="seed")
    check(adapter(other) not in results, "another seed gives the same adapter")


@case
def same_bytes_for_any_instruction_set():
    t = tiny("isa")
    results, ran = set(), []
    for isa in ("c", "avx2", "avx512"):
        r = graft("train", f"{t}/config.yml", f"output_dir={t}/{isa}", "max_steps=6", env={"GRAFT_CPU": isa})
        if r.returncode == 78 and "lacks" in r.stderr:
            continue
        check(r.returncode == 0, f"{isa}: {r.stderr[-500:]}")
        ran.append(isa)
        results.add(adapter(f"{t}/{isa}"))
    check(len(results) == 1 and len(ran) >= 1, f"{ran}: the adapters differ")


@case
def same_bytes_on_the_late_backend():
    t = tiny("late")
    a = adapter(train(t, "max_steps=8", out="cpu"))
    b = adapter(train(t, "max_steps=8", out="late", env={"GRAFT_BACKEND": "late"}))
    check(a == b, "the adapters differ")


@case
def same_loss_for_any_split():
    t = tiny("split")
    losses = []
    for micro, accumulate in ((8, 1), (4, 2), (1, 8)):
        out = train(t, f"micro_batch_size={micro}", f"gradient_accumulation_steps={accumulate}", "sample_packing=false",
                    "eval_sample_packing=false", "max_steps=10", out=f"s{micro}")
        losses.append([x["loss"] for x in log(out) if "loss" in x])
    for other in losses[1:]:
        for a, b in zip(losses[0], other):
            check(abs(a - b) <= 1e-6 * abs(a), f"losses {a} and {b}")


def kill_and_resume(t, kills, number, rng, seconds):
    out = f"{t}/killed"
    args = [GRAFT, "train", f"{t}/config.yml", "num_epochs=5", "save_steps=3", "eval_steps=7", "lora_dropout=0.1", f"output_dir={out}"]
    done = 0
    while done < kills:
        p = subprocess.Popen(args + ["--resume"], stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
        try:
            p.wait(timeout=rng.random() * seconds)
        except subprocess.TimeoutExpired:
            pass
        if p.poll() is None:
            p.send_signal(number)
        _, err = p.communicate()
        if p.returncode == 0:  # finished before the kill came: start over, kill earlier
            shutil.rmtree(out)
            seconds *= 0.7
            continue
        check(p.returncode in (-number, 75), f"after signal {number}: exit {p.returncode}: {err[-500:]}")
        done += 1
    r = subprocess.run(args + ["--resume"], capture_output=True, text=True)
    check(r.returncode == 0, f"resume: {r.returncode} {r.stderr[-500:]}")
    return out


@case
def killed_twenty_times():
    t = tiny("kill")
    start = time.time()
    whole = train(t, "num_epochs=5", "save_steps=3", "eval_steps=7", "lora_dropout=0.1", out="whole")
    seconds = time.time() - start
    out = kill_and_resume(t, int(os.environ.get("KILLS", 20)), signal.SIGKILL, random.Random(11), seconds)
    check(adapter(out) == adapter(whole), "the resumed adapter differs from the uninterrupted one")
    a = [(x["step"], x.get("loss"), x.get("eval_loss")) for x in log(whole)]
    b = [(x["step"], x.get("loss"), x.get("eval_loss")) for x in log(out)]
    check(a == b, "the resumed log differs from the uninterrupted one")


@case
def stopped_by_signals():
    t = tiny("stop")
    start = time.time()
    whole = train(t, "num_epochs=5", "save_steps=3", "eval_steps=7", "lora_dropout=0.1", out="whole")
    out = kill_and_resume(t, 4, signal.SIGTERM, random.Random(12), time.time() - start)
    check(adapter(out) == adapter(whole), "the resumed adapter differs from the uninterrupted one")


@case
def damaged_checkpoint():
    t = tiny("damaged")
    whole = train(t, "num_epochs=4", "save_steps=5", "save_total_limit=10", out="whole")
    for name in ("adapter_model.safetensors", "optimizer.safetensors", "state.json", "manifest.json"):
        out = f"{t}/{name}-cut"
        shutil.copytree(whole, out)
        steps = sorted(os.listdir(f"{out}/checkpoints"))
        with open(f"{out}/run.json") as f:
            run = json.load(f)
        run["status"] = "running"
        with open(f"{out}/run.json", "w") as f:
            json.dump(run, f)
        with open(f"{out}/checkpoints/{steps[-1]}/{name}", "r+b") as f:
            f.truncate(os.path.getsize(f.name) // 2)
        r = graft("train", f"{t}/config.yml", "num_epochs=4", "save_steps=5", "save_total_limit=10", f"output_dir={out}", "--resume")
        check(r.returncode == 0 and steps[-1] in r.stderr, f"{name}: {r.returncode} {r.stderr[-600:]}")
        check(adapter(out) == adapter(whole), f"{name}: another adapter")


def doctor(path, code=0, env=None):
    """Exit code, and the lines of the report as {part: (verdict, what)}."""
    r = expect(code, args=["doctor", path], env=env)
    lines = [re.match(r"(ok  |BAD ) (.+?): (.*)$", line) for line in r.stdout.splitlines()]
    check(all(lines), f"doctor {path}: {r.stdout}")
    return {m[2]: (m[1].strip(), m[3]) for m in lines}, r.stderr


def change(path, at, data):
    with open(path, "r+b") as f:
        f.seek(at, os.SEEK_END if at < 0 else os.SEEK_SET)
        f.write(data)


@case
def inspect_tells_what_it_is():
    t = tiny("inspect")
    out = train(t, "save_steps=20")
    step = f"{out}/checkpoints/{sorted(os.listdir(f'{out}/checkpoints'))[0]}"
    os.makedirs(f"{t}/lora")
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        shutil.copy(f"{out}/{name}", f"{t}/lora")
    shutil.copy(f"{out}/run.json", f"{t}/elsewhere.txt")
    shutil.copy(f"{out}/log.jsonl", f"{t}/copied.log")
    shutil.copy(f"{t}/tiny.gguf", f"{t}/model.bin")
    shutil.copy(f"{out}/adapter_model.safetensors", f"{t}/weights.bin")
    wanted = {f"{t}/tiny.gguf": "GGUF model", f"{t}/model.bin": "GGUF model", f"{out}/adapter.gguf": "GGUF adapter",
              f"{out}/adapter_model.safetensors": "safetensors", f"{t}/weights.bin": "safetensors", out: "run", step: "checkpoint",
              f"{t}/lora/": "PEFT adapter", f"{out}/run.json": "run manifest", f"{t}/elsewhere.txt": "run manifest",
              f"{out}/log.jsonl": "log of a run", f"{t}/copied.log": "log of a run"}
    said = {}
    for path, kind in wanted.items():
        said[path] = json.loads(expect(0, args=["inspect", path, "--json"]).stdout)
        check(said[path]["kind"] == kind, f"{path}: {said[path]['kind']}")
        check(kind in expect(0, args=["inspect", path]).stdout.splitlines()[0], path)
    losses = [x["loss"] for x in log(out) if "loss" in x]
    run, lines = said[f"{out}/run.json"], said[f"{out}/log.jsonl"]
    check(run["status"] == "finished" and run["step"] == 48 and run["base"] == "tiny llama" and run["rows"] == 96, f"{run}")
    check(lines["lines"] == len(log(out)) and lines["loss"] == {"first": losses[0], "last": losses[-1], "least": min(losses)}, f"{lines}")
    check(said[out]["checkpoints"] == 3 and said[out]["run.json"] == {k: v for k, v in run.items() if k != "kind"}, f"{said[out]}")
    check(said[f"{t}/lora/"]["adapter_config.json"]["r"] == 4 and said[step]["step"] == 20, "key facts")
    with open(f"{out}/log.jsonl", "ab") as f:
        f.write(b'{"step": 49, "epo')
    check(json.loads(graft("inspect", f"{out}/log.jsonl", "--json").stdout)["lines"] == lines["lines"], "a cut line")
    none = "not a base, GGUF, safetensors, adapter, checkpoint or run"
    with open(f"{t}/empty", "w"), open(f"{t}/noise", "wb") as f:
        f.write(random.Random(4).randbytes(5000))
    for path in (t, f"{t}/config.yml", f"{t}/train.jsonl", f"{t}/empty", f"{t}/noise", f"{out}/report.html", f"{out}/adapter_config.json"):
        expect(65, none, path, args=["inspect", path])
    expect(66, "nowhere", args=["inspect", f"{t}/nowhere"])
    # Damaged files are still of their kind, and the message is about the damage.
    for name in ("run.json", "log.jsonl", "x.gguf", "x.safetensors"):
        with open(f"{t}/{name}", "wb") as f:
            f.write(b'{"graft": ]\n')
        r = expect(65, name, args=["inspect", f"{t}/{name}"])
        check(none not in r.stderr and "7021788165289544315" not in r.stderr, r.stderr)


@case
def doctor_of_files():
    t = tiny("doctor")
    out = train(t, "num_epochs=1", "save_steps=20", "save_total_limit=9")
    steps = sorted(os.listdir(f"{out}/checkpoints"))
    said, _ = doctor(out)
    check(len(steps) == 3 and all(said[f"checkpoints/{s}"][0] == "ok" for s in steps), f"{said}")
    check("SHA-256" in said["adapter_model.safetensors"][1] and "SHA-256" in said["adapter.gguf"][1], f"{said}")
    check("finished" in said["run.json"][1] and "48" in said["log.jsonl"][1], f"{said}")
    said, _ = doctor(f"{out}/checkpoints/{steps[0]}/")
    check(list(said.values()) == [("ok", "checkpoint of step 20, every file is whole")], f"{said}")
    os.makedirs(f"{t}/lora")
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        shutil.copy(f"{out}/{name}", f"{t}/lora")
    said, _ = doctor(f"{t}/lora")
    check(set(said) == {"adapter_config.json", "adapter_model.safetensors"} and "finite" in said["adapter_model.safetensors"][1], f"{said}")
    shutil.copy(f"{out}/adapter.gguf", f"{t}/lora")
    check(len(doctor(f"{t}/lora")[0]) == 3, "adapter.gguf is not looked at")
    graft("export", out, "--to", "mlx", "--base", f"{t}/tiny.gguf", "--out", f"{t}/mlx")
    check(len(doctor(f"{t}/mlx")[0]) == 2, "an MLX folder")
    for path in (f"{t}/tiny.gguf", f"{out}/adapter_model.safetensors", f"{out}/adapter.gguf", f"{out}/run.json", f"{out}/log.jsonl"):
        said, _ = doctor(path)
        check(said[path][0] == "ok", f"{said}")
    # What is damaged is named; everything else is looked at all the same.
    bad = f"{t}/bad"
    shutil.copytree(out, bad)
    change(f"{bad}/adapter.gguf", -3, b"\x01")
    os.remove(f"{bad}/checkpoints/{steps[1]}/manifest.json")
    said, err = doctor(bad, 80)
    check([k for k, v in said.items() if v[0] == "BAD"] == ["adapter.gguf", f"checkpoints/{steps[1]}"], f"{said}")
    check("2 of 8 parts" in err and "adapter.gguf" in err, err)
    doctor(f"{bad}/checkpoints/{steps[1]}", 80)
    os.remove(f"{bad}/adapter.gguf")
    check("cannot open" in doctor(bad, 80)[0]["adapter.gguf"][1], "a recorded file that is gone")
    change(f"{t}/lora/adapter_model.safetensors", -4, struct.pack("<f", float("nan")))
    said, err = doctor(f"{t}/lora", 65)
    check(said["adapter_model.safetensors"][0] == "BAD" and "nan" in err and "lora_" in err and said["adapter.gguf"][0] == "ok", err)
    change(f"{t}/lora/adapter.gguf", -4, struct.pack("<f", float("-inf")))
    check("inf" in doctor(f"{t}/lora/adapter.gguf", 65)[1], "infinity in a GGUF file")
    os.remove(f"{t}/lora/adapter_model.safetensors")
    check(doctor(f"{t}/lora", 66)[0]["adapter_model.safetensors"][0] == "BAD", "tensors are missing")
    with open(f"{t}/tiny.gguf", "rb") as f:
        data = f.read()
    for n in (0, 3, 100, len(data) - 1):
        with open(f"{t}/cut.gguf", "wb") as f:
            f.write(data[:n])
        doctor(f"{t}/cut.gguf", 65)
    change(f"{bad}/run.json", 0, b"[")
    check(doctor(bad, 80)[0]["run.json"][0] == "BAD", "run.json")
    with open(f"{out}/log.jsonl", "ab") as f:
        f.write(b'{"step": 49, "epo')
    check("cut" in doctor(out)[0]["log.jsonl"][1], "the last line of a killed run is no damage")
    expect(66, "nowhere", args=["doctor", f"{t}/nowhere"])
    for path in (t, f"{t}/config.yml", f"{t}/train.jsonl"):
        expect(65, "not a base, GGUF, safetensors, adapter, checkpoint or run", args=["doctor", path])
    expect(64, args=["doctor", out, t])


@case
def doctor_of_the_machine():
    def lines(env=None, code=0):
        r = expect(code, args=["doctor"], env=env)
        return dict(line.split(": ", 1) for line in r.stdout.splitlines())

    said = lines()
    total, free = map(float, re.match(r"([\d.]+) GiB, ([\d.]+) GiB available, control group ", said["memory"]).groups())
    check(abs(total - os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGESIZE") / 2**30) < 0.1 and 0 < free <= total, said["memory"])
    check(said["page size"] == f"{os.sysconf('SC_PAGESIZE')} bytes", said["page size"])
    check(os.getcwd() in said["disk"] and re.match(r"[\d.]+ GiB free", said["disk"]), said["disk"])
    for library in ("cJSON", "libyaml", "PCRE2", "utf8proc", "OpenSSL"):
        check(re.search(library + r" \d+\.\d+", said["libraries"]), f"{library}: {said['libraries']}")
    check(said["GPU"] == "not in this version" and said["CPU features"], f"{said}")
    check(f"affinity allows {len(os.sched_getaffinity(0))}" in said["threads"], said["threads"])
    check(lines({"GRAFT_CPU": "c"})["kernels"].startswith("c, "), "GRAFT_CPU=c")
    check("GRAFT_CPU=mmx" in lines({"GRAFT_CPU": "mmx"}, code=78)["kernels"], "GRAFT_CPU=mmx")
    before = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {min(before)})
        check(lines()["threads"].startswith("1 available"), "affinity to one CPU")
    finally:
        os.sched_setaffinity(0, before)


@case
def planned_memory():
    if not os.path.exists(REAL):
        raise Skipped(f"{REAL} is not there (make base fetches it)")
    rows = f"{work}/long.jsonl"
    rng = random.Random(5)
    with open(rows, "w") as f:
        for _ in range(6):
            ids = [rng.randrange(1000, 40000) for _ in range(384)]
            f.write(json.dumps({"input_ids": ids, "labels": ids}) + "\n")
    with open(f"{work}/real.yml", "w") as f:
        f.write(f"base_model: {REAL}\nload_in_4bit: true\nadapter: qlora\nlora_r: 16\nlora_alpha: 32\nlora_target_linear: true\n"
                f"datasets:\n  - path: {rows}\n    type:\nsequence_len: 384\nmicro_batch_size: 1\nmax_steps: 2\n"
                f"learning_rate: 1e-4\nfloat32: true\noutput_dir: {work}/real\n")
    for more in ([], ["gradient_checkpointing=true"], ["gradient_accumulation_steps=2"]):
        plan = json.loads(graft("plan", f"{work}/real.yml", *more, "--json").stdout)
        r = graft("train", f"{work}/real.yml", "--overwrite", *more)
        check(r.returncode == 0, r.stderr[-500:])
        held = max(x["peak_bytes"] for x in log(f"{work}/real") if "loss" in x)
        check(abs(held - plan["peak_bytes"]) <= 0.05 * plan["peak_bytes"],
              f"{more}: planned {plan['peak_bytes'] / 2**20:.1f} MiB, held {held / 2**20:.1f} MiB")
        print(f"     planned {plan['peak_bytes'] / 2**20:.1f} MiB, held {held / 2**20:.1f} MiB {more}")


def main():
    passed = failed = skipped = 0
    only = sys.argv[1] if len(sys.argv) > 1 else ""
    for function in cases:
        if only not in function.__name__:
            continue
        start = time.time()
        try:
            function()
            verdict, passed = "ok  ", passed + 1
        except Skipped as e:
            verdict, skipped = "skip", skipped + 1
            print(f"     skipped: {e}")
        except Exception as e:  # a broken test is a failure too
            verdict, failed = "FAIL", failed + 1
            print(f"     {type(e).__name__}: {e}")
        print(f"{verdict} {function.__name__} ({time.time() - start:.1f} s)", flush=True)
    shutil.rmtree(work, ignore_errors=True)
    print(f"{passed} passed, {failed} failed, {skipped} skipped")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
