"""Compares our token ids with Hugging Face tokenizers, string by string; every id must be equal.

    tokens.py --dump BUILD/tests/peers/tokens_dump [--gguf MODEL.gguf] [--count 20000] [--folders 40] [--seed N] [--golden FILE]
              [--vocabularies FOLDER]

With --gguf: the vocabulary of that file (tokenizer.ggml.pre must be "smollm"), special tokens included. Otherwise for
every pipeline of the table PIPELINES a small vocabulary is trained on the spot, so that each regular expression, NFC and
the ignore_merges rule meet the reference. --folders: as many tokenizer.json files with pipelines put together at random
(tests/oracle/tokenizer_folders.py), and the committed ones. --vocabularies: llama.cpp's models folder, whose vocabulary
files have their ids beside them. Without --seed each run has its own, which it prints. --golden writes the fixture of
tests/test_tokenizer.c (with --gguf). Needs the Python packages tokenizers and (for --gguf) gguf.
"""
import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import unicodedata

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"


def llama3(digits):
    return (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|" + digits +
            r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+")


def cased(suffix, digits):
    upper, lower = r"\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}", r"\p{Ll}\p{Lm}\p{Lo}\p{M}"
    return (rf"[^\r\n\p{{L}}\p{{N}}]?[{upper}]*[{lower}]+{suffix}|[^\r\n\p{{L}}\p{{N}}]?[{upper}]+[{lower}]*{suffix}|"
            rf"{digits}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+")


CONTRACTION = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
QWEN35 = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|"
          r"\s*[\r\n]+|\s+(?!\S)|\s+")
