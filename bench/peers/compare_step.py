# SPDX-License-Identifier: Apache-2.0
"""Whole DPO steps of prefopt and TRL on the same rows, in turn (targets S1, S2 and S4).

    python compare_step.py BUILD/bench/bench_dpo_step MODEL_DIR hh-rlhf.jsonl.gz [--cached]

Prints seconds a step, the ratios, peak memory, the time to the first step, and how far loss and
gradient norm of the first step are apart; exit code 1 if by more than 1e-3.
"""
import argparse
import gzip
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

CUT = "\n\nAssistant:"


def usable_rows(path, count):
    """Dialogues with a common prompt, up to the last turn, that fit the length limit."""
    rows = []
    with gzip.open(path, "rt") as file:
        for line in file:
            row = json.loads(line)
            chosen, rejected = row["chosen"], row["rejected"]
            cut = chosen.rfind(CUT) + len(CUT)
            fits = max(len(chosen), len(rejected)) <= 2200
            if chosen[:cut] != rejected[:cut] or not fits:
                continue
            if not chosen[cut:].strip() or not rejected[cut:].strip():
                continue
            rows.append(
                {"prompt": chosen[:cut], "chosen": chosen[cut:], "rejected": rejected[cut:]}
            )
            if len(rows) == count:
                break
    return rows


def run(command):
    """Seconds from the start of the process to the first step, and the steps."""
    start = time.perf_counter()
    with tempfile.TemporaryFile("w+") as errors:
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True) as process:
            ready, steps = None, []
            for text in process.stdout:
                if not text.startswith('{"'):
                    continue
                line = json.loads(text)
                if "ready_seconds" in line:
                    ready = time.perf_counter() - start
                elif "step" in line:
                    steps.append(line)
        if process.returncode != 0:
            errors.seek(0)
            sys.exit(f"{command}:\n{errors.read()[-2000:]}")
    return ready, steps


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("bench", help="the program bench_dpo_step")
    parser.add_argument("model", help="Hugging Face folder with a tokenizer")
    parser.add_argument("data", help="rows of hh-rlhf, JSONL.gz")
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--pairs", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=1, help="runs of each, in turn")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--cached", action="store_true", help="reference log-probs beforehand")
    parser.add_argument("--no-batch", action="store_true", help="without TRL in one batch")
    parser.add_argument("--bench-args", default="", help="more arguments of bench_dpo_step")
    args = parser.parse_args()

    with tempfile.TemporaryDirectory() as folder:
        rows = Path(folder) / "rows.jsonl"
        with open(rows, "w") as file:
            for row in usable_rows(args.data, args.steps * args.pairs):
                file.write(json.dumps(row) + "\n")
        shape = ["--steps", str(args.steps), "--pairs", str(args.pairs)]
        shape += ["--threads", str(args.threads)]
        trl = [sys.executable, str(Path(__file__).with_name("trl_dpo_step.py")), args.model]
        trl += [str(rows), *shape] + (["--precompute"] if args.cached else [])
        own = [args.bench, args.model, str(rows), *shape, *args.bench_args.split()]
        contenders = {"prefopt": own, "TRL, micro-batches of 1": [*trl, "--micro", "1"]}
        if not args.no_batch:
            contenders["TRL, one batch"] = trl
        results = {name: [] for name in contenders}
        for round_ in range(args.rounds):
            for name, command in contenders.items():
                extra = []
                if args.cached and name == "prefopt":
                    extra = ["--reference", "cached", "--cache-dir", f"{folder}/cache-{round_}"]
                results[name].append(run(command + extra))

    own_steps = None
    failed = False
    print(f"{'':<26} {'step seconds':<36} {'sum':>7} {'ratio':>6} {'GiB':>6} {'ready s':>8}")
    for name, runs in results.items():
        seconds = [
            statistics.median(steps[i]["seconds"] for _, steps in runs) for i in range(args.steps)
        ]
        own_steps = own_steps or seconds
        ratio = sum(seconds) / sum(own_steps)
        peak = statistics.median(steps[-1]["peak_rss_gib"] for _, steps in runs)
        ready = statistics.median(ready for ready, _ in runs)
        listed = " ".join(f"{s:.2f}" for s in seconds)
        print(f"{name:<26} {listed:<36} {sum(seconds):7.1f} {ratio:6.2f} {peak:6.2f} {ready:8.2f}")
    first = {name: runs[0][1][0] for name, runs in results.items()}
    for name, step in first.items():
        for key in ("loss", "grad_norm"):
            apart = abs(step[key] - first["prefopt"][key]) / abs(first["prefopt"][key])
            failed |= apart > 1e-3
            print(f"{name:<26} first step, {key}: {step[key]:.6g}, apart by {apart:.1e}")
    sys.exit(failed)


if __name__ == "__main__":
    main()
