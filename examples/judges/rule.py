#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""A rule that a reader can check by eye, as a reward program and as a judge. Copy and change it.

    "feedback": {"reward": ["python3", "examples/judges/rule.py"]}
    "feedback": {"judge": ["python3", "examples/judges/rule.py"]}

The score of an answer: 1 if it ends a sentence, less 0.02 for each word beyond 40, less the share of
its runs of three words that repeat an earlier one; -1 without a word.

Reads one line of JSON a question and answers each with one line:
    {"prompt": …, "completion": …}       {"reward": number}
    {"prompt": …, "a": …, "b": …}        {"winner": "a"}, "b" or "tie"
"""
import json
import sys

MOST_WORDS = 40


def score(answer):
    words = answer.lower().split()
    if not words:
        return -1.0
    complete = float(words[-1][-1] in ".!?")
    length = 0.02 * max(0, len(words) - MOST_WORDS)
    runs = list(zip(words, words[1:], words[2:]))
    repetition = 1 - len(set(runs)) / len(runs) if runs else 0.0
    return complete - length - repetition


def reply(question):
    if "completion" in question:
        return {"reward": score(question["completion"])}
    a, b = score(question["a"]), score(question["b"])
    return {"winner": "a" if a > b else "b" if b > a else "tie"}


def main():
    for line in sys.stdin:
        print(json.dumps(reply(json.loads(line))), flush=True)


if __name__ == "__main__":
    main()
