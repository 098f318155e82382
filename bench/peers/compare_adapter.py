# SPDX-License-Identifier: Apache-2.0
"""Whole DPO steps of an adapter, prefopt and TRL with PEFT, on the same rows in turn (target Q3).

    python compare_adapter.py BUILD/bench/bench_dpo_step MODEL_DIR MODEL.gguf hh-rlhf.jsonl.gz

MODEL_DIR and MODEL.gguf hold one model; prefopt reads the GGUF file, its weights in blocks and
decoded to bfloat16 and float32, TRL the folder in bfloat16 and float32, in micro-batches of 1 and,
with --batch, in one batch. LoRA on all linear maps, the reference is the adapter off. Prints
seconds a step, peak resident memory, and both as ratios to TRL at its best in each.
"""
import argparse
import json
import statistics
import sys
import tempfile
from pathlib import Path

from compare_step import run, usable_rows


def contenders(args, rows):
    shape = ["--steps", str(args.steps), "--pairs", str(args.pairs), "--threads", str(args.threads)]
    shape += ["--lora", str(args.lora)]
    own = [args.bench, args.gguf, str(rows), "--tokenizer", args.model, *shape]
    own += args.bench_args.split()
    trl = [sys.executable, str(Path(__file__).with_name("trl_dpo_step.py")), args.model, str(rows)]
    commands = {
        f"prefopt, {dtype}": [*own, "--dtype", dtype]
        for dtype in ("quantized", "bfloat16", "float32")
    }
    for dtype in ("bfloat16", "float32"):
        commands[f"TRL, {dtype}"] = [*trl, *shape, "--dtype", dtype, "--micro", "1"]
        if args.batch:
            commands[f"TRL, {dtype}, one batch"] = [*trl, *shape, "--dtype", dtype]
    return commands


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("bench", help="the program bench_dpo_step")
    parser.add_argument("model", help="Hugging Face folder with a tokenizer")
    parser.add_argument("gguf", help="the same model as a GGUF file")
    parser.add_argument("data", help="rows of hh-rlhf, JSONL.gz")
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--pairs", type=int, default=4)
    parser.add_argument("--lora", type=int, default=16)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--batch", action="store_true", help="TRL in one batch as well")
    parser.add_argument("--bench-args", default="", help="more arguments of bench_dpo_step")
    args = parser.parse_args()

    results = {}
    with tempfile.TemporaryDirectory() as folder:
        rows = Path(folder) / "rows.jsonl"
        with open(rows, "w") as file:
            for row in usable_rows(args.data, args.steps * args.pairs):
                file.write(json.dumps(row) + "\n")
        for name, command in contenders(args, rows).items():
            results[name] = run(command)[1]
            listed = " ".join(f"{step['seconds']:.2f}" for step in results[name])
            print(f"{name:<26} {listed}  loss {results[name][0]['loss']:.5f}", flush=True)

    # The first step pays for the first touch of memory, on both sides.
    seconds = {
        name: statistics.median(step["seconds"] for step in steps[1:])
        for name, steps in results.items()
    }
    memory = {name: steps[-1]["peak_rss_gib"] for name, steps in results.items()}
    peers = [name for name in results if name.startswith("TRL")]
    best_seconds = min(seconds[name] for name in peers)
    best_memory = min(memory[name] for name in peers)
    print(f"limits: time 4.00x of TRL's {best_seconds:.2f} s, memory 0.35 of {best_memory:.2f} GiB")
    for name in results:
        print(
            f"{name:<26} {seconds[name]:6.2f} s, {best_seconds / seconds[name]:5.2f}x"
            f"  {memory[name]:6.2f} GiB, {memory[name] / best_memory:.2f}"
        )


if __name__ == "__main__":
    main()
