#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Compares the memory that `prefopt plan` predicts with the most that a run holds, on this machine.

    bench/compare_memory.py PREFOPT MODEL ROWS.jsonl [--set KEY=VALUE ...] [--case NAME ...] [--json FILE]

Each case is one plan and one run of the same options: LoRA on a GGUF file's blocks, LoRA on float32
weights, all weights in float32. The rows of the run are
the longest of the file, which is what a plan counts. The peak is what the kernel says of the process
(ru_maxrss), pages of mapped files included. One JSON line a case tells both and their ratio. Time is not
measured, so the machine may be busy.
"""
import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

LORA = ["model.use_lora=true"]
CASES = {
    "blocks": [*LORA, "model.base=quantized"],
    "float32": [*LORA, "model.base=float32"],
    "all-weights": [],
}


def longest_rows(path, count, folder):
    rows = [json.loads(line) for line in open(path, encoding="utf-8")]
    rows.sort(key=lambda row: -len(json.dumps(row)))
    chosen = Path(folder) / "rows.jsonl"
    chosen.write_text("".join(json.dumps(row) + "\n" for row in rows[:count]))
    return chosen


def peak_of(command):
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    errors = process.stderr.read()
    _, status, usage = os.wait4(process.pid, 0)
    if status != 0:
        sys.exit(f"compare_memory: {errors.strip()}")
    return usage.ru_maxrss * 1024


def compare(args, name, options, rows, folder):
    out = Path(folder) / name
    config = Path(folder) / f"{name}.json"
    config.write_text(json.dumps({"output_dir": str(out), "data": {"train": str(rows)}}))
    given = [f"model.path={args.model}", f"batch.rows={args.rows}", f"batch.steps={args.steps}"]
    given += ["batch.shuffle=false", *options, *args.set]
    sets = [argument for item in given for argument in ("--set", item)]
    plan = json.loads(
        subprocess.run(
            [args.prefopt, "plan", "--config", config, *sets, "--json"], check=True, capture_output=True, text=True
        ).stdout
    )["memory"]
    peak = peak_of([args.prefopt, "train", "--config", config, "--quiet", *sets])
    return {
        "case": name,
        "set": options + args.set,
        "plan_mib": round(plan["total"] / 2**20, 1),
        "peak_mib": round(peak / 2**20, 1),
        "ratio": round(plan["total"] / peak, 3),
        "within_10_percent": abs(plan["total"] / peak - 1) <= 0.1,
        "parts_mib": {part: round(size / 2**20, 1) for part, size in plan["parts"].items()},
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("prefopt", help="the command")
    parser.add_argument("model", help="GGUF file")
    parser.add_argument("rows_file")
    parser.add_argument("--rows", type=int, default=4)
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--case", action="append", choices=CASES, help="repeatable; default: all")
    parser.add_argument("--set", action="append", default=[], help="an option of the run, repeatable")
    parser.add_argument("--json", help="file to which the lines are added")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        rows = longest_rows(args.rows_file, args.rows, folder)
        for name in args.case or CASES:
            line = json.dumps(compare(args, name, CASES[name], rows, folder))
            print(line, flush=True)
            if args.json:
                with open(args.json, "a") as file:
                    file.write(line + "\n")


if __name__ == "__main__":
    main()
