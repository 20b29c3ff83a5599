#!/usr/bin/env python3
"""`graft plan` on bases that are only a config.json: parameters, adapters and bytes against the table that transformers
and PEFT made (tests/fixtures/shapes.json, by tests/oracle/shapes.py), and what is refused. Closes with "N passed, N failed,
N skipped". BUILD names the build folder (default build)."""
import json
import os
import resource
import shutil
import struct
import subprocess
import sys
import tempfile
import time

GRAFT = os.environ.get("GRAFT", f"{os.environ.get('BUILD', 'build')}/graft")
SHAPES = "configs/shapes"
FAMILIES = "tests/fixtures/families"
TABLE = "tests/fixtures/shapes.json"
SECONDS, MEMORY = 10, 300 << 20  # of one plan: far above what it takes, far below anything that grows with the parameters
work = tempfile.mkdtemp(prefix="graft-shapes-")
CONFIG = """adapter: lora
lora_alpha: 32
learning_rate: 1e-4
sequence_len: 512
bf16: true
threads: 2
datasets:
  - path: rows.jsonl
    type: chat_template
"""


class Failed(Exception):
    pass


def check(condition, message):
    if not condition:
        raise Failed(message)


def graft(*arguments, code=0):
    r = subprocess.run([GRAFT, *map(str, arguments)], capture_output=True, text=True, timeout=120)
    check(r.returncode == code, f"{arguments}: exit {r.returncode}, wanted {code}: {r.stderr[-500:]}")
    return r


def config():
    path = f"{work}/config.yml"
    if not os.path.exists(path):
        with open(path, "w") as f:
            f.write(CONFIG)
    return path


def plan(base, *more):
    return json.loads(graft("plan", config(), "--json", f"base_model={base}", *more).stdout)


def targets(t):
    names = ["lora_target_linear=true"] if t["targets"] == "all-linear" else [f"lora_target_modules=[{', '.join(t['targets'])}]"]
    return [f"lora_r={t['r']}", *names]


def model(name, expected):
    begin = time.monotonic()
    for t in expected["trainable"]:
        got = plan(f"{SHAPES}/{name}.json", "quantize_moe_experts=true", *targets(t))
        check(got["total_parameters"] == expected["total"], f"{got['total_parameters']} parameters, transformers: {expected['total']}")
        check(got["trainable_parameters"] == t["parameters"],
              f"r {t['r']} on {t['targets']}: {got['trainable_parameters']} trainable, PEFT: {t['parameters']}")
        held = got["base_bytes"].pop("packed", expected["bytes"]["bf16"])  # as published: FP8, MXFP4
        check(got["base_bytes"] == expected["bytes"], f"bytes {got['base_bytes']}, expected {expected['bytes']}")
        for key in ("false", "true"):
            part = got["gradient_checkpointing"][key]
            check(part["classes"]["base"] == held, "the base is not counted as it is held")
            check(part["peak_bytes"] >= sum(part["classes"].values()), "the peak is less than its classes")
            check(part["classes"]["adapter"] - 4 * t["parameters"] in range(64), "the adapter is not 4 bytes a parameter")
        without, kept = got["gradient_checkpointing"]["false"], got["gradient_checkpointing"]["true"]
        check(kept["classes"]["activations"] < without["classes"]["activations"], "checkpointing saves nothing")
        check(kept["flops_per_token"] > without["flops_per_token"], "checkpointing costs nothing")
    check(time.monotonic() - begin < 2 * SECONDS, f"two plans took {time.monotonic() - begin:.1f} s")


def every_shape_is_in_the_table():
    there = {n[:-5] for n in os.listdir(SHAPES) if n.endswith(".json")}
    check(there == set(table), f"{SHAPES} and {TABLE} differ: {sorted(there ^ set(table))}")
    listed = {line.split("`")[1][:-5] for line in open(f"{SHAPES}/README.md") if line.startswith("| `")}
    check(there == listed, f"{SHAPES} and its README.md differ: {sorted(there ^ listed)}")


def mistral_as_published():
    got = plan(f"{SHAPES}/mistral-7b-v0.1.json", "lora_r=16", "lora_target_modules=[q_proj, v_proj]")
    check(got["trainable_parameters"] == 6815744, got["trainable_parameters"])


