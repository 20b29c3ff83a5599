"""A real llama.cpp server takes our adapter while it runs, and answers with our numbers.

A few steps of training, from an adapter that already says something, write `adapter.gguf` and a PEFT folder.  The server
starts with the base and `adapter.gguf` at scale 0; POST /lora-adapters switches it on.  What is compared is
the log-probability of every trained token of some held-out conversations given the tokens before it:
ours (`graft eval --logprobs`), PEFT's (which reads our PEFT folder) and the server's.  The server is asked once on an
F32 file of the same weights, where it computes what we do, and once on the 4-bit file itself, where it also rounds
activations to 8 bits and only the adapter's own share can be compared closely.
"""

import concurrent.futures
import contextlib
import json
import os
import pathlib
import subprocess
import sys
import urllib.request

ROWS = 8
F32_LARGEST, F32_MEDIAN = 5e-3, 1e-3
SLOPE = 0.05
PEFT_TOLERANCE = 1e-4  # of the largest log-probability
SAME = 5e-3  # two answers of one server to the same question


def serve(model, adapters, threads, slots):
    """The server process: prints its address, then runs until standard input is closed."""
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = model
    params.hostnames = ["127.0.0.1"]
    params.port = 0  # any free one
    params.n_ctx, params.n_parallel = 512 * slots, slots
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = threads
    # Float32 keys and values, plain attention: both defaults work in half precision, which alone costs up to 2e-2.
    params.cache_type_k = params.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
    params.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
    params.cpuparams.poll = params.cpuparams_batch.poll = 0  # no spinning: other processes may share the cores
    params.cache_ram_mib = 0
    params.warmup = False
    params.lora_adapters = [xllamacpp.CommonAdapterLoraInfo(path, 0.0) for path in adapters]
    server = xllamacpp.Server(params)
    print(server.listening_address, flush=True)
    sys.stdin.read()
    os._exit(0)  # nothing to save: no orderly shutdown of its threads


class Llama:
    """A llama.cpp server on the loopback interface, in a process of its own."""

    def __init__(self, model, adapters, threads, slots, log):
        arguments = [sys.executable, __file__, "--serve", str(threads), str(slots), str(model), *map(str, adapters)]
        with open(log, "w") as out:
            self.process = subprocess.Popen(
                arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=out, text=True
            )
        self.address = self.process.stdout.readline().strip()
        if not self.address:
            raise SystemExit(f"FAIL the llama.cpp server did not start, see {log}")

    def close(self):
        self.process.stdin.close()
        self.process.wait(timeout=60)

    def ask(self, path, body=None):
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.address + path, data, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=300) as answer:
            return json.load(answer)

    def scale(self, chosen=None):
        """Switches one adapter on (None: all off)."""
        count = len(self.ask("/lora-adapters"))
        return self.ask("/lora-adapters", [{"id": i, "scale": float(i == chosen)} for i in range(count)])

    def logprob(self, ids, position, slot, **options):
        """Natural log of the probability of ids[position] after the tokens before it.  A bias makes the server choose
        that token; the value it reports is the one before biases."""
        body = {
            "prompt": ids[:position],
            "n_predict": 1,
            "n_probs": 1,
            "samplers": [],
            "temperature": 0.0,
            "logit_bias": [[ids[position], 1000.0]],
            "id_slot": slot,
            **options,
        }
        chosen = self.ask("/completion", body)["completion_probabilities"][0]
        assert chosen["id"] == ids[position], f"the server chose {chosen['id']} instead of {ids[position]}"
        return chosen["logprob"]

    def logprobs(self, rows):
        """All trained positions of all rows, one slot a row.  The first position of a row is computed from nothing, the
        following ones go on from it."""

        def one(slot):
            row = rows[slot]
            return [
                self.logprob(row["ids"], position, slot, cache_prompt=k > 0)
                for k, position in enumerate(positions_of(row))
            ]

        with concurrent.futures.ThreadPoolExecutor(len(rows)) as pool:
            return [value for values in pool.map(one, range(len(rows))) for value in values]


def positions_of(row):
    return [i for i, trained in enumerate(row["trained"]) if trained and i > 0]


