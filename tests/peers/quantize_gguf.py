#!/usr/bin/env python3
"""What `graft quantize` writes as a GGUF, beside llama.cpp's own tools and in a real llama.cpp server.

    quantize_gguf.py --graft GRAFT --llama-cpp FOLDER [--seed N] [--part encodings|families|base]

Encodings: the 4-bit base and an F32 file of its numbers in every type; each tensor equal to what gguf's quantisers or the
compiled ggml (in the package xllamacpp) make of the same numbers.
Families: every tiny model of tests/oracle/families.py, made anew: what is written of the folder equals what llama.cpp's
converter writes, tensor by tensor and key by key, or is refused.  Its tokenizer: what tokens, types and ids the converter lists.
Server: files of both kinds are served by llama.cpp, and the log-probabilities of rows of tokens are ours.
"""
import argparse
import ctypes
import json
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile

HERE = os.path.dirname(os.path.abspath(__file__))
ORACLE = os.path.join(HERE, "../oracle")
sys.path.insert(0, ORACLE)
import families
import gguf
import hot_swap
import numpy as np
import peer
import quants

TYPES = ["q8_0", "q6_k", "q5_1", "q5_0", "q4_1", "q4_0", "q4_k", "f16", "bf16"]
SERVED = ["q8_0", "q4_0", "q4_k", "q6_k"]
# Where a server computes with float32 or float16 weights: every one, the median.
PLAIN_LARGEST, PLAIN_MEDIAN = 2e-2, 2e-3
# Keys the converter leaves to llama.cpp's defaults or writes under another name (see docs/decisions.md); of names and sizes.
OTHER_KEYS = ("general.name", "general.size_label", "rope.scaling.", "layer_norm_epsilon", "context_length", "tokenizer.ggml.merges",
              "tokenizer.ggml.pre", "tokenizer.ggml.model", "tokenizer.ggml.tokens", "tokenizer.ggml.token_type")
# llama.cpp computes another function for these (docs/decisions.md), or cannot load a model of their shape.
NOT_SERVED = {"phimoe-real": "its graph takes layer norms for RMS norms",
              "deepseek-v2": "it takes a model of so few layers for one with q_lora_rank", "deepseek-v2-old": "the same",
              "exaone4": "its heads must be as wide together as the model", "exaone4-full": "the same",
              "phi3-long": "it takes the long factors by the room of its cache, we by the longest row",
              "cohere": "it looks for norms of queries and keys in models of 64 layers only"}


class Count(peer.Checks):
    def problem(self, what, problem):
        return self.check(what, not problem, problem or "")


def graft(a, *arguments):
    return subprocess.run([a.graft, *map(str, arguments)], capture_output=True, text=True)


def plain(tensor):
    return gguf.quants.dequantize(tensor.data, tensor.tensor_type).astype(np.float32)


# ------------------------------------------------------------------------------------------------------------ encodings