def biases():
    """What PEFT counts on the meta device with bias="all" and "lora_only": of linears, layer norms, gpt-oss's routers, a head."""
    for name, everything, adapted in (("starcoder2-7b", 6083072, 5013504), ("phi-3.5-moe", 4820288, 4456448), ("gpt-oss-20b", 2871552, 2846208),
                                      ("glm-4-9b", 5427200, 5406720), ("qwen3-8b", 4718592, 4718592)):
        for setting, want in (("all", everything), ("lora_only", adapted)):
            got = plan(f"{SHAPES}/{name}.json", "lora_r=8", "lora_target_modules=[q_proj, o_proj]", f"peft_bias={setting}")
            check(got["trainable_parameters"] == want, f"{name}, {setting}: {got['trainable_parameters']}, PEFT: {want}")


def gpt_oss_as_published():
    """metadata.total_size of the model's own index."""
    got = plan(f"{SHAPES}/gpt-oss-20b.json", "lora_target_modules=[q_proj, v_proj]")
    check(got["base_bytes"]["packed"] == 13761264768, got["base_bytes"]["packed"])


def four_bits():
    base = f"{SHAPES}/llama-3.1-8b.json"
    got = plan(base, "lora_target_linear=true", "load_in_4bit=true", "adapter=qlora", "gradient_checkpointing=true")
    check(got["base_format"] == "load_in_4bit, double quantised", got["base_format"])
    check(got["classes"]["base"] == got["base_bytes"]["load_in_4bit, double quantised"], "the base is not counted in 4 bits")
    check(got["peak_bytes"] == got["gradient_checkpointing"]["true"]["peak_bytes"], "the setting is not followed")
    text = graft("plan", config(), f"base_model={base}", "lora_target_linear=true", "load_in_4bit=true").stdout
    for word in ("8030.261 M parameters", "double quantised", "<- this configuration", "GFLOP per token", "20971520 trainable"):
        check(word in text, f"{word!r} is not in {text}")
    r = graft("plan", config(), f"base_model={base}", "lora_target_linear=true", "adapter=qlora", code=78)
    check("load_in_4bit" in r.stderr, r.stderr)


def experts_in_one_tensor_stay_unless_asked():
    nf4 = lambda n: n // 2 + n // 64 + 4 * -(-n // 64 // 256) + 4
    scout = [48 * 16 * n for n in (2 * 8192 * 5120, 5120 * 8192)]  # gate and up, down
    saved = 2 * sum(scout) - 48 * 16 * (nf4(2 * 8192 * 5120) + nf4(5120 * 8192))
    for name, difference in (("llama-4-scout", saved), ("mixtral-8x7b", 0)):
        four = [f"{SHAPES}/{name}.json", "load_in_4bit=true", "lora_target_modules=[q_proj]"]
        kept, asked = plan(*four), plan(*four, "quantize_moe_experts=true")
        got = kept["classes"]["base"] - asked["classes"]["base"]
        check(got == difference, f"{name}: {got} bytes more without quantize_moe_experts, expected {difference}")
        check(kept["base_bytes"]["bf16"] == asked["base_bytes"]["bf16"], "bf16 differs")
        text = graft("plan", config(), f"base_model={four[0]}", *four[1:]).stdout
        check(("quantize_moe_experts" in text) == (difference > 0), text)


def tensors(folder):
    """Bytes of each tensor of a safetensors file, by its header."""
    with open(f"{folder}/model.safetensors", "rb") as f:
        header = json.loads(f.read(struct.unpack("<Q", f.read(8))[0]))
    return {k: v["data_offsets"][1] - v["data_offsets"][0] for k, v in header.items() if k != "__metadata__"}


def config_alone(folder, name, **change):
    """A folder with nothing but the config.json, its quantization_config changed."""
    alone = f"{work}/alone-{name}"
    os.makedirs(alone, exist_ok=True)
    raw = json.load(open(f"{folder}/config.json"))
    raw.get("quantization_config", {}).update(change)
    with open(f"{alone}/config.json", "w") as f:
        json.dump(raw, f)
    return alone


def packed_checkpoints():
    """What is planned from the config.json of a packed checkpoint is what its tensors take, to the byte. Only quant_state, a text,
    is not counted; llama-fp4's blocks of 128 are in that text alone."""
    found = 0
    for name in sorted(os.listdir(FAMILIES)):
        folder = f"{FAMILIES}/{name}"
        if not os.path.exists(f"{folder}/config.json") or "quantization_config" not in json.load(open(f"{folder}/config.json")):
            continue
        if name == "llama-fp4":
            continue
        want = sum(n for k, n in tensors(folder).items() if ".quant_state." not in k)
        got = plan(config_alone(folder, name), "lora_target_linear=true", "adapter=qlora", "load_in_4bit=true")
        check(got["base_bytes"]["packed"] == want, f"{name}: {got['base_bytes']['packed']} bytes, the tensors take {want}")
        check(got["classes"]["base"] == want, f"{name}: the base is not counted as it is packed")
        found += 1
    check(found >= 12, f"{found} packed checkpoints")


