#!/usr/bin/env python3
"""Compares our packed formats with ggml's, bit by bit: every decoder with the Python package gguf and with the compiled
ggml inside the package xllamacpp, every encoder with that ggml's quantize_row_*_ref, plain numbers with gguf.

    quants.py --dump BUILD/tests/peers/quants_dump [--count BLOCKS] [--seed N]

Blocks are random bytes, the same with ordinary scales, and blocks of extremes: scales of every kind (zeros of both
signs, below the normal range, the largest, infinite, not a number), all codes low, all codes high. Each run draws its
own seed and prints it. A NaN equals any NaN; nothing else is forgiven. What a package cannot do counts as skipped.
Closes with "N passed, N failed, N skipped".
"""
import argparse
import ctypes
import importlib.metadata
import importlib.util
import os
import subprocess
import sys

import gguf
import iq_grids
import numpy as np

HALVES = {  # where the binary16 fields of a block are
    "Q2_K": (80, 82), "Q3_K": (108,), "Q4_K": (0, 2), "Q5_K": (0, 2), "Q6_K": (208,), "TQ1_0": (52,), "TQ2_0": (64,),
    "Q4_1": (0, 2), "Q5_1": (0, 2), "Q8_K": (), "IQ1_M": (), "MXFP4": (), "NVFP4": (), "F32": (), "BF16": ()}
EXTREMES = [0x0000, 0x8000, 0x0001, 0x8001, 0x03FF, 0x0400, 0x8400, 0x3C00, 0xBC00, 0x7BFF, 0xFBFF, 0x7C00, 0xFC00, 0x7E00]


def halves(name):
    return HALVES.get(name, (0,))


def put_scales(name, blocks, rng):
    """Ordinary scales into every block."""
    for at in halves(name):
        blocks[:, at:at + 2] = rng.uniform(-2, 2, len(blocks)).astype(np.float16).view(np.uint8).reshape(-1, 2)
    if name == "Q8_K":
        blocks[:, :4] = rng.uniform(-2, 2, len(blocks)).astype(np.float32).view(np.uint8).reshape(-1, 4)
    if name == "MXFP4":
        blocks[:, 0] = rng.integers(100, 150, len(blocks))
    if name == "IQ1_M":  # the exponent's upper bits: neither infinite nor very large
        blocks[:, 55] &= 0xBF


def packed_blocks(name, n_bytes, count, rng):
    wild = rng.integers(0, 256, (count, n_bytes), dtype=np.uint8)
    tame = rng.integers(0, 256, (count, n_bytes), dtype=np.uint8)
    put_scales(name, tame, rng)
    edges = []
    for fill in (0x00, 0xFF, 0x80, 0x7F, 0x55, 0xAA, None):
        for first in EXTREMES:
            for second in EXTREMES if len(halves(name)) == 2 else (0,):
                block = rng.integers(0, 256, n_bytes, dtype=np.uint8) if fill is None else np.full(n_bytes, fill, np.uint8)
                for at, half in zip(halves(name), (first, second)):
                    block[at:at + 2] = (half & 255, half >> 8)
                if name == "IQ1_M":
                    for k in range(4):
                        block[49 + 2 * k] = block[49 + 2 * k] & 15 | (first >> (4 * k) & 15) << 4
                edges.append(block)
    every = rng.integers(0, 256, (256, n_bytes), dtype=np.uint8)  # the scale of MXFP4, and the first of NVFP4
    every[:, 0] = np.arange(256)
    return np.concatenate([wild, tame, np.array(edges), every])


