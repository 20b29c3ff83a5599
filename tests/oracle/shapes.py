#!/usr/bin/env python3
"""What transformers and PEFT say about the models in configs/shapes: parameters, trainable parameters of adapters, bytes
of the base by format. Nothing is allocated: everything is built on torch's meta device from the config.json alone.

    shapes.py --golden tests/fixtures/shapes.json     makes the table that tests/test_shapes.py compares `graft plan` with
    shapes.py --check tests/fixtures/shapes.json N    recomputes N models chosen at random and compares

Experts are counted as checkpoints hold them, a linear each (as transformers 4 has them in memory, and as files still do);
transformers 5 fuses them while loading. Experts that checkpoints hold as one parameter stay a parameter.
Closes with "N passed, N failed, N skipped"."""
import argparse, json, os, random, sys, warnings

os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")
warnings.filterwarnings("ignore")
import torch
import transformers
from peft import LoraConfig, get_peft_model
from transformers import AutoConfig, AutoModelForCausalLM

transformers.logging.set_verbosity_error()
SHAPES = "configs/shapes"
ROUTERS = ("shared_expert_gate", "router", "gate")
# The first set of targets, by model type; everything else: q_proj and v_proj.
TARGETS = {"phi3": ["qkv_proj"], "deepseek_v2": ["kv_a_proj_with_mqa", "kv_b_proj"], "deepseek_v3": ["q_a_proj", "q_b_proj"]}
SEPARATE = {"mixtral": ("w1", "w3", "w2"), "phimoe": ("w1", "w3", "w2")}  # gate, up, down of an expert in files


def text_config(raw):
    raw = dict(raw.get("text_config", raw))
    raw.pop("quantization_config", None)  # how a file is packed changes no shape
    model_type = raw.pop("model_type")
    if model_type == "exaone":  # not in transformers: a Llama with other names (formats.md 9)
        raw["num_hidden_layers"] = raw.pop("num_layers")
        raw["rms_norm_eps"] = raw.pop("layer_norm_epsilon")
        raw["hidden_act"] = raw.pop("activation_function")
        model_type = "llama"
    return model_type, AutoConfig.for_model(model_type, **raw)


class Experts(torch.nn.Module):
    def __init__(self, count, width, inner, names):
        super().__init__()
        for e in range(count):
            expert = torch.nn.Module()
            for i, name in enumerate(names):
                shape = (width, inner) if i < 2 else (inner, width)
                expert.add_module(name, torch.nn.Linear(*shape, bias=False))
            self.add_module(str(e), expert)


