#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Compares trainings of bfloat16 weights with trainings of float32 weights, by their losses.

    bench/compare_precision.py PREFOPT MODEL ROWS.jsonl [--steps 50] [--seeds 3] [--narrow 1]
        [--device cpu] [--set KEY=VALUE ...] [--json FILE]

Trains with float32 weights once for each seed, which orders the rows, and with bfloat16 weights by
the first of them. The mean loss of the last ten steps of a bfloat16 run has to lie within the
float32 runs' least and greatest. One JSON line has the means, and the largest difference of a step
between two runs of one seed. Exit code 1 where a bfloat16 run lies outside.
"""
import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

LAST = 10


def losses(args, folder, dtype, seed):
    """The loss of each step."""
    out = Path(folder) / f"{dtype}-{seed}"
    config = out.with_suffix(".json")
    config.write_text(json.dumps({
        "output_dir": str(out),
        "seed": seed,
        "loss": {"type": "dpo", "beta": 0.1},
        "model": {"path": args.model, "dtype": dtype, "device": args.device},
        "data": {"train": args.rows},
        "optimizer": {"learning_rate": 1e-5, "schedule": "constant", "warmup_steps": 5},
        "batch": {"steps": args.steps, "rows": 4},
        "evaluate": {"sample_prompts": 0}}))
    options = [word for item in args.set for word in ("--set", item)]
    subprocess.run([args.prefopt, "train", "--quiet", "--config", config, *options], check=True)
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [line["loss"] for line in lines if "loss" in line]


def compare(args, folder):
    means, apart = {"float32": [], "bfloat16": []}, 0.0
    for seed in range(args.seeds):
        dtypes = ["float32", "bfloat16"] if seed < args.narrow else ["float32"]
        runs = {dtype: losses(args, folder, dtype, seed) for dtype in dtypes}
        for dtype, of_steps in runs.items():
            means[dtype].append(statistics.mean(of_steps[-LAST:]))
            print(f"seed {seed}, {dtype}: {means[dtype][-1]:.5f}", file=sys.stderr)
        if len(runs) == 2:
            apart = max(apart, *(abs(a - b) for a, b in zip(*runs.values())))
    least, most = min(means["float32"]), max(means["float32"])
    return {"steps": args.steps, "device": args.device, "set": args.set, **means,
            "largest_difference_of_a_step": apart,
            "within_spread": all(least <= mean <= most for mean in means["bfloat16"])}


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("prefopt", help="the command")
    parser.add_argument("model", help="folder or GGUF file")
    parser.add_argument("rows")
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--narrow", type=int, default=1, help="seeds of bfloat16 runs")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--set", action="append", default=[], help="an option of the runs, repeatable")
    parser.add_argument("--json", help="file to which the line is added")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        result = compare(args, folder)
    print(json.dumps(result))
    if args.json:
        with open(args.json, "a") as file:
            file.write(json.dumps(result) + "\n")
    sys.exit(0 if result["within_spread"] else 1)


if __name__ == "__main__":
    main()
