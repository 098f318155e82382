#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Measures a LoRA step of one pair on a large model in blocks: memory against the plan and a limit, and
operations a second against those of float32 layers of the same sizes.

    tools/write_block_model qwen2.5-1.5b MODEL.gguf
    bench/compare_large.py PREFOPT MODEL.gguf --limit-gib 2.5 [--set KEY=VALUE ...]

The pair has a prompt of 256 tokens and completions of 128 each. The speed of float32 layers is that of
`prefopt plan --calibrate`, forward and backward on decoders of one and five layers, taken right before
the run; `--no-speed` leaves it out where memory alone is asked for. The machine has to be idle for it.
"""
import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

TOKENS = {"prompt": 256, "chosen": 127, "rejected": 127}  # and an end token of each completion


def plan_of(args, config, *flags):
    sets = [argument for item in args.set for argument in ("--set", item)]
    command = [args.prefopt, "plan", "--config", config, *sets, "--json", *flags]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("prefopt")
    parser.add_argument("model", help="of tools/write_block_model")
    parser.add_argument("--steps", type=int, default=1)
    parser.add_argument("--limit-gib", type=float)
    parser.add_argument("--no-speed", action="store_true")
    parser.add_argument("--set", action="append", default=[], help="an option of the run, repeatable")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        out, rows, config = (Path(folder) / name for name in ("run", "rows.jsonl", "run.json"))
        rows.write_text(json.dumps({key: key[0] * count for key, count in TOKENS.items()}) + "\n")
        options = {
            "output_dir": str(out),
            "model": {"path": args.model, "tokenizer": "byte", "use_lora": True},
            "data": {"train": str(rows)},
            "batch": {"rows": 1, "steps": args.steps},
            "machine": {"checkpointing": "full", "head_budget_mib": 64},
        }
        config.write_text(json.dumps(options))
        plan = plan_of(args, config)
        result = {"model": Path(args.model).name, "set": args.set}
        if not args.no_speed:
            result["layer_gflops"] = 1e3 * plan_of(args, config, "--calibrate")["assumptions"]["layers_tflops"]
        sets = [argument for item in args.set for argument in ("--set", item)]
        command = [args.prefopt, "train", "--config", config, "--quiet", *sets]
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        errors = process.stderr.read()
        _, status, usage = os.wait4(process.pid, 0)
        if status != 0:
            sys.exit(f"compare_large: {errors.strip()}")
        lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
        tokens = lines[-1]["num_tokens"] / len(lines)
        seconds = tokens / lines[-1]["tokens_per_second"]
        peak = usage.ru_maxrss / 2**10
        result |= {"plan_mib": round(plan["memory"]["total"] / 2**20), "peak_mib": round(peak)}
        result["plan_ratio"] = round(result["plan_mib"] / result["peak_mib"], 3)
        if args.limit_gib:
            result |= {"limit_gib": args.limit_gib, "within_limit": peak <= args.limit_gib * 1024}
        if not args.no_speed:
            result["step_s"] = round(seconds, 2)
            result["step_gflops"] = round(plan["step"]["flops"]["all"] / seconds * 1e-9, 1)
            result["speed_ratio"] = round(result["step_gflops"] / result["layer_gflops"], 3)
        print(json.dumps(result))


if __name__ == "__main__":
    main()