def values(block, count, rng):
    """Numbers to be packed: several distributions, ties, outliers, constant blocks, tiny and large ones."""
    x = rng.standard_normal((count, block)).astype(np.float32)
    kind = np.arange(count) % 12
    x[kind == 1] = rng.uniform(-1, 1, (np.sum(kind == 1), block))
    x[kind == 2] = rng.integers(-16, 17, (np.sum(kind == 2), block)) * 0.25
    x[kind == 3] **= 3
    x[kind == 4] = np.abs(x[kind == 4])
    x[kind == 5] = -np.abs(x[kind == 5]) - 1
    x[kind == 6, ::7] *= 30
    x[kind == 7] = np.where(rng.random((np.sum(kind == 7), block)) < 0.95, 0, x[kind == 7])
    x[kind == 8] = np.repeat(rng.choice([0, 1.5, -3, 1e-9, 1e-20, -0.0], (np.sum(kind == 8), 1)), block, axis=1)
    x[kind == 9, block // 2:] *= np.float32(1e-3)
    scale = np.exp2(rng.integers(-24, 12, count)).astype(np.float32)
    scale[kind == 2] = 1
    return x * scale[:, None]


def ours(dump, what, name, data, dtype):
    out = subprocess.run([dump, what, name], input=data.tobytes(), stdout=subprocess.PIPE, check=True).stdout
    return np.frombuffer(out, dtype)


def compiled_ggml():
    spec = importlib.util.find_spec("xllamacpp")
    folder = spec.submodule_search_locations[0]
    return ctypes.CDLL(next(os.path.join(folder, f) for f in os.listdir(folder) if f.endswith(".so")))


def of_ggml(library, function, data, dtype, size, count):
    """Calls a function (in, out, count of elements); None where the library has none of this name."""
    if not hasattr(library, function):
        return None
    out = np.empty(size, dtype)
    data = np.ascontiguousarray(data)
    getattr(library, function)(ctypes.c_void_p(data.ctypes.data), ctypes.c_void_p(out.ctypes.data), ctypes.c_int64(count))
    return out


def of_gguf(name, blocks):
    kind = getattr(gguf.GGMLQuantizationType, name, None)
    if kind is None:
        return None
    try:
        with np.errstate(all="ignore"):
            return gguf.quants.dequantize(blocks, kind).astype(np.float32).reshape(-1)
    except NotImplementedError:
        return None


def differences(got, want):
    both_nan = np.isnan(got) & np.isnan(want)
    return np.flatnonzero((got.view(np.uint32) != want.view(np.uint32)) & ~both_nan)


class Count:
    passed = failed = skipped = 0

    def check(self, what, bad, total, detail=""):
        if len(bad) == 0:
            self.passed += 1
        else:
            self.failed += 1
            print(f"FAIL {what}: {len(bad)} of {total} differ{detail}")

    def skip(self, what):
        self.skipped += 1
        print(f"skip {what}")


def check_decoder(c, a, library, name, block, n_bytes, rng):
    blocks = packed_blocks(name, n_bytes, a.count, rng)
    got = ours(a.dump, "decode", name, blocks, np.float32)
    peers = {"gguf": of_gguf(name, blocks)}
    if block > 1:
        function = "dequantize_row_" + name.lower().replace("_k", "_K")
        peers["ggml"] = of_ggml(library, function, blocks, np.float32, len(blocks) * block, len(blocks) * block)
    for peer, want in peers.items():
        if want is None:
            c.skip(f"{name}: {peer} has no decoder")
            continue
        bad = differences(got, want)
        at = f", first: block {bad[0] // block} element {bad[0] % block}: {got[bad[0]]!r}, {peer} {want[bad[0]]!r}; " \
             f"bytes {blocks[bad[0] // block].tobytes().hex()}" if len(bad) else ""
        c.check(f"{name} decoded, {peer}", bad, len(got), at)


def check_encoder(c, a, library, name, block, n_bytes, rng):
    x = values(max(block, 32), a.count, rng)
    got = ours(a.dump, "encode", name, x, np.uint8).reshape(-1, n_bytes)
    if block > 1:
        function = "quantize_row_" + name.lower().replace("_k", "_K") + "_ref"
        peer, want = "ggml", of_ggml(library, function, x, np.uint8, got.size, x.size)
    else:
        with np.errstate(all="ignore"):
            peer, want = "gguf", gguf.quants.quantize(x, gguf.GGMLQuantizationType[name]).view(np.uint8)
    if want is None:
        c.skip(f"{name}: ggml has no such encoder")
        return
    bad = np.flatnonzero((got != want.reshape(got.shape)).any(axis=1))
    c.check(f"{name} encoded, {peer}", bad, len(got), f", first: block {bad[0]}" if len(bad) else "")


def main():
    p = argparse.ArgumentParser()
    p.add_argument("--dump", required=True)
    p.add_argument("--count", type=int, default=2000)
    p.add_argument("--seed", type=int, default=int.from_bytes(os.urandom(4), "little"))
    a = p.parse_args()
    print(f"seed {a.seed}, gguf {importlib.metadata.version('gguf')}, xllamacpp {importlib.metadata.version('xllamacpp')}")
    library = compiled_ggml()
    c = Count()
    lines = subprocess.run([a.dump, "list"], stdout=subprocess.PIPE, check=True, text=True).stdout.splitlines()
    for i, line in enumerate(lines):
        name, _, block, n_bytes, encodes = line.split()
        check_decoder(c, a, library, name, int(block), int(n_bytes), np.random.default_rng((a.seed, i, 0)))
        if encodes == "1":
            check_encoder(c, a, library, name, int(block), int(n_bytes), np.random.default_rng((a.seed, i, 1)))
    grids = os.path.join(os.path.dirname(__file__), "../../kernels/quant_iq_grids.c")
    c.check("kernels/quant_iq_grids.c", [] if open(grids).read() == iq_grids.text() else [0], 1)
    print(f"{len(lines)} formats")
    print(f"{c.passed} passed, {c.failed} failed, {c.skipped} skipped")
    return 1 if c.failed else 0


if __name__ == "__main__":
    sys.exit(main())
