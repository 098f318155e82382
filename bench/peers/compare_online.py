# SPDX-License-Identifier: Apache-2.0
"""Whole iterations of online DPO by prefopt and TRL on the same prompts, in turn.

    python compare_online.py BUILD/bench/bench_online MODEL_DIR [--no-trl]

An iteration draws two completions of 64 tokens of four prompts of 21 tokens, rates them by the
length of their text and takes one step. Prints seconds an iteration, where they go, the ratios and
peak memory; the first iteration warms up and counts in memory alone. TRL's rating is part of its
training.
"""
import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

QUESTIONS = Path(__file__).resolve().parents[2] / "examples/demo/prompts.jsonl"


def make_prompts(model, count, length):
    """The demo's questions in a row, cut into lists of as many tokens."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model)
    with open(QUESTIONS, encoding="utf-8") as file:
        text = " ".join(json.loads(line)["prompt"] for line in file)
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    if len(ids) < count * length:
        sys.exit(f"{QUESTIONS}: expected {count * length} tokens, got {len(ids)}")
    return [ids[i * length : (i + 1) * length] for i in range(count)]


def run(command):
    with tempfile.TemporaryFile("w+") as errors:
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=errors, text=True)
        if done.returncode != 0:
            errors.seek(0)
            sys.exit(f"{command}:\n{errors.read()[-2000:]}")
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith('{"')]


def summarize(runs):
    """Medians over the iterations of all runs but the first of each."""
    timed = [line for lines in runs for line in lines[1:]]
    parts = {key: statistics.median(line.get(key, 0) for line in timed)
             for key in ("seconds", "sampling", "rating", "training")}
    seconds = [line["seconds"] for line in timed]
    peak = statistics.median(lines[-1]["peak_rss_gib"] for lines in runs)
    return {**parts, "least": min(seconds), "most": max(seconds), "peak": peak}


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("bench", help="the program bench_online")
    parser.add_argument("model", help="Hugging Face folder with a tokenizer")
    parser.add_argument("--iterations", type=int, default=4, help="of a run, the first included")
    parser.add_argument("--rounds", type=int, default=2, help="runs of each, in turn")
    parser.add_argument("--prompt-tokens", type=int, default=21)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--no-trl", action="store_true", help="prefopt alone")
    args = parser.parse_args()

    trl = [sys.executable, str(Path(__file__).with_name("trl_online_step.py"))]
    contenders = {"prefopt": [args.bench]}
    if not args.no_trl:
        contenders["TRL"] = trl
        contenders["TRL, gradient checkpointing"] = [*trl, "--checkpointing"]
    results = {name: [] for name in contenders}
    with tempfile.TemporaryDirectory() as folder:
        prompts = Path(folder) / "prompts.json"
        prompts.write_text(json.dumps(make_prompts(args.model, 4 * args.iterations, args.prompt_tokens)))
        shape = [args.model, str(prompts), "--iterations", str(args.iterations)]
        shape += ["--threads", str(args.threads)]
        for _ in range(args.rounds):
            for name, command in contenders.items():
                results[name].append(run([*command, *shape]))

    sums = {name: summarize(runs) for name, runs in results.items()}
    own = sums["prefopt"]
    print(f"{'':<28} {'s':>6} {'least':>6} {'most':>6} {'sampling':>9} {'rating':>7} "
          f"{'training':>9} {'ratio':>6} {'GiB':>5} {'memory':>7}")
    for name, of in sums.items():
        print(f"{name:<28} {of['seconds']:6.2f} {of['least']:6.2f} {of['most']:6.2f} "
              f"{of['sampling']:9.2f} {of['rating']:7.2f} {of['training']:9.2f} "
              f"{of['seconds'] / own['seconds']:6.2f} {of['peak']:5.2f} {own['peak'] / of['peak']:7.2f}")


if __name__ == "__main__":
    main()
