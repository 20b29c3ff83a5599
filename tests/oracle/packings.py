"""Packs the linears of a tiny model as published checkpoints hold them (bitsandbytes, GPTQ, AWQ, FP8, MXFP4), and says
what the packed numbers stand for: families.py lets transformers compute with those.

NF4, FP4 and LLM.int8 are packed and unpacked by bitsandbytes itself, FP8 and MXFP4 unpacked by transformers' own code;
the layouts of GPTQ and AWQ are written out here as AutoGPTQ and AutoAWQ publish them.
"""
import json
import os

os.environ["TORCHDYNAMO_DISABLE"] = "1"
import torch


def bitsandbytes_4bit(name, w, kind="nf4", block=64, nested=True):
    import bitsandbytes.functional as bnb
    from bitsandbytes.backends.default.ops import _dequantize_4bit_compute

    codes, state = bnb.quantize_4bit(w, blocksize=block, compress_statistics=nested, quant_type=kind)
    tensors = {f"{name}.weight": codes}
    tensors |= {f"{name}.weight.{k}": v.clone() for k, v in state.as_dict(packed=True).items()}
    absmax = state.absmax
    if nested:
        absmax = bnb.dequantize_blockwise(absmax, state.state2) + state.offset
    # Not dequantize_4bit: with AVX-512 it is wrong where rows are no whole blocks (0.50.2).
    return tensors, _dequantize_4bit_compute(codes.reshape(-1), absmax, state.code.cpu(), block, w.shape, w.dtype)


def bitsandbytes_8bit(name, w):
    import bitsandbytes.functional as bnb

    codes, scb, _ = bnb.int8_vectorwise_quant(w.to(torch.float16))
    tensors = {f"{name}.weight": codes, f"{name}.SCB": scb, f"{name}.weight_format": torch.tensor(0, dtype=torch.uint8)}
    return tensors, codes.float() * (scb[:, None] / 127)


def stream(values, bits):
    """Integers (n, k) -> int32 words (n * bits / 32, k): one stream of bits along the first axis, lowest first."""
    n, k = values.shape
    plane = ((values[:, None, :] >> torch.arange(bits)[None, :, None]) & 1).reshape(n * bits // 32, 32, k)
    words = (plane.long() << torch.arange(32)[None, :, None]).sum(1)
    return torch.where(words >= 2**31, words - 2**32, words).to(torch.int32)


def affine(w, groups, bits):
    """The codes, zero points and scales of a matrix (out, in) whose column i belongs to groups[i]."""
    top, n = 2**bits - 1, int(groups.max()) + 1
    scales, zeros = torch.empty(n, w.shape[0]), torch.empty(n, w.shape[0], dtype=torch.long)
    codes = torch.empty(w.shape, dtype=torch.long)
    for g in range(n):
        part = w[:, groups == g].float()
        low, high = part.amin(1).clamp(max=0), part.amax(1).clamp(min=0)
        scales[g] = ((high - low) / top).clamp(min=1e-4).half().float()
        zeros[g] = (-low / scales[g]).round().clamp(1, top)
        codes[:, groups == g] = (part / scales[g][:, None] + zeros[g][:, None]).round().clamp(0, top).long()
    return codes, zeros, scales.half()


def gptq(name, w, bits=4, group=32, desc_act=True, v2=False):
    rows, cols = w.shape
    groups = torch.arange(cols) // group
    if desc_act:
        groups = groups[torch.randperm(cols, generator=torch.Generator().manual_seed(cols))]
    codes, zeros, scales = affine(w, groups, bits)
    stored = zeros if v2 else zeros - 1
    tensors = {f"{name}.qweight": stream(codes.T, bits), f"{name}.qzeros": stream(stored.T, bits).T.contiguous(),
               f"{name}.scales": scales, f"{name}.g_idx": groups.to(torch.int32)}
    values = scales[groups].float().T * (codes - zeros[groups].T).float()
    return tensors, values.half()


def awq(name, w, group=32):
    rows, cols = w.shape
    groups = torch.arange(cols) // group
    codes, zeros, scales = affine(w, groups, 4)
    order = torch.tensor([0, 2, 4, 6, 1, 3, 5, 7])  # nibble n of a word holds column 8 c + order[n]

    def words(v):  # (k, out) -> (k, out / 8)
        nibbles = v.reshape(v.shape[0], -1, 8)[:, :, order]
        packed = (nibbles << (4 * torch.arange(8))).sum(2)
        return torch.where(packed >= 2**31, packed - 2**32, packed).to(torch.int32)

    tensors = {f"{name}.qweight": words(codes.T), f"{name}.qzeros": words(zeros), f"{name}.scales": scales}
    return tensors, ((codes - zeros[groups].T).float() * scales[groups].float().T).half()


def fp8(name, w, block=16, exponents=False):
    """Blocks as DeepSeek V3's; with `exponents` the factors are powers of two in a byte."""
    rows, cols = w.shape
    grid = torch.empty((rows + block - 1) // block, (cols + block - 1) // block)
    codes = torch.empty(w.shape, dtype=torch.float8_e4m3fn)
    values = torch.empty(w.shape)
    for i in range(grid.shape[0]):
        for j in range(grid.shape[1]):
            cut = (slice(i * block, (i + 1) * block), slice(j * block, (j + 1) * block))
            scale = w[cut].float().abs().max().clamp(min=1e-6) / 448
            grid[i, j] = 2.0 ** torch.ceil(torch.log2(scale)) if exponents else scale
            codes[cut] = (w[cut].float() / grid[i, j]).to(torch.float8_e4m3fn)
            values[cut] = codes[cut].float() * grid[i, j]
    return {f"{name}.weight": codes, f"{name}.weight_scale_inv": grid.to(torch.float8_e8m0fnu) if exponents else grid}, values


def fp8_rows(name, w):
    """compressed-tensors: a factor per row."""
    scale = w.float().abs().amax(1, keepdim=True).clamp(min=1e-6) / 448
    scale = scale.to(torch.bfloat16)
    codes = (w.float() / scale.float()).to(torch.float8_e4m3fn)
    return {f"{name}.weight": codes, f"{name}.weight_scale": scale}, codes.float() * scale.float()


def mxfp4(name, w):
    """w (E, in, out), as transformers has gpt-oss's experts; stored (E, out, in / 32, 16) with consecutive pairs."""
    from transformers.integrations.mxfp4 import convert_moe_packed_tensors

    table = torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6])
    blocks = w.float().transpose(1, 2).reshape(w.shape[0], w.shape[2], -1, 32)
    exponent = torch.ceil(torch.log2(blocks.abs().amax(3) / 6)).clamp(-20, 20)
    nearest = (blocks / 2.0 ** exponent[..., None])[..., None].sub(table).abs().argmin(4).to(torch.uint8)
    codes = nearest[..., 0::2] | nearest[..., 1::2] << 4
    scales = (exponent + 127).to(torch.uint8)
    values = convert_moe_packed_tensors(codes, scales, dtype=torch.float32)
    assert values.shape == w.shape
    return {f"{name}_blocks": codes, f"{name}_scales": scales}, values