def lists_of_what_is_not_packed():
    folder = f"{FAMILIES}/llama-gptq4"
    parts = tensors(folder)
    layers = json.load(open(f"{folder}/config.json"))["num_hidden_layers"]
    for kept, module in ((["mlp.down_proj"], ".mlp.down_proj."), (["model.layers.*.self_attn"], ".self_attn."), (["o_proj"], ".o_proj."),
                         (["mlp"], ".mlp."), (["proj", "model.layers.1.mlp.down", "layer"], None)):
        names = {k.rsplit(".", 1)[0] for k in parts if k.endswith(".qweight") and module and module in k}
        want = sum(parts.values())
        for name in names:
            want -= sum(n for k, n in parts.items() if k.startswith(name + "."))
            want += parts[name + ".qweight"] * 8 // 4 * 2  # eight numbers in four bytes, then two bytes each
        check(module is None or len(names) % layers == 0 and names, f"{kept} names {names}")
        got = plan(config_alone(folder, "kept", modules_to_not_convert=kept), "lora_target_linear=true")["base_bytes"]["packed"]
        check(got == want, f"without {kept}: {got} bytes, expected {want}")


def as_quantised_here():
    """load_in_4bit and load_in_8bit: the bytes planned are those of the folder that is written, without its constant tables."""
    plain = f"{FAMILIES}/llama"
    for packing, setting, name in (("nf4", "load_in_4bit=true", "load_in_4bit, double quantised"), ("int8", "load_in_8bit=true", "load_in_8bit")):
        out = f"{work}/quantised-{packing}"
        graft("quantize", plain, "--to", packing, "--out", out)
        parts = tensors(out)
        want = sum(n for k, n in parts.items() if ".quant_state." not in k)
        check(plan(config_alone(out, packing), "lora_target_linear=true")["base_bytes"]["packed"] == want, f"{packing}: not {want} bytes")
        constant = sum(n for k, n in parts.items() if k.endswith(("quant_map", "weight_format")))
        offsets = 4 * sum(k.endswith("nested_absmax") for k in parts)  # nested_offset is in the text
        got = plan(config_alone(plain, "plain"), "lora_target_linear=true", setting)
        check(got["base_format"] == name and got["classes"]["base"] == want - constant + offsets,
              f"{packing}: {got['base_format']}, {got['classes']['base']} bytes, the folder has {want - constant + offsets}")


def by_its_name_on_the_hub():
    commit = "0123456789abcdef0123456789abcdef01234567"
    hub = f"{work}/hub/models--org--tiny"
    os.makedirs(f"{hub}/snapshots/{commit}")
    os.makedirs(f"{hub}/refs")
    with open(f"{hub}/refs/main", "w") as f:
        f.write(commit)
    shutil.copy(f"{FAMILIES}/llama-awq/config.json", f"{hub}/snapshots/{commit}/config.json")
    os.environ["HF_HUB_CACHE"] = f"{work}/hub"
    got = plan("org/tiny", "lora_target_linear=true")
    check(got["base_format"] == "AWQ, 4 bits, groups of 32", got["base_format"])
    check(got["classes"]["base"] == sum(tensors(f"{FAMILIES}/llama-awq").values()), got["classes"]["base"])
    text = graft("plan", config(), "base_model=org/tiny", "lora_target_linear=true").stdout
    check("AWQ, 4 bits, groups of 32" in text and "<- this configuration" in text, text)
    r = graft("plan", config(), "base_model=org/other", "lora_target_linear=true", code=66)
    check("hf download org/other" in r.stderr, r.stderr)
    del os.environ["HF_HUB_CACHE"]


def size_follows_the_batch():
    base = f"{SHAPES}/qwen2.5-0.5b.json"
    one, two, summed = (plan(base, "lora_target_linear=true", *more) for more in
                        ([], ["micro_batch_size=2"], ["gradient_accumulation_steps=4"]))
    check(1.8 < two["classes"]["activations"] / one["classes"]["activations"] < 2.2, "activations do not follow the batch")
    check(summed["classes"]["gradients"] == 2 * one["classes"]["gradients"], "accumulation needs a second gradient")


