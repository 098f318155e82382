#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Checks answers to questions of arithmetic, as a reward program.

    "feedback": {"reward": ["python3", "examples/judges/arithmetic.py"]}

The last question of the prompt counts:

    What is 7 + 5?              What is 12 - 4?              Which is larger, 57 or 40?

The reward of an answer is 1 for the sentence `The answer is N.` with the right number N, 0.2 for that
sentence with another number, and 0 for anything else, white space at its ends aside.

Reads one line of JSON a question, {"prompt": …, "completion": …}, and answers each with one line,
{"reward": number}, or {"reward": null, "error": …} for a prompt without such a question.
"""
import json
import re
import sys

FORM_ALONE = 0.2

QUESTION = re.compile(r"What is (?P<a>\d+) (?P<sign>[+-]) (?P<b>\d+)\?|"
                      r"Which is larger, (?P<c>\d+) or (?P<d>\d+)\?")
FORM = re.compile(r"The answer is (-?\d+)\.")
NUMBER = re.compile(r"-?\d+")


def solution(prompt):
    """Returns the right number; raises ValueError for a prompt without a question."""
    asked = None
    for asked in QUESTION.finditer(prompt):
        pass
    if asked is None:
        raise ValueError(f"expected a question of arithmetic, got {prompt!r}")
    if asked["c"]:
        return max(int(asked["c"]), int(asked["d"]))
    a, b = int(asked["a"]), int(asked["b"])
    return a + b if asked["sign"] == "+" else a - b


def terms(prompt, answer):
    """Returns the parts of the reward, each 0 or 1, and whether the last number is right in any form."""
    right = solution(prompt)
    said = FORM.fullmatch(answer.strip())
    numbers = NUMBER.findall(answer)
    return {"right": float(said is not None and int(said[1]) == right),
            "in form": float(said is not None),
            "right number": float(bool(numbers) and int(numbers[-1]) == right)}


def reward(prompt, answer):
    of = terms(prompt, answer)
    return 1.0 if of["right"] else FORM_ALONE * of["in form"]


def reply(question):
    try:
        return {"reward": reward(question["prompt"], question["completion"])}
    except ValueError as error:
        return {"reward": None, "error": str(error)}


def main():
    for line in sys.stdin:
        print(json.dumps(reply(json.loads(line))), flush=True)


if __name__ == "__main__":
    main()
