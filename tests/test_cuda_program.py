#!/usr/bin/env python3
"""Whole runs on the CUDA backend, on a tiny model: on the host (tests/cuda_host), or on the GPU where GRAFT_TEST_GPU is
set. Closes with "N passed, N failed, N skipped"."""
import json
import math
import os
import sys

import test_program as program
from test_program import BUILD, adapter, check, expect, graft, log, tiny, train

cases = []
ON_GPU = bool(os.environ.get("GRAFT_TEST_GPU"))
if not ON_GPU:
    os.environ["GRAFT_CUDA_PLUGIN"] = os.path.abspath(f"{BUILD}/cuda_host/libgraft_cuda.so")
LONG = ["max_steps=6", "gradient_accumulation_steps=2", "lora_dropout=0.1", "eval_steps=3", "save_steps=3", "neftune_noise_alpha=5"]


def case(function):
    cases.append(function)
    return function


def host_only(function):
    """What injects failures or reorders threads needs the host's stand-ins."""
    return case(function) if not ON_GPU else function


def manifest(folder):
    with open(f"{folder}/run.json") as f:
        return json.load(f)


def near(a, b, bound, what):
    check(abs(a - b) <= bound * max(abs(a), abs(b), 1e-30), f"{what}: {a} and {b}")


def same_curve(one, other, bound):
    a, b = log(one), log(other)
    check(len(a) == len(b) and any("loss" in x for x in a), "other lines in the logs")
    for x, y in zip(a, b):
        for key in ("loss", "grad_norm", "eval_loss"):
            if x.get(key) is not None:
                near(x[key], y[key], bound, f"{key} of step {x['step']}")


@case
def losses_are_the_cpus():
    t = tiny("cpu")
    same_curve(train(t, *LONG, "device=cpu", out="cpu"), train(t, *LONG, "device=cuda", out="cuda"), 2e-5)
    check("GPU" in manifest(f"{t}/cuda")["backend"] and "GPU" not in manifest(f"{t}/cpu")["backend"], "the wrong device")


@case
def losses_in_bf16():
    t = tiny("brain")
    fp32, brain = train(t, "max_steps=6", "device=cuda", out="fp32"), train(t, "max_steps=6", "device=cuda", "float32=false", out="bf16")
    same_curve(fp32, brain, 0.05)
    check(log(fp32)[0]["loss"] != log(brain)[0]["loss"], "bf16 is fp32")


@case
def the_same_bits():
    """Again; in other orders of threads and streams; recomputed; resumed: the same adapter."""
    t = tiny("bits")
    whole = adapter(train(t, *LONG, "device=cuda", out="first"))
    orders = [{}] if ON_GPU else [{"GRAFT_CUDA_HOST_ORDER": "down", "GRAFT_CUDA_HOST_STREAMS": "eager"},
                                  {"GRAFT_CUDA_HOST_ORDER": "77", "GRAFT_CUDA_HOST_STREAMS": "5"}]
    for i, order in enumerate(orders):
        check(adapter(train(t, *LONG, "device=cuda", out=f"order{i}", env=order)) == whole, f"{order}: another adapter")
    for more in (["gradient_checkpointing=true"], ["gradient_checkpointing=true", "selective_checkpointing=true"]):
        check(adapter(train(t, *LONG, "device=cuda", *more, out=f"kept{len(more)}")) == whole, f"{more}: another adapter")
    r = graft("train", f"{t}/config.yml", f"output_dir={t}/resumed", *LONG, "device=cuda", f"resume_from_checkpoint={t}/first/checkpoints/step-000003")
    check(r.returncode == 0 and adapter(f"{t}/resumed") == whole, "resumed: another adapter " + r.stderr[-300:])


@case
def layers_that_do_not_fit_are_streamed():
    t = tiny("streamed", 5)
    run = ["max_steps=1", "device=cuda", "gradient_accumulation_steps=2", "generate_samples=false", "eval_strategy=no"]
    plan = json.loads(graft("plan", f"{t}/config.yml", *run, "--json").stdout)
    limit = f"gpu_memory_limit={(plan['peak_bytes'] - 4096) / 2**20:.6f}MiB"
    whole, streamed = train(t, *run, out="whole"), train(t, *run, limit, out="streamed")
    memory = manifest(streamed)["memory"]
    check(memory["streamed"] > 0 and memory["planned_bytes"] < plan["peak_bytes"], f"{memory}")
    check(manifest(whole)["memory"]["streamed"] == 0, "streamed without need")
    check(adapter(whole) == adapter(streamed), "streaming changed the adapter")
    if not ON_GPU:
        for streams in ("eager", "others", "11"):
            check(adapter(train(t, *run, limit, out=f"s{streams}", env={"GRAFT_CUDA_HOST_STREAMS": streams})) == adapter(whole),
                  f"streams {streams}: another adapter")
    expect(71, "MiB", "nothing was trained", args=["train", f"{t}/config.yml", *run, "gpu_memory_limit=100MiB", f"output_dir={t}/no"])


