#!/usr/bin/env python3
"""Prints kernels/quant_iq_grids.c: the grids of ggml's IQ formats, from the Python package gguf, two or three bits an
element instead of a byte.

    iq_grids.py > kernels/quant_iq_grids.c

tests/peers/quants.py checks that the file in the tree is what this prints.
"""
import math
import sys

from gguf import quants

HEAD = """// Printed by tests/peers/iq_grids.py. The points that blocks of the IQ formats choose from, as ggml has them (taken
// from the Python package gguf). Element j of a point is a number of two bits (IQ1, IQ2: eight elements) or three bits
// (IQ3: four elements), the first element lowest; quant_iq.c says what the numbers stand for.
#include "kernels/quant_blocks.h"
"""
GRIDS = [("iq1", quants.IQ1_S), ("iq2_xxs", quants.IQ2_XXS), ("iq2_xs", quants.IQ2_XS), ("iq2_s", quants.IQ2_S),
         ("iq3_xxs", quants.IQ3_XXS), ("iq3_s", quants.IQ3_S)]
PER_LINE = 14  # what fits, and what clang-format makes of it


def points(kind):
    """The grid as whole numbers, and the values that their digits stand for."""
    kind.init_grid()
    values = sorted(kind.grid_map)
    bits = math.ceil(math.log2(len(values)))
    rows = kind.grid.reshape(kind.grid_shape)
    return [sum(values.index(v) << (bits * j) for j, v in enumerate(row)) for row in rows], values


def text():
    out = HEAD
    for name, kind in GRIDS:
        numbers, values = points(kind)
        out += f"\n// digits stand for {', '.join(str(int(v)) for v in values)}\n"
        out += f"const uint16_t quant_{name}_grid[{len(numbers)}] = {{\n"
        for i in range(0, len(numbers), PER_LINE):
            out += "    " + ", ".join(f"0x{n:04x}" for n in numbers[i:i + PER_LINE]) + ",\n"
        out += "};\n"
    return out


if __name__ == "__main__":
    sys.stdout.write(text())
