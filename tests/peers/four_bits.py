"""4-bit models of bitsandbytes on a CPU, computed as the format is defined: its own CPU kernels take shortcuts.

With AVX-512 bitsandbytes 0.50.2 decodes 4 bits wrongly where a row is no whole number of blocks, and its products differ
from its own decoded weights by what bf16 loses; on CPUs with bf16 instructions it also stores the weights anew.
"""

import sys

import torch


def decode_as_defined():
    """Every 4-bit product becomes the plain one with the decoded weight."""
    import bitsandbytes
    import bitsandbytes.functional as bnb
    from bitsandbytes.backends.default.ops import _dequantize_4bit_compute

    def plain(packed, state):
        absmax = bnb.dequantize_blockwise(state.absmax, state.state2) + state.offset if state.nested else state.absmax
        return _dequantize_4bit_compute(packed.reshape(-1), absmax.float(), state.code.float(), state.blocksize, tuple(state.shape), state.dtype)

    def matmul(a, b, quant_state=None, out=None, bias=None, **_):
        # Module weights are (out, in); torch stores them flat and hands over the transposed view.
        return torch.nn.functional.linear(a, plain(b.t() if b.shape[0] == 1 else b, quant_state).to(a.dtype), bias)

    bitsandbytes.matmul_4bit = matmul
    sys.modules["bitsandbytes.nn.modules"].bnb.matmul_4bit = matmul


def in_float32(model):
    """As PEFT's prepare_model_for_kbit_training, what is not packed becomes float32 (transformers loads it in the type of
    config.json, whatever dtype asks for), and so do products.  Packed weights are decoded to the type they were made
    from and widened."""
    for parameter in model.parameters():
        if parameter.is_floating_point():
            parameter.data = parameter.data.float()
    for module in model.modules():
        if hasattr(module, "compute_dtype"):
            module.compute_dtype, module.compute_type_is_set = torch.float32, True
            module.support_avx512bf16_for_cpu = False  # else products are of bf16 numbers, from another layout of the weights
    return model
