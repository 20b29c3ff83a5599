#!/usr/bin/env python3
"""What a run does beside training: stopping early, the best checkpoint, resuming, memory, what it leaves behind. On a tiny
model. Closes with "N passed, N failed, N skipped"."""
import json
import math
import os
import re
import shutil
import signal
import struct
import subprocess
import sys
import time

import test_program as program
from test_program import GRAFT, adapter, check, expect, graft, log, tiny, train

cases = []


def case(function):
    cases.append(function)
    return function


def manifest(folder):
    with open(f"{folder}/run.json") as f:
        return json.load(f)


def read(path):
    with open(path) as f:
        return f.read()


EARLY = ["learning_rate=0.06", "lr_scheduler=constant", "num_epochs=4", "eval_steps=4", "save_steps=50", "early_stopping_patience=3"]


@case
def early_stop_survives_a_kill():
    """Killed between the last checkpoint and the end: resume finds itself out of patience and trains no further."""
    t = tiny("early")
    out = train(t, *EARLY)
    said = manifest(out)
    check(said["step"] < said["steps"], f"no early stop: {said['step']} of {said['steps']}")
    whole = adapter(out)
    said["status"] = "running"
    with open(f"{out}/run.json", "w") as f:
        json.dump(said, f)
    os.remove(f"{out}/adapter_model.safetensors")
    r = graft("train", f"{t}/config.yml", f"output_dir={out}", *EARLY, "--resume")
    check(r.returncode == 0 and r.stderr.count("early stop") == 1, r.stderr[-400:])
    check(manifest(out)["step"] == said["step"], "resume trained on")
    check(adapter(out) == whole, "another adapter")


@case
def best_checkpoint_is_what_is_reported():
    t = tiny("best")
    out = train(t, "learning_rate=0.06", "lr_scheduler=constant", "num_epochs=4", "eval_steps=4", "save_steps=4",
                "load_best_model_at_end=true")
    evals = {x["step"]: x["eval_loss"] for x in log(out) if "eval_loss" in x}
    best = min((s for s in evals if s), key=lambda s: evals[s])
    said = manifest(out)
    check(best != said["step"], "the last step is the best: nothing is shown")
    check(said["adapter_step"] == best and abs(said["eval_loss"] - evals[best]) < 1e-9, f"{said['adapter_step']}, {said['eval_loss']}")
    r = graft("eval", f"{t}/config.yml", "--adapter", out, "--json", "--no-generate")
    check(abs(json.loads(r.stdout)["loss"] - evals[best]) < 1e-5, r.stdout)
    card = read(f"{out}/README.md")
    check(f"{evals[best]:.4f}" in card and f"{evals[said['step']]:.4f}" not in card, "the card tells of another step")
    check(f"{evals[best]:.4f} (step {best})" in read(f"{out}/report.html"), "the report tells of another step")


@case
def base_is_no_candidate_for_the_best():
    """As in transformers: the evaluation before training is shown, and says so when nothing beats it."""
    t = tiny("worse")
    first = train(t, "num_epochs=2", "eval_steps=50", out="first")
    r = graft("train", f"{t}/config.yml", f"output_dir={t}/out", f"lora_model_dir={first}", "learning_rate=1", "lr_scheduler=constant",
              "eval_steps=5", "save_steps=5", "load_best_model_at_end=true", "max_steps=15")
    check(r.returncode == 0, r.stderr[-400:])
    check("no evaluation was better than the one before training" in r.stderr, r.stderr[-600:])
    evals = {x["step"]: x["eval_loss"] for x in log(f"{t}/out") if "eval_loss" in x}
    best = min((s for s in evals if s), key=lambda s: evals[s])
    check(manifest(f"{t}/out")["adapter_step"] == best, f"not step {best}")


@case
def figures_survive_a_resume():
    t = tiny("figures")
    keys = ["num_epochs=2", "eval_steps=5", "save_steps=5"]
    whole = train(t, *keys, out="whole")
    copy = f"{t}/copy"
    shutil.copytree(whole, copy)
    said = manifest(copy)
    for name in ("run.json", "README.md", "report.html", "adapter_model.safetensors"):
        os.remove(f"{copy}/{name}")
    train(t, *keys, "--resume", out="copy")
    now = manifest(copy)
    for key in ("step", "loss", "eval_loss", "eval_loss_before", "tokens", "adapter_step"):
        check(now[key] == said[key], f"{key}: {now[key]}, before {said[key]}")
    check(now["seconds"] > 0.5 * said["seconds"], f"seconds {now['seconds']}, before {said['seconds']}")
    check("nan" not in read(f"{copy}/README.md").lower(), "the card has nan")
    check(adapter(copy) == adapter(whole), "another adapter")


