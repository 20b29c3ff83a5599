"""Real bases from end to end, beside transformers + PEFT on the same file in the same format: `make test-real`.

    SmolLM2-135M as a 4-bit GGUF, as bf16 safetensors made of it, as NF4 quantised on the way in, and as NF4 written by
    `graft quantize`; Gemma 3 270M as a Q4_K_M GGUF.

For each: the log-probabilities of held-out rows, the losses of 20 optimiser steps from one adapter, the same adapter in
PEFT afterwards, memory beside the plan, and the time from start to the first step.
"""

import argparse
import contextlib
import dataclasses
import json
import os
import pathlib
import statistics
import subprocess
import time
import typing

os.environ["TORCHDYNAMO_DISABLE"] = "1"

import torch

import four_bits
import hot_swap
import peer
from peer import Checks, save_file
from peft_oracle import ACCUMULATION, oracle_run, relative

STEPS, LEARNING_RATE = 20, 5e-4
LOSS_TOLERANCE = 1e-3  # relative, each step
LOGPROB_TOLERANCE = 1e-4  # of the largest
START_SECONDS = 1.0  # from the start of the process to the line before the first step, file in the page cache
MEMORY_SHARE = 1.02  # resident memory over plan + pages of the files it reads
GEMMA = pathlib.Path(os.environ.get("GRAFT_GEMMA", peer.ROOT / "cache" / "gemma-3-270m.Q4_K_M.gguf"))
SPEC = {"seed": 11, "r": 8, "alpha": 20, "targets": peer.LINEARS}


@dataclasses.dataclass
class Base:
    name: str
    keys: dict  # of our config: base_model and how it is read
    load: typing.Callable  # the same weights as a torch model, computing in float32
    pages: typing.Callable  # bytes of the file we map
    double: bool = False  # PEFT trains in float64: in float32 it strays further from that than the tolerance


# ------------------------------------------------------------------------------------------------------- the bases


def decoded_gguf(path):
    """A GGUF as transformers decodes it, in float32."""
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32).eval()


def bf16_folder():
    """The base as the folder a user downloads: bf16 weights, config.json, tokenizer.json."""

    def make(path):
        model = peer.load_base()
        model.config.dtype = torch.bfloat16
        model.config.save_pretrained(path)
        tensors = {k: v.to(torch.bfloat16).contiguous() for k, v in model.state_dict().items() if k != "lm_head.weight"}
        save_file(tensors, path / "model.safetensors", metadata={"format": "pt"})
        peer.tokenizer().save_pretrained(path)

    return peer.made_once("base-bf16", make)


def load_folder(folder, **options):
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, **{"dtype": torch.float32, **options}).eval()


def load_nf4(folder):
    """bf16 weights packed while loading, the rest in float32."""
    from transformers import BitsAndBytesConfig

    config = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True)
    return four_bits.in_float32(load_folder(folder, dtype=torch.bfloat16, quantization_config=config))


def load_written(folder):
    return four_bits.in_float32(load_folder(folder, dtype=torch.bfloat16))


def size_of(path):
    return path.stat().st_size if path.is_file() else (path / "model.safetensors").stat().st_size


def smollm():
    folder, written = bf16_folder(), peer.OUT / "base-nf4"
    peer.run(["rm", "-rf", written])
    peer.run([peer.GRAFT, "quantize", folder, "--to", "nf4", "--out", written])
    nf4 = {"load_in_4bit": True}  # NF4, double quantisation
    return [
        Base("gguf", {"base_model": str(peer.BASE)}, peer.load_base, lambda: size_of(peer.BASE)),
        Base("bf16", {"base_model": str(folder)}, lambda: load_folder(folder), lambda: size_of(folder)),
        Base("nf4", {"base_model": str(folder), "adapter": "qlora", **nf4}, lambda: load_nf4(folder), lambda: size_of(written)),
        Base("nf4-written", {"base_model": str(written), "adapter": "qlora"}, lambda: load_written(written), lambda: size_of(written)),
    ]


# -------------------------------------------------------------------------------------------------------- the rows


def chat_rows(tok, count):
    """Conversations of the example with the ids and labels that the template gives."""
    rows = peer.read_jsonl(peer.ROOT / "examples" / "orders" / "train.jsonl")[:count]
    out = []
    for row in rows:
        _, ids, trained = peer.render(tok, row["messages"])
        out.append({"input_ids": ids, "labels": [i if t else -100 for i, t in zip(ids, trained)]})
    return rows, out


