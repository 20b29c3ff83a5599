#!/usr/bin/env python3
"""The peer's side of the speed comparison on the CPU: one LoRA training step of transformers + PEFT.

    bench/peft_step.py [--dtype fp32|bf16] [--steps 4] [--sequence 512] [--batch 2] [--threads 2]

SmolLM2-135M decoded from its GGUF, LoRA r 16 on all seven linears, dropout 0, AdamW, full-length rows of random tokens,
every token trained, no gradient checkpointing, SDPA attention, adapters in float32 as PEFT makes them.  The first step
is warm-up and not counted.  Prints one JSON object.  Run it in the environment that tests/peers/venv.sh makes.
"""

import argparse
import json
import os
import pathlib
import resource
import statistics
import sys
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "tests" / "peers"))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dtype", choices=["fp32", "bf16"], default="fp32")
    parser.add_argument("--steps", type=int, default=4, help="counted steps")
    parser.add_argument("--sequence", type=int, default=512)
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rank", type=int, default=16)
    options = parser.parse_args()
    os.environ["GRAFT_PEERS_THREADS"] = str(options.threads)

    import peer
    import peft
    import torch
    import transformers

    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[options.dtype]
    model = peer.load_base(dtype=dtype)
    config = peft.LoraConfig(
        r=options.rank, lora_alpha=2 * options.rank, lora_dropout=0.0, target_modules=peer.LINEARS, task_type="CAUSAL_LM"
    )
    model = peft.get_peft_model(model, config).train()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-4)
    random = torch.Generator().manual_seed(1)
    seconds, losses = [], []
    for _ in range(1 + options.steps):
        shape = (options.batch, options.sequence)
        ids = torch.randint(0, model.config.vocab_size, shape, generator=random)
        start = time.perf_counter()
        loss = model(input_ids=ids, labels=ids, use_cache=False).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        seconds.append(time.perf_counter() - start)
        losses.append(loss.item())
    tokens, counted = options.batch * options.sequence, seconds[1:]
    result = {
        "peer": f"transformers {transformers.__version__}, peft {peft.__version__}, torch {torch.__version__}",
        "dtype": options.dtype,
        "sequence": options.sequence,
        "batch": options.batch,
        "rank": options.rank,
        "threads": torch.get_num_threads(),
        "steps": options.steps,
        "tokens_per_second_best": round(tokens / min(counted), 1),
        "tokens_per_second_median": round(tokens / statistics.median(counted), 1),
        "first_step_seconds": round(seconds[0], 2),
        "first_loss": round(losses[0], 4),
        "peak_rss_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
