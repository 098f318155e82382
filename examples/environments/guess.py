#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""The environment `guess` as a program: a number is to be found, with hints. Copy and change it.

    "sources": [{"from": "environment", "command": ["python3", "examples/environments/guess.py"], "n": 4}]

It says and pays what {"from": "environment", "environment": "guess"} does: 1 for the right number,
which ends the episode, and --cost less for anything else.

Reads one line of JSON a question and answers each with one line:
    {"episode": 7, "prompt": …, "seed": …, "index": …}     {"observation": text}
    {"episode": 7, "action": text}                         {"observation": text, "reward": number, "done": …}
    {"episode": 7, "end": true}                            {}
A process has many episodes at a time. `index`, the place of an episode among those of its prompt, is
not used here: all of them look for the same number.
"""
import argparse
import json
import re
import sys

MASK = 2**64 - 1


def hash_of_text(text):
    """FNV-1a of 64 bits."""
    value = 0xCBF29CE484222325
    for byte in text.encode():
        value = (value ^ byte) * 0x100000001B3 & MASK
    return value


def splitmix64(x):
    x = (x + 0x9E3779B97F4A7C15) & MASK
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9 & MASK
    x = (x ^ (x >> 27)) * 0x94D049BB133111EB & MASK
    return x ^ (x >> 31)


class Game:
    def __init__(self, options, prompt, seed):
        self.options = options
        count = options.high - options.low + 1
        self.hidden = options.low + splitmix64(seed ^ hash_of_text(prompt)) % count

    def start(self):
        return (f"\nI have a number from {self.options.low} to {self.options.high} in mind. "
                "Which one is it? Answer with a number alone.\n")

    def step(self, action):
        """Returns observation, reward and whether the episode is over."""
        low, high = self.options.low, self.options.high
        number = re.search(r"-?[0-9]+", action)
        guess = int(number[0]) if number and len(number[0].lstrip("-")) <= 9 else None
        if guess is None or not low <= guess <= high:
            return f"\nAnswer with a number from {low} to {high} alone.\n", -self.options.cost, False
        if guess == self.hidden:
            return "\nThat is it.\n", 1.0, True
        hint = "higher" if self.hidden > guess else "lower"
        return f"\nIt is {hint}.\n", -self.options.cost, False


def main():
    parser = argparse.ArgumentParser(description="A number is to be found.")
    parser.add_argument("--low", type=int, default=1)
    parser.add_argument("--high", type=int, default=20)
    parser.add_argument("--cost", type=float, default=0.1)
    options = parser.parse_args()
    games = {}
    for line in sys.stdin:
        question = json.loads(line)
        episode = question["episode"]
        if "prompt" in question:
            games[episode] = Game(options, question["prompt"], question["seed"])
            answer = {"observation": games[episode].start()}
        elif "action" in question:
            observation, reward, done = games[episode].step(question["action"])
            answer = {"observation": observation, "reward": reward, "done": done}
            if done:
                del games[episode]
        else:
            del games[episode]
            answer = {}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