def oracle_losses(model, rows):
    from transformers import get_constant_schedule

    return [loss for loss, _, _ in oracle_run(model, rows, LEARNING_RATE, 0.0, get_constant_schedule)]


def oracle_logprobs(model, rows):
    values = []
    with torch.no_grad():
        for row in rows:
            ids = torch.tensor(row["ids"])
            logprobs = torch.log_softmax(model(input_ids=ids[None]).logits[0].double(), -1)
            values += [logprobs[i - 1, ids[i]].item() for i in hot_swap.positions_of(row)]
    return values


# -------------------------------------------------------------------------------------------------------- one base


def timed_train(config, environment):
    """Our training as a process of its own: (seconds until the line before the first step, largest resident bytes up to
    the last step and up to the end, those of the program and its libraries).  Not ru_maxrss: a child's begins at that of
    the Python it came from."""
    start, begun, steps, resident, program = time.monotonic(), None, 0, 0, 0
    with subprocess.Popen([peer.GRAFT, "train", str(config)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                          cwd=peer.ROOT, env=environment) as process:
        said = []
        for line in process.stdout:
            said.append(line)
            if begun is None and line.startswith("run: "):
                begun = time.monotonic() - start
            resident, program = max(resident, high_water(process.pid)), max(program, program_pages(process.pid))
            steps = resident if line.startswith("step ") else steps
    if process.returncode != 0:
        raise SystemExit(f"FAIL graft train {config}: exit code {process.returncode}\n" + "".join(said[-8:]))
    return begun, (steps, resident), program


def high_water(pid):
    """Largest resident size so far, in bytes; 0 of a process that has ended."""
    with contextlib.suppress(OSError):
        lines = pathlib.Path(f"/proc/{pid}/status").read_text().splitlines()
        return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))
    return 0


def program_pages(pid):
    """Resident bytes of executable files and libraries: mappings of files that are no base."""
    total, counted = 0, False
    with contextlib.suppress(OSError):
        for line in pathlib.Path(f"/proc/{pid}/smaps").read_text().splitlines():
            words = line.split()
            if not words[0].endswith(":"):
                counted = len(words) > 5 and words[5].startswith("/") and not words[5].endswith((".gguf", ".safetensors"))
            elif counted and words[0] == "Rss:":
                total += int(words[1]) * 1024
    return total


def check_memory(checks, base, config, resident, program, environment):
    plan = json.loads(peer.run([peer.GRAFT, "plan", config, "--json"], env=environment))["peak_bytes"]
    files = {"base": base.pages()}
    for when, peak in zip(("while training", "to the end"), resident):
        bound = MEMORY_SHARE * (plan + sum(files.values()) + program)
        parts = [f"{name} {round(size / 2**20)}" for name, size in (("plan", plan), *files.items(), ("program", program))]
        checks.check(f"{base.name}: resident memory {when}", peak <= bound, f"{round(peak / 2**20)} MiB; {' + '.join(parts)}")
        # What it wrote is read back: mapped, too.
        files["adapter files"] = sum((config.parent / "run" / f).stat().st_size for f in ("adapter_model.safetensors", "adapter.gguf"))


def check_start(checks, base, folder, rows, environment):
    """Median of five starts of one-step runs."""
    times = []
    for i in range(5):
        config = write_config(folder, f"start-{i}", base, rows[:2], max_steps=1, gradient_accumulation_steps=1)
        times.append(timed_train(config, environment)[0])
    middle = statistics.median(times)
    checks.check(f"{base.name}: start to first step", middle <= START_SECONDS, f"median {middle:.2f} s of {len(times)}, warm")


