"""Our trainer beside transformers + PEFT on one base, one adapter and the same rows, in float32:
token ids and masks, logits, loss, every adapter gradient, and the losses of 30 optimiser steps.

    peft_oracle.py            run everything; leaves the trained run in build/peers/run for hot_swap.py
    peft_oracle.py --quick    without the 30 steps
"""

import argparse
import json
import math

import numpy as np
import torch
import torch.nn.functional as F

import peer
from peer import Checks, load_file

TOLERANCE = 1e-4  # of the largest value: logits, gradients
LOSS_TOLERANCE = 2e-5  # relative: loss of one micro-batch
STEP_TOLERANCE = 1e-3  # relative: loss of each step
NORM_TOLERANCE = 2e-3  # relative: gradient norm of each step
WAY_TOLERANCE = 1e-3  # adapter after the last step, of the way it moved: AdamW enlarges noise where gradients are tiny
STEPS, ACCUMULATION, WARMUP, LEARNING_RATE, WEIGHT_DECAY = 30, 2, 5, 2e-3, 0.01
ADAPTERS = {
    "all": {"seed": 1, "r": 8, "alpha": 20, "targets": peer.LINEARS},
    "rslora": {"seed": 2, "r": 4, "alpha": 6, "targets": ["q_proj", "v_proj", "down_proj"], "rslora": True},
}

# Rows that the examples do not have: several turns, no system prompt or an empty one, an answer that begins with a
# newline, letters of two to four bytes, joined emoji, unusual spaces, runs of digits and punctuation.
CHATS = [
    [("user", "Hi"), ("assistant", "Hello! How can I help?"), ("user", "Name a colour."), ("assistant", "Blue.")],
    [("system", ""), ("user", "2+2=?"), ("assistant", "4")],
    [("user", "Schreib „Grüße“ rückwärts."), ("assistant", "„eßürG“ — so geht’s. 🙂👩‍👩‍👧")],
    [("user", "漢字を書いて"), ("assistant", "日本語の文字です。\n1234567890 ½ ２\n\n"), ("user", "ありがとう"), ("assistant", "😀")],
    [("user", "  spaces\t\ttabs  \n\n\n lines  "), ("assistant", "\n  def f(x):\n\treturn x  # ok\n")],
    [("system", "Answer in JSON."), ("user", "x=1"), ("assistant", '{"x": 1, "y": [1, 22, 333], "z": null}')],
    [("user", "I'm can't won't they'll I'D"), ("assistant", "It's what we've said; you'd know, I'M sure.")],
    [("user", "e\u0301 versus \u00e9, \u200b zero width, \ufb01 ligature"), ("assistant", "\u00a0no-break\u2028line\u0085next")],
    [("user", "a" * 70 + " " + "=" * 33), ("assistant", "!?" * 20 + "...." + "1" * 25)],
    [("user", "Say it in Arabic and Hindi"), ("assistant", "مرحبا بالعالم — नमस्ते दुनिया — Привет, мир")],
]


def rows_of_orders(count):
    return [row["messages"] for row in peer.read_jsonl(peer.ROOT / "examples" / "orders" / "train.jsonl")[:count]]


# ------------------------------------------------------------------------------------------------- ids and masks


def check_masks(checks, tok):
    """`graft check` renders 50 conversations; ids and trained flags must be those of the template and the offsets."""
    folder = peer.fresh_folder("masks")
    chats = rows_of_orders(50 - len(CHATS)) + [[{"role": r, "content": c} for r, c in chat] for chat in CHATS]
    peer.write_jsonl(folder / "chats.jsonl", [{"messages": chat} for chat in chats])
    config = peer.write_config(
        folder / "config.yml",
        datasets=[{"path": str(folder / "chats.jsonl"), "type": "chat_template"}],
        sequence_len=512,
        learning_rate=1e-4,
        lora_r=8,
        lora_alpha=16,
        lora_target_linear=True,
        output_dir=str(folder / "run"),
    )
    lines = peer.run([peer.GRAFT, "check", config, "--json"]).split("\n")  # not splitlines: JSON may hold U+2028
    ours = [json.loads(line) for line in lines if line]
    ours = {row["row"]: row for row in ours if "row" in row}
    first = min(ours, default=0)
    bad = {"text": [], "ids": [], "trained": []}
    tokens = trained_tokens = 0
    shifted = 0
    for i, chat in enumerate(chats):
        text, ids, trained = peer.render(tok, chat)
        got = ours.get(i + first, {"text": None, "ids": None, "trained": None})
        bad["text"] += [i] * (got["text"] != text)
        bad["ids"] += [i] * (got["ids"] != ids)
        bad["trained"] += [i] * (got["trained"] != trained)
        shifted += got["trained"] != trained[1:] + [0]
        tokens, trained_tokens = tokens + len(ids), trained_tokens + sum(trained)
    size = f"{len(chats)} rows, {tokens} tokens, {trained_tokens} trained"
    for what, rows in bad.items():
        checks.check(f"check --json: {what}", not rows, size if not rows else f"rows {rows[:10]} differ")
    checks.must_fail("mask shifted by one token", shifted == 0, f"{shifted} rows differ")


