#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Tells how far two self-play runs are from an answer that nothing beats.

    python3 examples/demo/self_play.py PLAIN_RUN NASH_MD_RUN

The exploitability of a policy under the preference of circle.py is the largest gain of an opponent
who always opens in one way,

    max over openings o of P(o beats the policy) - 1/2,

0 for a policy that no opening beats, and 0.4 for one that always opens in the same way. It is
measured on the held-out answers of each evaluation in the runs' samples.jsonl.
"""
import json
import pathlib
import sys

from circle import CIRCLE, beats, opening_of

LATE = 0.5  # share of a run, from its end, that its mean is over
BAR = 40  # characters of an exploitability of 0.4


def shares_of(answers):
    openings = [opening_of(answer) for answer in answers]
    return [openings.count(opening) / len(openings) for opening in CIRCLE]


def exploitability(shares):
    return max(sum(share * beats(o, other) for other, share in zip(CIRCLE, shares))
               for o in CIRCLE) - 0.5


def mean(values):
    return sum(values) / len(values)


def read_run(folder):
    """Returns (step, shares of the openings, KL to the first policy, exploitability) of each
    evaluation, and the last answers."""
    samples = {}
    for line in (pathlib.Path(folder) / "samples.jsonl").read_text(encoding="utf-8").splitlines():
        sample = json.loads(line)
        samples.setdefault(sample["step"], []).append(sample)
    curve = []
    for step, of_step in samples.items():
        answers = [sample["policy"] for sample in of_step]
        shares = shares_of(answers)
        # Without a reference there is no KL.
        kl = mean([sample.get("kl", float("nan")) for sample in of_step])
        curve.append((step, shares, kl, exploitability(shares)))
    return curve, answers


def late_mean(curve):
    values = [value for *_, value in curve]
    return mean(values[-max(1, round(LATE * len(values))):])


def table(name, curve, answers):
    text = f"\n{name}\n{'step':>5} " + " ".join(f"{o:>8}" for o in CIRCLE)
    text += f" {'KL':>8}  exploitability\n"
    for step, shares, kl, value in curve:
        text += f"{step:5} " + " ".join(f"{share:8.0%}" for share in shares)
        text += f" {kl:8.2f}  {value:.3f} {'█' * round(BAR * value / 0.4)}\n"
    opened = "\n".join(f"    {answer.splitlines()[0] if answer.strip() else ''} …"
                       for answer in answers[:3])
    return text + f"  last answers:\n{opened}\n"


def main():
    if len(sys.argv) != 3:
        sys.exit(f"usage: {sys.argv[0]} PLAIN_RUN NASH_MD_RUN")
    late = []
    for name, folder in zip(("plain self-play (spo)", "Nash-MD"), sys.argv[1:]):
        curve, answers = read_run(folder)
        print(table(name, curve, answers), end="")
        late.append(late_mean(curve))
    print(f"\nmean exploitability over the second half: plain self-play {late[0]:.3f}, "
          f"Nash-MD {late[1]:.3f}")
    if late[1] >= late[0]:
        sys.exit("Nash-MD was not less exploitable than plain self-play in these runs")


if __name__ == "__main__":
    main()
