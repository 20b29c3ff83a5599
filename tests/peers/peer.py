"""What the live comparisons share: places, the list of checks, the base model as torch and llama.cpp load it, and adapters.

The base is a 4-bit GGUF.  transformers decodes it to float32 (a `llama` GGUF holds the rows of Q and K in llama.cpp's
rotary order; transformers puts them back), so both sides compute with the same numbers.
"""

import functools
import hashlib
import json
import math
import os
import pathlib
import shutil
import subprocess
import warnings

os.environ["HF_HUB_OFFLINE"] = "1"  # nothing here may look for a model elsewhere
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

import numpy as np
import torch
import transformers
from safetensors.torch import load_file, save_file

ROOT = pathlib.Path(__file__).resolve().parents[2]
BASE_NAME = "SmolLM2-135M-Instruct.Q4_1.gguf"
BASE = pathlib.Path(os.environ.get("GRAFT_BASE", ROOT / "cache" / BASE_NAME))
OUT = pathlib.Path(os.environ.get("GRAFT_PEERS_OUT", ROOT / "build" / "peers"))
GRAFT = os.environ.get("GRAFT", str(ROOT / "build" / "graft"))
STEP_DUMP = os.environ.get("GRAFT_STEP_DUMP", str(ROOT / "build" / "tests" / "peers" / "step_dump"))
THREADS = int(os.environ.get("GRAFT_PEERS_THREADS", len(os.sched_getaffinity(0))))
LINEARS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
GGUF_LINEARS = dict(zip(LINEARS, ["attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down"]))

torch.set_num_threads(THREADS)
transformers.logging.disable_progress_bar()
warnings.filterwarnings("ignore", module="peft|transformers|torch")


class Checks:
    """Prints one line a check; `close` prints the totals and gives the exit code."""

    def __init__(self):
        self.passed = self.failed = 0

    def check(self, name, good, figure=""):
        self.passed, self.failed = self.passed + bool(good), self.failed + (not good)
        print(f"{'ok' if good else 'FAIL'} {name}" + (f" ({figure})" if figure else ""), flush=True)
        return bool(good)

    def must_fail(self, name, good, figure=""):
        """A planted error: the comparison must notice it."""
        return self.check(f"planted: {name} is noticed", not good, figure)

    def close(self):
        print(f"{self.passed} passed, {self.failed} failed, 0 skipped", flush=True)
        return 1 if self.failed else 0


def run(arguments, **options):
    """Runs a program of ours; its standard output.  A failure shows what it said and ends the comparison."""
    arguments = [str(a) for a in arguments]
    try:
        done = subprocess.run(arguments, capture_output=True, text=True, cwd=ROOT, timeout=900, **options)
    except FileNotFoundError as error:
        raise SystemExit(f"FAIL {arguments[0]} is not built: {error}")
    if done.returncode != 0:
        tail = (done.stderr or done.stdout).strip().splitlines()[-8:]
        raise SystemExit(f"FAIL {' '.join(arguments)}: exit code {done.returncode}\n  " + "\n  ".join(tail))
    return done.stdout


def read_jsonl(path):
    with open(path, encoding="utf-8") as lines:
        return [json.loads(line) for line in lines if line.strip()]


def write_jsonl(path, rows):
    with open(path, "w", encoding="utf-8") as out:
        out.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def write_config(path, **keys):
    """One run of ours, as JSON (which is YAML): float32, rows in file order, one thread count for both sides."""
    config = {
        "base_model": str(BASE),
        "adapter": "lora",
        "float32": True,
        "device": "cpu",
        "threads": THREADS,
        "lora_dropout": 0.0,
        "sample_packing": False,
        "shuffle_merged_datasets": False,
        "val_set_size": 0,
        "seed": 7,
        **keys,
    }
    path.write_text(json.dumps(config, indent=1) + "\n", encoding="utf-8")
    return path


def fresh_folder(name):
    folder = OUT / name
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder


# ---------------------------------------------------------------------------------------------------- the base model


def made_once(name, make):
    """A file or folder made from the base once, and again when the base or the versions change."""
    import gguf
    import importlib.metadata

    versions = f"{transformers.__version__} {importlib.metadata.version('gguf')} 1"
    key = f"{hashlib.sha256(BASE.read_bytes()).hexdigest()} {versions}"
    path, stamp = OUT / name, OUT / (name + ".made")
    if not path.exists() or not stamp.exists() or stamp.read_text() != key:
        stamp.unlink(missing_ok=True)
        OUT.mkdir(parents=True, exist_ok=True)
        make(path)
        stamp.write_text(key)
    return path