def encoded(library, kind, values):
    """The bytes of rows in a type, by gguf where it can, else by ggml; None: neither can."""
    name = kind.name
    try:
        return np.ascontiguousarray(gguf.quants.quantize(values, kind)).view(np.uint8).reshape(-1)
    except NotImplementedError:
        pass
    function = "quantize_row_" + name.lower().replace("_k", "_K") + "_ref"
    block, size = gguf.GGML_QUANT_SIZES[kind]
    x = np.ascontiguousarray(values.reshape(-1))
    got = quants.of_ggml(library, function, x, np.uint8, x.size // block * size, x.size)
    return None if got is None else got.reshape(-1)


def check_encodings(a, c, scratch):
    library = quants.compiled_ggml()
    for base in (peer.BASE, peer.f32_gguf()):
        before = {t.name: t for t in gguf.GGUFReader(base).tensors}
        for to in TYPES:
            out = os.path.join(scratch, f"{to}.gguf")
            done = graft(a, "quantize", base, "--to", to, "--out", out)
            if not c.problem(f"{pathlib.Path(base).name} to {to}", done.stderr if done.returncode else None):
                continue
            reader = gguf.GGUFReader(out)
            bad, seen, skipped = [], {}, 0
            for t in reader.tensors:
                kind, was = t.tensor_type, before[t.name]
                seen[kind.name] = seen.get(kind.name, 0) + 1
                got = np.ascontiguousarray(t.data).view(np.uint8).reshape(-1)
                if kind == was.tensor_type:
                    want = np.ascontiguousarray(was.data).view(np.uint8).reshape(-1)
                else:
                    want = encoded(library, kind, plain(was))
                skipped += want is None
                if want is not None and not np.array_equal(got, want):
                    bad.append(t.name)
            file_type = int(peer.gguf_field(reader, "general.file_type"))
            c.check(f"  {to}: every tensor as gguf or ggml packs it", not bad and not skipped and len(before) == len(reader.tensors),
                    f"{seen}, file type {gguf.LlamaFileType(file_type).name}" + (f"; {len(bad)} differ: {bad[0]}" if bad else ""))
            os.unlink(out)


# ------------------------------------------------------------------------------------------------------------- families


def letters(n):
    return ["\u0120", "\u010a"] + [chr(b) for b in [*range(33, 127), *range(161, 173), *range(174, 256)]][:n - 2]


def write_tokenizer(folder):
    """A byte-level tokenizer of single letters with as many tokens as the model has rows."""
    config = json.load(open(os.path.join(folder, "config.json")))
    n = (config.get("text_config") or config)["vocab_size"]
    added = [{"id": n - 2 + i, "content": t, "single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
             for i, t in enumerate(["<s>", "</s>"])]
    json.dump({"version": "1.0", "added_tokens": added, "normalizer": None, "post_processor": None, "decoder": {"type": "ByteLevel"},
               "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True},
               "model": {"type": "BPE", "vocab": {t: i for i, t in enumerate(letters(n - 2))}, "merges": []}},
              open(os.path.join(folder, "tokenizer.json"), "w"))
    json.dump({"bos_token": "<s>", "eos_token": "</s>"}, open(os.path.join(folder, "tokenizer_config.json"), "w"))


def compare_tensors(ours, theirs):
    got, want = {t.name: t for t in ours.tensors}, {t.name: t for t in theirs.tensors}
    if set(got) != set(want):
        return f"tensors {sorted(set(got) ^ set(want))[:4]}"
    for name, t in want.items():
        x, y = np.array(got[name].data), plain(t) if t.tensor_type != got[name].tensor_type else np.array(t.data)
        if x.size != y.size or not np.array_equal(x.reshape(-1), y.reshape(-1)):
            return f"tensor {name}"
    return None


def compare_keys(ours, theirs):
    for key, field in theirs.fields.items():
        if key.startswith("GGUF.") or any(k in key for k in OTHER_KEYS):
            continue
        got = ours.fields.get(key)
        if got is None or got.types != field.types or got.contents() != field.contents():
            return f"key {key}: {got.contents() if got else 'missing'}, the converter's {field.contents()}"
    return None


def check_families(a, c, scratch, seed):
    """Returns the files to serve."""
    out = os.path.join(scratch, "families")
    subprocess.run([sys.executable, os.path.join(ORACLE, "families.py"), out, "--seed", str(seed)], check=True, capture_output=True)
    made = [n for n in families.CASES if n not in families.LACKS and n != "deepseek-v2-old"]  # which has the form of 2024
    convert = subprocess.run([sys.executable, os.path.join(ORACLE, "gguf_families.py"), a.llama_cpp, out, *made], capture_output=True, text=True)
    c.problem("llama.cpp's converter", convert.stdout[-500:] if convert.returncode else None)
    served = []
    for name in families.CASES:
        folder = os.path.join(out, name)
        if not os.path.exists(os.path.join(folder, "config.json")):
            continue
        write_tokenizer(folder)
        file = os.path.join(folder, "ours.gguf")
        # llama.cpp goes by names: what is called phi3 must have Phi 3's tokens.
        plain_name = os.path.join(scratch, f"model-{list(families.CASES).index(name)}")
        os.symlink(folder, plain_name)
        done = graft(a, "quantize", plain_name, "--to", "f32", "--out", file)
        if done.returncode:
            lacks = families.LACKS.get(name) or name.startswith("lora-") or "packing" in families.CASES[name][3]
            c.problem(f"{name} is refused by name", None if lacks and "a GGUF of the architecture" in done.stderr else done.stderr)
            continue
        if name in made:
            ours, theirs = gguf.GGUFReader(file), gguf.GGUFReader(os.path.join(folder, "model.gguf"))
            c.problem(f"{name}: as llama.cpp's converter", compare_tensors(ours, theirs) or compare_keys(ours, theirs))
            if name not in NOT_SERVED:
                served.append((name, file))
    return served


# --------------------------------------------------------------------------------------------------------------- server


def token_rows(path, vocab, seed, rows, length):
    rng = np.random.default_rng(seed)
    ids = [[int(i) for i in rng.integers(3, vocab - 3, length)] for _ in range(rows)]
    peer.write_jsonl(path, [{"input_ids": row, "labels": row, "attention_mask": [1] * length} for row in ids])
    return [{"ids": row, "trained": [1] * length} for row in ids]


def ours(a, scratch, model, rows_path):
    config = pathlib.Path(scratch) / "eval.yml"
    peer.write_config(config, base_model=str(model), lora_r=2, lora_alpha=4, lora_target_linear=True, learning_rate=1e-3,
                      datasets=[{"path": str(rows_path)}], output_dir=os.path.join(scratch, "out"), sequence_len=256, micro_batch_size=1)
    out = os.path.join(scratch, "logprobs.jsonl")
    peer.run([a.graft, "eval", config, "--data", rows_path, "--no-generate", "--logprobs", out])
    return [row["logprobs"][1:] for row in peer.read_jsonl(out)]


def served_values(scratch, model, rows):
    server = hot_swap.Llama(model, [], peer.THREADS, len(rows), os.path.join(scratch, "server.log"))
    try:
        return server.logprobs(rows)
    finally:
        server.close()


def check_server(c, a, scratch, name, model, rows_path, rows, largest, median):
    mine = np.array([v for row in ours(a, scratch, model, rows_path) for v in row])
    try:
        theirs = np.array(served_values(scratch, model, rows))
    except SystemExit:
        said = [line.strip() for line in open(os.path.join(scratch, "server.log"), errors="replace") if " E " in line]
        return c.check(f"{name}: llama.cpp loads it", False, said[0] if said else "it says nothing")
    if mine.shape != theirs.shape:
        return c.check(f"{name}: log-probabilities", False, f"{mine.shape}, {theirs.shape}")
    d = np.abs(mine - theirs)
    return c.check(f"{name}: llama.cpp's log-probabilities are ours", (largest is None or d.max() <= largest) and np.median(d) <= median,
                   f"{len(d)} tokens, median {np.median(d):.1e}, largest {d.max():.1e}")


def check_vocabulary(c, a, scratch):
    """The real base as a folder with its tokenizer.json, written as a GGUF: the lists of the file it came from."""
    folder, out = os.path.join(scratch, "folder"), os.path.join(scratch, "vocabulary.gguf")
    shutil.copytree(peer.hf_folder(), folder)
    peer.tokenizer().save_pretrained(folder)
    done = graft(a, "quantize", folder, "--to", "f16", "--out", out)
    if not c.problem("the real base from safetensors", done.stderr if done.returncode else None):
        return
    ours, theirs = gguf.GGUFReader(out), peer.base_reader()
    for key in ("model", "pre", "tokens", "token_type", "merges", "eos_token_id"):
        got, want = (peer.gguf_field(r, f"tokenizer.ggml.{key}") for r in (ours, theirs))
        c.check(f"  tokenizer.ggml.{key}", got == want, f"{len(got)} of them" if isinstance(got, list) else f"{got}, {want}")
    rows = {t.name: t for t in theirs.tensors}
    bad = [t.name for t in ours.tensors if not np.array_equal(plain(t), plain(rows[t.name]).astype(np.float16 if t.tensor_type.name == "F16" else np.float32))]
    c.check("  tensors", not bad and len(rows) == len(ours.tensors), f"{bad[:3]}")
    os.unlink(out)


TEXTS = ["The capital of France is Paris, and the capital of Italy is Rome.", "Water boils at one hundred degrees, and ice melts at zero.",
         "def add(a, b):\n    return a + b\n", "Once upon a time there was a little girl who lived in a small house near the forest."]


def differences(a, scratch, model, served, rows):
    """Of every token of the rows, and of the tokens that the server then chooses: ours on `model`, the server's on `served`."""
    server = hot_swap.Llama(served, [], peer.THREADS, len(rows), os.path.join(scratch, "server.log"))
    try:
        theirs = server.logprobs(rows)
        ask = {"n_predict": 8, "temperature": 0.0, "samplers": [], "n_probs": 1, "cache_prompt": False, "ignore_eos": True}
        answers = [server.ask("/completion", {**ask, "prompt": row["ids"]})["completion_probabilities"] for row in rows]
    finally:
        server.close()
    longer = [row["ids"] + [t["id"] for t in answer] for row, answer in zip(rows, answers)]
    path = os.path.join(scratch, "rows.jsonl")
    peer.write_jsonl(path, [{"input_ids": ids, "labels": ids, "attention_mask": [1] * len(ids)} for ids in longer])
    mine = ours(a, scratch, model, path)
    d = np.abs(np.array([v for row, values in zip(rows, mine) for v in values[:len(row["ids"]) - 1]]) - np.array(theirs))
    chosen = [abs(x - t["logprob"]) for answer, values in zip(answers, mine) for x, t in zip(values[-len(answer):], answer)]
    return d, np.array(chosen)


def told(d):
    return f"{len(d)} tokens, median {np.median(d):.1e}, largest {d.max():.1e}"


def check_real(c, a, scratch):
    """The base in some types.  A server on the file itself also rounds activations to 8 bits: as close as on a file that
    llama.cpp's own tools packed.  On an F32 file of what gguf decodes from it nothing is rounded: every one, and every
    token of the server's greedy answers."""
    chat = peer.tokenizer()
    rows = [{"ids": ids, "trained": [1] * len(ids)} for ids in (chat(text)["input_ids"] for text in TEXTS)]
    control, _ = differences(a, scratch, peer.BASE, peer.BASE, rows)
    limit = 1.5 * np.median(control) + 5e-3
    print(f"   {peer.BASE_NAME}, packed by llama.cpp: {told(control)}")
    for to in ["f16", *SERVED]:
        file, decoded = (os.path.join(scratch, f"{name}.gguf") for name in (f"base-{to}", "decoded"))
        done = graft(a, "quantize", peer.f32_gguf(), "--to", to, "--out", file)
        if not c.problem(f"base to {to}", done.stderr if done.returncode else None):
            continue
        if to != "f16":
            d, _ = differences(a, scratch, file, file, rows)
            c.check(f"base, {to}: llama.cpp's log-probabilities are ours", np.median(d) <= limit, told(d))
            peer.write_f32(gguf.GGUFReader(file), decoded)
        d, chosen = differences(a, scratch, file, file if to == "f16" else decoded, rows)
        largest, median = (PLAIN_LARGEST, PLAIN_MEDIAN) if to == "f16" else (hot_swap.F32_LARGEST, hot_swap.F32_MEDIAN)
        good = d.max() <= largest and np.median(d) <= median
        c.check(f"base, {to}, without rounding of activations: the same", good, told(d))
        good = len(chosen) >= 24 and chosen.max() <= largest
        c.check(f"base, {to}: greedy answers have our probability", good, told(chosen))
        os.unlink(file)


def check_planted(c, a, scratch, served, seed):
    """A file with one deliberate error must not pass for ours."""
    name, file = next((n, f) for n, f in served if n == "llama3")
    damaged = os.path.join(scratch, "damaged.gguf")
    data = bytearray(open(file, "rb").read())
    t = next(t for t in gguf.GGUFReader(file).tensors if t.name == "blk.0.attn_q.weight")
    rows = np.array(t.data)
    order = peer.rope_rows(8, rows.shape[0] // 8)
    back = rows.copy()
    back[order] = rows  # as Hugging Face has them
    data[t.data_offset:t.data_offset + t.n_bytes] = np.ascontiguousarray(back).tobytes()
    open(damaged, "wb").write(data)
    rows_path = os.path.join(scratch, "planted.jsonl")
    tokens = token_rows(rows_path, 96, seed, 2, 12)
    mine = np.array([v for row in ours(a, scratch, file, rows_path) for v in row])
    theirs = np.array(served_values(scratch, damaged, tokens))
    c.must_fail("Q rows in the other order", np.abs(mine - theirs).max() <= PLAIN_LARGEST, f"largest {np.abs(mine - theirs).max():.1e}")


def main():
    p = argparse.ArgumentParser()
    p.add_argument("--graft", default=peer.GRAFT)
    p.add_argument("--llama-cpp", required=True)
    p.add_argument("--seed", type=int, default=int.from_bytes(os.urandom(3), "little"))
    p.add_argument("--part", choices=["encodings", "families", "base"])
    a = p.parse_args()
    print(f"seed {a.seed}", flush=True)
    c = Count()
    with tempfile.TemporaryDirectory() as scratch:
        if a.part in (None, "encodings"):
            check_encodings(a, c, scratch)
        if a.part in (None, "families"):
            served = check_families(a, c, scratch, a.seed)
            for name, file in served:
                rows_path = os.path.join(scratch, "tokens.jsonl")
                rows = token_rows(rows_path, 96, a.seed, 2, 12)
                check_server(c, a, scratch, name, file, rows_path, rows, PLAIN_LARGEST, PLAIN_MEDIAN)
            check_planted(c, a, scratch, served, a.seed)
        if a.part in (None, "base"):
            check_vocabulary(c, a, scratch)
            check_real(c, a, scratch)
    return c.close()


if __name__ == "__main__":
    sys.exit(main())