def ours(config, folder, adapter=None):
    """Our own log-probabilities by row, from `graft eval`."""
    import peer

    out = folder / ("on.jsonl" if adapter else "off.jsonl")
    peer.run([peer.GRAFT, "eval", config, *(["--adapter", adapter] if adapter else []), "--logprobs", out])
    return peer.read_jsonl(out)


def trained_values(rows):
    return [row["logprobs"][i] for row in rows for i in positions_of(row)]


def peft_logprobs(rows, adapter):
    """The same from transformers, with the adapter that PEFT reads from our folder."""
    import peer
    import torch
    from peft import PeftModel

    model = peer.load_base()
    if adapter:
        model = PeftModel.from_pretrained(model, adapter)
    values = []
    with torch.no_grad():
        for row in rows:
            ids = torch.tensor(row["ids"])
            logprobs = torch.log_softmax(model(input_ids=ids[None]).logits[0].double(), -1)
            values += [logprobs[i - 1, ids[i]].item() for i in positions_of(row)]
    return values


def errors(a, b):
    import numpy as np

    return np.abs(np.array(a) - np.array(b))


def spread(values):
    import numpy as np

    return f"{len(values)} tokens, median {np.median(values):.1e}, p95 {np.quantile(values, 0.95):.1e}, largest {values.max():.1e}"


def near(values):
    """The F32 rule."""
    import numpy as np

    return values.max() <= F32_LARGEST and np.median(values) <= F32_MEDIAN


def share(want_off, want_on, off, on):
    """The 4-bit rule: no larger error with the adapter on than off, and the adapter moves log-probabilities as ours
    does.  (good, figure)"""
    import numpy as np

    error_off, error_on = errors(off, want_off), errors(on, want_on)
    x, y = np.array(want_on) - np.array(want_off), np.array(on) - np.array(off)
    slope = (x @ y) / (x @ x)
    quantiles = [(np.quantile(error_off, q), np.quantile(error_on, q)) for q in (0.5, 0.95)]
    good = abs(slope - 1) <= SLOPE and all(b <= 1.5 * a + 5e-3 for a, b in quantiles)
    figure = f"{len(x)} tokens, median error {quantiles[0][1]:.1e} on, {quantiles[0][0]:.1e} off; "
    return good, figure + f"p95 {quantiles[1][1]:.1e} on, {quantiles[1][0]:.1e} off; slope {slope:.3f}"


def check_peft(checks, off, on, adapter):
    for name, rows, folder in (("base", off, None), ("adapter", on, adapter)):
        got = trained_values(rows)
        ratio = errors(got, peft_logprobs(rows, folder)).max() / max(map(abs, got))
        checks.check(f"PEFT, {name}: our log-probabilities", ratio <= PEFT_TOLERANCE, f"{ratio:.1e} of the largest")


