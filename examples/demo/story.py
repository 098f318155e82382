#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Tells what a run of examples/configs/smollm2.json gained on the prompts that it held out.

    python3 examples/demo/story.py PREFOPT RUN

PREFOPT is the command, RUN the run's folder. Answers before and after training are those of the
run's samples.jsonl; `prefopt eval` measures the KL. Exit code 1 if the reward did not rise, beyond
its 95 % interval.
"""
import json
import math
import pathlib
import random
import subprocess
import sys

import reward

SHOWN = 4  # prompts whose answers are printed
RESAMPLES = 2000
Z = 1.96  # of a 95 % interval


def read_lines(path):
    return [json.loads(line) for line in pathlib.Path(path).read_text(encoding="utf-8").splitlines()]


def mean(values):
    return sum(values) / len(values)


def bootstrap(values):
    """Mean and percentile interval over the prompts."""
    draw = random.Random(0)
    means = sorted(mean(draw.choices(values, k=len(values))) for _ in range(RESAMPLES))
    return mean(values), means[int(0.025 * RESAMPLES)], means[int(0.975 * RESAMPLES) - 1]


def wilson(rate, trials):
    """Score interval of a rate (Wilson 1927)."""
    shrink = 1 + Z * Z / trials
    middle = (rate + Z * Z / (2 * trials)) / shrink
    half = Z * math.sqrt(rate * (1 - rate) / trials + (Z / (2 * trials)) ** 2) / shrink
    return rate, middle - half, middle + half


def read_answers(run, config, rule=reward):
    """One line a held-out prompt, with its answers before and after training; `rule` is a module that
    rates them."""
    questions = [row["prompt"] for row in read_lines(config["online"]["eval_prompts"])]
    samples = read_lines(run / "samples.jsonl")
    last = max(line["step"] for line in samples)
    answers = [{"question": question} for question in questions]
    for line in samples:
        if line["step"] not in (0, last):
            continue
        when, who = ("before", "reference") if line["step"] == 0 else ("after", "policy")
        question = questions[line["index"]]
        answers[line["index"]][when] = {
            "text": line[who], "tokens": line[who + "_tokens"], "ended": line[who + "_ended"],
            "reward": rule.reward(question, line[who]), "terms": rule.terms(question, line[who])}
    return [answer for answer in answers if "before" in answer and "after" in answer]


def measure_kl(prefopt, run, config, answers):
    """Nats an answer, on fresh samples of the policy's own distribution."""
    rows = run / "answers.jsonl"
    rows.write_text("".join(
        json.dumps({"prompt": [{"role": "user", "content": a["question"]}],
                    "chosen": [{"role": "assistant", "content": a["after"]["text"]}],
                    "rejected": [{"role": "assistant", "content": a["before"]["text"]}]}) + "\n"
        for a in answers), encoding="utf-8")
    done = subprocess.run(
        [prefopt, "eval", "--model", run / "checkpoints/last", "--ref", config["model"]["path"],
         "--data", rows, "--samples", "1", "--prompts", "0", "--max-new-tokens",
         str(config["sampling"]["max_new_tokens"]), "--json"],
        stdout=subprocess.PIPE, text=True)
    if done.returncode != 0:
        sys.exit(done.returncode)  # it has said why
    kl = json.loads(done.stdout)["models"][0]["kl"]
    return kl["mean"], kl["low"], kl["high"]


def compare(answers):
    """What changed, each value with its interval where it has one."""
    before = [a["before"] for a in answers]
    after = [a["after"] for a in answers]
    gains = [a["reward"] - b["reward"] for a, b in zip(after, before)]
    wins = mean([1.0 if gain > 0 else 0.5 if gain == 0 else 0.0 for gain in gains])
    return {
        "reward": (mean([a["reward"] for a in before]), mean([a["reward"] for a in after])),
        "gain": bootstrap(gains),
        "terms": {name: (mean([a["terms"][name] for a in before]),
                         mean([a["terms"][name] for a in after])) for name in before[0]["terms"]},
        "wins": wilson(wins, len(answers)),
        "tokens": (mean([a["tokens"] for a in before]), mean([a["tokens"] for a in after])),
    }


def shown_answers(answers):
    text = ""
    for answer in answers[:SHOWN]:
        text += f"\n» {answer['question']}\n"
        for when in ("before", "after"):
            given = answer[when]
            lines = given["text"].replace("\n", "\n    ") + ("" if given["ended"] else " …")
            text += f"  {when}, reward {given['reward']:.2f}: {lines}\n"
    return text


def table(result, kl):
    before, after = result["reward"]
    gain, wins = result["gain"], [100 * value for value in result["wins"]]
    text = f"{'held-out prompts':<22} {'before':>8} {'after':>8}   95 % interval\n"
    text += (f"{'reward':<22} {before:8.3f} {after:8.3f}   gain {gain[0]:+.3f}, {gain[1]:+.3f} to "
             f"{gain[2]:+.3f}\n")
    for name, (first, last) in result["terms"].items():
        text += f"  {name:<20} {first:8.3f} {last:8.3f}\n"
    text += (f"{'wins against reference':<22} {'':8} {wins[0]:7.0f}%   {wins[1]:.0f} to "
             f"{wins[2]:.0f} %\n")
    text += f"{'tokens an answer':<22} {result['tokens'][0]:8.1f} {result['tokens'][1]:8.1f}\n"
    return text + (f"{'KL to reference':<22} {'':8} {kl[0]:8.2f}   {kl[1]:.2f} to {kl[2]:.2f} nats "
                   "an answer\n")


def main():
    if len(sys.argv) != 3:
        sys.exit(f"usage: {sys.argv[0]} PREFOPT RUN")
    prefopt, run = sys.argv[1], pathlib.Path(sys.argv[2])
    config = json.loads((run / "config.json").read_text(encoding="utf-8"))
    answers = read_answers(run, config)
    result = compare(answers)
    kl = measure_kl(prefopt, run, config, answers)
    print(shown_answers(answers))
    print(table(result, kl))
    (run / "result.json").write_text(json.dumps({**result, "kl": kl}) + "\n", encoding="utf-8")
    print(f"adapter: {run}/checkpoints/last; report: {run}/report.html; answers: {run}/answers.jsonl")
    if result["gain"][1] <= 0:
        sys.exit("the reward did not rise: the 95 % interval of its gain reaches down to 0")


if __name__ == "__main__":
    main()
