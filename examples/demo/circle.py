#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""A preference that goes round in circles, as rock, paper and scissors do.

    "feedback": {"program": ["python3", "examples/demo/circle.py"]}

An answer has one of three openings, by its first three words:

    article   the first one is "The"
    clause    any other first word, and a comma after one of the three
    bare      neither

article beats clause, clause beats bare, bare beats article, with probability 0.9; equal openings
are as good as each other. No opening is the best one, and no reward has these comparisons.

Reads one line of JSON a question, {"prompt": …, "a": …, "b": …}, and answers each with one line,
{"p": P(a beats b)}.
"""
import json
import sys

CIRCLE = ["article", "clause", "bare"]  # each beats the next one
STRENGTH = 0.9


def opening_of(answer):
    words = answer.split()[:3]
    if words[:1] == ["The"]:
        return "article"
    return "clause" if any(word.endswith(",") for word in words) else "bare"


def beats(first, second):
    """Returns the probability that one opening beats the other."""
    ahead = (CIRCLE.index(second) - CIRCLE.index(first)) % len(CIRCLE)
    return (0.5, STRENGTH, 1 - STRENGTH)[ahead]


def main():
    for line in sys.stdin:
        asked = json.loads(line)
        p = beats(opening_of(asked["a"]), opening_of(asked["b"]))
        print(json.dumps({"p": p}), flush=True)


if __name__ == "__main__":
    main()