def token_run(name, base, *keys):
    """A configuration for a family's fixture, which has no tokenizer: rows of ids."""
    t = tiny(name)
    with open(f"{t}/ids.jsonl", "w") as f:
        for i in range(24):
            ids = [(7 * i + k * k) % 90 + 5 for k in range(20)]
            f.write(json.dumps({"input_ids": ids, "labels": ids}) + "\n")
    with open(f"{t}/config.yml", "w") as f:
        f.write(f"base_model: tests/fixtures/families/{base}\nadapter: lora\nlora_r: 3\nlora_alpha: 7\n"
                f"datasets:\n  - path: {t}/ids.jsonl\nval_set_size: 6\nsequence_len: 32\nmicro_batch_size: 2\n"
                f"gradient_accumulation_steps: 2\nnum_epochs: 2\nlearning_rate: 1e-2\nweight_decay: 0.1\nfloat32: true\nseed: 1\n"
                + "".join(k + "\n" for k in keys))
    return t


@case
def pissa_is_saved_for_the_unaltered_base():
    """Twice the rank, the base's own loss at the start, the same bits after a resume and on any threads, and in both files what was
    trained."""
    t = token_run("pissa", "llama", "lora_target_modules: [q_proj, v_proj, down_proj]", "peft_init_lora_weights: pissa",
                  "lora_rank_pattern: {v_proj: 2}", "lora_dropout: 0.1", "eval_steps: 3", "save_steps: 3")
    out = train(t, "threads=1")
    with open(f"{out}/adapter_config.json") as f:
        said = json.load(f)
    check(said["r"] == 6 and said["lora_alpha"] == 14 and set(said["rank_pattern"].values()) == {4}, f"{said}")
    check(said["init_lora_weights"] is True, f"{said['init_lora_weights']}")
    evals = [x["eval_loss"] for x in log(out) if "eval_loss" in x]
    bare = json.loads(graft("eval", f"{t}/config.yml", "--json").stdout)["loss"]
    check(abs(evals[0] - bare) < 1e-5 and evals[-1] != evals[0], f"{evals}, the base {bare}")
    again = train(t, f"resume_from_checkpoint={out}/checkpoints/step-000003", "threads=3", out="again")
    check(adapter(again) == adapter(out), "resumed, another adapter")
    check(graft("verify", out).returncode == 0, graft("verify", out).stderr)
    for file in (out, f"{out}/adapter.gguf"):
        r = graft("eval", f"{t}/config.yml", "--adapter", file, "--json")
        check(r.returncode == 0 and abs(json.loads(r.stdout)["loss"] - evals[-1]) < 1e-5, f"{file}: {r.stdout} {r.stderr}, {evals[-1]}")
    fast = train(t, "peft_init_lora_weights=pissa_niter_4", "peft_use_rslora=true", out="fast")
    evals = [x["eval_loss"] for x in log(fast) if "eval_loss" in x]
    r = graft("eval", f"{t}/config.yml", "--adapter", fast, "--json")
    check(abs(json.loads(r.stdout)["loss"] - evals[-1]) < 1e-5 and abs(evals[0] - bare) < 1e-5, f"{r.stdout}, {evals}")
    q = tiny("pissa-packed")
    expect(78, "is Q4_1; start from an unpacked base", args=["train", f"{q}/config.yml", "peft_init_lora_weights=pissa"])


@case
def balance_of_experts_is_trained_and_told():
    keys = ["lora_target_modules: [v_proj]", "lora_target_parameters: [experts.down_proj]"]
    t = token_run("balance", "lora-aux-mixtral", *keys)
    out = train(t)
    aux = [x["aux_loss"] for x in log(out) if "loss" in x]
    check(len(aux) > 3 and all(0.9 < x < 4 for x in aux), f"{aux}")  # its config.json asks for it
    off = train(t, "model_config.output_router_logits=false", out="off")
    check(all("aux_loss" not in x for x in log(off)), "told all the same")
    check(adapter(off).split()[0] != adapter(out).split()[0], "nothing was trained by it")
    same = train(t, "gradient_checkpointing=true", out="same")
    check(adapter(same) == adapter(out), "recomputed, another adapter")
    strong = train(t, "overrides_of_model_config.router_aux_loss_coef=30", "num_epochs=6", out="strong")
    aux = [x["aux_loss"] for x in log(strong) if "loss" in x]
    check(sum(aux[-4:]) < sum(aux[:4]), f"not balanced by it: {aux}")
    t = token_run("unbalanced", "deepseek-v3", "lora_target_modules: [o_proj]")
    expect(78, "no load-balancing loss for 'deepseek_v3'", args=["train", f"{t}/config.yml", "model_config.output_router_logits=true"])
    t = token_run("dense", "llama", "lora_target_modules: [o_proj]")
    expect(78, "has no experts", args=["train", f"{t}/config.yml", "model_config.output_router_logits=true"])


