#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Tells what runs of examples/configs/verify*.json gained on the questions that they held out.

    python3 examples/demo/verify.py PREFOPT RUN…

PREFOPT is the command, each RUN a run's folder. Sampled answers are those of the runs'
samples.jsonl, at temperature 1; `prefopt generate` writes the greedy ones. Of several runs the
first one is compared with the others. Exit code 1 if the first run's right answers did not rise,
beyond the 95 % interval.
"""
import json
import pathlib
import subprocess
import sys

import story

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent / "judges"))
import arithmetic  # noqa: E402

KINDS = {"sums": " + ", "differences": " - ", "larger of two": "larger"}
ROUNDS_SHOWN = 8
BAR = 30  # characters of a reward of 1


def greedy_answers(prefopt, config, questions, adapter=None):
    """Returns the terms of the rule for the likeliest answers, one a question."""
    command = [prefopt, "generate", "--model", config["model"]["path"], "--temperature", "0", "--json",
               "--data", config["online"]["eval_prompts"], "--columns", '{"question": "prompt"}',
               "--chat-format", config["data"]["chat_format"],
               "--max-new-tokens", str(config["sampling"]["max_new_tokens"])]
    if adapter is not None:
        command += ["--adapter", adapter]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    if done.returncode != 0:
        sys.exit(done.returncode)  # it has said why
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    return [arithmetic.terms(question, line["completion"])
            for question, line in zip(questions, lines, strict=True)]


def gain(before, after):
    """Means before and after, and the mean difference with its interval over the questions."""
    differences = [b - a for a, b in zip(before, after)]
    return story.mean(before), story.mean(after), story.bootstrap(differences)


def read_run(folder):
    """Returns the run's name, answers, rewards by round, sampled tokens, seconds and KL."""
    run = pathlib.Path(folder)
    config = json.loads((run / "config.json").read_text(encoding="utf-8"))
    rounds = story.read_lines(run / "rounds.jsonl")
    drawn = config["online"]["rounds"]["prompts"] * sum(
        source["n"] for source in config["online"]["sources"])
    samples = story.read_lines(run / "samples.jsonl")
    last = samples[-1]["step"]
    # The recorded loss of GRPO and RLOO has the name of their common form.
    return {"name": run.resolve().name, "config": config, "folder": run,
            "answers": story.read_answers(run, config, arithmetic),
            "rewards": [line["samples/reward"] for line in rounds],
            "tokens": round(sum(drawn * line["samples/length"] for line in rounds)),
            "seconds": story.read_lines(run / "metrics.jsonl")[-1]["seconds"],
            "kl": story.mean([line["kl"] for line in samples if line["step"] == last])}


def compare(run, greedy=None):
    """What a run changed: by name, means before and after and the gain with its interval."""
    answers = run["answers"]

    def of(term, picked=answers):
        return gain(*([a[when]["terms"][term] for a in picked] for when in ("before", "after")))

    changed = {"right answers": of("right")}
    for kind, mark in KINDS.items():
        changed[f"  {kind}"] = of("right", [a for a in answers if mark in a["question"]])
    changed["in the form asked for"] = of("in form")
    changed["right number in any form"] = of("right number")
    if greedy is not None:
        changed["right answers, greedy"] = gain(*([t["right"] for t in terms] for terms in greedy))
    return changed


def curve(runs):
    """Mean reward of the answers that each round draws."""
    rounds = max(len(run["rewards"]) for run in runs)
    step = max(1, rounds // ROUNDS_SHOWN)
    shown = sorted({0, rounds - 1, *range(step - 1, rounds, step)})
    text = f"{'round':>5}" + "".join(f"  {run['name']:<{BAR + 5}}" for run in runs) + "\n"
    for i in shown:
        text += f"{i + 1:5}"
        for run in runs:
            value = run["rewards"][i] if i < len(run["rewards"]) else 0.0
            text += f"  {value:.2f} {'█' * round(BAR * value):<{BAR}}"
        text = text.rstrip() + "\n"
    return "reward of the answers drawn in training\n" + text


def with_interval(estimate):
    return f"{estimate[0]:+.3f}, {estimate[1]:+.3f} to {estimate[2]:+.3f}"


def table(run, changed):
    text = f"{run['name']:<26} {'before':>7} {'after':>7}   gain, 95 % interval\n"
    for name, (before, after, difference) in changed.items():
        text += f"{name:<26} {before:7.3f} {after:7.3f}   {with_interval(difference)}\n"
    lengths = [story.mean([a[when]["tokens"] for a in run["answers"]]) for when in ("before", "after")]
    text += f"{'tokens an answer':<26} {lengths[0]:7.1f} {lengths[1]:7.1f}\n"
    text += f"{'KL to the first policy':<26} {'':7} {run['kl']:7.2f}   nats an answer\n"
    return text + (f"{len(run['answers'])} questions held out; {run['tokens']:,} tokens sampled in "
                   f"training; {run['seconds'] / 60:.1f} minutes\n")


def differences(runs):
    """The first run against each of the others, on the same questions."""
    text = ""
    first, *others = runs
    for other in others:
        right = [[a["after"]["terms"]["right"] for a in run["answers"]] for run in (other, first)]
        text += (f"right answers of {first['name']} less those of {other['name']}: "
                 f"{with_interval(gain(*right)[2])}\n")
    return text


def main():
    if len(sys.argv) < 3:
        sys.exit(f"usage: {sys.argv[0]} PREFOPT RUN…")
    prefopt = sys.argv[1]
    runs = [read_run(folder) for folder in sys.argv[2:]]
    questions = [answer["question"] for answer in runs[0]["answers"]]
    print(story.shown_answers(runs[0]["answers"]))
    print(curve(runs))
    before = greedy_answers(prefopt, runs[0]["config"], questions)
    results = []
    for run in runs:
        after = greedy_answers(prefopt, run["config"], questions, run["folder"] / "checkpoints/last")
        results.append(compare(run, (before, after)))
        print(table(run, results[-1]))
        (run["folder"] / "result.json").write_text(json.dumps(results[-1]) + "\n", encoding="utf-8")
    print(differences(runs), end="")
    print("reports: " + ", ".join(f"{run['folder']}/report.html" for run in runs))
    if results[0]["right answers"][2][1] <= 0:
        sys.exit("right answers did not rise: the 95 % interval of their gain reaches down to 0")


if __name__ == "__main__":
    main()