METHODS = {
    "nf4": (bitsandbytes_4bit, {}, {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "nf4",
                                    "bnb_4bit_use_double_quant": True}),
    "fp4": (bitsandbytes_4bit, {"kind": "fp4", "block": 128, "nested": False},
            {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "fp4"}),
    "int8": (bitsandbytes_8bit, {}, {"quant_method": "bitsandbytes", "load_in_8bit": True}),
    "gptq2": (gptq, {"bits": 2}, {"quant_method": "gptq", "bits": 2, "group_size": 32, "desc_act": True}),
    "gptq3": (gptq, {"bits": 3, "desc_act": False}, {"quant_method": "gptq", "bits": 3, "group_size": 32, "desc_act": False}),
    "gptq4": (gptq, {}, {"quant_method": "gptq", "bits": 4, "group_size": 32, "desc_act": True, "checkpoint_format": "gptq"}),
    "gptq8": (gptq, {"bits": 8, "group": 10**6, "desc_act": False, "v2": True},
              {"quant_method": "gptq", "bits": 8, "group_size": -1, "checkpoint_format": "gptq_v2"}),
    "awq": (awq, {}, {"quant_method": "awq", "bits": 4, "group_size": 32, "zero_point": True, "version": "gemm"}),
    "fp8": (fp8, {}, {"quant_method": "fp8", "fmt": "e4m3", "weight_block_size": [16, 16], "activation_scheme": "dynamic"}),
    "fp8-exponents": (fp8, {"exponents": True}, {"quant_method": "fp8", "fmt": "e4m3", "weight_block_size": [16, 16],
                                                 "scale_fmt": "ue8m0"}),
    "fp8-rows": (fp8_rows, {}, {"quant_method": "compressed-tensors", "format": "float-quantized"}),
    "mxfp4": (mxfp4, {}, {"quant_method": "mxfp4"}),
}
KEPT = ("lm_head", "embed_tokens", "mlp.gate", "router", "norm", "shared_expert_gate")


def pack(folder, method):
    """Packs FOLDER/model.safetensors in place.  Returns the numbers the packed tensors stand for, under the old names."""
    from safetensors.torch import load_file, save_file

    pack_one, arguments, config = METHODS[method]
    path = os.path.join(folder, "model.safetensors")
    tensors, out, values = load_file(path), {}, {}
    for key, w in tensors.items():
        experts = w.dim() == 3 and not key.endswith("bias")
        linear = key.endswith(".weight") and w.dim() == 2
        stem = key.removesuffix(".weight")
        if (experts if method == "mxfp4" else linear) and not stem.endswith(KEPT):
            packed, values[key] = pack_one(stem, w, **arguments)
            out |= packed
        else:
            out[key] = w
    assert values, "nothing was packed"
    save_file({k: v.contiguous() for k, v in out.items()}, path, metadata={"format": "pt"})
    path = os.path.join(folder, "config.json")
    text = json.load(open(path))
    text["quantization_config"] = config
    json.dump(text, open(path, "w"), indent=2)
    return values