@case
def all_biases_are_trained_and_kept():
    """Of linears with an adapter and without, of norms, of a head that is trained whole: the same bits after a resume and on any threads, in
    evaluation what training saw, counted in the plan, and refused where files cannot hold them."""
    t = token_run("biases", "lora-biases-phimoe", "lora_target_modules: [q_proj]", "lora_modules_to_save: [lm_head]", "peft_bias: all",
                  "eval_steps: 3", "save_steps: 3")
    out = train(t, "threads=1")
    with open(f"{out}/adapter_config.json") as f:
        said = json.load(f)
    check(said["bias"] == "all" and said["target_modules"] == ["q_proj"], f"{said}")
    with open(f"{out}/adapter_model.safetensors", "rb") as f:
        header = json.loads(f.read(struct.unpack("<Q", f.read(8))[0]))
    names = {k.removeprefix("base_model.model."): v["shape"] for k, v in header.items() if k.endswith(".bias")}
    check({k: v for k, v in names.items() if "layers" not in k} == {"lm_head.bias": [101], "model.norm.bias": [12]}, f"{names}")
    check(len(names) == 8 and "model.layers.0.self_attn.q_proj.base_layer.bias" in names, f"{names}")
    peft = lambda folder: program.sha(f"{folder}/adapter_model.safetensors")
    count = sum(math.prod(v["shape"]) for k, v in header.items() if k != "__metadata__")
    plan = graft("plan", f"{t}/config.yml").stdout
    check(f"{count} trainable parameters" in plan, f"{count}: {plan}")
    evals = [x["eval_loss"] for x in log(out) if "eval_loss" in x]
    again = train(t, f"resume_from_checkpoint={out}/checkpoints/step-000003", "threads=3", out="again")
    check(peft(again) == peft(out), "resumed, another adapter")
    check(peft(train(t, "gradient_checkpointing=true", out="same")) == peft(out), "recomputed, another adapter")
    check(graft("verify", out).returncode == 0, graft("verify", out).stderr)
    r = graft("eval", f"{t}/config.yml", "--adapter", out, "--json")
    check(r.returncode == 0 and abs(json.loads(r.stdout)["loss"] - evals[-1]) < 1e-5, f"{r.stdout} {r.stderr}, {evals}")
    check(not os.path.exists(f"{out}/adapter.gguf"), "an adapter.gguf that lacks them")
    one = token_run("biases-alone", "lora-biases-gpt-oss", "lora_target_modules: [v_proj]", "peft_bias: all")  # experts' are not called so
    plan = graft("plan", f"{one}/config.yml").stdout
    check(f"{3 * (12 + 6) + 12 + 6 + 6 + 12 + 4} trainable parameters on 1 linears" in plan, plan)
    # As PEFT, which wraps a router that is a parameter: its bias is one of an adapted linear.
    only = token_run("biases-router", "lora-biases-gpt-oss", "lora_target_modules: [v_proj]", "lora_target_parameters: [mlp.router.weight]",
                     "peft_bias: lora_only")
    plan = graft("plan", f"{only}/config.yml").stdout
    check(f"{3 * (12 + 6) + 6 + 3 * (12 + 4) + 4} trainable parameters on 2 linears" in plan, plan)
    r = graft("eval", f"{only}/config.yml", "--adapter", train(only), "--json")
    check(r.returncode == 0, r.stderr)
    for to, word in (("gguf", "trained bias"), ("mlx", "linears of layers"), ("merged", "trained bias")):
        expect(65, word, args=["export", out, "--to", to, "--out", f"{t}/{to}"])
    go_on = [f"{t}/config.yml", f"lora_model_dir={out}", "lora_target_modules=[]", "lora_modules_to_save=[]", f"output_dir={t}/on"]
    expect(78, "trains more biases than peft_bias asks for", args=["train", *go_on, "peft_bias=lora_only"])
    check(graft("train", *go_on).returncode == 0, "cannot go on from it")


