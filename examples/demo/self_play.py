#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Tells how far two self-play runs are from an answer that nothing beats.

    python3 examples/demo/self_play.py PLAIN_RUN NASH_MD_RUN

The exploitability of a policy under the preference of circle.py is the largest gain of an opponent
who always opens in one way,

    max over openings o of P(o beats the policy) - 1/2,

0 for a policy that no opening beats, and 0.4 for one that always opens in the same way. It is
measured on the held-out answers of each evaluation in the runs' samples.jsonl. Exit code 1 if
Nash-MD is not less exploitable, beyond the 95 % interval over these prompts.
"""
import json
import pathlib
import random
import sys

from circle import CIRCLE, beats, opening_of

LATE = 1 / 3  # share of a run, from its end, that its mean is over
BAR = 40  # characters of an exploitability of 0.4
RESAMPLES = 2000


def shares_of(openings):
    return [openings.count(opening) / len(openings) for opening in CIRCLE]


def exploitability(shares):
    return max(sum(share * beats(o, other) for other, share in zip(CIRCLE, shares))
               for o in CIRCLE) - 0.5


def mean(values):
    return sum(values) / len(values)


def read_run(folder):
    """Returns (step, openings by prompt, KL to the first policy) of each evaluation, and the last
    answers."""
    samples = {}
    for line in (pathlib.Path(folder) / "samples.jsonl").read_text(encoding="utf-8").splitlines():
        sample = json.loads(line)
        samples.setdefault(sample["step"], []).append(sample)
    curve = []
    for step, of_step in samples.items():
        answers = [sample["policy"] for sample in sorted(of_step, key=lambda line: line["index"])]
        kl = mean([sample["kl"] for sample in of_step]) if "kl" in of_step[0] else None
        curve.append((step, [opening_of(answer) for answer in answers], kl))
    return curve, answers


def late_mean(curve, prompts):
    """Mean exploitability of the run's end, measured on some of the prompts."""
    late = curve[-max(1, round(LATE * len(curve))):]
    return mean([exploitability(shares_of([openings[i] for i in prompts]))
                 for _, openings, _ in late])


def gap(plain, nash):
    """How much less exploitable Nash-MD is, with the percentile interval over the prompts, which
    both runs answer."""
    count, draw = len(plain[-1][1]), random.Random(0)
    difference = lambda prompts: late_mean(plain, prompts) - late_mean(nash, prompts)
    gaps = sorted(difference(draw.choices(range(count), k=count)) for _ in range(RESAMPLES))
    low, high = gaps[int(0.025 * RESAMPLES)], gaps[int(0.975 * RESAMPLES) - 1]
    return difference(range(count)), low, high


def table(name, curve, answers):
    text = f"\n{name}\n{'step':>5} " + " ".join(f"{o:>8}" for o in CIRCLE)
    text += f" {'KL':>8}  exploitability\n"
    for step, openings, kl in curve:
        shares = shares_of(openings)
        value = exploitability(shares)
        text += f"{step:5} " + " ".join(f"{share:8.0%}" for share in shares)
        distance = "–" if kl is None else f"{kl:.2f}"  # there is none without a reference
        text += f" {distance:>8}  {value:.3f} {'█' * round(BAR * value / 0.4)}\n"
    opened = "\n".join(f"    {answer.splitlines()[0] if answer.strip() else ''} …"
                       for answer in answers[:3])
    return text + f"  last answers:\n{opened}\n"


def main():
    if len(sys.argv) != 3:
        sys.exit(f"usage: {sys.argv[0]} PLAIN_RUN NASH_MD_RUN")
    curves = []
    for name, folder in zip(("plain self-play (spo)", "Nash-MD"), sys.argv[1:]):
        curve, answers = read_run(folder)
        print(table(name, curve, answers), end="")
        curves.append(curve)
    everywhere = range(len(curves[0][-1][1]))
    plain, nash = (late_mean(curve, everywhere) for curve in curves)
    less, low, high = gap(*curves)
    print(f"\nmean exploitability over the last third: plain self-play {plain:.3f}, "
          f"Nash-MD {nash:.3f}, less by {less:.3f} (95 % interval {low:+.3f} to {high:+.3f})")
    if low <= 0:
        sys.exit("Nash-MD was not less exploitable than plain self-play in these runs, beyond the "
                 "95 % interval")


if __name__ == "__main__":
    main()
