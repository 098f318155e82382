#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Checks solutions of the reasoning task, as a reward program.

    "feedback": {"reward": ["python3", "examples/judges/sums.py"]}

A prompt is a sum of digits with a colon, and a solution the last digit of the sum so far after each
number but the first:

    7+5-3+4:        2;9;3.

The reward is 1 for a solution of that form whose last digit is right, and -1 for anything else. With
--steps it is the share of the steps that follow rightly from the step before.

Reads one line of JSON a question, {"prompt": …, "completion": …}, and answers each with one line,
{"reward": number}, or {"reward": null, "error": …} for a prompt that is no such sum.
"""
import json
import re
import sys

PROMPT = re.compile(r"\d([+-]\d)+:")


def terms(prompt):
    if not PROMPT.fullmatch(prompt):
        raise ValueError(f"expected a sum such as '7+5-3+4:', got {prompt!r}")
    return [int(term) for term in re.findall(r"[+-]?\d", prompt)]


def digits(solution, count):
    """Returns the digits of a solution of the right form, else None."""
    form = ";".join([r"(\d)"] * count) + r"\."
    found = re.fullmatch(form, solution)
    return [int(digit) for digit in found.groups()] if found else None


def reward(prompt, solution, steps=False):
    numbers = terms(prompt)
    got = digits(solution, len(numbers) - 1)
    if not steps:
        return 1.0 if got and got[-1] == sum(numbers) % 10 else -1.0
    if not got:
        return 0.0
    before = [numbers[0]] + got
    right = [(before[i] + numbers[i + 1]) % 10 == got[i] for i in range(len(got))]
    return sum(right) / len(right)


def reply(question, steps):
    try:
        return {"reward": reward(question["prompt"], question["completion"], steps)}
    except ValueError as error:
        return {"reward": None, "error": str(error)}


def main():
    if sys.argv[1:] not in ([], ["--steps"]):
        sys.exit(f"sums.py: expected --steps or nothing, got {' '.join(sys.argv[1:])}")
    for line in sys.stdin:
        print(json.dumps(reply(json.loads(line), bool(sys.argv[1:]))), flush=True)


if __name__ == "__main__":
    main()