@case
def dora_on_the_head():
    """Begins as the base, the same bits after a resume and on any threads, the same when merged; dropout and the embedding are refused."""
    t = token_run("dora-head", "lora-dora-head", "lora_target_modules: [lm_head, o_proj]", "peft_use_dora: true", "eval_steps: 3", "save_steps: 3")
    keys = ["learning_rate=0.5", "lr_scheduler=constant", "num_epochs=4"]
    out = train(t, "threads=1", *keys)
    evals = [x["eval_loss"] for x in log(out) if "eval_loss" in x]
    bare = json.loads(graft("eval", f"{t}/config.yml", "--json").stdout)["loss"]
    check(abs(evals[0] - bare) < 1e-5 and abs(evals[-1] - bare) > 0.03, f"{evals}, the base {bare}")
    peft = lambda folder: program.sha(f"{folder}/adapter_model.safetensors")
    again = train(t, f"resume_from_checkpoint={out}/checkpoints/{min(os.listdir(f'{out}/checkpoints'))}", "threads=3", *keys, out="again")
    check(peft(again) == peft(out), "resumed, another adapter")
    r = graft("export", out, "--to", "merged", "--out", f"{t}/merged")
    check(r.returncode == 0, r.stderr)
    r = graft("eval", f"{t}/config.yml", f"base_model={t}/merged", "--json")
    check(r.returncode == 0 and abs(json.loads(r.stdout)["loss"] - evals[-1]) < 5e-3, f"{r.stdout} {r.stderr}, {evals}")  # its weights are bf16
    check("bf16" in graft("train", f"{t}/config.yml", f"output_dir={t}/half", *keys, "float32=false", "bf16=true").stderr, "bf16")
    half = [x["eval_loss"] for x in log(f"{t}/half") if "eval_loss" in x]
    check(abs(half[-1] - evals[-1]) < 0.05, f"{half}, {evals}")
    expect(78, "DoRA with dropout on lm_head", args=["train", f"{t}/config.yml", "lora_dropout=0.1", f"output_dir={t}/no"])
    expect(78, "DoRA on model.embed_tokens is not", args=["train", f"{t}/config.yml", "lora_target_modules=[embed_tokens]", f"output_dir={t}/no"])


@case
def a_named_checkpoint_starts_another_folder():
    t = tiny("named")
    keys = ["num_epochs=2", "save_steps=5"]
    whole = train(t, *keys, out="whole")
    point = sorted(os.listdir(f"{whole}/checkpoints"))[0]
    named = f"resume_from_checkpoint={whole}/checkpoints/{point}"
    train(t, *keys, named, out="other")
    check(adapter(f"{t}/other") == adapter(whole), "another adapter")
    numbers = lambda run: [(x["step"], x["loss"]) for x in log(run) if "loss" in x]
    check(numbers(f"{t}/other") == numbers(whole), "the log lacks its beginning")
    expect(73, "finished run", args=["train", f"{t}/config.yml", f"output_dir={whole}", named])
    expect(64, "would remove", args=["train", f"{t}/config.yml", f"output_dir={whole}", named, "--overwrite"])
    expect(64, "give one", args=["train", f"{t}/config.yml", f"output_dir={whole}", "--resume", "--overwrite"])
    check(adapter(whole) == adapter(f"{t}/other"), "something was lost")


def interrupted(t, *args, after="step 3/", env=None):
    """Runs until a line holds `after`, then SIGTERM; (exit code, all it said)."""
    p = subprocess.Popen([GRAFT, "train", f"{t}/config.yml", *args], stderr=subprocess.PIPE, text=True,
                         env={**os.environ, **(env or {})})
    said = []
    for line in p.stderr:
        said.append(line)
        if after in line:
            p.send_signal(signal.SIGTERM)
            break
    said += p.stderr.readlines()
    return p.wait(), "".join(said)


@case
def stopping_saves_what_resume_needs():
    t = tiny("stopped")
    keys = ["num_epochs=12", f"output_dir={t}/out", "logging_steps=1"]
    for only_model in ("false", "true"):
        code, said = interrupted(t, *keys, f"save_only_model={only_model}", "--overwrite")
        check(code == 75 and "everything up to there is saved" in said, f"{code}: {said[-300:]}")
        stopped = manifest(f"{t}/out")
        check(stopped["status"] == "stopped" and stopped["step"] >= 3, f"{stopped['status']} at {stopped['step']}")
        r = graft("train", f"{t}/config.yml", *keys, f"save_only_model={only_model}", "--resume")
        check(r.returncode == 0 and f"resuming at step {stopped['step']}" in r.stderr, r.stderr[-400:])
    out = train(t, "save_only_model=true", "save_steps=3", "max_steps=7", out="model")
    os.remove(f"{out}/run.json")
    expect(66, "save_only_model", "lora_model_dir", args=["train", f"{t}/config.yml", f"output_dir={out}", "save_only_model=true",
                                                          "max_steps=7", "--resume"])


@case
def stopping_in_an_evaluation():
    """Within one micro-batch of it, not at its end."""
    t = tiny("stop-eval")
    with open(f"{t}/test.jsonl") as f:
        rows = f.read()
    with open(f"{t}/many.jsonl", "w") as f:
        f.write(rows * 400)
    code, said = interrupted(t, f"output_dir={t}/out", "eval_steps=50", f"test_datasets.0.path={t}/many.jsonl", "lint_waive=[train-validation-overlap]",
                             after="run: ")
    check(code == 75, f"exit {code}: {said[-300:]}")
    check("eval_loss" not in said, "the evaluation went on to its end")


