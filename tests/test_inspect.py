#!/usr/bin/env python3
"""`graft inspect` and `graft doctor` on bases: folders, shards, packed checkpoints, parts of a GGUF, names in the Hugging Face
cache, entries of the cache of quantised bases. Closes with "N passed, N failed, N skipped". BUILD names the build folder."""
import json
import os
import shutil
import struct
import subprocess
import sys
import tempfile

GRAFT = os.environ.get("GRAFT", f"{os.environ.get('BUILD', 'build')}/graft")
FAMILIES = "tests/fixtures/families"
COMMIT = "0123456789abcdef0123456789abcdef01234567"
work = tempfile.mkdtemp(prefix="graft-inspect-")
os.environ["GRAFT_CACHE"] = f"{work}/cache"
os.environ["HF_HUB_CACHE"] = f"{work}/hub"


class Failed(Exception):
    pass


def check(condition, message):
    if not condition:
        raise Failed(message)


def graft(*arguments, code=0):
    r = subprocess.run([GRAFT, *map(str, arguments)], capture_output=True, text=True, timeout=120)
    check(r.returncode == code, f"{arguments}: exit {r.returncode}, wanted {code}: {r.stderr[-500:]}")
    return r


def inspect(path, *more):
    """What --json says; the lines for people say the same values."""
    said = json.loads(graft("inspect", path, "--json", *more).stdout)
    lines = graft("inspect", path, *more).stdout
    for key, value in said.items():
        for k, v in (value.items() if isinstance(value, dict) else [(key, value)]):
            check(f"{k:<12} {v}\n" in lines, f"{path}: {k} {v!r} is not in {lines}")
    return said


def header(path):
    with open(path, "rb") as f:
        data = f.read()
    n = struct.unpack("<Q", data[:8])[0]
    h = json.loads(data[8:8 + n])
    h.pop("__metadata__", None)
    return h, data[8 + n:]


def count(words):
    return int(words.split()[0])


def packed_checkpoints():
    for name, packing, form, linears in (("llama-gptq4", "GPTQ, 4 bits, groups of 32", "GPTQ-4", 7), ("llama-awq", "AWQ, 4 bits, groups of 32", "AWQ", 7),
                                         ("llama-nf4", "bitsandbytes, 4 bits, double quantised", "NF4", 7),
                                         ("llama-int8", "bitsandbytes, 8 bits", "INT8", 7),
                                         ("deepseek-v3-fp8", "FP8, blocks of 16 x 16", None, None), ("gpt-oss-mxfp4", "MXFP4", "MXFP4-PAIRS", 20)):
        said = inspect(f"{FAMILIES}/{name}")
        tensors = header(f"{FAMILIES}/{name}/model.safetensors")[0]
        check(said["kind"] == "packed checkpoint" and said["packing"] == packing, f"{name}: {said}")
        check(said["tensors"] == len(tensors) and said["bytes"] == os.path.getsize(f"{FAMILIES}/{name}/model.safetensors"), f"{name}: {said}")
        for dtype in {t["dtype"] for t in tensors.values()}:
            check(count(said["types"][dtype]) == sum(t["dtype"] == dtype for t in tensors.values()), f"{name}: {dtype} {said['types']}")
        if form:
            check(count(said["weights"][form]) == linears, f"{name}: {said['weights']}")
    check("unusable" not in said and said["model"].startswith("gpt_oss, 2 layers"), f"{said}")
    listed = json.loads(graft("inspect", f"{FAMILIES}/llama-awq", "--json", "--tensors").stdout)["tensor list"]
    check(listed["model.layers.0.self_attn.q_proj.qweight"] == "I32 64 x 8", listed)


def plain_ones():
    said = inspect(f"{FAMILIES}/llama")
    check(said["kind"] == "checkpoint" and "packing" not in said and said["files"] == 1, said)
    alone = inspect(f"{FAMILIES}/llama/config.json")
    check(alone["kind"] == "config.json without weights" and alone["parameters"] == said["parameters"] and "tensors" not in alone, alone)


def shards():
    folder = f"{work}/shards"
    os.makedirs(folder)
    shutil.copy(f"{FAMILIES}/llama/config.json", folder)
    tensors, data = header(f"{FAMILIES}/llama/model.safetensors")
    names, where = sorted(tensors), {}
    for i, part in enumerate((names[:5], names[5:])):
        h, out, file = {}, b"", f"model-0000{i + 1}-of-00002.safetensors"
        for n in part:
            begin, end = tensors[n]["data_offsets"]
            h[n] = {**tensors[n], "data_offsets": [len(out), len(out) + end - begin]}
            out += data[begin:end]
            where[n] = file
        raw = json.dumps(h).encode()
        with open(f"{folder}/{file}", "wb") as f:
            f.write(struct.pack("<Q", len(raw)) + raw + out)
    with open(f"{folder}/model.safetensors.index.json", "w") as f:
        json.dump({"weight_map": where}, f)
    said = inspect(folder)
    check(said["files"] == 2 and said["tensors"] == len(names) and said["kind"] == "checkpoint", said)
    lines = graft("doctor", folder).stdout.splitlines()
    check(len(lines) == 3 and all(line.startswith("ok") for line in lines), lines)
    one = inspect(f"{folder}/model-00001-of-00002.safetensors")
    check(one["kind"] == "safetensors" and one["tensors"] == 5, one)
    os.remove(f"{folder}/model-00002-of-00002.safetensors")
    check("model-00002" in graft("inspect", folder, code=66).stderr, "the missing shard is not named")


