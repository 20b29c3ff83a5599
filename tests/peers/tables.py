"""Formats with tables beside their codes: our decoders and quantisers beside bitsandbytes (NF4, FP4, LLM.int8),
transformers (MXFP4, FP8) and numpy copies of the layouts that AutoGPTQ and AutoAWQ write.  Every bit must be equal.

    tables.py --dump BUILD/tests/peers/tables_dump [--count 300] [--seed N] [--golden FILE]

Without --seed each run draws its own and prints it.  --golden writes the fixture of tests/test_quant_tables.c.
"""

import argparse
import json
import math
import os
import random
import subprocess
import sys

os.environ["TORCHDYNAMO_DISABLE"] = "1"  # bitsandbytes would compile its decoder for every shape

import bitsandbytes.functional as bnb
import numpy as np
import torch
from bitsandbytes.backends.default.ops import _dequantize_4bit_compute
from peer import Checks
from transformers.integrations.finegrained_fp8 import Fp8Dequantize
from transformers.integrations.mxfp4 import convert_moe_packed_tensors

DTYPES = {"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16}
BLOCKSIZES = [32, 64, 64, 64, 128, 256, 512, 1024, 2048, 4096]
f32 = np.float32


def hexed(array):
    if isinstance(array, torch.Tensor):
        array = array.contiguous().reshape(-1).view(torch.uint8).numpy()
    return np.ascontiguousarray(array).tobytes().hex()


def values_hex(array):
    """float32 numbers; NaN in the one pattern that our side writes."""
    if isinstance(array, torch.Tensor):
        array = array.to(torch.float32).numpy()
    array = np.array(array, f32)
    array[np.isnan(array)] = np.uint32(0x7FC00000).view(f32)
    return hexed(array)


def bits(x):
    return f"{int(f32(x).view(np.uint32)):08x}"


def rounded(array, name):
    """float32 -> the named type -> float32, by torch."""
    return torch.from_numpy(np.array(array, f32)).to(DTYPES[name]).to(torch.float32)


# -------------------------------------------------------------------------------------------------- bitsandbytes, 4 bit


def on_thresholds(rng, n):
    """Values that, divided by the largest of their block, lie on a threshold: whether by a product with the rounded
    reciprocal or by a division decides about many."""
    map_ = torch.sort(bnb.get_4bit_type("nf4" if rng.integers(2) else "fp4", device="cpu")).values
    between = (map_[:-1] + map_[1:]) / 2
    most = float(rng.uniform(0.01, 1))
    x = between[torch.from_numpy(rng.integers(0, 15, n))] * most
    x[::32] = most
    return x


def random_values(rng, rows, cols, dtype):
    """Weights with what goes wrong: blocks of zeros, tiny and huge blocks, values on thresholds."""
    n = rows * cols
    x = torch.from_numpy(rng.standard_normal(n).astype(f32)) * float(10 ** rng.uniform(-4, 1))
    kind = rng.integers(8)
    if kind == 0:
        x[: n // 2] = 0
    elif kind == 1 and dtype != "f16":
        x *= float(10 ** rng.uniform(-40, -35))
    elif kind == 2 and dtype != "f16":
        x *= float(10 ** rng.uniform(20, 30))
    elif kind == 3:
        x = torch.from_numpy(rng.integers(-8, 9, n).astype(f32)) / 8
    elif kind == 4:
        x = on_thresholds(rng, n)
    elif kind == 5:
        x = torch.full((n,), float(rng.standard_normal()))
    return x.reshape(rows, cols).to(DTYPES[dtype])


def maps():
    return {k: hexed(bnb.get_4bit_type(k, device="cpu")) for k in ("nf4", "fp4")} | {"scales": hexed(bnb.create_dynamic_map())}


def shape_4bit(rng, large):
    cols = int(rng.choice([1, 7, 31, 33, 63, 64, 65, 96, 128, 192, 200, 320, 1000, 1024]))
    return int(rng.integers(1, 40 if large else 4)), cols if large else min(cols, 100)


def quantized_4bit(rng, large):
    rows, cols = shape_4bit(rng, large)
    dtype, kind = str(rng.choice(list(DTYPES))), str(rng.choice(["nf4", "nf4", "fp4"]))
    w = random_values(rng, rows, cols, dtype)
    return cases_4bit(w, dtype, kind, int(rng.choice(BLOCKSIZES)), bool(rng.integers(2)))


def cases_4bit(w, dtype, kind, block, nested):
    """A case of quantising, its reference; a case of decoding that, its reference."""
    rows, cols = w.shape
    packed, state = bnb.quantize_4bit(w, blocksize=block, compress_statistics=nested, quant_type=kind)
    plain = bnb.quantize_4bit(w, blocksize=block, quant_type=kind)[1]
    about = {"format": kind, "rows": rows, "cols": cols, "block": block}
    quantize = {"do": "quantize", **about, "type": dtype, "arrays": {"values": hexed(w)}}
    want = {"codes": hexed(packed), "absmax": hexed(plain.absmax)}
    decode = {"do": "decode", **about, "rounded": dtype, "arrays": {"codes": hexed(packed), "scales": hexed(state.absmax)}}
    decode["arrays"]["map"] = hexed(state.code.cpu())
    absmax = state.absmax
    if nested:
        offset = state.offset.item()
        quantize |= {"double": True, "offset": bits(offset)}
        want |= {"nested_codes": hexed(state.absmax), "nested_absmax": hexed(state.state2.absmax)}
        decode |= {"nested_block": state.state2.blocksize, "offset": bits(offset)}
        decode["arrays"] |= {"nested_scales": hexed(state.state2.absmax), "nested_map": hexed(state.state2.code)}
        absmax = bnb.dequantize_blockwise(state.absmax, state.state2) + state.offset
    back = _dequantize_4bit_compute(packed.reshape(-1), absmax, state.code.cpu(), block, (rows, cols), DTYPES[dtype])
    if cols % block == 0:  # its fast decoder is for these
        assert torch.equal(back, bnb.dequantize_4bit(packed, state)), "bitsandbytes disagrees with itself"
    return (quantize, want), (decode, {"values": values_hex(back)})


def quantized_int8(rng, large):
    rows, cols = int(rng.integers(1, 20 if large else 4)), int(rng.integers(1, 700 if large else 50))
    dtype, out = str(rng.choice(list(DTYPES))), str(rng.choice(list(DTYPES)))
    w = torch.from_numpy(rng.standard_normal((rows, cols)).astype(f32)) * float(10 ** rng.uniform(-3, 1))
    if rng.integers(3) == 0:
        w[rng.integers(rows)] = 0
    if rng.integers(3) == 0:  # halves between two codes
        w[rng.integers(rows)] = torch.from_numpy(rng.integers(-254, 255, cols).astype(f32)) / 2
    w = w.to(DTYPES[dtype])
    codes, scb, _ = bnb.int8_vectorwise_quant(w.to(torch.float16))  # as Int8Params does
    about = {"format": "int8", "rows": rows, "cols": cols}
    quantize = {"do": "quantize", **about, "type": dtype, "arrays": {"values": hexed(w)}}
    back = bnb.int8_vectorwise_dequant(codes, scb).to(DTYPES[out])
    decode = {"do": "decode", **about, "rounded": out, "arrays": {"codes": hexed(codes), "scales": hexed(scb)}}
    return (quantize, {"codes": hexed(codes), "absmax": hexed(scb)}), (decode, {"values": values_hex(back)})


# ------------------------------------------------------------------------------------------------------------ GPTQ, AWQ


def stream(numbers, width):
    """Packs along the first axis, lowest bits first, into words of 32 bits; a number may lie in two words."""
    count, other = numbers.shape
    words = np.zeros((count * width // 32, other), np.uint32)
    for i in range(count):
        word, shift = divmod(i * width, 32)
        words[word] |= (numbers[i].astype(np.uint64) << np.uint64(shift)).astype(np.uint32)
        if shift + width > 32:
            words[word + 1] |= (numbers[i] >> (32 - shift)).astype(np.uint32)
    return words


def less_one(zeros, width, words):
    """Version 1: numbers of 3 bits one by one, modulo 8; others by a subtraction from the whole word."""
    if width == 3:
        return stream(((zeros.T - 1) & 7).astype(np.uint32), 3).T
    ones = np.uint32(sum(1 << i for i in range(0, 32, width)))
    return (words.astype(np.int64) - int(ones)).astype(np.uint64).astype(np.uint32)


def some_scales(rng, shape):
    """Numbers, their type's name, their bytes."""
    name = str(rng.choice(["f16", "bf16"]))
    t = (torch.from_numpy(rng.standard_normal(shape).astype(f32)) * 0.02).to(DTYPES[name])
    return t.to(torch.float32).numpy(), name, hexed(t)


def gptq(rng, large):
    width = int(rng.choice([2, 3, 4, 4, 8]))
    pack = 32 if width == 3 else 32 // width
    rows = pack * int(rng.integers(1, (200 if large else 16) // pack + 2))
    cols = pack * int(rng.integers(1, (400 if large else 40) // pack + 2))
    size = int(rng.choice([-1, 16, 32, 100, 128]))
    group = cols if size == -1 else size
    groups = -(-cols // group)
    q = rng.integers(0, 1 << width, (cols, rows))
    zeros = rng.integers(0, 1 << width, (groups, rows))
    scales, scale_type, scale_hex = some_scales(rng, (groups, rows))
    g_idx = np.arange(cols) // group
    order = int(rng.integers(3))  # without g_idx, g_idx in order, act-order
    if order == 2:
        g_idx = rng.permutation(g_idx)
    v2, out = bool(rng.integers(2)), str(rng.choice(list(DTYPES)))
    zero_words = stream(zeros.T.astype(np.uint32), width).T
    if not v2:
        zero_words = less_one(zeros, width, zero_words)
    case = {"do": "decode", "format": "gptq", "rows": rows, "cols": cols, "bits": width, "group": size, "v2": v2}
    case |= {"scale_type": scale_type, "rounded": out}
    case["arrays"] = {"codes": hexed(stream(q.astype(np.uint32), width)), "zeros": hexed(zero_words), "scales": scale_hex}
    if order:
        case["arrays"]["g_idx"] = hexed(g_idx.astype(np.int32))
    w = scales[g_idx] * (q - zeros[g_idx]).astype(f32)
    return case, {"values": values_hex(rounded(w.T, out))}


def awq(rng, large):
    rows, cols = 8 * int(rng.integers(1, 40 if large else 4)), 32 * int(rng.integers(1, 9 if large else 3))
    size = int(rng.choice([-1, 16, 32]))
    group = cols if size == -1 else size
    q, zeros = rng.integers(0, 16, (cols, rows)), rng.integers(0, 16, (cols // group, rows))
    scales, scale_type, scale_hex = some_scales(rng, (cols // group, rows))
    out = str(rng.choice(list(DTYPES)))

    def words(numbers):
        packed = np.zeros((numbers.shape[0], rows // 8), np.uint32)
        for nibble, column in enumerate([0, 2, 4, 6, 1, 3, 5, 7]):
            packed |= numbers[:, column::8].astype(np.uint32) << np.uint32(4 * nibble)
        return packed

    case = {"do": "decode", "format": "awq", "rows": rows, "cols": cols, "group": size, "scale_type": scale_type}
    case |= {"rounded": out, "arrays": {"codes": hexed(words(q)), "zeros": hexed(words(zeros)), "scales": scale_hex}}
    w = (q - zeros.repeat(group, 0)).astype(f32) * scales.repeat(group, 0)
    return case, {"values": values_hex(rounded(w.T, out))}


# ----------------------------------------------------------------------------------------------------------- FP8, MXFP4


def fp8(rng, large):
    rows, cols = (int(n) for n in rng.integers(1, 200 if large else 20, 2))
    block = [int(rng.choice([1, 3, 8, 128])), int(rng.choice([1, 4, 16, 128]))]
    kind = rng.choice(["grid", "equal", "row", "scalar", "none"])
    if kind == "equal":  # the grid alone says how large a block is
        rows, cols = block[0] * int(rng.integers(1, 5)), block[1] * int(rng.integers(1, 5))
    block = {"row": [1, cols], "scalar": [rows, cols]}.get(str(kind), block)
    grid = [-(-rows // block[0]), -(-cols // block[1])]
    e5m2, out = bool(rng.integers(2)), str(rng.choice(list(DTYPES)))
    codes = torch.from_numpy(rng.integers(0, 256, (rows, cols)).astype(np.uint8))
    if rng.integers(3):  # mostly numbers
        codes = codes & 0xBF
    q = codes.view(torch.float8_e5m2 if e5m2 else torch.float8_e4m3fn)
    scale_type = str(rng.choice(["f32", "bf16", "f16", "e8m0"]))
    exponents = torch.from_numpy(rng.integers(0 if rng.integers(4) == 0 else 100, 150, grid).astype(np.uint8))
    scales = (torch.from_numpy(rng.standard_normal(grid).astype(f32)) * 0.01).to(DTYPES.get(scale_type, torch.float32))
    if scale_type == "e8m0":
        scales = exponents
    case = {"do": "decode", "format": "fp8", "rows": rows, "cols": cols, "e5m2": e5m2, "rounded": out}
    case["arrays"] = {"codes": hexed(codes)}
    if kind == "none":
        return case, {"values": values_hex(q.to(torch.float32).to(DTYPES[out]))}
    case |= {"scale_rows": grid[0], "scale_cols": grid[1], "scale_type": scale_type}
    case["arrays"]["scales"] = hexed(scales)
    if kind != "equal":
        case |= {"block_rows": block[0], "block_cols": block[1]}
    if rows % grid[0] or cols % grid[1] or rows // grid[0] != block[0] or cols // grid[1] != block[1]:
        # transformers refuses partial blocks: a copy whose blocks are filled up
        padded = torch.zeros([grid[0] * block[0], grid[1] * block[1]], dtype=torch.uint8)
        padded[:rows, :cols] = codes
        q = padded.view(q.dtype)
    w = Fp8Dequantize(None)._dequantize_one(q, scales, DTYPES[out])[:rows, :cols]
    return case, {"values": values_hex(w)}


def mxfp4(rng, large):
    rows, cols, step = int(rng.integers(1, 24 if large else 4)), 32 * int(rng.integers(1, 12 if large else 4)), int(rng.integers(1, 3))
    codes = torch.from_numpy(rng.integers(0, 256, (1, rows * step, cols // 32, 16)).astype(np.uint8))
    low, high = [(0, 255), (110, 140)][int(rng.integers(2))]
    scales = torch.from_numpy(rng.integers(low, high, (1, rows * step, cols // 32)).astype(np.uint8))
    first, last = (1, None) if step == 2 and rng.integers(2) else (0, None)
    # transformers gives (experts, in, out), and rounds nothing in bfloat16: all values are bfloat16 numbers
    w = convert_moe_packed_tensors(codes, scales, dtype=torch.bfloat16)[0].T[first::step]
    if rng.integers(2) and low:  # the other reader, of packed FP4 with a grid of scales
        packed = codes.reshape(rows * step, cols // 2).view(torch.int8)
        other = Fp8Dequantize(None)._dequantize_one(packed, scales[0], torch.float32)[first::step]
        assert torch.equal(other, w.to(torch.float32)), "transformers disagrees with itself"
    case = {"do": "decode", "format": "mxfp4", "rows": rows, "cols": cols, "row_step": step}
    case["arrays"] = {"codes": hexed(codes[0, first:last]), "scales": hexed(scales[0, first:last])}
    return case, {"values": values_hex(w)}


# ------------------------------------------------------------------------------------------------------------ comparing

MAKERS = {"4 bit": quantized_4bit, "int8": quantized_int8, "gptq": gptq, "awq": awq, "fp8": fp8, "mxfp4": mxfp4}


def cases(maker, rng, large):
    made = maker(rng, large)
    return list(made) if isinstance(made[0], tuple) else [made]


def ask(dump, asked):
    lines = "".join(json.dumps(c) + "\n" for c in asked)
    out = subprocess.run([dump], input=lines.encode(), stdout=subprocess.PIPE, check=True).stdout.splitlines()
    assert len(out) == len(asked), f"{len(out)} answers to {len(asked)} cases"
    return [json.loads(line) for line in out]


def equal(answer, want):
    return all(answer.get(k) == v for k, v in want.items())


def ulps(a, b):  # of hexadecimal float32 of the same sign
    return abs(int(np.frombuffer(bytes.fromhex(a), "<i4")[0]) - int(b, 16))


def exact_mean(absmax):
    numbers = np.frombuffer(bytes.fromhex(absmax), "<f4").astype(np.float64)
    return bits(math.fsum(numbers) / len(numbers))


def compare(checks, name, maker, dump, seed, count):
    rng = np.random.default_rng([seed, len(name)])
    rows = [c for _ in range(count) for c in cases(maker, rng, True)]
    answers = ask(dump, [case for case, _ in rows])
    bad = [(case, answer, want) for (case, want), answer in zip(rows, answers) if not equal(answer, want)]
    for case, answer, want in bad[:3]:
        about = {k: v for k, v in case.items() if k != "arrays"}
        print(f"  differs: {about} {answer.get('error', '')} {[k for k in want if answer.get(k) != want[k]]}", file=sys.stderr)
    checks.check(f"{name}: every bit of {len(rows)} cases", not bad, f"{len(bad)} differ")
    if name == "4 bit":
        double = [(a, c["offset"]) for (c, _), a in zip(rows, answers) if "offset" in c and "offset" in a]
        exact = max((ulps(a["offset"], exact_mean(a["absmax"])) for a, _ in double), default=9)
        torch_ = max((ulps(a["offset"], offset) for a, offset in double), default=99)  # sums in float32
        checks.check("4 bit: nested offset", exact <= 1 and torch_ <= 8, f"{exact} ulp from the mean, {torch_} from torch's")
    return rows


def planted(checks, rows, dump):
    """Each error must be noticed."""

    def swapped(c):  # the nibbles of each byte
        codes = bytes.fromhex(c["arrays"]["codes"])
        return c | {"arrays": c["arrays"] | {"codes": bytes(b >> 4 | (b & 15) << 4 for b in codes).hex()}}

    def one(name, format_, change, which=lambda c: True):
        some = [(c, w) for c, w in rows if c["do"] == "decode" and c["format"] == format_ and which(c)][:40]
        answers = ask(dump, [change(c) for c, _ in some])
        same = sum(equal(a, w) for a, (_, w) in zip(answers, some))
        checks.must_fail(name, same >= len(some) / 2, f"{same} of {len(some)} the same")  # zeros stay zeros

    one("nibbles of NF4 exchanged", "nf4", swapped)
    one("NF4 left unrounded", "nf4", lambda c: c | {"rounded": "f32"}, lambda c: c["rounded"] == "bf16")
    one("a nested offset one bit off", "nf4", lambda c: c | {"offset": f"{int(c['offset'], 16) ^ 1:08x}"},
        lambda c: "offset" in c and c["rounded"] == "f32")
    one("nibbles of MXFP4 exchanged", "mxfp4", swapped)
    one("GPTQ versions exchanged", "gptq", lambda c: c | {"v2": not c["v2"]})
    one("AWQ read as GPTQ", "awq", lambda c: c | {"format": "gptq", "bits": 4, "v2": True})


def fnv(hexadecimal):
    h = 1469598103934665603
    for b in bytes.fromhex(hexadecimal):
        h = ((h ^ b) * 1099511628211) & (1 << 64) - 1
    return f"{h:016x}"


def made_values(n, seed):
    """The same numbers as case_made() of tests/table_cases.h."""
    i = np.arange(n, dtype=np.uint32)
    h = i * np.uint32(2654435761) + np.uint32(seed)
    h = (h ^ h >> 15) * np.uint32(2246822519)
    h = (h ^ h >> 13) * np.uint32(3266489917)
    x = (h ^ h >> 16).view(np.int32).astype(f32) * f32(2.0**-31)
    return torch.from_numpy(x * np.ldexp(f32(1), (i // 512 % 16).astype(np.int32) - 12))


def large_cases():
    """So many elements that every rounding shows; values are made on both sides, results are sums."""
    rows, cols = 201, 333
    for seed, (kind, dtype, block) in enumerate([("nf4", "bf16", 64), ("nf4", "f16", 128), ("fp4", "f32", 64), ("fp4", "bf16", 4096), ("nf4", "f32", 32)]):
        w = made_values(rows * cols, seed).reshape(rows, cols).to(DTYPES[dtype])
        packed, state = bnb.quantize_4bit(w, blocksize=block, compress_statistics=True, quant_type=kind)
        plain = bnb.quantize_4bit(w, blocksize=block, quant_type=kind)[1]
        case = {"do": "quantize", "format": kind, "rows": rows, "cols": cols, "block": block, "type": dtype, "made": seed}
        yield case | {"double": True, "offset": bits(state.offset.item())}, {
            "codes": hexed(packed), "absmax": hexed(plain.absmax), "nested_codes": hexed(state.absmax), "nested_absmax": hexed(state.state2.absmax)}
    for seed, dtype in ((7, "bf16"), (8, "f32")):
        w = made_values(rows * cols, seed).reshape(rows, cols).to(DTYPES[dtype])
        codes, scb, _ = bnb.int8_vectorwise_quant(w.to(torch.float16))
        yield {"do": "quantize", "format": "int8", "rows": rows, "cols": cols, "type": dtype, "made": seed}, {"codes": hexed(codes), "absmax": hexed(scb)}


def write_golden(path):
    """Small cases; of decoded values the sum alone. Large ones: all sums."""
    rng = np.random.default_rng(20261121)
    with open(path, "w", encoding="utf-8") as f:
        rows = [c for maker in MAKERS.values() for _ in range(12) for c in cases(maker, rng, False)]
        for n in (61, 64, 61, 64, 61):  # one block, whole or partial
            rows.append(cases_4bit(on_thresholds(rng, n).reshape(1, n), "f32", "fp4" if n == 64 else "nf4", 64, False)[0])
        rows = [{"case": c, "want": {"sum": fnv(w["values"])} if "values" in w else w} for c, w in rows]
        rows += [{"case": c, "want": {k: fnv(v) for k, v in w.items()}} for c, w in large_cases()]
        rows += [{"case": {"do": "maps"}, "want": maps()}]
        f.write("[\n" + ",\n".join(json.dumps(row, separators=(",", ":")) for row in rows) + "\n]\n")


def main():
    p = argparse.ArgumentParser()
    p.add_argument("--dump")
    p.add_argument("--count", type=int, default=300)
    p.add_argument("--seed", type=int, default=random.SystemRandom().randrange(1 << 32))
    p.add_argument("--golden")
    a = p.parse_args()
    if a.golden:
        write_golden(a.golden)
        return 0
    print(f"seed {a.seed}, {torch.backends.cpu.get_cpu_capability()}")
    checks = Checks()
    ours = ask(a.dump, [{"do": "maps"}])[0]
    checks.check("maps of codes and nested scales", ours == maps())
    rows = []
    for name, maker in MAKERS.items():
        rows += compare(checks, name, maker, a.dump, a.seed, a.count)
    planted(checks, rows, a.dump)
    return checks.close()


if __name__ == "__main__":
    sys.exit(main())