@case
def failed_runs_say_so():
    t = tiny("watchdog")
    r = expect(79, "loss_watchdog_threshold", "no checkpoint was written yet",
               args=["train", f"{t}/config.yml", f"output_dir={t}/out", "loss_watchdog_threshold=0.001"])
    check("step -1" not in r.stderr, r.stderr[-300:])
    check(manifest(f"{t}/out")["status"] == "failed", "run.json")


@case
def threads_and_folders_change_nothing():
    t = tiny("same-config")
    out = train(t, "max_steps=6", "save_steps=3", "threads=1")
    os.remove(f"{out}/run.json")
    os.rename(out, f"{t}/moved")
    r = graft("train", f"{t}/config.yml", f"output_dir={t}/moved", "max_steps=6", "save_steps=3", "threads=2", "--resume")
    check(r.returncode == 0 and "configuration changed" not in r.stderr, r.stderr[-400:])
    os.remove(f"{t}/moved/run.json")
    r = graft("train", f"{t}/config.yml", f"output_dir={t}/moved", "max_steps=6", "save_steps=3", "weight_decay=0.1", "--resume")
    check("configuration changed" in r.stderr, r.stderr[-400:])


@case
def memory_that_is_not_there():
    t = tiny("memory")
    long = ["sequence_len=2048", "micro_batch_size=4", "max_steps=2"]
    sizes = {}
    for mode in ("false", "true", "auto"):
        plan = graft("plan", f"{t}/config.yml", *long, f"gradient_checkpointing={mode}", "--json")
        sizes[mode] = json.loads(plan.stdout)["peak_bytes"] / 2**20
    check(sizes["true"] < 0.8 * sizes["false"] and abs(sizes["auto"] - sizes["false"]) < 0.1, f"{sizes}")
    tight = {"GRAFT_MEMORY": str(int((sizes["true"] + sizes["false"]) / 2))}
    r = graft("train", f"{t}/config.yml", *long, "gradient_checkpointing=auto", f"output_dir={t}/auto", env=tight)
    check(r.returncode == 0 and "gradient_checkpointing: on for" in r.stderr, r.stderr[-400:])
    expect(71, "gradient_checkpointing: true", "nothing was trained", args=["train", f"{t}/config.yml", *long, f"output_dir={t}/no"], env=tight)
    train(t, *long, out="plain")
    check(adapter(f"{t}/auto") == adapter(f"{t}/plain"), "checkpointing changed the bytes")


@case
def a_template_for_each_dataset():
    """The base's own template prints something else than ChatML; one data set asks for ChatML by name."""
    t = tiny("templates")
    with open(f"{t}/tiny.gguf", "rb") as f:
        data = f.read()
    check(data.count(b"<|im_start|>") > 1, "no template in the base")
    at = data.index(b"<|im_start|>", data.index(b"tokenizer.chat_template"))
    for old, new in ((b"<|im_start|>", b"<|XX_start|>"),):
        head, tail = data[:at], data[at:]
        end = tail.index(b"endfor")
        data = head + tail[:end].replace(old, new) + tail[end:]
    with open(f"{t}/tiny.gguf", "wb") as f:
        f.write(data)
    rows = lambda *args: [json.loads(x)["text"] for x in graft("check", f"{t}/config.yml", "test_datasets=", "lint_waive=[special-text-in-content]",
                                                                 *args, "--json").stdout.splitlines()]
    own, named, both = rows(), rows("datasets.0.chat_template=chatml"), rows("chat_template=chatml")
    check(own and all("<|XX_start|>" in x for x in own), f"{own[:1]}")
    check(named and all("<|im_start|>" in x and "XX" not in x for x in named), f"{named[:1]}")
    check(both == named, "global and own differ")


@case
def bases_that_are_not_quantised():
    t = tiny("plain-base")
    out = train(t, "max_steps=2")
    graft("export", out, "--base", f"{t}/tiny.gguf", "--to", "merged", "--out", f"{t}/f32.gguf", "--type", "f32")
    check(os.path.exists(f"{t}/f32.gguf"), "no merged file")
    base = f"base_model={t}/f32.gguf"
    expect(78, "load_in_4bit", "not in this version", args=["train", f"{t}/config.yml", base, "load_in_4bit=true", f"output_dir={t}/a"])
    expect(78, "qlora", "quantised", args=["train", f"{t}/config.yml", base, "adapter=qlora", f"output_dir={t}/b"])
    train(t, base, "max_steps=2", out="c")
    r = graft("train", f"{t}/config.yml", "load_in_4bit=true", "max_steps=2", f"output_dir={t}/d")
    check("quantised already (Q4_1) and stays as it is" in r.stderr, r.stderr[-300:])