def check_server(checks, name, model, adapter, damaged, off, on, folder, exact):
    """One server: off, on while it runs, off again, and each damaged adapter."""
    import peer

    want_off, want_on = trained_values(off), trained_values(on)
    firsts = [positions_of(row)[0] for row in on]
    server = Llama(model, [adapter, *damaged.values()], peer.THREADS, len(on), folder / f"server-{name}.log")
    with contextlib.closing(server):
        scales = [a["scale"] for a in server.ask("/lora-adapters")]
        checks.check(f"{name}: starts with every adapter at scale 0", scales == [0.0] * (1 + len(damaged)), str(scales))
        if exact:
            tok = peer.tokenizer()
            same = [
                server.ask("/tokenize", {"content": tok.decode(row["ids"]), "add_special": False})["tokens"] == row["ids"]
                for row in on
            ]
            checks.check(f"{name}: token ids", all(same), f"{sum(same)} of {len(same)} rows")

        got_off = server.logprobs(off)
        error = errors(got_off, want_off)
        checks.check(f"{name}, off: the base's answers", near(error) if exact else True, spread(error))

        checks.check(f"{name}: switched on while running", server.scale(0).get("success") is True)
        # llama.cpp keeps the keys and values that another adapter computed: a client that lets it reuse its cache gets
        # answers of neither model.  Not ours to judge, but the reason why `logprobs` starts each row from nothing.
        plain = [server.logprob(row["ids"], p, slot) for slot, (row, p) in enumerate(zip(on, firsts))]
        fresh = [server.logprob(row["ids"], p, slot, cache_prompt=False) for slot, (row, p) in enumerate(zip(on, firsts))]
        print(f"note {name}: answers from a cache older than the swap are off by up to {errors(plain, fresh).max():.1e}")

        got_on = server.logprobs(on)
        error = errors(got_on, want_on)
        good, figure = (near(error), spread(error)) if exact else share(want_off, want_on, got_off, got_on)
        checks.check(f"{name}, on: our answers", good, figure)
        good, figure = share(want_off, want_on, got_off, got_on)
        if exact:
            checks.check(f"{name}, on: moves answers as ours does", good, figure)
        checks.check(f"{name}: 300 positions or more", len(got_on) >= 300, str(len(got_on)))

        some = ROWS // 2  # damage shows soon
        count = len(trained_values(on[:some]))
        for i, how in enumerate(damaged, 1):
            server.scale(i)
            got = server.logprobs(on[:some])
            error = errors(got, want_on[:count])
            good, figure = near(error), spread(error)
            if not exact:
                good, figure = share(want_off[:count], want_on[:count], got_off[:count], got)
            checks.must_fail(f"{name}, {how}", good, figure)

        server.scale(None)
        got = server.logprobs(off[:2])
        again = errors(got, got_off[: len(got)]).max()
        checks.check(f"{name}: off again, the same answers as before", again <= SAME, f"largest difference {again:.1e}")
        chosen = [{"id": 0, "scale": 1.0}]
        # Of the slots that another adapter used last: their caches are emptied, so all is computed as it was for `fresh`.
        used = list(enumerate(zip(on, firsts)))[:some]
        named = [server.logprob(row["ids"], p, slot, lora=chosen) for slot, (row, p) in used]
        same = errors(named, fresh[: len(named)]).max()
        checks.check(f"{name}: one request may switch it on for itself", same <= SAME, f"largest difference {same:.1e}")


def trained(folder):
    """A short run of ours; its config and output folder."""
    import peer

    spec = {"seed": 5, "r": 8, "alpha": 20, "targets": peer.LINEARS}
    peer.make_adapter(peer.load_base(), folder / "start", **spec)
    heldout = peer.read_jsonl(peer.ROOT / "examples" / "orders" / "heldout.jsonl")[:ROWS]
    peer.write_jsonl(folder / "chats.jsonl", heldout)
    chats = {"path": str(folder / "chats.jsonl"), "type": "chat_template"}
    config = peer.write_config(
        folder / "config.yml",
        datasets=[{**chats, "path": str(peer.ROOT / "examples" / "orders" / "train.jsonl")}],
        test_datasets=[chats],
        sequence_len=256,
        lora_model_dir=str(folder / "start"),
        lora_r=spec["r"],
        lora_alpha=spec["alpha"],
        lora_target_modules=spec["targets"],
        micro_batch_size=2,
        max_steps=4,
        warmup_steps=0,
        learning_rate=2e-4,
        output_dir=str(folder / "run"),
    )
    peer.run([peer.GRAFT, "train", config])
    return config, folder / "run"


def main():
    if sys.argv[1:2] == ["--serve"]:
        return serve(sys.argv[4], sys.argv[5:], int(sys.argv[2]), int(sys.argv[3]))

    import peer

    checks = peer.Checks()
    folder = peer.fresh_folder("hot-swap")
    config, run = trained(folder)
    adapter = run / "adapter.gguf"
    checks.check("train: both kinds of adapter written", adapter.exists() and (run / "adapter_model.safetensors").exists())
    off, on = ours(config, folder), ours(config, folder, run)
    checks.check("eval --logprobs: every row, the same ids on and off", len(on) == len(off) == ROWS and all(
        a["ids"] == b["ids"] and a["trained"] == b["trained"] for a, b in zip(on, off)
    ))
    check_peft(checks, off, on, run)
    damaged = {how: peer.damage_gguf(adapter, folder / f"damaged-{i}.gguf", how) for i, how in enumerate(peer.DAMAGES)}
    check_server(checks, "F32", peer.f32_gguf(), adapter, damaged, off, on, folder, exact=True)
    check_server(checks, "4-bit", peer.BASE, adapter, damaged, off, on, folder, exact=False)
    return checks.close()


if __name__ == "__main__":
    raise SystemExit(main())
