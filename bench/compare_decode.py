#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Tokens a second of greedy decoding from GGUF files, prefopt next to llama.cpp (target L1).

    bench/compare_decode.py BENCH_SAMPLING FLOAT32.gguf Q8_0.gguf Q4_1.gguf [--sequences 1 8 64]

Each file is decoded by both sides in turn, in processes of their own that load it and time some
rounds: prompts of 21 random ids, 64 new tokens each, timed from the second one on. prefopt keeps
blocks as they are (`quantized`); the first file is read in float32. The interpreter has to know xllamacpp. A line of JSON has the
rates of a number of sequences, the ratio of each side's best file, and the machine's limit: a step
reads the file once, or takes two operations a weight and sequence, whichever is longer. The machine
has to be idle.
"""
import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

PEER = Path(__file__).parent / "peers" / "llama_decode.py"


def lines_of(command):
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, check=False)
    if done.returncode != 0:
        sys.exit(f"{' '.join(map(str, command))}:\n{done.stderr[-2000:]}")
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]


def rate(command):
    """The median of the rounds; the first one also warms up."""
    rates = [line["tokens_per_second"] for line in lines_of(command)]
    return statistics.median(rates[1:] or rates)


def write_prompts(path, count, length):
    draw = random.Random(1)
    path.write_text(json.dumps([[draw.randrange(100, 40000) for _ in range(length)] for _ in range(count)]))


def limit(path, limits, sequences, weights):
    seconds = max(
        os.path.getsize(path) / (limits["read_gb_s"] * 1e9), 2 * weights * sequences / (limits["gflop_s"] * 1e9)
    )
    return sequences / seconds


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bench", help="the program bench_sampling")
    parser.add_argument("files", nargs="+")
    parser.add_argument("--sequences", type=int, nargs="+", default=[1, 8, 64])
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--weights", type=int, default=134_515_008, help="of the model; SmolLM2-135M")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        prompts = Path(folder) / "prompts.json"
        for count in args.sequences:
            write_prompts(prompts, count, 21)
            shared = ["--tokens", str(args.tokens), "--threads", str(args.threads), "--rounds", str(args.rounds)]
            ours, theirs, limits = {}, {}, {}
            for path in args.files:
                dtype = "float32" if path == args.files[0] else "quantized"
                name = Path(path).name
                theirs[name] = rate([sys.executable, PEER, path, prompts, *shared])
                ours[name] = rate([args.bench, path, prompts, "--dtype", dtype, "--after-first", *shared])
                measured = lines_of([args.bench, path, prompts, "--limits", "--threads", str(args.threads)])[0]
                limits[name] = limit(path, measured, count, args.weights)
            rounded = lambda rates: {name: round(value, 1) for name, value in rates.items()}
            print(
                json.dumps(
                    {
                        "sequences": count,
                        "prefopt": rounded(ours),
                        "llama.cpp": rounded(theirs),
                        "limit": rounded(limits),
                        "ratio": round(max(ours.values()) / max(theirs.values()), 3),
                        "of_limit": round(max(ours[name] / limits[name] for name in ours), 3),
                    }
                ),
                flush=True,
            )


if __name__ == "__main__":
    main()