@case
def dropped_rows_are_counted():
    t = tiny("dropped")
    with open(f"{t}/test.jsonl") as f:
        rows = f.read().splitlines()
    long = json.dumps({"messages": [{"role": "user", "content": "x" * 400}, {"role": "assistant", "content": "y"}]})
    with open(f"{t}/test.jsonl", "w") as f:
        f.write("\n".join(rows * 2 + [long]) + "\n")
    with open(f"{t}/train.jsonl") as f:
        good = f.read()
    with open(f"{t}/more.jsonl", "w") as f:
        f.write(long + "\n" + good)
    r = graft("train", f"{t}/config.yml", f"datasets.0.path={t}/more.jsonl", f"output_dir={t}/out", "max_steps=2")
    check(r.returncode == 0, r.stderr[-400:])
    for where, text in (("stderr", r.stderr), ("card", read(f"{t}/out/README.md").replace("\\", ""))):
        check(text.count("1 dropped (too long)") >= 2, f"{where}: {[x for x in text.splitlines() if 'dropped' in x]}")
    said = manifest(f"{t}/out")
    check(said["data"]["dropped"]["too long"] == 1 == said["held_out"]["dropped"]["too long"], f"{said['data']}")
    with open(f"{t}/bad.jsonl", "w") as f:
        f.write((good.splitlines()[0] + "\n") + (long + "\n") * 3)
    both = f"datasets=[{{path: {t}/more.jsonl, type: chat_template}}, {{path: {t}/bad.jsonl, type: chat_template}}]"
    expect(65, f"{t}/bad.jsonl:1:", "training rows too", args=["train", f"{t}/config.yml", both, f"test_datasets.0.path={t}/bad.jsonl",
                                                  f"output_dir={t}/no", "lint_waive=[too-long-dropped]"])
    expect(78, "too-long", "too-long-dropped", args=["check", f"{t}/config.yml", "lint_waive=[too-long]"])
    expect(65, f"{t}/bad.jsonl:2:", args=["train", f"{t}/config.yml", f"test_datasets.0.path={t}/bad.jsonl", f"output_dir={t}/no"])


@case
def samples_need_evaluations():
    t = tiny("samples")
    expect(78, "generate_samples needs evaluations", args=["train", f"{t}/config.yml", "generate_samples=true", f"output_dir={t}/no"])
    out = train(t, "generate_samples=true", "eval_steps=10", "num_generation_samples=2", "generation_max_new_tokens=8")
    found = [x for x in log(out) if "samples" in x]
    check(found and all(len(x["samples"]) == 2 for x in found), f"{found[:1]}")
    card, report = read(f"{out}/README.md"), read(f"{out}/report.html")
    check(card.count("Before:") == card.count("After:") == 2 and "![loss](loss.svg)" in card, "the card lacks the answers or the curve")
    check(report.count(">Before<") == report.count(">After<") == 2, "the report lacks the answers")
    check(read(f"{out}/loss.svg").startswith("<svg"), "loss.svg")


def crc32c(data):
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
    return crc ^ 0xFFFFFFFF


def masked(data):
    crc = crc32c(data)
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def fields(data):
    """Fields of a protocol buffer message: (number, value)."""
    at = 0

    def varint():
        nonlocal at
        value = shift = 0
        while True:
            byte = data[at]
            at += 1
            value |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                return value

    while at < len(data):
        tag = varint()
        number, wire = tag >> 3, tag & 7
        if wire == 0:
            yield number, varint()
        elif wire == 2:
            size = varint()
            yield number, data[at:at + size]
            at += size
        else:
            size = {1: 8, 5: 4}[wire]
            yield number, struct.unpack("<d" if size == 8 else "<f", data[at:at + size])[0]
            at += size


@case
def tensorboard_events():
    check(crc32c(b"123456789") == 0xE3069283, "the test's own CRC")
    t = tiny("events")
    out = train(t, "max_steps=6", "eval_steps=3", "save_steps=3")
    names = os.listdir(f"{out}/tb")
    check(len(names) == 1, f"{names}")
    with open(f"{out}/tb/{names[0]}", "rb") as f:
        data = f.read()
    at, scalars, version = 0, {}, None
    while at < len(data):
        size = struct.unpack_from("<Q", data, at)[0]
        event = data[at + 12:at + 12 + size]
        check(struct.unpack_from("<I", data, at + 8)[0] == masked(data[at:at + 8]), "CRC of a length")
        check(struct.unpack_from("<I", data, at + 12 + size)[0] == masked(event), "CRC of an event")
        at += 16 + size
        found = dict(fields(event))
        version = version or found.get(3)
        for number, value in fields(found.get(5, b"")):
            v = dict(fields(value))
            scalars.setdefault(v[1].decode(), {})[found.get(2)] = v[2]
    check(version == b"brain.Event:2", f"{version}")
    want = {x["step"]: x["loss"] for x in log(out) if "loss" in x}
    check(scalars["train/loss"].keys() == want.keys(), f"{scalars}")
    check(all(abs(scalars["train/loss"][s] - want[s]) < 1e-5 * want[s] for s in want), "losses")
    check(sorted(scalars["eval/loss"]) == [0, 3, 6], f"{scalars['eval/loss']}")
    check(not os.path.exists(train(t, "max_steps=2", "use_tensorboard=false", out="none") + "/tb"), "events nobody asked for")


