#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Rates hints by the answers that a black box gives with them, as a reward program.

    stimulus.py --references FILE [--answers 4] [--scale 10] [--cache FILE] -- COMMAND…

COMMAND is a program that reads {"prompt": …} lines and answers each with a line {"completion": …}, such
as a script that asks a server. For a prompt and a hint, the completion to be rated, it is asked
--answers times with the prompt, a line feed, `Hint: ` and the hint. The reward is --scale times the mean
ROUGE-1 (F1 of words) of the answers against the prompt's reference. --references has a line
{"prompt": …, "reference": …} for each prompt. What was asked is kept in --cache, by prompt and hint; several
processes may append to one file.

Reads one line of JSON a question, {"prompt": …, "completion": …}, and answers each with one line,
{"reward": number}, or {"reward": null, "error": …} for a prompt without a reference or a black box that
gives no answer.
"""
import argparse
import collections
import json
import os
import re
import subprocess
import sys


def words(text):
    return collections.Counter(re.findall(r"\w+", text.lower()))


def rouge_1(answer, reference):
    """Returns the F1 of the words that both have."""
    got, expected = words(answer), words(reference)
    common = sum((got & expected).values())
    return 2 * common / (got.total() + expected.total()) if common else 0.0


def read_lines(path):
    with open(path, encoding="utf-8") as file:
        return [json.loads(line) for line in file]


class Rater:
    def __init__(self, arguments):
        self.arguments = arguments
        self.references = {row["prompt"]: row["reference"] for row in read_lines(arguments.references)}
        self.known = {}
        if arguments.cache and os.path.exists(arguments.cache):
            self.known = {(row["prompt"], row["completion"]): row["reward"] for row in read_lines(arguments.cache)}
        self.box = subprocess.Popen(arguments.command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
                                    encoding="utf-8")

    def answer(self, text):
        self.box.stdin.write(json.dumps({"prompt": text}) + "\n")
        self.box.stdin.flush()
        line = self.box.stdout.readline()
        try:
            return json.loads(line)["completion"]
        except (ValueError, KeyError, TypeError):
            raise ValueError(f"expected {{\"completion\": text}} of the black box, got {line.strip()!r}") from None

    def reward(self, prompt, hint):
        if (prompt, hint) in self.known:
            return self.known[prompt, hint]
        if prompt not in self.references:
            raise ValueError(f"expected a reference of the prompt, got none for {prompt!r}")
        asked = f"{prompt}\nHint: {hint}"
        scores = [rouge_1(self.answer(asked), self.references[prompt]) for _ in range(self.arguments.answers)]
        value = self.arguments.scale * sum(scores) / len(scores)
        self.known[prompt, hint] = value
        if self.arguments.cache:
            with open(self.arguments.cache, "a", encoding="utf-8") as file:
                file.write(json.dumps({"prompt": prompt, "completion": hint, "reward": value}) + "\n")
        return value

    def reply(self, question):
        try:
            return {"reward": self.reward(question["prompt"], question["completion"])}
        except (ValueError, OSError) as error:
            return {"reward": None, "error": str(error)}


def parse():
    parser = argparse.ArgumentParser(description="Rates hints by the answers that a black box gives with them.")
    parser.add_argument("--references", required=True)
    parser.add_argument("--answers", type=int, default=4)
    parser.add_argument("--scale", type=float, default=10)
    parser.add_argument("--cache")
    parser.add_argument("command", nargs="+")
    arguments = parser.parse_args()
    if arguments.answers < 1:
        parser.error(f"expected --answers of at least 1, got {arguments.answers}")
    return arguments


def main():
    rater = Rater(parse())
    for line in sys.stdin:
        print(json.dumps(rater.reply(json.loads(line))), flush=True)


if __name__ == "__main__":
    main()