# ------------------------------------------------------------------------------------------ one step, bit by bit


def documents(tok, lengths, first_row):
    """Pre-tokenised rows: the last tokens of real conversations, so that every length has trained and masked labels."""
    rows = []
    for chat, length in zip(rows_of_orders(first_row + len(lengths))[first_row:], lengths):
        _, ids, trained = peer.render(tok, chat)
        labels = [i if t else -100 for i, t in zip(ids, trained)]
        rows.append({"input_ids": ids[-length:], "labels": labels[-length:]})
    return rows


def forward(model, row):
    """Logits of one document and the sum of the losses over its trained tokens (the first is never one)."""
    ids, labels = torch.tensor([row["input_ids"]]), torch.tensor(row["labels"])
    logits = model(input_ids=ids, use_cache=False).logits[0]
    return logits, F.cross_entropy(logits[:-1], labels[1:], ignore_index=-100, reduction="sum")


def trained_count(rows):
    return sum(label != -100 for row in rows for label in row["labels"][1:])


def oracle_step(model, rows):
    """Logits of all rows, mean loss over the trained tokens, and its gradient by PEFT's tensor names."""
    model.zero_grad()
    count, total, logits = trained_count(rows), 0.0, []
    for row in rows:
        row_logits, loss = forward(model, row)
        (loss / count).backward()
        total += loss.item()
        logits.append(row_logits.detach())
    grads = {"grad." + peer.peft_key(n): p.grad.clone() for n, p in model.named_parameters() if p.requires_grad}
    return {"loss": torch.tensor([total / count], dtype=torch.float64), "logits": torch.cat(logits), **grads}


def error_of(want, got):
    return (want.double() - got.double()).abs().max().item()


def gradient_errors(want, got):
    """(largest error of a tensor over its own largest value, that tensor, largest error over the largest value of all)."""
    names = [n for n in want if n.startswith("grad.")]
    errors = {n: error_of(want[n], got[n]) for n in names}
    sizes = {n: want[n].abs().max().item() for n in names}
    worst = max(names, key=lambda n: errors[n] / sizes[n])
    return errors[worst] / sizes[worst], worst, max(errors.values()) / max(sizes.values())


def compare_step(want, got, peer32):
    """(name, good, figure) for the loss, the logits where dumped, and the gradients, against the peer in float64: in
    float32 it is itself further from the truth than the tolerance."""
    results = []
    if got.get("loss") is None or got["loss"].numel() != 1:
        return [("loss", False, "no loss in the dump")]
    a, b = want["loss"].item(), got["loss"].item()
    results.append(("loss", abs(a - b) <= LOSS_TOLERANCE * abs(a), f"{b:.6f}, expected {a:.6f}"))
    if "logits" in got:
        if got["logits"].shape != want["logits"].shape:
            results.append(("logits", False, f"{tuple(got['logits'].shape)} for {tuple(want['logits'].shape)}"))
        else:
            ratio = error_of(want["logits"], got["logits"]) / want["logits"].abs().max().item()
            results.append(("logits", ratio <= TOLERANCE, f"{ratio:.1e} of the largest"))
    names = {n for n in want if n.startswith("grad.")}
    strange = names ^ {n for n in got if n.startswith("grad.")} | {
        n for n in names if n in got and got[n].shape != want[n].shape
    }
    if strange:
        return results + [("gradients", False, f"{len(strange)} tensors missing, surplus or misshapen, as {min(strange)}")]
    own, where, all_ = gradient_errors(want, got)
    peer_own, _, peer_all = gradient_errors(want, peer32)
    figure = f"{len(names)} tensors, worst {own:.1e} of its own largest ({where.removeprefix('grad.base_model.model.model.')}), "
    figure += f"{all_:.1e} of the largest of all; PEFT in float32 {peer_own:.1e}, {peer_all:.1e}"
    results.append(("gradients", own <= TOLERANCE, figure))
    return results


def step_config(folder, rows, adapter, spec, **keys):
    peer.write_jsonl(folder / "rows.jsonl", rows)
    return peer.write_config(
        folder / "config.yml",
        datasets=[{"path": str(folder / "rows.jsonl"), "ds_type": "json", "type": None}],
        lora_model_dir=str(adapter),
        lora_r=spec["r"],
        lora_alpha=spec["alpha"],
        peft_use_rslora=spec.get("rslora", False),
        lora_target_modules=spec["targets"],
        gradient_accumulation_steps=1,
        max_steps=1,
        learning_rate=LEARNING_RATE,
        output_dir=str(folder / "run"),
        **keys,
    )