@case
def rex_has_a_floor():
    t = tiny("rex")
    out = train(t, "lr_scheduler=rex", "cosine_min_lr_ratio=0.5", "max_steps=10", "warmup_steps=2", "learning_rate=0.01")
    last = [x["lr"] for x in log(out) if "lr" in x][-1]
    check(abs(last - 0.005) < 1e-9, f"{last}, wanted the floor")


@case
def positions_that_restart_part_documents():
    """A row that was packed elsewhere: the same loss as its documents alone; without positions, another one."""
    t = tiny("documents")
    a, b = [5, 9, 40, 17, 33, 8, 21], [60, 12, 44, 7, 19]
    rows = {"parts": [(a, None), (b, None)], "packed": [(a + b, list(range(7)) + list(range(5)))], "joined": [(a + b, None)]}
    losses = {}
    for name, documents in rows.items():
        with open(f"{t}/{name}.jsonl", "w") as f:
            for ids, positions in documents:
                labels = [-100 if i == 0 or ids[i:] == b else x for i, x in enumerate(ids)]
                row = {"input_ids": ids, "labels": labels}
                f.write(json.dumps({**row, "position_ids": positions} if positions else row) + "\n")
        with open(f"{t}/{name}.yml", "w") as f:
            f.write(read(f"{t}/config.yml").replace("type: chat_template", "type:").replace("train.jsonl", f"{name}.jsonl")
                    .replace("test.jsonl", f"{name}.jsonl"))
        r = graft("eval", f"{t}/{name}.yml", "--no-generate", "--json")
        check(r.returncode == 0, r.stderr[-300:])
        losses[name] = json.loads(r.stdout)
    check(losses["packed"]["tokens"] == losses["parts"]["tokens"] == 10, f"{losses}")
    check(abs(losses["packed"]["loss"] - losses["parts"]["loss"]) < 1e-6, f"{losses}")
    check(abs(losses["joined"]["loss"] - losses["parts"]["loss"]) > 1e-3, f"{losses}")


@case
def merged_file_says_its_type():
    t = tiny("merged")
    out = train(t, "max_steps=2")
    for kind, number in (("f32", 0), ("f16", 1), ("q8_0", 7), ("bf16", 32)):
        r = graft("export", out, "--base", f"{t}/tiny.gguf", "--to", "merged", "--out", f"{t}/{kind}.gguf", "--type", kind)
        check(r.returncode == 0, r.stderr[-300:])
        with open(f"{t}/{kind}.gguf", "rb") as f:
            data = f.read()
        at = data.index(b"general.file_type") + len("general.file_type")
        check(data.count(b"general.file_type") == 1 and struct.unpack_from("<II", data, at) == (4, number), kind)


@case
def nothing_is_lost_before_the_new_run_can_start():
    t = tiny("keep")
    out = train(t, "max_steps=6", "save_steps=3")
    before = adapter(out)
    expect(71, "nothing was trained", args=["train", f"{t}/config.yml", f"output_dir={out}", "--overwrite"], env={"GRAFT_MEMORY": "1"})
    check(adapter(out) == before and os.path.exists(f"{out}/checkpoints/step-000003"), "the old run is gone")
    for folder, named in ((out + "/", f"{out}/checkpoints/step-000003"), (out, f"{t}/./out/../out/checkpoints/step-000003")):
        expect(64, "would remove", args=["train", f"{t}/config.yml", f"output_dir={folder}", f"resume_from_checkpoint={named}", "--overwrite"])
    check(adapter(out) == before, "the old run is gone")
    expect(78, "6 steps are done", args=["train", f"{t}/config.yml", f"output_dir={t}/fewer", "max_steps=4",
                                         f"resume_from_checkpoint={out}/checkpoints/step-000006"])
    other = train(t, "max_steps=6", "save_steps=3", "seed=9", out="other")
    os.remove(f"{other}/run.json")
    expect(73, "holds a run", args=["train", f"{t}/config.yml", f"output_dir={other}", f"resume_from_checkpoint={out}/checkpoints/step-000003"])