def write_config(folder, run, base, rows, **keys):
    peer.write_jsonl(folder / f"{run}.jsonl", rows)
    return peer.write_config(
        folder / f"{run}.yml",
        **{
            **base.keys,
            "datasets": [{"path": str(folder / f"{run}.jsonl"), "ds_type": "json", "type": None}],
            "lora_model_dir": str(folder / "start"),
            "lora_r": SPEC["r"],
            "lora_alpha": SPEC["alpha"],
            "lora_target_modules": SPEC["targets"],
            "micro_batch_size": 1,
            "gradient_accumulation_steps": ACCUMULATION,
            "max_steps": STEPS,
            "sequence_len": 256,
            "optimizer": "adamw_torch",
            "learning_rate": LEARNING_RATE,
            "lr_scheduler": "constant",
            "warmup_steps": 0,
            "weight_decay": 0.0,
            "max_grad_norm": 1.0,
            "output_dir": str(folder / run),
            **keys,
        },
    )


def check_base(checks, base, train_rows, held_rows, environment):
    """Trains both, compares; the losses of ours, and its output folder."""
    folder = peer.fresh_folder(f"real-{base.name}")
    model = peer.make_adapter(base.load(), folder / "start", **SPEC)
    timed_train(write_config(folder, "first", base, train_rows[:2], max_steps=1, gradient_accumulation_steps=1), environment)
    config = write_config(folder, "run", base, train_rows)  # not the first: that one may have quantised the base
    _, resident, program = timed_train(config, environment)
    ours = [row["loss"] for row in peer.read_jsonl(folder / "run" / "log.jsonl") if "loss" in row]
    want = oracle_losses(model.double() if base.double else model, train_rows)
    if not checks.check(f"{base.name}: one log line a step", len(ours) == STEPS, f"{len(ours)} lines"):
        return ours, folder
    errors = [relative(a, b) for a, b in zip(want, ours)]
    figure = f"largest relative difference {max(errors):.1e}, loss {want[0]:.3f} -> {want[-1]:.3f}"
    checks.check(f"{base.name}: loss of {STEPS} steps beside PEFT", max(errors) <= LOSS_TOLERANCE, figure)
    checks.check(f"{base.name}: it learns", statistics.mean(ours[-5:]) < 0.8 * statistics.mean(ours[:2]))
    swapped = [relative(want[i ^ 1], b) for i, b in enumerate(ours)]
    checks.must_fail(f"{base.name}, steps in another order", max(swapped) <= LOSS_TOLERANCE, f"{max(swapped):.1e}")

    out = folder / "logprobs.jsonl"
    evaluation = write_config(folder, "held", base, held_rows)
    peer.run([peer.GRAFT, "eval", evaluation, "--data", folder / "held.jsonl", "--adapter", folder / "run", "--logprobs", out],
             env=environment)
    rows = peer.read_jsonl(out)
    got = hot_swap.trained_values(rows)
    model.float().load_adapter(folder / "run", "trained")
    model.set_adapter("trained")
    error = hot_swap.errors(got, oracle_logprobs(model, rows)).max() / max(map(abs, got))
    checks.check(f"{base.name}: our adapter in PEFT", error <= LOGPROB_TOLERANCE, f"{len(got)} tokens, {error:.1e} of the largest")
    check_memory(checks, base, config, resident, program, environment)
    check_start(checks, base, folder, train_rows, environment)
    return ours, folder


def check_smollm(checks, environment, only):
    tok = peer.tokenizer()
    chats, rows = chat_rows(tok, STEPS * ACCUMULATION + 8)
    train, held = rows[: STEPS * ACCUMULATION], rows[STEPS * ACCUMULATION :]
    losses = {}
    for base in [base for base in smollm() if only in (None, base.name)]:
        losses[base.name], folder = check_base(checks, base, train, held, environment)
        peer.write_jsonl(folder / "chats.jsonl", chats[: STEPS * ACCUMULATION])
        data = [{"path": str(folder / "chats.jsonl"), "type": "chat_template"}]
        config = write_config(folder, "text", base, [], datasets=data)
        shown = [json.loads(line) for line in peer.run([peer.GRAFT, "check", config, "--json"], env=environment).split("\n") if line]
        same = [a["ids"] == b["input_ids"] for a, b in zip([r for r in shown if "ids" in r], train)]
        checks.check(f"{base.name}: the same ids from text", len(same) == len(train) and all(same), f"{sum(same)} of {len(train)} rows")
    if only:
        return
    checks.check("nf4: quantised on the way in and beforehand, the same bits", losses["nf4"] == losses["nf4-written"])
    apart = max(relative(a, b) for a, b in zip(losses["gguf"], losses["bf16"]))
    checks.must_fail("nf4 taken for bf16", max(relative(a, b) for a, b in zip(losses["bf16"], losses["nf4"])) <= LOSS_TOLERANCE)
    print(f"note: bf16 made of the 4-bit file, losses {apart:.1e} from its own; nf4 begins at {losses['nf4'][0]:.3f}, bf16 at {losses['bf16'][0]:.3f}")