def as_planned_from_the_files():
    """The same model once with its weights and data, once as shapes: the same step, so the same memory."""
    folder = f"{work}/tiny"
    subprocess.run([f"{os.environ.get('BUILD', 'build')}/tests/make_tiny", folder], check=True)
    shapes = {"model_type": "llama", "num_hidden_layers": 2, "hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 4,
              "num_key_value_heads": 2, "vocab_size": 271, "max_position_embeddings": 2048, "rms_norm_eps": 1e-5, "tie_word_embeddings": True}
    with open(f"{work}/tiny.json", "w") as f:
        json.dump(shapes, f)
    for setting in ("false", "true"):
        more = ["--json", f"gradient_checkpointing={setting}", "sequence_len=512", "micro_batch_size=2", "generate_samples=false"]
        files = json.loads(graft("plan", f"{folder}/config.yml", *more).stdout)
        alone = json.loads(graft("plan", f"{folder}/config.yml", f"base_model={work}/tiny.json", *more).stdout)
        check(files["total_parameters"] == alone["total_parameters"], f"{files['total_parameters']} and {alone['total_parameters']}")
        check(files["flops_per_token"] < alone["flops_per_token"], "short documents cost attention more than full rows")
        for name in ("adapter", "gradients", "optimizer", "activations", "logits"):
            check(files["classes"][name] == alone["classes"][name], f"{name}: {files['classes'][name]} and {alone['classes'][name]}")


def a_folder_with_only_a_config():
    folder = f"{work}/folder"
    os.makedirs(folder)
    shutil.copy(f"{SHAPES}/qwen2.5-0.5b.json", f"{folder}/config.json")
    check(plan(folder, "lora_target_linear=true")["total_parameters"] == table["qwen2.5-0.5b"]["total"], "another count")
    for command in (["train", config(), f"base_model={folder}", "lora_target_linear=true", f"output_dir={work}/out"],
                    ["eval", config(), f"base_model={folder}", "lora_target_linear=true"],
                    ["chat", "--base", folder, "--prompt", "x"]):
        r = graft(*command, code=66)
        for word in (folder, "config.json", "graft plan", "weights"):
            check(word in r.stderr, f"{command}: {word!r} is not in {r.stderr}")
    check(not os.path.exists(f"{work}/out"), "train wrote something")


def what_is_refused():
    base = f"{SHAPES}/qwen2.5-0.5b.json"
    for more, code, word in ((["lora_target_modules=[nonsense]"], 78, "nonsense"), (["lora_target_linear=true", "lora_r=0"], 78, "lora_r"),
                             (["lora_model_dir=somewhere"], 78, "lora_model_dir"),
                             (["lora_target_linear=true", "peft_layers_to_transform=[24]"], 78, "24"),
                             (["lora_target_linear=true", "micro_batch_size=2000000", "sequence_len=8192"], 78, "micro_batch_size")):
        r = graft("plan", config(), f"base_model={base}", *more, code=code)
        check(word in r.stderr, f"{more}: {word!r} is not in {r.stderr}")
    for change, word in (({"model_type": "perceptron"}, "perceptron"), ({"hidden_size": -1}, "hidden_size"), ({"num_hidden_layers": 5000}, "num_hidden_layers"),
                         ({"vocab_size": None}, "vocab_size")):
        raw = {**json.load(open(base)), **change}
        with open(f"{work}/bad.json", "w") as f:
            json.dump(raw, f)
        r = graft("plan", config(), f"base_model={work}/bad.json", "lora_target_linear=true", code=65)
        check(word in r.stderr, f"{change}: {word!r} is not in {r.stderr}")


def nothing_grows_with_the_parameters():
    check(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024 < MEMORY, "a plan took more than 300 MiB")


table = json.load(open(TABLE))["models"]
cases = [(f.__name__, f) for f in (every_shape_is_in_the_table, mistral_as_published, gpt_oss_as_published, biases, four_bits, experts_in_one_tensor_stay_unless_asked,
                                    packed_checkpoints, lists_of_what_is_not_packed, as_quantised_here,
                                   by_its_name_on_the_hub, size_follows_the_batch, as_planned_from_the_files,
                                   a_folder_with_only_a_config, what_is_refused)]
cases += [(name, lambda name=name: model(name, table[name])) for name in sorted(table)]
cases += [("nothing_grows_with_the_parameters", nothing_grows_with_the_parameters)]
passed = failed = 0
for label, run in cases:
    if len(sys.argv) > 1 and label not in sys.argv[1:]:
        continue
    try:
        run()
        passed += 1
    except (Failed, KeyError, ValueError, subprocess.TimeoutExpired) as problem:
        failed += 1
        print(f"FAIL {label}: {problem!r}")
shutil.rmtree(work)
print(f"{passed} passed, {failed} failed, 0 skipped")
sys.exit(failed > 0)