@case
def the_best_checkpoint_comes_along():
    t = tiny("along")
    keys = ["learning_rate=0.06", "lr_scheduler=constant", "num_epochs=4", "eval_steps=4", "save_steps=4", "save_total_limit=100",
            "load_best_model_at_end=true"]
    whole = train(t, *keys, out="whole")
    best, last = manifest(whole)["adapter_step"], manifest(whole)["step"]
    check(best < last - 4, "the best is too late to show anything")
    named = f"{whole}/checkpoints/step-{(best + 4) // 4 * 4:06d}"
    train(t, *keys, f"resume_from_checkpoint={named}", out="other")
    check(adapter(f"{t}/other") == adapter(whole), "another adapter")
    shutil.rmtree(f"{whole}/checkpoints/step-{best:06d}")
    r = graft("train", f"{t}/config.yml", *keys, f"resume_from_checkpoint={named}", f"output_dir={t}/third")
    check(r.returncode == 0 and "is not beside" in r.stderr, r.stderr[-400:])


@case
def verify_knows_the_run():
    t = tiny("verify")
    out = train(t, "max_steps=6", "float32=false", "bf16=true")
    r = graft("verify", out)
    check(r.returncode == 0 and r.stdout.count(" ok ") == 2, r.stdout + r.stderr)
    with open(f"{t}/rows.jsonl", "w") as f:
        for i in range(12):
            ids = [(7 * i + 3 * k) % 60 + 4 for k in range(20)]
            f.write(json.dumps({"input_ids": ids, "labels": ids, "position_ids": [*range(8), *range(12)]}) + "\n")
    with open(f"{t}/rows.yml", "w") as f:
        f.write(read(f"{t}/config.yml").replace("type: chat_template", "type:").replace("train.jsonl", "rows.jsonl")
                .replace("test.jsonl", "rows.jsonl") + "lint_waive: [train-validation-overlap]\n")
    r = graft("train", f"{t}/rows.yml", f"output_dir={t}/places", "max_steps=3")
    check(r.returncode == 0, r.stderr[-300:])
    check(graft("verify", f"{t}/places").returncode == 0, "documents inside rows")
    rows = read(f"{t}/places/probe.jsonl")
    with open(f"{t}/places/probe.jsonl", "w") as f:
        f.write(re.sub(r'"ids": ?\[ ?\d+', '"ids": [2000000000', rows, count=1))
    expect(65, "outside the vocabulary", args=["verify", f"{t}/places"])
    for name in ("adapter_model.safetensors", "adapter.gguf"):
        os.remove(f"{out}/{name}")
    expect(66, "nothing to verify", args=["verify", out])


@case
def logs_that_lost_their_end():
    t = tiny("log")
    keys = ["max_steps=8", "save_steps=4"]
    whole = train(t, *keys, out="whole")
    for what in ("missing", "shorter"):
        out = f"{t}/{what}"
        shutil.copytree(whole, out)
        os.remove(f"{out}/run.json")
        shutil.rmtree(f"{out}/checkpoints/step-000008")
        if what == "missing":
            os.remove(f"{out}/log.jsonl")
        else:
            os.truncate(f"{out}/log.jsonl", 300)
        r = graft("train", f"{t}/config.yml", *keys, f"output_dir={out}", "--resume")
        check(r.returncode == 0 and "log.jsonl holds" in r.stderr, r.stderr[-400:])
        check(adapter(out) == adapter(whole), "another adapter")
        steps = [x["step"] for x in log(out) if "loss" in x]
        check(steps[-4:] == [5, 6, 7, 8] and len(steps) == (4 if what == "missing" else 5), f"{steps}")


@case
def check_sees_what_train_refuses():
    t = tiny("overlap")
    rows = read(f"{t}/train.jsonl")
    with open(f"{t}/twice.jsonl", "w") as f:
        f.write(rows * 2)
    with open(f"{t}/split.yml", "w") as f:
        f.write(re.sub(r"test_datasets:.*?(?=sequence_len)", "", read(f"{t}/config.yml"), flags=re.S).replace("train.jsonl", "twice.jsonl"))
    for command in ("check", "train"):
        r = graft(command, f"{t}/split.yml", "val_set_size=0.2", f"output_dir={t}/no")
        check(r.returncode == 65 and "train-validation-overlap" in r.stdout + r.stderr, f"{command}: {r.returncode} {r.stderr[-300:]}")


@case
def chat_finds_the_base_of_an_adapter():
    t = tiny("chat-base")
    out = train(t, "max_steps=4")
    said = [graft("chat", *base, "--adapter", out, "--prompt", "hi", "--max-tokens", "8") for base in ((), ("--base", f"{t}/tiny.gguf"))]
    check(said[0].returncode == 0 and said[0].stdout == said[1].stdout, said[0].stderr[-300:])
    os.remove(f"{out}/run.json")
    expect(64, "which base", args=["chat", "--adapter", out, "--prompt", "hi"])
    expect(64, "which base", args=["chat", "--prompt", "hi"])


if __name__ == "__main__":
    program.cases[:] = cases
    sys.exit(program.main())