DS3 = [r"\p{N}{1,3}", r"[一-龥぀-ゟ゠-ヿ]+",
       r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*|"""
       r"""\s*[\r\n]+|\s+(?!\S)|\s+"""]
# tokenizer.ggml.pre -> (regular expressions, ignore_merges, NFC)
PIPELINES = {
    "smollm": (None, False, False),  # Digits and ByteLevel's own expression, as the models' files write it
    "command-r": (None, False, True),
    "gpt-2": ([GPT2], False, False),
    "llama-bpe": ([llama3(r"\p{N}{1,3}")], True, False),
    "dbrx": ([llama3(r"\p{N}{1,3}")], False, False),
    "qwen2": ([llama3(r"\p{N}")], False, True),
    "qwen35": ([QWEN35], False, True),
    "tekken": ([cased("", r"\p{N}")], True, False),
    "gpt-4o": ([cased(CONTRACTION, r"\p{N}{1,3}")], False, False),
    "deepseek-v3": (DS3, False, False),
    "minicpm5": ([r"\p{N}{1,3}", llama3(r"\p{N}+")], True, False),
    "falcon": ([r"[\p{P}\$\+<=>\^~\|`]+", GPT2, "[0-9][0-9][0-9]"], False, False),
    "deepseek-coder": ([r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", "[一-龥ࠀ-一가-퟿]+", r"\p{N}"], False, False),
}
MAY_REFUSE = {"minicpm5", "falcon", "deepseek-coder"}  # whether these normalise is not known: text that is not NFC is refused

SAMPLES = ["The quick brown fox jumps over the lazy dog.", "It's what they're doing; we'll see, I'd say. IT'S YOU'RE",
           "for (int i = 0; i < n; i++) {\n\t\tx[i] += 0x1F;\n}\r\n", '{"type": "order", "items": {"pen": 12}}',
           "Ünïcödé: naïve café, Straße, ǅ ŉ ﬁ", "Привет, мир! Здравствуйте.", "こんにちは世界。カタカナ ﾊﾝｶｸ", "안녕하세요 세계",
           "مرحبا بالعالم ١٢٣٤", "हिन्दी नमस्ते १२३", "ไทย ๑๒๓", "你好，世界！一二三", "𝔘𝔫𝔦 😀👩‍👩‍👧‍👦 🇩🇪 ✈️", "1234567 3.14159 ½ Ⅻ ² 1,000,000"]
ATOMS = (["'s", "'T", "'Re", "'LL", "ſ", "'ſ", " ", "  ", "\n", "\r\n", "\r", "\t", "\u00a0", "\u3000", "\u180e", "\u200b", "\u2028",
          "\u0085", "\x1c", "\x00", "\x04", "\x7f", "\ufeff", "\u0301", "\u0323", "e\u0301", "a\u0323\u0302", "ﬀ", "Å", "\u212b", "\u1100\u1161\u11a8",
          "각", "0", "12", "123", "٣", "Ⅷ", "¼", "_", "/", "//\n", "...", "<", "|", ">", "<|", "|>", "im_end", "\U000f0000", "\U0010ffff", "\ud7ff", "\ue000",
          "A", "Ab", "aB", "ABC", "ǅ", "ʰ", "ª", "中", "の", "ア", "한", "ࠀ", "é", "ß", "İ", "😀", "\u200d", "\ufe0f", "x" * 60, "ab" * 40, "=" * 70, " " * 100])


def strings(count, seed, special, sources=None):
    rng = random.Random(seed)
    sources = sources or SAMPLES + [open(__file__, encoding="utf-8").read()]
    yield from ["", " ", "\n", "\n\n", "a", "\x00", "'", "<|im_start|>", "<|im_start|>user\nHi<|im_end|>\n"]
    ranges = [(0, 0x7f), (0x80, 0x24f), (0x250, 0x5ff), (0x600, 0x1fff), (0x2000, 0x2bff), (0x3000, 0x9fff), (0xa000, 0xd7ff),
              (0xe000, 0xffff), (0x10000, 0x1ffff), (0x20000, 0x10ffff)]
    for i in range(count):
        kind = i % 7
        if kind == 0:  # a cut of real text
            s = rng.choice(sources)
            a = rng.randrange(len(s))
            yield s[a:a + rng.randrange(1, 300)]
        elif kind == 1:  # atoms
            yield "".join(rng.choice(ATOMS) for _ in range(rng.randrange(1, 24)))
        elif kind == 2:  # atoms and special tokens, whole and damaged
            parts = [rng.choice(ATOMS + special) for _ in range(rng.randrange(1, 16))]
            yield "".join(p[:rng.randrange(len(p) + 1)] if rng.random() < 0.1 else p for p in parts)
        elif kind == 3:  # random code points of the Unicode version both sides know
            a, b = rng.choice(ranges)
            yield "".join(chr(c) for c in (rng.randint(a, b) for _ in range(rng.randrange(1, 40))) if known(c))
        elif kind == 4:  # letters only: long words
            yield "".join(rng.choice("abcdefghijklmnopqrstuvwxyzABC ") for _ in range(rng.randrange(1, 400)))
        elif kind == 5:  # bases and combining marks: what Unicode normal forms are about
            yield "".join(chr(rng.choice(MARKS if rng.random() < 0.6 else BASES)) for _ in range(rng.randrange(1, 12)))
        else:  # sentences with noise
            words = rng.choice(SAMPLES).split(" ")
            rng.shuffle(words)
            yield " ".join(w + rng.choice(["", "", "", rng.choice(ATOMS)]) for w in words)


MARKS = [c for c in range(0x110000) if unicodedata.combining(chr(c))]
BASES = ([c for c in range(0x110000) if unicodedata.decomposition(chr(c))[:1] not in ("", "<")] +
         [ord(c) for c in "aeiouAEnc "] * 100 + list(range(0x1100, 0x1200)) + [0x11935, 0x11930, 0x11938, 0x9c7, 0x9be])


def known(c):
    return not 0xd800 <= c < 0xe000 and unicodedata.category(chr(c)) != "Cn"


def from_gguf(path):
    import gguf
    fields = gguf.GGUFReader(path).fields
    value = {k: fields["tokenizer.ggml." + k].contents() for k in ("model", "pre", "tokens", "token_type", "merges")}
    return {"model": value["model"], "pre": value["pre"], "tokens": value["tokens"], "types": value["token_type"],
            "merges": value["merges"]}


def pipeline(pre):
    regexes, _, _ = PIPELINES[pre]
    if regexes is None:
        return pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True),
                                        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)])
    return pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(r), "isolated") for r in regexes] +
                                   [pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])


def trained(pre):
    t = Tokenizer(models.BPE())
    t.pre_tokenizer = pipeline(pre)
    trainer = trainers.BpeTrainer(vocab_size=1500, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False)
    t.train_from_iterator(SAMPLES * 3 + [open(__file__, encoding="utf-8").read()], trainer)
    model = json.loads(t.to_str())["model"]
    tokens = [s for s, _ in sorted(model["vocab"].items(), key=lambda e: e[1])]
    types = [1] * len(tokens)
    if PIPELINES[pre][1]:  # words that no merge leads to: only ignore_merges finds them
        tokens += [w for w in ("jumps", "Ġjumps", "Ġquickest", "Ġdoing", "xq", "Hallo") if w not in tokens]
        types += [1] * (len(tokens) - len(types))
    tokens += ["<|im_start|>", "<|im_end|>", "<|im_end|>x", "<think>", "  \n"]
    types += [3, 3, 3, 4, 4]
    return {"model": "gpt2", "pre": pre, "tokens": tokens, "types": types, "merges": [" ".join(m) for m in model["merges"]]}


def reference(v):
    _, ignore_merges, nfc = PIPELINES[v["pre"]]
    t = Tokenizer(models.BPE(vocab={s: i for i, s in enumerate(v["tokens"])}, merges=[tuple(m.split(" ", 1)) for m in v["merges"]],
                             ignore_merges=ignore_merges))
    if nfc:
        t.normalizer = normalizers.NFC()
    t.pre_tokenizer = pipeline(v["pre"])
    t.decoder = decoders.ByteLevel()
    pairs = list(zip(v["tokens"], v["types"]))
    t.add_special_tokens([AddedToken(s, special=True, normalized=False) for s, k in pairs if k in (2, 3)])
    t.add_tokens([AddedToken(s, special=False, normalized=False) for s, k in pairs if k == 4])
    return t


GOLDEN = SAMPLES + [
    "", " ", "  ", "   x", "a  b", "\n", "\n\n\n", " \n \n", "\t\tx", "x \r\n y", "Hello world", " Hello  world ", "hello", "HELLO", "'s", "it's 'll", "I'LL",
    "0", "00", "12345", "3.14", "v1.2.3", "½", "a1b2c3", "١٢٣", "...", "!?", "->", "=====", "x" * 60, "ab" * 40, " " * 70, "\u00a0x", "\u3000", "\u180e", "\u200b",
    "e\u0301", "é", "\ufeff", "\x00", "\x04", "a\x04b", "\U0010ffff", "😀", "👩‍👩‍👧", "中文", "한국어", "<|im_start|>", "<|im_start|>user\nHi<|im_end|>\n", "<|im_start",
    "<|im_start|><|im_start|>", "x<|endoftext|>y", "<filename>a.py", "assistant\n\nHi", "https://example.org/a?b=c&d=1", "def f(x):\n    return x ** 2\n",
    "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n<|im_start|>user\nWhat is 2+2?<|im_end|>\n"
    "<|im_start|>assistant\n4<|im_end|>\n"]


def write_golden(v, path):
    t = reference(v)
    rows = []
    for text in GOLDEN:
        t.encode_special_tokens = False
        ids = t.encode(text, add_special_tokens=False).ids
        t.encode_special_tokens = True
        rows.append({"text": text, "ids": ids, "plain": t.encode(text, add_special_tokens=False).ids})
    with open(path, "w", encoding="utf-8") as f:
        f.write("[\n" + ",\n".join(json.dumps(r, ensure_ascii=False) for r in rows) + "\n]\n")


def compare(v, dump, count, seed):
    special = [s for s, k in zip(v["tokens"], v["types"]) if k in (2, 3, 4)]
    texts = list(strings(count, seed, special))
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "vocabulary.json")
        with open(path, "w", encoding="utf-8") as f:
            json.dump(v, f, ensure_ascii=False)
        lines = "".join(json.dumps(s) + "\n" for s in texts)
        out = subprocess.run([dump, path], input=lines.encode(), stdout=subprocess.PIPE, check=True).stdout
    ours = [json.loads(line) for line in out.splitlines()]
    t = reference(v)
    whole = [e.ids for e in t.encode_batch(texts, add_special_tokens=False)]
    decoded = [t.decode(ids, skip_special_tokens=False) for ids in whole]
    t.encode_special_tokens = True
    plain = [e.ids for e in t.encode_batch(texts, add_special_tokens=False)]
    bad = refused = 0
    for text, got, ids, ids_plain, back in zip(texts, ours, whole, plain, decoded):
        if "error" in got and v["pre"] in MAY_REFUSE and "normal form" in got["error"]:
            refused += 1
        elif got.get("ids") != ids or got.get("plain") != ids_plain or got.get("decoded") != back:
            bad += 1
            if bad <= 5:
                print(f"  differs: {text!r}\n    ours {got}\n    ref  {ids}\n    plain {ids_plain}", file=sys.stderr)
    print(f"{v['pre']}: {len(texts)} strings, {sum(map(len, whole))} ids, {bad} differ, {refused} refused")
    return bad + (len(ours) != len(texts))


def dump_lines(dump, source, texts):
    lines = "".join(json.dumps(s) + "\n" for s in texts)
    done = subprocess.run([dump, source], input=lines.encode(), stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    if done.returncode != 0:
        return done.stderr.decode(errors="replace").strip()
    return [json.loads(line) for line in done.stdout.splitlines()]


def compare_folder(name, folder, dump, count, seed):
    """tokenizer.json as the reference reads it, and as we do."""
    reference = Tokenizer.from_file(os.path.join(folder, "tokenizer.json"))
    with open(os.path.join(folder, "tokenizer.json"), encoding="utf-8") as f:
        special = [e["content"] for e in json.load(f)["added_tokens"]]
    texts = list(strings(count, seed, special))
    ours = dump_lines(dump, folder, texts)
    if isinstance(ours, str):
        print(f"  {name}: we refuse it: {ours}", file=sys.stderr)
        return 1
    bad, total, panics = int(len(ours) != len(texts)), 0, 0
    for text, got in zip(texts, ours):
        want = []
        for plain in (False, True):
            reference.encode_special_tokens = plain
            try:
                want.append(reference.encode(text, add_special_tokens=False).ids)
            except Exception:  # an unknown token that does not exist
                want.append(None)
            except BaseException as error:  # it panics where a Replace finds an empty match
                if type(error).__name__ != "PanicException":
                    raise
                want.append("panic")
        if "panic" in want:
            panics += 1
            continue
        total += len(want[0] or [])
        if [got.get("ids"), got.get("plain")] != want and not ("error" in got and None in want):
            bad += 1
            if bad <= 3:
                print(f"  {name} differs: {text!r}\n    ours {got.get('ids')}\n    ref  {want[0]}"[:2000], file=sys.stderr)
    print(f"{name}: {len(texts)} strings, {total} ids, {bad} differ" + (f", {panics} without an answer of the reference" if panics else ""))
    return bad + (panics > len(texts) // 2)


def compare_folders(dump, number, count, seed):
    sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "oracle"))
    import pathlib
    import tokenizer_folders
    committed = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "fixtures", "tokenizers")
    results = [compare_folder(name, os.path.join(committed, name), dump, count, seed) for name in sorted(os.listdir(committed))]
    for i in range(number):
        with tempfile.TemporaryDirectory() as folder:
            made = tokenizer_folders.random_folder(random.Random(f"{seed} {i}"))
            try:
                tokenizer_folders.write(pathlib.Path(folder), made, {})
            except Exception as error:  # the reference refuses it
                refused = dump_lines(dump, folder, [""])
                print(f"random {i}: refused by the reference ({error}) and by us ({refused if isinstance(refused, str) else 'NOT'})")
                continue
            results.append(compare_folder(f"random {i}", folder, dump, count, seed + i))
            if results[-1]:
                print("  " + json.dumps({k: v for k, v in made.items() if k != "model"}, ensure_ascii=False), file=sys.stderr)
                print("  " + json.dumps({k: v for k, v in made["model"].items() if k not in ("vocab", "merges")}), file=sys.stderr)
    return results


def compare_scores(dump, number, count, seed):
    """SentencePiece vocabularies with scores, as GGUF has them, beside the reference with the same as a list of merges."""
    import tokenizer_folders
    results = []
    for i in range(number):
        vocabulary, fixture = tokenizer_folders.sentence_piece(random.Random(f"scores {seed} {i}"))
        reference = Tokenizer.from_str(json.dumps(fixture))
        texts = list(strings(count, seed + i, ["<s>", "</s>", "<unk>"]))
        with tempfile.TemporaryDirectory() as folder:
            path = os.path.join(folder, "vocabulary.json")
            with open(path, "w", encoding="utf-8") as f:
                json.dump(vocabulary, f, ensure_ascii=False)
            ours = dump_lines(dump, path, texts)
        if isinstance(ours, str):
            print(f"  we refuse it: {ours}", file=sys.stderr)
            results.append(1)
            continue
        want = [e.ids for e in reference.encode_batch(texts, add_special_tokens=False)]
        bad = [(t, g.get("ids"), w) for t, g, w in zip(texts, ours, want) if g.get("ids") != w]
        for text, got, ids in bad[:3]:
            print(f"  differs: {text!r}\n    ours {got}\n    ref  {ids}"[:2000], file=sys.stderr)
        print(f"scores {i}: {len(texts)} strings, {sum(map(len, want))} ids, {len(bad)} differ")
        results.append(len(bad))
    return results


def compare_vocabularies(dump, folder):
    """llama.cpp's own vocabulary files. Its normalisation is none; where the model's own tokenizer has NFC, so have we."""
    results = []
    for name in sorted(n for n in os.listdir(folder) if n.endswith(".gguf") and os.path.exists(os.path.join(folder, n + ".inp"))):
        path = os.path.join(folder, name)
        with open(path + ".inp", encoding="utf-8", newline="") as f:
            texts = f.read().split("\n__ggml_vocab_test__\n")
        with open(path + ".out", encoding="utf-8") as f:
            want = [[int(x) for x in line.split()] for line in f.read().split("\n")]
        ours = dump_lines(dump, path, texts)
        if isinstance(ours, str):
            print(f"{name}: {ours[-120:]}")
            continue
        bad = [t for t, got, ids in zip(texts, ours, want) if got.get("ids") != ids and unicodedata.is_normalized("NFC", t)]
        print(f"{name}: {len(texts)} strings, {len(bad)} differ {bad[:2] or ''}")
        results.append(len(bad))
    return results


def main():
    p = argparse.ArgumentParser()
    p.add_argument("--dump", required=True)
    p.add_argument("--gguf")
    p.add_argument("--golden")
    p.add_argument("--pre", help="only this pipeline")
    p.add_argument("--count", type=int, default=20000)
    p.add_argument("--folders", type=int, default=0)
    p.add_argument("--vocabularies")
    p.add_argument("--seed", type=int, default=random.SystemRandom().randrange(10**6))
    a = p.parse_args()
    print(f"seed {a.seed}")
    if a.gguf:
        vocabularies = [from_gguf(a.gguf)]
    else:
        vocabularies = [trained(pre) for pre in PIPELINES if a.pre in (None, pre)]
    if a.golden:
        write_golden(vocabularies[0], a.golden)
    results = [compare(v, a.dump, a.count, a.seed) for v in vocabularies]
    if a.folders:
        results += compare_folders(a.dump, a.folders, max(a.count // 10, 50), a.seed)
        results += compare_scores(a.dump, 1 + a.folders // 10, max(a.count // 10, 50), a.seed)
    if a.vocabularies:
        results += compare_vocabularies(a.dump, a.vocabularies)
    failed = sum(r > 0 for r in results)
    print(f"{len(results) - failed} passed, {failed} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