def dump_step(config, logits=False):
    out = config.with_suffix(".safetensors")
    peer.run([peer.STEP_DUMP, config, out] + ["--logits"] * logits)
    return load_file(out)


def noticed(checks, how, want, got, peer32, names):
    """Each of the named comparisons must notice the planted error."""
    results = [(name, good, figure) for name, good, figure in compare_step(want, got, peer32) if name in names]
    figures = "; ".join(f"{name} {figure}" for name, _, figure in results)
    checks.must_fail(how, any(good for _, good, _ in results), figures)


def check_steps(checks, tok):
    """Logits, loss and gradients for two kinds of adapter, padded and packed, and with planted errors."""
    for kind, spec in ADAPTERS.items():
        folder = peer.fresh_folder(f"step-{kind}")
        model = peer.make_adapter(peer.load_base(), folder / "adapter", **spec)
        rows = documents(tok, [37, 64, 90], 10 if kind == "all" else 20)
        trained = [i for i, label in enumerate(rows[1]["labels"]) if label != -100]
        rows[1]["labels"][trained[-3]] = 42  # a label that is not the token itself
        peer32 = oracle_step(model, rows)
        want = oracle_step(model.double(), rows)
        shape = {"micro_batch_size": 3, "sequence_len": 96}
        config = step_config(folder, rows, folder / "adapter", spec, **shape)
        got = dump_step(config, logits=True)
        checks.check(f"{kind}: logits dumped", "logits" in got)
        for name, good, figure in compare_step(want, got, peer32):
            checks.check(f"{kind}: {name}", good, figure)

        packed = peer.fresh_folder(f"step-{kind}-packed")
        shape = {"micro_batch_size": 1, "sequence_len": 192, "sample_packing": True}
        got_packed = dump_step(step_config(packed, rows, folder / "adapter", spec, **shape))
        for name, good, figure in compare_step(want, got_packed, peer32):
            checks.check(f"{kind}, packed: {name}", good, figure)
        if kind != "all":
            continue

        smallest = min((n for n in want if n.startswith("grad.")), key=lambda n: want[n].abs().max().item())
        noticed(checks, "one gradient with its sign flipped", want, {**got, smallest: -got[smallest]}, peer32, ["gradients"])
        for how in peer.DAMAGES:
            broken = peer.fresh_folder("step-damaged")
            adapter = peer.damage(folder / "adapter", broken / "adapter", how)
            keys = {**spec, "alpha": json.loads((adapter / "adapter_config.json").read_text())["lora_alpha"]}
            shape = {"micro_batch_size": 3, "sequence_len": 96}
            dump = dump_step(step_config(broken, rows, adapter, keys, **shape), logits=True)
            noticed(checks, how, want, dump, peer32, ["loss", "logits", "gradients"])


# -------------------------------------------------------------------------------------------------- thirty steps


def cosine(optimizer):
    from transformers import get_cosine_schedule_with_warmup

    return get_cosine_schedule_with_warmup(optimizer, WARMUP, STEPS)