def separate_experts(model, model_type):
    """Fused experts become linears where checkpoints hold linears."""
    if model_type in ("llama4_text", "gpt_oss", "granitemoe"):
        return
    names = SEPARATE.get(model_type, ("gate_proj", "up_proj", "down_proj"))
    for module in list(model.modules()):
        experts = getattr(module, "experts", None)
        if experts is None or not hasattr(experts, "gate_up_proj"):
            continue
        count, inner, width = experts.gate_up_proj.shape
        module.experts = Experts(count, width, inner // 2, names)


def build(raw):
    model_type, config = text_config(raw)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
        fused = sum(p.numel() for p in model.parameters())
        separate_experts(model, model_type)
    assert sum(p.numel() for p in model.parameters()) == fused
    model.tie_weights()
    return model_type, model


def matrices(model, model_type):
    """(experts, rows, columns) of everything a quantiser of linears takes: not embedding, head, routers."""
    for name, module in model.named_modules():
        last = name.split(".")[-1]
        if isinstance(module, torch.nn.Linear) and name != "lm_head" and last not in ROUTERS:
            yield 1, module.out_features, module.in_features
    for name, p in model.named_parameters():
        if p.dim() == 3:  # stored (E, in, out) or (E, out, in)
            e, a, b = p.shape
            yield (e, b, a) if model_type in ("llama4_text", "gpt_oss") else (e, a, b)


def up(a, b):
    return -(-a // b)


def q4_k(rows, cols):
    return rows * cols * 144 // 256 if cols % 256 == 0 else rows * cols * 22 // 32 if cols % 32 == 0 else 2 * rows * cols


def q8_0(rows, cols):
    return rows * cols * 34 // 32 if cols % 32 == 0 else 2 * rows * cols


def nf4(n):
    return up(n, 2) + 4 * up(n, 64)


def nf4_double(n):
    return up(n, 2) + up(n, 64) + 4 * up(up(n, 64), 256) + 4


def sizes(model, model_type):
    total = sum(p.numel() for p in model.parameters())  # a tied head counts once
    table = dict.fromkeys(("bf16", "load_in_8bit", "load_in_4bit", "load_in_4bit, double quantised", "Q8_0", "Q4_K"), 0)
    linears = ends = 0
    for e, rows, cols in matrices(model, model_type):
        n = rows * cols
        linears += e * n
        for name, size in zip(table, (2 * n, n + 4 * rows, nf4(n), nf4_double(n), q8_0(rows, cols), q4_k(rows, cols))):
            table[name] += e * size
    seen = {id(p): p for p in (model.get_input_embeddings().weight, model.get_output_embeddings().weight)}
    for p in seen.values():
        ends += p.numel()
        for name, size in zip(table, [2 * p.numel()] * 4 + [q8_0(*p.shape), q4_k(*p.shape)]):
            table[name] += size
    for name in table:
        table[name] += (total - linears - ends) * (4 if name.startswith("Q") else 2)
    # e_score_correction_bias is a buffer in transformers and a tensor in the files.
    extra = sum(b.numel() for n, b in model.named_buffers() if n.endswith("e_score_correction_bias"))
    for name in table:
        table[name] += extra * (4 if name.startswith("Q") else 2)
    return total + extra, linears, table


def trainable(raw, **lora):
    model_type, model = build(raw)
    if lora["target_modules"] == "all-linear":  # every linear but head and routers, by their own names
        lora["target_modules"] = sorted(
            {n.split(".")[-1] for n, m in model.named_modules() if isinstance(m, torch.nn.Linear)} - {"lm_head", *ROUTERS})
    model.config.model_type = "separate"  # PEFT would look for fused experts
    with torch.device("meta"):
        return get_peft_model(model, LoraConfig(task_type=None, lora_alpha=16, **lora), low_cpu_mem_usage=True).get_nb_trainable_parameters()[0]


def entry(name):
    raw = json.load(open(f"{SHAPES}/{name}.json"))
    model_type, model = build(raw)
    total, linears, table = sizes(model, model_type)
    del model
    names = TARGETS.get(model_type, ["q_proj", "v_proj"])
    return {"total": total, "linears": linears, "bytes": table,
            "trainable": [{"r": 16, "targets": names, "parameters": trainable(raw, r=16, target_modules=names)},
                          {"r": 32, "targets": "all-linear", "parameters": trainable(raw, r=32, target_modules="all-linear")}]}


def check_formulas():
    """The arithmetic above against what bitsandbytes makes of real matrices."""
    import bitsandbytes.functional as bnb
    for shape in ((7, 64), (48, 100), (33, 4096), (3, 5)):
        w = torch.randn(shape)
        for double in (False, True):
            codes, state = bnb.quantize_4bit(w, blocksize=64, compress_statistics=double, quant_type="nf4")
            held = codes.numel() * codes.element_size() + state.absmax.numel() * state.absmax.element_size()
            if double:
                held += state.state2.absmax.numel() * 4 + state.offset.numel() * 4
            want = (nf4_double if double else nf4)(w.numel())
            assert held == want, f"bitsandbytes holds {held} bytes of {shape}, double {double}; the formula says {want}"


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--golden")
    parser.add_argument("--check", nargs=2, metavar=("TABLE", "N"))
    parser.add_argument("--only", nargs="*", default=[])
    arguments = parser.parse_args()
    names = sorted(n[:-5] for n in os.listdir(SHAPES) if n.endswith(".json"))
    check_formulas()
    if arguments.golden:
        table = {"made by": f"tests/oracle/shapes.py, transformers {transformers.__version__}", "models": {}}
        if arguments.only:
            table = json.load(open(arguments.golden))
        for name in arguments.only or names:
            table["models"][name] = entry(name)
            print(name, table["models"][name]["total"], [t["parameters"] for t in table["models"][name]["trainable"]], flush=True)
            table["models"] = dict(sorted(table["models"].items()))
            with open(arguments.golden, "w") as f:
                f.write(json.dumps(table, indent=1) + "\n")
        return
    golden, passed, failed = json.load(open(arguments.check[0]))["models"], 0, 0
    # PEFT takes minutes where experts are many thousands of linears: those are only in the table.
    small = [n for n in names if golden[n]["linears"] < 1.5e11 and not n.startswith(("deepseek", "qwen3-30b"))]
    chosen = random.SystemRandom().sample(small, int(arguments.check[1]))
    for name in arguments.only or chosen:
        same = entry(name) == golden.get(name)
        passed, failed = passed + same, failed + (not same)
        print("ok  " if same else "FAIL", name, flush=True)
    print(f"{passed} passed, {failed} failed, 0 skipped")
    sys.exit(failed > 0)


if __name__ == "__main__":
    main()