def what_cannot_be_used():
    folder = f"{work}/unknown"
    os.makedirs(folder)
    shutil.copy(f"{FAMILIES}/llama/model.safetensors", folder)
    with open(f"{folder}/config.json", "w") as f:
        json.dump({**json.load(open(f"{FAMILIES}/llama/config.json")), "model_type": "perceptron"}, f)
    said = inspect(folder)
    check("perceptron" in said["unusable"] and said["tensors"] == 21 and "weights" not in said, said)
    check("perceptron" in graft("doctor", folder, code=65).stderr, "doctor")
    with open(f"{folder}/config.json", "w") as f:
        f.write("[")
    check("config.json" in graft("inspect", folder, code=65).stderr, "a broken config.json")


def numbers_that_are_not_finite():
    folder = f"{work}/nan"
    os.makedirs(folder)
    shutil.copy(f"{FAMILIES}/llama-gptq4/config.json", folder)
    shutil.copy(f"{FAMILIES}/llama-gptq4/model.safetensors", folder)
    check(graft("doctor", folder).stdout.count("ok ") == 2, "a sound one")
    tensors, data = header(f"{folder}/model.safetensors")
    name = "model.layers.0.mlp.up_proj.scales"
    with open(f"{folder}/model.safetensors", "r+b") as f:
        f.seek(os.path.getsize(f.name) - len(data) + tensors[name]["data_offsets"][0])
        f.write(b"\0\x7e")
    check(name in graft("doctor", folder, code=65).stderr, "a scale that is no number")


def string(s):
    return struct.pack("<Q", len(s)) + s.encode()


def part(no, count, total):
    """A GGUF of one tensor; keys about parts."""
    kv = [string("general.architecture") + struct.pack("<I", 8) + string("llama")]
    for key, value in (("split.no", no), ("split.count", count)):
        kv.append(string(key) + struct.pack("<IH", 2, value))
    kv.append(string("split.tensors.count") + struct.pack("<Ii", 5, total))
    raw = b"GGUF" + struct.pack("<IQQ", 3, 1, len(kv)) + b"".join(kv)
    raw += string(f"t{no}") + struct.pack("<IQIQ", 1, 8, 0, 0)
    return raw + bytes(-len(raw) % 32) + bytes(32)


def parts_of_a_gguf():
    folder = f"{work}/parts"
    os.makedirs(folder)
    for i in range(3):
        with open(f"{folder}/m-0000{i + 1}-of-00003.gguf", "wb") as f:
            f.write(part(i, 3, 3))
    for i in range(3):
        said = inspect(f"{folder}/m-0000{i + 1}-of-00003.gguf")
        check(said["parts"] == 3 and said["tensors in all"] == 3 and said["tensors"] == 1 and said["kind"] == "GGUF model", said)
    os.remove(f"{folder}/m-00002-of-00003.gguf")
    said = inspect(f"{folder}/m-00001-of-00003.gguf")
    check("m-00002-of-00003.gguf" in said["parts"] and said["tensors"] == 1, said)


def a_name_on_the_hub():
    snapshot = f"{work}/hub/models--org--tiny/snapshots/{COMMIT}"
    os.makedirs(snapshot)
    os.makedirs(f"{work}/hub/models--org--tiny/refs")
    with open(f"{work}/hub/models--org--tiny/refs/v1", "w") as f:
        f.write(COMMIT)
    for name in ("config.json", "model.safetensors"):
        shutil.copy(f"{FAMILIES}/llama-awq/{name}", snapshot)
    said = inspect("org/tiny", "--revision", "v1")
    check(said["found"] == snapshot and said["packing"].startswith("AWQ"), said)
    check(inspect("org/tiny/model.safetensors", "--revision", "v1")["kind"] == "safetensors", "a file by its name")
    check("hf download org/tiny" in graft("inspect", "org/tiny", code=66).stderr, "no main")


def entries_of_our_cache():
    config = f"{work}/c.yml"
    with open(config, "w") as f:
        f.write("adapter: qlora\nload_in_4bit: true\nlora_r: 2\nlora_alpha: 4\nlora_target_linear: true\nlearning_rate: 1e-4\nsequence_len: 64\n"
                f"base_model: {FAMILIES}/llama\nmax_steps: 1\ngenerate_samples: false\noutput_dir: {work}/out\n"
                f"datasets:\n  - path: {work}/rows.jsonl\n")
    with open(f"{work}/rows.jsonl", "w") as f:
        f.write(json.dumps({"input_ids": list(range(1, 20)), "labels": list(range(1, 20))}) + "\n")
    graft("train", config)
    folder = f"{work}/cache/bases/{os.listdir(f'{work}/cache/bases')[0]}"
    said = inspect(folder)
    check(said["kind"] == "quantised base of the cache" and said["verified"] == "as it was written", said)
    check(said["packing"] == "bitsandbytes, 4 bits, double quantised" and count(said["weights"]["NF4"]) == 14, said)
    with open(f"{folder}/model.safetensors", "r+b") as f:
        f.seek(-50, 2)
        byte = f.read(1)
        f.seek(-1, 1)
        f.write(bytes([byte[0] ^ 1]))
    check("is not what was written there" in inspect(folder)["verified"], "a changed bit")


passed = failed = 0
for run in (packed_checkpoints, plain_ones, shards, what_cannot_be_used, numbers_that_are_not_finite, parts_of_a_gguf, a_name_on_the_hub, entries_of_our_cache):
    if len(sys.argv) > 1 and run.__name__ not in sys.argv[1:]:
        continue
    try:
        run()
        passed += 1
    except (Failed, KeyError, ValueError, subprocess.TimeoutExpired) as problem:
        failed += 1
        print(f"FAIL {run.__name__}: {problem!r}")
shutil.rmtree(work)
print(f"{passed} passed, {failed} failed, 0 skipped")
sys.exit(failed > 0)
