#!/usr/bin/env python3
"""The peer on a GPU: transformers + PEFT, LoRA r 16 on all linears, bf16, SDPA attention, AdamW, every token trained.

    bench/peft_gpu.py BASE ROWS.jsonl --batch 2 --mode eager|compiled [--warmup 5] [--steps 15]

The same base and rows as bench/gpu.sh gives to our program. Prints one JSON object.
"""
import argparse
import json
import statistics
import time


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("base")
    parser.add_argument("rows")
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--mode", choices=["eager", "compiled"], default="eager")
    parser.add_argument("--warmup", type=int, default=5)
    parser.add_argument("--steps", type=int, default=15)
    options = parser.parse_args()
    start = time.perf_counter()
    import peft
    import torch
    import transformers

    model = transformers.AutoModelForCausalLM.from_pretrained(
        options.base, dtype=torch.bfloat16, attn_implementation="sdpa", device_map="cuda")
    linears = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    model = peft.get_peft_model(model, peft.LoraConfig(r=16, lora_alpha=32, lora_dropout=0.0, target_modules=linears,
                                                       task_type="CAUSAL_LM")).train()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-5, fused=True)
    step_model = torch.compile(model) if options.mode == "compiled" else model
    rows = [json.loads(line)["input_ids"] for line in open(options.rows)]
    batches = [torch.tensor(rows[i:i + options.batch], device="cuda") for i in range(0, len(rows), options.batch)]
    loaded, seconds, losses = time.perf_counter() - start, [], []
    for i in range(options.warmup + options.steps):
        ids = batches[i % len(batches)]
        torch.cuda.synchronize()
        begin = time.perf_counter()
        loss = step_model(input_ids=ids, labels=ids, use_cache=False).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_([p for p in model.parameters() if p.requires_grad], 1.0)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
        seconds.append(time.perf_counter() - begin)
        if i == 0:
            first = time.perf_counter() - start
    counted = sorted(seconds[options.warmup:])
    tokens = options.batch * len(rows[0])
    print(json.dumps({
        "peer": f"transformers {transformers.__version__}, peft {peft.__version__}, torch {torch.__version__}, {options.mode}",
        "tokens_per_step": tokens, "seconds_median": statistics.median(counted), "seconds_p10": counted[len(counted) // 10],
        "seconds_p90": counted[len(counted) * 9 // 10], "tokens_per_second": tokens / statistics.median(counted),
        "held_bytes": torch.cuda.max_memory_reserved(), "allocated_bytes": torch.cuda.max_memory_allocated(),
        "seconds_to_start": loaded, "seconds_to_first_step": first, "losses": losses[:5]}, indent=2))


if __name__ == "__main__":
    main()
