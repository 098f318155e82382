#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Compares training an adapter on a GGUF file's blocks with training it on their float32 values.

    bench/compare_base.py PREFOPT MODEL.gguf ROWS.jsonl [--rows 4] [--steps 6] [--rounds 3]

Both sides are `prefopt train` with the same rows, budgets of 512 MiB for activations and 64 MiB for
the head, and take turns; the time of a step is the median over all rounds without first steps. One
JSON line has both, their ratios, the peak memory of each process, and whether the adapters that were
trained are the same to the last bit. The machine has to be idle.
"""
import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

BASES = ("float32", "quantized")


def train(args, base, folder):
    config = {
        "output_dir": str(folder),
        "loss": {"type": "dpo"},
        "model": {"path": args.model, "use_lora": True, "base": base},
        "data": {"train": args.rows_file},
        "batch": {"rows": args.rows, "steps": args.steps, "shuffle": False},
        "machine": {"activation_budget_mib": 512, "head_budget_mib": 64},
    }
    path = folder.with_suffix(".json")
    path.write_text(json.dumps(config))
    process = subprocess.Popen(
        [args.prefopt, "train", "--config", path, "--quiet"], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )
    errors = process.stderr.read().decode()
    _, status, usage = os.wait4(process.pid, 0)
    if status != 0:
        sys.exit(f"compare_base: {errors.strip()}")
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    ends = [line["seconds"] for line in lines if "learning_rate" in line]
    adapter = (folder / "checkpoints" / "last" / "adapter_model.safetensors").read_bytes()
    return [after - before for before, after in zip(ends, ends[1:])], usage.ru_maxrss / 1024, adapter


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("prefopt")
    parser.add_argument("model")
    parser.add_argument("rows_file")
    parser.add_argument("--rows", type=int, default=4)
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    seconds = {base: [] for base in BASES}
    memory = dict.fromkeys(BASES, 0.0)
    adapters = {}
    with tempfile.TemporaryDirectory() as folder:
        for number in range(args.rounds):
            for base in BASES if number % 2 == 0 else reversed(BASES):
                of_steps, mib, adapters[base] = train(args, base, Path(folder) / f"{base}-{number}")
                seconds[base] += of_steps
                memory[base] = max(memory[base], mib)
    step = {base: statistics.median(of_base) for base, of_base in seconds.items()}
    result = {f"{base}_step_s": round(step[base], 4) for base in BASES}
    result |= {f"{base}_peak_mib": round(memory[base], 1) for base in BASES}
    result["time_ratio"] = round(step["quantized"] / step["float32"], 3)
    result["memory_ratio"] = round(memory["quantized"] / memory["float32"], 3)
    result["same_adapter"] = adapters["float32"] == adapters["quantized"]
    print(json.dumps(result))


if __name__ == "__main__":
    main()
