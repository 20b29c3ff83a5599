"""Small tokenizers as folders in Hugging Face's layout, and what the reference makes of texts with them.

    tokenizer_folders.py --out tests/fixtures/tokenizers

Writes sentencepiece.json beside that folder (a vocabulary of the kind GGUF calls "llama", and cases), and in it one folder for each entry of FIXTURES: tokenizer.json, sometimes tokenizer_config.json, generation_config.json and
chat_template.jinja, and cases.json: {"bos", "eos", "adds_bos", "ends", "size", "template", "cases": [[text, ids] or
[text, ids, ids with special tokens as text]]}.  The ids come from tokenizers.Tokenizer.from_file (never from
AutoTokenizer, which rebuilds some pipelines).  tests/peers/tokens.py imports `random_folder` and compares new ones in
each run.  Needs the Python package tokenizers 0.23.
"""
import argparse
import json
import pathlib
import random
import shutil
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "peers"))

from tokenizers import Tokenizer, models, pre_tokenizers, trainers

import tokens as texts

MARK = "\u2581"
TEXTS = texts.SAMPLES + [
    "Once upon a time there was a small tokenizer that read every file in its folder, one after the other.",
    "He said: \"it's 12:30, isn't it?\" They'd have known, we'll see; I'M SURE YOU'VE seen 1000 of them.",
    "def merge(left, right):\n    return left + right  # the lowest rank goes first\n\n\nclass Word:\n\tpass\n",
    "Ein Gleiches: über allen Gipfeln ist Ruh, in allen Wipfeln spürest du kaum einen Hauch.",
    "SELECT id, name FROM users WHERE id IN (1, 22, 333, 4444);",
]
CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
LLAMA3 = texts.llama3(r"\p{N}{1,3}")
QWEN2 = texts.llama3(r"\p{N}")
O200K = texts.cased(texts.CONTRACTION, r"\p{N}{1,3}")
BYTES = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
BOS_FIRST = {"type": "TemplateProcessing", "single": [{"SpecialToken": {"id": "BOS", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
             "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}]}


def split(pattern, behavior="Isolated", invert=False):
    kind = "String" if len(pattern) == 1 else "Regex"
    return {"type": "Split", "pattern": {kind: pattern}, "behavior": behavior, "invert": invert}


def sequence(kind, *parts):
    key = {"pre": "pretokenizers", "normal": "normalizers"}[kind]
    return {"type": "Sequence", key: list(parts)}


def metaspace(scheme, cut):
    return {"type": "Metaspace", "replacement": MARK, "prepend_scheme": scheme, "split": cut}


def train(words, byte_level, size, start):
    """Vocabulary and merges of a BPE; `start`: tokens that come first in it."""
    t = Tokenizer(models.BPE())
    t.pre_tokenizer = pre_tokenizers.Split(" ", "removed")
    alphabet = pre_tokenizers.ByteLevel.alphabet() if byte_level else []
    trainer = trainers.BpeTrainer(vocab_size=size, initial_alphabet=alphabet, show_progress=False, special_tokens=start)
    t.train_from_iterator(words, trainer)
    model = json.loads(t.to_str())["model"]
    return model["vocab"], [list(m) if isinstance(m, list) else m.split(" ", 1) for m in model["merges"]]


def spelled(text):
    return "".join(w for w, _ in pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False).pre_tokenize_str(text))


def build(byte_level, size, normalizer, pre, added, start=(), rare=0, strings=False, bos=None, extra_words=(), extra_merges=(),
          **flags):
    """tokenizer.json as a dict.  added: (text, flags) with flags out of s(pecial) n(ormalized) w(ord) l(strip) r(strip).
    rare: this many of the last characters are taken out of the vocabulary, with the merges that need them."""
    lines = [w for s in TEXTS for w in s.split(" ")]
    words = [spelled(" " + w) if byte_level else MARK + w for w in lines]
    vocab, merges = train(words, byte_level, size, list(start))
    if rare:
        singles = [t for t in vocab if len(t) == 1 and t not in ("e", "t", MARK)][-rare:]
        kept = [t for t in vocab if not any(c in t for c in singles)]
        vocab = {t: i for i, t in enumerate(kept)}
        merges = [m for m in merges if m[0] in vocab and m[1] in vocab and m[0] + m[1] in vocab]
    for word in extra_words:
        vocab.setdefault(word, len(vocab))
    for left, right in extra_merges:
        vocab.setdefault(left + right, len(vocab))
        merges.append([left, right])
    model = {"type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None, "end_of_word_suffix": None,
             "fuse_unk": False, "byte_fallback": False, "ignore_merges": False, "vocab": vocab,
             "merges": [" ".join(m) for m in merges] if strings else merges}
    model.update(flags)
    entries, last = [], -1
    for text, f in added:
        content = vocab.get(text)
        if content is None:
            content = max(last + 1, len(vocab)) if last >= len(vocab) else len(vocab)
        last = max(last, content)
        entries.append({"id": content, "content": text, "single_word": "w" in f, "lstrip": "l" in f, "rstrip": "r" in f,
                        "normalized": "n" in f, "special": "s" in f})
    post = None
    if bos:
        number = next(e["id"] for e in entries if e["content"] == bos)
        post = json.loads(json.dumps(BOS_FIRST).replace('"BOS"', json.dumps(bos)))
        post["special_tokens"] = {bos: {"id": bos, "ids": [number], "tokens": [bos]}}
    return {"version": "1.0", "truncation": None, "padding": None, "added_tokens": entries, "normalizer": normalizer,
            "pre_tokenizer": pre, "post_processor": post, "decoder": None, "model": model}


ALL_BYTES = [f"<0x{b:02X}>" for b in range(256)]
LEGACY = sequence("normal", {"type": "Prepend", "prepend": MARK}, {"type": "Replace", "pattern": {"String": " "}, "content": MARK})
GEMMA = {"type": "Replace", "pattern": {"String": " "}, "content": MARK}
CHATML = [("<|endoftext|>", "s"), ("<|im_start|>", "s"), ("<|im_end|>", "s")]
CHATML_TEMPLATE = ("{% for message in messages %}{{'<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n'}}"
                   "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}")
SPM = ["<unk>", "<s>", "</s>"] + ALL_BYTES
SPM_ADDED = [("<unk>", "s"), ("<s>", "s"), ("</s>", "s")]

# name -> (tokenizer.json, other files)
FIXTURES = {
    "llama3": lambda: (build(True, 420, None, sequence("pre", split(LLAMA3), BYTES), ignore_merges=True, bos="<|begin_of_text|>",
                             extra_words=[spelled(" tokenizer"), "Once", "quickest"],
                             added=[("<|begin_of_text|>", "s"), ("<|end_of_text|>", "s"), ("<|eot_id|>", "s")]),
                       {"tokenizer_config.json": {"bos_token": "<|begin_of_text|>", "eos_token": "<|end_of_text|>", "model_max_length": 1e30},
                        "generation_config.json": {"eos_token_id": [-1, -3]}}),
    "qwen2": lambda: (build(True, 380, {"type": "NFC"}, sequence("pre", split(QWEN2), BYTES), strings=True,
                            continuing_subword_prefix="", end_of_word_suffix="", added=CHATML + [("<think>", ""), ("</think>", "")]),
                      {"tokenizer_config.json": {"bos_token": None, "eos_token": "<|im_end|>", "chat_template": CHATML_TEMPLATE},
                       "generation_config.json": {"eos_token_id": ["<|im_end|>", "<|endoftext|>"]}}),
    "llama2": lambda: (build(False, 560, LEGACY, None, start=SPM, strings=True, unk_token="<unk>", byte_fallback=True, fuse_unk=True,
                             added=[("<unk>", "s"), ("<s>", "s"), ("</s>", "sn"), ("<|user|>", "sr")], bos="<s>"),
                       {"tokenizer_config.json": {"bos_token": {"content": "<s>", "lstrip": False}, "eos_token": {"content": "</s>"},
                                                  "chat_template": [{"name": "tool_use", "template": "no"}, {"name": "default", "template": "yes"}]}}),
    "mistral": lambda: (build(False, 560, None, metaspace("first", False), start=SPM, unk_token="<unk>", byte_fallback=True,
                              fuse_unk=True, added=SPM_ADDED + [("[INST]", "s"), ("[/INST]", "s")], bos="<s>"),
                        {"special_tokens_map.json": {"bos_token": "<s>", "eos_token": "</s>"}, "chat_template.jinja": "from a file\n",
                         "tokenizer_config.json": {"chat_template": "from the configuration"}}),
    "gemma": lambda: (build(False, 620, GEMMA, split(" ", "MergedWithPrevious"), unk_token="<unk>", byte_fallback=True, fuse_unk=True,
                            start=["<pad>", "<eos>", "<bos>", "<unk>", "\n", "\n\n", "\n\n\n", MARK * 2, MARK * 3, MARK * 4, "<b>"] + ALL_BYTES,
                            added=[("<pad>", "s"), ("<eos>", "s"), ("<bos>", "s"), ("<unk>", "s"), ("\n\n", ""), ("\n\n\n", ""), (MARK * 2, ""),
                                   (MARK * 3, ""), (MARK * 4, ""), ("<b>", ""), ("<start_of_turn>", "s"), ("<end_of_turn>", "s")], bos="<bos>"),
                      {"tokenizer_config.json": {"bos_token": "<bos>", "eos_token": "<eos>"}, "generation_config.json": {"eos_token_id": ["<eos>", "<end_of_turn>"]}}),
    "phi": lambda: (build(True, 380, None, sequence("pre", split(O200K, "Removed", True), BYTES),
                          added=[("<|endoftext|>", "slr"), ("<|im_start|>", "slr"), ("<|im_end|>", "sr"), ("<|im_sep|>", "sl"), ("cat", "w")]),
                    {"tokenizer_config.json": {"eos_token": "<|im_end|>"}}),
    "deepseek": lambda: (build(True, 380, sequence("normal"), sequence("pre", *[split(r) for r in texts.DS3], BYTES), strings=True,
                               added=[("<｜begin▁of▁sentence｜>", "s"), ("<｜end▁of▁sentence｜>", "s"), ("<｜User｜>", "n"), ("<｜Assistant｜>", "n")]),
                         {"tokenizer_config.json": {"bos_token": "<｜begin▁of▁sentence｜>", "eos_token": "<｜end▁of▁sentence｜>", "add_bos_token": True}}),
    "starcoder": lambda: (build(True, 380, None, sequence("pre", {"type": "Digits", "individual_digits": True}, {**BYTES, "use_regex": True}),
                                added=[("<|endoftext|>", "s")]), {"config.json": {"eos_token_id": "<|endoftext|>"}}),
    "odd": lambda: (build(False, 330, sequence("normal", {"type": "Replace", "pattern": {"Regex": r"\s+"}, "content": " "}, {"type": "NFC"}),
                          sequence("pre", metaspace("always", True), split(r"[0-9]{2,3}+", "Contiguous"), split("-", "MergedWithNext"),
                                   split(r"[.,;]", "MergedWithPrevious"), split("x", "Removed")),
                          start=["<unk>"], rare=20, unk_token="<unk>", fuse_unk=False, added=[("<unk>", "s"), ("word", "wn"), (" \n", "l")]), {}),
    # Tokens across spaces, matches without a character, pieces that become empty, unknown characters in a row.
    "spare": lambda: (build(False, 300, sequence("normal", {"type": "Replace", "pattern": {"String": "#"}, "content": ""}, *LEGACY["normalizers"]),
                            split("(?=[A-Z])"), start=["<unk>"], rare=25, unk_token="<unk>", fuse_unk=True,
                            extra_merges=[("e", MARK), ("s", MARK), ("e" + MARK, "a"), (MARK, "e" + MARK)],
                            added=[("<unk>", "s"), ("<s>", "s"), ("</s>", "s")]), {}),
    "plain": lambda: (build(True, 300, None, {**BYTES, "add_prefix_space": True, "use_regex": True}, rare=9, added=[("<s>", "sn")]), {}),
}


def random_folder(rng):
    """A pipeline nobody has seen: (tokenizer.json, what it is made of)."""
    byte_level = rng.random() < 0.5
    patterns = [LLAMA3, QWEN2, O200K, texts.GPT2, texts.QWEN35, *texts.DS3, r"\s+", r"[^\s]+", r"\d{1,3}+", r"(?=[A-Z])", r"[\r\n]", r"(?<=a)b", r"\p{Han}+",
                r"(?i)the", r".{1,7}", r"[\h]{2}", r"\s*$", r"^\s+", " ", "e", MARK]
    behaviors = ["Isolated", "Removed", "MergedWithPrevious", "MergedWithNext", "Contiguous"]
    cuts = [split(rng.choice(patterns), rng.choice(behaviors), rng.random() < 0.3) for _ in range(rng.randrange(3))]
    if rng.random() < 0.3:
        cuts.insert(0, {"type": "Digits", "individual_digits": rng.random() < 0.5})
    normal = [s for s in (GEMMA, {"type": "NFC"}, {"type": "Prepend", "prepend": MARK},
                          {"type": "Replace", "pattern": {"Regex": r"[aeiou]+|(?=x)"}, "content": "ø"}) if rng.random() < 0.3]
    if byte_level:
        cuts.append({**BYTES, "add_prefix_space": rng.random() < 0.3, "use_regex": rng.random() < 0.5})
    elif rng.random() < 0.7:
        # "first" asks where a piece comes from. Behind NFC that is another matter: not what a real file does, nor we exactly.
        schemes = ["always", "never"] if {"type": "NFC"} in normal else ["first", "always", "never"]
        cuts.insert(rng.randrange(len(cuts) + 1), metaspace(rng.choice(schemes), rng.random() < 0.5))
    fallback, unknown = not byte_level and rng.random() < 0.6, rng.random() < 0.6
    start = (["<unk>"] if unknown else []) + (ALL_BYTES if fallback else [])
    if fallback and rng.random() < 0.3:
        start = start[:rng.randrange(120, len(start))]
    def flags(letters):
        return "".join(c for c in letters if rng.random() < 0.35)
    added = [("<s>", "s" + flags("nlr")), ("</s>", "s" + flags("nwlr")), ("cat", flags("nw")), ("[X y]", flags("nw")), ("é\u0301", flags("n"))]
    rng.shuffle(added)
    part = build(byte_level, rng.randrange(300, 600), sequence("normal", *normal), sequence("pre", *cuts), added,
                 start=start, rare=rng.choice([0, 0, 5, 30]), strings=rng.random() < 0.5, unk_token="<unk>" if unknown else None,
                 fuse_unk=rng.random() < 0.5, byte_fallback=fallback, ignore_merges=rng.random() < 0.3,
                 extra_words=[spelled(w) if byte_level else w.replace(" ", MARK) for w in (" whole", "jumps", "xq")])
    return part


def sentence_piece(rng):
    """A vocabulary as a GGUF of the "llama" kind has it, and tokenizer.json with the merges that transformers makes of such
    scores: for a piece every pair of pieces that it can be cut into."""
    size = rng.randrange(450, 900)
    fixture = build(False, size, LEGACY, None, SPM_ADDED, start=SPM, unk_token="<unk>", byte_fallback=True, fuse_unk=True)
    vocab = fixture["model"]["vocab"]
    pieces = sorted(vocab, key=vocab.get)
    types = [2, 3, 3] + [6] * 256 + [1] * (len(pieces) - len(SPM))
    order = list(range(len(pieces)))
    rng.shuffle(order)  # not only the order in which they were learned
    scores = [0.0 if i < len(SPM) else -float(order[i]) for i in range(len(pieces))]
    normal = set(pieces[len(SPM):])
    pairs = [(w[:k], w[k:]) for w in normal for k in range(1, len(w)) if w[:k] in normal and w[k:] in normal]
    pairs.sort(key=lambda p: (-scores[vocab[p[0] + p[1]]], vocab[p[0]], vocab[p[1]]))
    fixture["model"]["merges"] = [list(p) for p in pairs]
    return {"model": "llama", "tokens": pieces, "types": types, "scores": scores, "merges": [], "add_space_prefix": True}, fixture


def names_to_ids(value, reference, size):
    if isinstance(value, list):
        return [names_to_ids(v, reference, size) for v in value]
    return reference.token_to_id(value) if isinstance(value, str) else size + value if value < 0 else value


def write(folder, fixture, files):
    """The files of one folder; returns the reference tokenizer."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tokenizer.json").write_text(json.dumps(fixture, ensure_ascii=False, separators=(",", ":")) + "\n", encoding="utf-8")
    reference = Tokenizer.from_file(str(folder / "tokenizer.json"))
    size = reference.get_vocab_size(with_added_tokens=True)
    for name, content in files.items():
        if isinstance(content, dict):
            content = {k: names_to_ids(v, reference, size) if k == "eos_token_id" else v for k, v in content.items()}
            content = json.dumps(content, ensure_ascii=False, indent=1) + "\n"
        (folder / name).write_text(content, encoding="utf-8")
    return reference


def encode(reference, text, special=True):
    reference.encode_special_tokens = not special
    return reference.encode(text, add_special_tokens=False).ids


def case(reference, text):
    ids, plain = encode(reference, text), encode(reference, text, False)
    return [text, ids] if ids == plain else [text, ids, plain]


def expectations(reference, files, fixture):
    def content(value):
        return value.get("content") if isinstance(value, dict) else value
    size = reference.get_vocab_size(with_added_tokens=True)
    config, table = files.get("tokenizer_config.json", {}), files.get("special_tokens_map.json", {})
    named = {k: content(config.get(k) or table.get(k)) for k in ("bos_token", "eos_token")}
    stops = (files.get("generation_config.json") or files.get("config.json") or {}).get("eos_token_id", [])
    stops = names_to_ids(stops if isinstance(stops, list) else [stops], reference, size)
    bos, eos = (reference.token_to_id(named[k]) if named[k] else -1 for k in ("bos_token", "eos_token"))
    first = reference.encode("e", add_special_tokens=True).ids[0]
    eos = stops[0] if eos < 0 and stops else eos
    template = config.get("chat_template", "")
    if isinstance(template, list):
        template = next(t["template"] for t in template if t["name"] == "default")
    return {"size": max(reference.get_vocab(with_added_tokens=True).values()) + 1, "bos": first if fixture["post_processor"] else bos, "eos": eos,
            "adds_bos": fixture["post_processor"] is not None, "ends": list(dict.fromkeys([eos] * (eos >= 0) + stops)),
            "template": files.get("chat_template.jinja", template)}


def main():
    p = argparse.ArgumentParser()
    p.add_argument("--out", required=True, type=pathlib.Path)
    a = p.parse_args()
    shutil.rmtree(a.out, ignore_errors=True)
    for number, (name, make) in enumerate(FIXTURES.items()):
        fixture, files = make()
        reference = write(a.out / name, fixture, files)
        special = [e["content"] for e in fixture["added_tokens"]]
        chosen = texts.GOLDEN + [f"a{t} b" for t in special] + [f" x {t}\n {t}y{t}" for t in special] + ["the a", "s a e e e", "#", "# #", "<s>#</s>", "ABc Dé"] + list(texts.strings(90, number, special, TEXTS))
        chosen = [t for t in dict.fromkeys(chosen) if len(t) < 200]
        out = {**expectations(reference, files, fixture), "cases": [case(reference, t) for t in chosen]}
        lines = ",\n".join(json.dumps(c, ensure_ascii=False, separators=(",", ":")) for c in out.pop("cases"))
        text = json.dumps(out, ensure_ascii=False)[:-1] + ', "cases": [\n' + lines + "\n]}\n"
        (a.out / name / "cases.json").write_text(text, encoding="utf-8")
    vocabulary, fixture = sentence_piece(random.Random(3))
    reference = Tokenizer.from_str(json.dumps(fixture))
    del vocabulary["merges"]
    chosen = [t for t in dict.fromkeys(texts.GOLDEN + list(texts.strings(90, 5, ["<s>", "</s>"], TEXTS))) if len(t) < 200]
    lines = ",\n".join(json.dumps(case(reference, t), ensure_ascii=False, separators=(",", ":")) for t in chosen)
    text = json.dumps(vocabulary, ensure_ascii=False, separators=(",", ":"))[:-1] + ', "cases": [\n' + lines + "\n]}\n"
    (a.out.parent / "sentencepiece.json").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
