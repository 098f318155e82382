#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Compares the time from the start of a process to its first DPO step with an adapter: prefopt's first and
second start, and TRL with PEFT.

    bench/compare_start.py PREFOPT MODEL_DIR ROWS.jsonl [--gguf MODEL.gguf] [--rounds 2]

MODEL_DIR is a Hugging Face folder, which TRL reads; prefopt reads it too, or the GGUF file. Pages of all
files are in memory after the first round, which does not count; tokens are cached by both. For prefopt the
beginning of the step is when its line of metrics.jsonl appears, less the seconds of the step; for TRL it is
its own event. Each process has one row of ROWS.jsonl. The machine has to be idle.
"""
import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

TRL = """
import json, sys, time
from datasets import Dataset
from peft import LoraConfig
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
from trl import DPOConfig, DPOTrainer

model_dir, rows, out = sys.argv[1:]

class Clock(TrainerCallback):
    def on_step_begin(self, *args, **kwargs):
        print(time.time(), flush=True)

data = Dataset.from_list([json.loads(line) for line in open(rows)])
config = DPOConfig(output_dir=out, max_steps=1, per_device_train_batch_size=1, use_cpu=True, bf16=False,
                   report_to=[], save_strategy="no", disable_tqdm=True, gradient_checkpointing=False)
trainer = DPOTrainer(AutoModelForCausalLM.from_pretrained(model_dir), args=config, train_dataset=data,
                     processing_class=AutoTokenizer.from_pretrained(model_dir),
                     peft_config=LoraConfig(r=16, target_modules="all-linear"), callbacks=[Clock()])
trainer.train()
"""


def trl_seconds(args, rows, folder):
    start = time.time()
    command = [sys.executable, "-c", TRL, args.model, str(rows), str(Path(folder) / "trl")]
    done = subprocess.run(command, capture_output=True, text=True)
    times = [line for line in done.stdout.splitlines() if line.replace(".", "").isdigit()]
    if not times:
        sys.exit(f"compare_start: TRL: {done.stderr.strip()}")
    return float(times[0]) - start


def prefopt_seconds(args, rows, folder, name):
    out = Path(folder) / name
    config = Path(folder) / f"{name}.json"
    model = {"path": args.gguf or args.model, "use_lora": True}
    data = {"train": str(rows), "token_cache": str(Path(folder) / "tokens")}
    batch = {"rows": 1, "steps": 1}
    config.write_text(json.dumps({"output_dir": str(out), "model": model, "data": data, "batch": batch}))
    start = time.time()
    command = [args.prefopt, "train", "--config", config, "--quiet"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    metrics = out / "metrics.jsonl"
    while process.poll() is None and not (metrics.exists() and metrics.stat().st_size > 0):
        time.sleep(0.002)
    seen = time.time()
    errors = process.communicate()[1]
    if process.returncode != 0:
        sys.exit(f"compare_start: {errors.strip()}")
    line = json.loads(metrics.read_text().splitlines()[0])
    return seen - start - line["num_tokens"] / line["tokens_per_second"]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("prefopt")
    parser.add_argument("model", help="Hugging Face folder")
    parser.add_argument("rows_file")
    parser.add_argument("--gguf", help="the file that prefopt reads in place of the folder")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--no-peer", action="store_true", help="leaves TRL out")
    args = parser.parse_args()
    seconds = {"first": [], "second": [], "trl": []}
    for number in range(args.rounds + 1):
        with tempfile.TemporaryDirectory() as folder:
            rows = Path(folder) / "rows.jsonl"
            with open(args.rows_file, encoding="utf-8") as file:
                rows.write_text(file.readline())
            first = prefopt_seconds(args, rows, folder, "first")
            second = prefopt_seconds(args, rows, folder, "second")
            trl = 0 if args.no_peer else trl_seconds(args, rows, folder)
            if number > 0:  # the first round reads the files
                for name, value in (("first", first), ("second", second), ("trl", trl)):
                    seconds[name].append(value)
    result = {f"{name}_s": round(statistics.median(values), 3) for name, values in seconds.items() if any(values)}
    if not args.no_peer:
        result["trl_ratio"] = round(result["trl_s"] / result["first_s"], 1)
    result["second_within_half_a_second"] = result["second_s"] <= 0.5
    print(json.dumps(result))


if __name__ == "__main__":
    main()