def oracle_run(model, rows, learning_rate=LEARNING_RATE, weight_decay=WEIGHT_DECAY, schedule=cosine):
    """(loss, gradient norm before clipping, learning rate) of each step of ACCUMULATION rows, with torch's AdamW and one
    of transformers' schedules."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=learning_rate, weight_decay=weight_decay)
    schedule = schedule(optimizer)
    log = []
    for step in range(len(rows) // ACCUMULATION):
        batch = rows[step * ACCUMULATION : (step + 1) * ACCUMULATION]
        count, total = trained_count(batch), 0.0
        for row in batch:
            _, loss = forward(model, row)
            (loss / count).backward()
            total += loss.item()
        norm = torch.nn.utils.clip_grad_norm_(parameters, 1.0).item()
        log.append((total / count, norm, schedule.get_last_lr()[0]))
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
    return log


def relative(a, b):
    return abs(a - b) / max(abs(a), 1e-12)


def check_run(checks, tok):
    """30 optimiser steps with accumulation, warm-up and cosine, weight decay and clipping."""
    folder = peer.fresh_folder("run")
    spec = {**ADAPTERS["all"], "seed": 3}
    model = peer.make_adapter(peer.load_base(), folder / "start", **spec)
    start = load_file(folder / "start" / "adapter_model.safetensors")
    rows = documents(tok, [56 + 13 * i % 40 for i in range(STEPS * ACCUMULATION)], 100)
    peer.write_jsonl(folder / "rows.jsonl", rows)
    config = peer.write_config(
        folder / "config.yml",
        datasets=[{"path": str(folder / "rows.jsonl"), "ds_type": "json", "type": None}],
        lora_model_dir=str(folder / "start"),
        lora_r=spec["r"],
        lora_alpha=spec["alpha"],
        lora_target_modules=spec["targets"],
        micro_batch_size=1,
        gradient_accumulation_steps=ACCUMULATION,
        max_steps=STEPS,
        sequence_len=96,
        optimizer="adamw_torch",
        learning_rate=LEARNING_RATE,
        lr_scheduler="cosine",
        warmup_steps=WARMUP,
        weight_decay=WEIGHT_DECAY,
        max_grad_norm=1.0,
        output_dir=str(folder / "graft"),
    )
    peer.run([peer.GRAFT, "train", config])
    ours = [row for row in peer.read_jsonl(folder / "graft" / "log.jsonl") if "loss" in row]
    want = oracle_run(model, rows)
    if not checks.check("run: one log line a step", len(ours) == STEPS, f"{len(ours)} lines"):
        return
    for name, key, tolerance in (("loss", 0, STEP_TOLERANCE), ("grad_norm", 1, NORM_TOLERANCE), ("lr", 2, 1e-6)):
        errors = [relative(a[key], b[name]) if a[key] else abs(b[name]) for a, b in zip(want, ours)]
        worst = int(np.argmax(errors))
        figure = f"largest relative difference {errors[worst]:.1e} at step {worst + 1}"
        if name == "loss":
            figure += f", loss {want[0][0]:.3f} -> {want[-1][0]:.3f}"
        checks.check(f"run: {name} of {STEPS} steps", errors[worst] <= tolerance, figure)
    clipped = sum(norm > 1.0 for _, norm, _ in want)
    checks.check("run: clipping was exercised", 0 < clipped, f"{clipped} of {STEPS} steps")

    trained = load_file(folder / "graft" / "adapter_model.safetensors")
    final = {peer.peft_key(n): p.detach() for n, p in model.named_parameters() if p.requires_grad}
    if checks.check("run: tensor names of the adapter", trained.keys() == final.keys(), f"{len(final)} tensors"):
        away = math.sqrt(sum((trained[n] - final[n]).double().square().sum().item() for n in final))
        moved = math.sqrt(sum((final[n] - start[n]).double().square().sum().item() for n in final))
        checks.check("run: adapter after the last step", away <= WAY_TOLERANCE * moved, f"{away / moved:.1e} of its way")
    shuffled = [want[i ^ 1][0] for i in range(STEPS)]
    errors = [relative(a, b["loss"]) for a, b in zip(shuffled, ours)]
    checks.must_fail("steps in another order", max(errors) <= STEP_TOLERANCE, f"{max(errors):.1e}")


# ----------------------------------------------------------------------------------------------------------- base


def check_base(checks):
    """transformers decodes the GGUF to the numbers the format's own package gives, Q and K in its row order."""
    import gguf

    model = peer.load_base()
    tensors, config = model.state_dict(), model.config
    checks.check("base: output head is the embedding", model.lm_head.weight.data_ptr() == model.model.embed_tokens.weight.data_ptr())
    wrong, count = [], 0
    names = {"token_embd.weight": "model.embed_tokens.weight", "output_norm.weight": "model.norm.weight"}
    for layer in (0, config.num_hidden_layers - 1):
        for part, short in peer.GGUF_LINEARS.items():
            group = "self_attn" if short.startswith("attn") else "mlp"
            names[f"blk.{layer}.{short}.weight"] = f"model.layers.{layer}.{group}.{part}.weight"
        names[f"blk.{layer}.attn_norm.weight"] = f"model.layers.{layer}.input_layernorm.weight"
        names[f"blk.{layer}.ffn_norm.weight"] = f"model.layers.{layer}.post_attention_layernorm.weight"
    heads = {"attn_q": config.num_attention_heads, "attn_k": config.num_key_value_heads}
    for tensor in peer.base_reader().tensors:
        if tensor.name not in names:
            continue
        values = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        part = tensor.name.split(".")[-2]
        if part in heads:
            values = values[np.argsort(peer.rope_rows(heads[part], config.head_dim))]
        wrong += [tensor.name] * (not np.array_equal(values, tensors[names[tensor.name]].numpy()))
        count += 1
    checks.check("base: decoded tensors", count == len(names) and not wrong, f"{count} compared, {len(wrong)} differ")


def main():
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--quick", action="store_true", help="without the 30 steps")
    options = arguments.parse_args()
    checks = Checks()
    tok = peer.tokenizer()
    check_base(checks)
    check_masks(checks, tok)
    check_steps(checks, tok)
    if not options.quick:
        check_run(checks, tok)
    return checks.close()


if __name__ == "__main__":
    raise SystemExit(main())