def check_gemma(checks, environment):
    base = Base("gemma", {"base_model": str(GEMMA)}, lambda: decoded_gguf(GEMMA), lambda: size_of(GEMMA), double=True)
    folder = peer.fresh_folder("gemma-text")
    chats = peer.read_jsonl(peer.ROOT / "examples" / "orders" / "train.jsonl")[: STEPS * ACCUMULATION + 8]
    asked = [{"instruction": c["messages"][1]["content"], "input": "", "output": c["messages"][2]["content"]} for c in chats]
    asked += [{"instruction": "Übersetze: 漢字 🙂  e\u0301", "input": "a\tb\n\n  c", "output": "über\u00a0alles 12345"}]
    peer.write_jsonl(folder / "rows.jsonl", asked)
    config = peer.write_config(
        folder / "text.yml", **base.keys, datasets=[{"path": str(folder / "rows.jsonl"), "type": "alpaca"}], sequence_len=256,
        learning_rate=1e-4, lora_r=8, lora_alpha=16, lora_target_linear=True, output_dir=str(folder / "run"))
    shown = [json.loads(line) for line in peer.run([peer.GRAFT, "check", config, "--json"], env=environment).split("\n") if line]
    shown = [row for row in shown if "ids" in row]
    server = hot_swap.Llama(GEMMA, [], peer.THREADS, 1, folder / "server.log")
    with contextlib.closing(server):
        same = []
        for row in shown:
            text = row["text"].removeprefix("<bos>").removesuffix("<eos>")
            same.append(server.ask("/tokenize", {"content": text, "add_special": False})["tokens"] == [i for i in row["ids"] if i > 2])
    checks.check("gemma: llama.cpp's ids", len(same) == len(asked) and all(same), f"{sum(same)} of {len(asked)} rows")

    rows = [{"input_ids": r["ids"], "labels": [i if t else -100 for i, t in zip(r["ids"], r["trained"])]} for r in shown]
    _, run = check_base(checks, base, rows[: STEPS * ACCUMULATION], rows[STEPS * ACCUMULATION : -1], environment)
    check_served(checks, base, run, environment)


def check_served(checks, base, folder, environment):
    """adapter.gguf in a llama.cpp server on the 4-bit file: off and on."""
    config = folder / "held.yml"
    rows = {}
    for name, options in (("off", []), ("on", ["--adapter", folder / "run"])):
        out = folder / f"served-{name}.jsonl"
        peer.run([peer.GRAFT, "eval", config, "--data", folder / "held.jsonl", *options, "--logprobs", out], env=environment)
        rows[name] = peer.read_jsonl(out)
    off, on = rows["off"], rows["on"]
    server = hot_swap.Llama(GEMMA, [folder / "run" / "adapter.gguf"], peer.THREADS, len(on), folder / "server.log")
    with contextlib.closing(server):
        got_off = server.logprobs(off)
        checks.check(f"{base.name}: switched on while running", server.scale(0).get("success") is True)
        got_on = server.logprobs(on)
    want_off, want_on = hot_swap.trained_values(off), hot_swap.trained_values(on)
    good, figure = hot_swap.share(want_off, want_on, got_off, got_on)
    checks.check(f"{base.name}: adapter.gguf in llama.cpp", good, figure)
    good, figure = hot_swap.share(want_off, want_on, got_off, got_off)
    checks.must_fail(f"{base.name}, adapter left off", good, figure)


def main():
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--only", choices=["gguf", "bf16", "nf4", "nf4-written", "gemma"])
    options = arguments.parse_args()
    environment = {**os.environ, "GRAFT_CACHE": str(peer.fresh_folder("real-cache"))}
    four_bits.decode_as_defined()
    checks = Checks()
    if options.only != "gemma":
        check_smollm(checks, environment, options.only)
    if options.only in (None, "gemma"):
        check_gemma(checks, environment)
    return checks.close()


if __name__ == "__main__":
    raise SystemExit(main())