def hf_folder():
    """The base as a float32 folder of transformers: decoding the GGUF takes 15 s, loading this folder one."""

    def make(path):
        from transformers import AutoModelForCausalLM

        model = AutoModelForCausalLM.from_pretrained(BASE.parent, gguf_file=BASE.name, dtype=torch.float32)
        # Its own save refuses a model that came from a GGUF, although the weights are plain float32 now.
        del model.config.quantization_config
        model.config.save_pretrained(path)
        tensors = {k: v.contiguous() for k, v in model.state_dict().items() if k != "lm_head.weight"}  # tied
        save_file(tensors, path / "model.safetensors", metadata={"format": "pt"})

    return made_once("base-hf", make)


def load_base(**options):
    from transformers import AutoModelForCausalLM

    options = {"dtype": torch.float32, "attn_implementation": "sdpa", **options}
    return AutoModelForCausalLM.from_pretrained(hf_folder(), **options).eval()


@functools.cache
def base_reader():
    import gguf

    return gguf.GGUFReader(BASE)  # takes seconds: the vocabulary


def gguf_field(reader, key):
    return reader.fields[key].contents() if key in reader.fields else None


def write_f32(reader, path):
    """A GGUF as an F32 one, decoded by gguf: same numbers, same metadata, no quantisation for llama.cpp to add its own
    rounding to."""
    import gguf

    writer = gguf.GGUFWriter(path, gguf_field(reader, "general.architecture"))
    for field in reader.fields.values():
        if field.name.startswith("GGUF.") or field.name == "general.architecture":
            continue
        value, kind = field.contents(), field.types[0]
        if field.name == "general.file_type":
            value = int(gguf.LlamaFileType.ALL_F32)
        sub_type = field.types[-1] if kind == gguf.GGUFValueType.ARRAY else None
        writer.add_key_value(field.name, value, kind, sub_type=sub_type)
    for tensor in reader.tensors:
        writer.add_tensor(tensor.name, gguf.quants.dequantize(tensor.data, tensor.tensor_type).astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def f32_gguf():
    return made_once("base-f32.gguf", lambda path: write_f32(base_reader(), path))


def rope_rows(heads, dim):
    """Row order of Q or K in a `llama` GGUF: gguf[i] = hf[rope_rows[i]]."""
    h, pair, half = np.meshgrid(np.arange(heads), np.arange(dim // 2), np.arange(2), indexing="ij")
    return (h * dim + half * (dim // 2) + pair).reshape(-1)


def tokenizer():
    """The tokenizer the GGUF describes, put together from parts.  (transformers would rebuild it by the architecture's
    name and lose the digit split.)"""
    import gguf
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    reader = base_reader()
    pre = gguf_field(reader, "tokenizer.ggml.pre")
    assert pre == "smollm", f"this comparison knows the pre-tokenizer of SmolLM, the file says {pre}"
    tokens = gguf_field(reader, "tokenizer.ggml.tokens")
    types = gguf_field(reader, "tokenizer.ggml.token_type")
    merges = [tuple(m.split(" ")) for m in gguf_field(reader, "tokenizer.ggml.merges")]
    bpe = Tokenizer(models.BPE(vocab={t: i for i, t in enumerate(tokens)}, merges=merges))
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)]
    )
    bpe.decoder = decoders.ByteLevel()
    control = int(gguf.TokenType.CONTROL)
    bpe.add_special_tokens([AddedToken(t, normalized=False, special=True) for t, k in zip(tokens, types) if k == control])
    end = tokens[gguf_field(reader, "tokenizer.ggml.eos_token_id")]
    template = gguf_field(reader, "tokenizer.chat_template")
    return PreTrainedTokenizerFast(tokenizer_object=bpe, eos_token=end, chat_template=template)


def render(tok, messages):
    """Text, ids and trained flags of a conversation: the answers of the assistant and the tokens that end them."""
    text = tok.apply_chat_template(messages, tokenize=False)
    spans = []
    for i, message in enumerate(messages):
        if message["role"] == "assistant":
            before = tok.apply_chat_template(messages[:i], tokenize=False, add_generation_prompt=True)
            answer = message["content"] + tok.eos_token
            assert text.startswith(before + answer)
            spans.append((len(before), len(before) + len(answer)))
    encoded = tok(text, add_special_tokens=False, return_offsets_mapping=True)
    # Offsets count characters; the tokens of one split character all carry its offset.
    trained = [int(any(a <= start < b for a, b in spans)) for start, _ in encoded["offset_mapping"]]
    return text, encoded["input_ids"], trained


# ---------------------------------------------------------------------------------------------------------- adapters


def make_adapter(model, folder, seed, r, alpha, targets, rslora=False):
    """Puts a LoRA with seeded, non-zero A and B on `model` and saves it as a PEFT folder; the PEFT model.  B is as large
    as leaves the base its wits and makes every planted error plain; Q and K need more, they act through the softmax."""
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(
        r=r, lora_alpha=alpha, target_modules=list(targets), lora_dropout=0.0, use_rslora=rslora, task_type="CAUSAL_LM"
    )
    model = get_peft_model(model, config)
    random = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in sorted(model.named_parameters()):
            if parameter.requires_grad:
                bound = 0.2 if ".q_proj." in name or ".k_proj." in name else 0.06
                if "lora_A" in name:
                    bound = 1 / math.sqrt(parameter.shape[1])
                parameter.copy_((torch.rand(parameter.shape, generator=random) * 2 - 1) * bound)
    model.save_pretrained(folder)
    return model


def peft_key(name):
    """The tensor's name in a PEFT file; in memory it also holds the adapter's name."""
    return name.replace(".default", "")


def damage(source, target, how):
    """A copy of a PEFT folder with one deliberate error."""
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir(parents=True)
    config = json.loads((source / "adapter_config.json").read_text())
    tensors = load_file(source / "adapter_model.safetensors")
    if how == "alpha halved":
        config["lora_alpha"] //= 2  # even before
    elif how == "Q and K rows permuted":
        from transformers import AutoConfig

        base = AutoConfig.from_pretrained(hf_folder())
        for part, heads in (("q_proj", base.num_attention_heads), ("k_proj", base.num_key_value_heads)):
            rows = torch.from_numpy(rope_rows(heads, base.head_dim))
            for key in tensors:
                if f".{part}.lora_B" in key:
                    tensors[key] = tensors[key][rows].contiguous()
    elif how == "gate and up swapped":
        swap = {"gate_proj": "up_proj", "up_proj": "gate_proj"}
        tensors = {".".join(swap.get(p, p) for p in key.split(".")): value for key, value in tensors.items()}
    else:
        raise ValueError(how)
    (target / "adapter_config.json").write_text(json.dumps(config))
    save_file(tensors, target / "adapter_model.safetensors", metadata={"format": "pt"})
    return target


DAMAGES = ["alpha halved", "Q and K rows permuted", "gate and up swapped"]


def damage_gguf(source, target, how):
    """The same for an adapter in llama.cpp's format, where Q and K are permuted when all is well."""
    import gguf

    reader = gguf.GGUFReader(source)
    writer = gguf.GGUFWriter(target, gguf_field(reader, "general.architecture"))
    base = base_reader()
    heads = {part: int(gguf_field(base, f"llama.attention.head_count{kv}")) for part, kv in (("attn_q", ""), ("attn_k", "_kv"))}
    dim = int(gguf_field(base, "llama.rope.dimension_count"))
    for field in reader.fields.values():
        if field.name.startswith("GGUF.") or field.name == "general.architecture":
            continue
        value, kind = field.contents(), field.types[0]
        if field.name == "adapter.lora.alpha" and how == "alpha halved":
            value /= 2
        sub_type = field.types[-1] if kind == gguf.GGUFValueType.ARRAY else None
        writer.add_key_value(field.name, value, kind, sub_type=sub_type)
    swap = {"ffn_gate": "ffn_up", "ffn_up": "ffn_gate"} if how == "gate and up swapped" else {}
    for tensor in reader.tensors:
        part = tensor.name.split(".")[2]
        data = np.array(gguf.quants.dequantize(tensor.data, tensor.tensor_type), dtype=np.float32)
        if how == "Q and K rows permuted" and part in heads and tensor.name.endswith(".lora_b"):
            data[rope_rows(heads[part], dim)] = data.copy()  # back to the order of transformers
        writer.add_tensor(".".join(swap.get(p, p) for p in tensor.name.split(".")), data)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return target