@case
def evaluation_and_answers():
    t = tiny("answers")
    out = train(t, "max_steps=4", "device=cuda")
    seen = [json.loads(graft("eval", f"{t}/config.yml", "--adapter", out, "--json", f"device={d}").stdout) for d in ("cpu", "cuda")]
    near(seen[0]["loss"], seen[1]["loss"], 1e-5, "eval loss")
    for key in ("tokens", "valid_json", "exact"):
        check(seen[0][key] == seen[1][key], f"{key}: {seen[0][key]} and {seen[1][key]}")
    r = graft("verify", out, "--base", f"{t}/tiny.gguf")
    check(r.returncode == 0, r.stderr[-400:])


@case
def a_plan_needs_no_gpu():
    t = tiny("plan")
    nowhere = {"GRAFT_CUDA_PLUGIN": f"{t}/none.so"}
    here, there = (json.loads(graft("plan", f"{t}/config.yml", "device=cuda", "--json", env=e).stdout) for e in ({}, {"GRAFT_BACKEND": "cuda", **nowhere}))
    check(here["classes"] == there["classes"] and here["peak_bytes"] == there["peak_bytes"], f"{here} {there}")
    expect(66, "device: cuda", "make cuda", args=["train", f"{t}/config.yml", "device=cuda", f"output_dir={t}/no"], env=nowhere)
    check(manifest(train(t, "max_steps=1", env=nowhere))["backend"].find("GPU") < 0, "auto without a plug-in")


@host_only
def every_allocation_may_fail():
    """The k-th cudaMalloc (and locked host memory) fails, for every k: 71, a message, no output folder's adapter."""
    t = tiny("memory")
    for call in ("cudaMalloc", "cudaHostAlloc"):
        k = 0
        while True:
            k += 1
            out = f"{t}/{call}{k}"
            r = graft("train", f"{t}/config.yml", "device=cuda", "max_steps=1", f"output_dir={out}", env={"GRAFT_CUDA_HOST_FAIL": f"{call}:{k}:2"})
            if r.returncode == 0:
                break
            check(r.returncode == 71 and "graft: " in r.stderr.splitlines()[-1], f"{call} {k}: {r.returncode} {r.stderr[-300:]}")
            check(not os.path.exists(f"{out}/adapter_model.safetensors"), f"{call} {k}: half a result")
            check(k < 100, f"{call}: fails without end")
        check(k > 2, f"{call}: only {k - 1} failures")


@host_only
def errors_that_come_late():
    """A kernel that runs into an error tells at the next wait; it stays: 70, the name of the error, the checkpoint is whole."""
    t = tiny("late")
    out = f"{t}/out"
    for k, code, name in ((5, 700, "cudaErrorIllegalAddress"), (2000, 719, "cudaErrorLaunchFailure"), (3000, 214, "cudaErrorECCUncorrectable")):
        r = graft("train", f"{t}/config.yml", "device=cuda", "max_steps=40", "save_steps=1", "--overwrite", f"output_dir={out}",
                  env={"GRAFT_CUDA_HOST_FAIL": f"kernel:{k}:{code}"})
        check(r.returncode == 70 and name in r.stderr, f"{k}: {r.returncode} {r.stderr[-300:]}")
        if k > 1000:
            r = graft("doctor", f"{out}/checkpoints/" + sorted(os.listdir(f"{out}/checkpoints"))[-1])
            check(r.returncode == 0, r.stdout[-300:] + r.stderr[-300:])
    for call in ("cudaStreamSynchronize", "cudaMemcpyAsync", "cudaEventRecord", "cudaStreamCreateWithFlags", "cudaMemGetInfo"):
        r = graft("train", f"{t}/config.yml", "device=cuda", "max_steps=2", f"output_dir={t}/{call}", env={"GRAFT_CUDA_HOST_FAIL": f"{call}:3:999"})
        check(r.returncode in (0, 70), f"{call}: {r.returncode} {r.stderr[-300:]}")
        check(r.returncode == 0 or "cudaErrorUnknown" in r.stderr, f"{call}: {r.stderr[-300:]}")


if __name__ == "__main__":
    program.cases[:] = cases
    sys.exit(program.main())
