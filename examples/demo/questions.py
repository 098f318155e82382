#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Writes the questions of `tools/demo --verify`, next to this file.

    python3 examples/demo/questions.py

questions.jsonl trains, held_out_questions.jsonl measures. No two numbers that are held out are
asked for in training, in either order.
"""
import json
import pathlib
import random

SEED = 20
HELD_OUT = 32  # of each kind
TRAINED = 160  # of each kind, at most

FORM = 'Reply with "The answer is" and the number.'


def pairs_of_kinds():
    """Returns all pairs of numbers, smaller one first, of each kind of question."""
    small = [(a, b) for b in range(1, 21) for a in range(1, b + 1)]
    return {"sum": small, "difference": [(a, b) for a, b in small if a < b],
            "larger": [(a, b) for b in range(10, 100) for a in range(10, b)]}


def question(kind, smaller, larger, turned):
    first, second = (larger, smaller) if turned else (smaller, larger)
    if kind == "sum":
        return f"What is {first} + {second}?"
    if kind == "difference":
        return f"What is {larger} - {smaller}?"
    return f"Which is larger, {first} or {second}?"


def questions():
    """Returns those that train and those that are held out."""
    draw = random.Random(SEED)
    trained, held_out = [], []
    for kind, pairs in pairs_of_kinds().items():
        draw.shuffle(pairs)
        asked = [question(kind, a, b, draw.random() < 0.5) for a, b in pairs]
        held_out += asked[:HELD_OUT]
        trained += asked[HELD_OUT:HELD_OUT + TRAINED]
    draw.shuffle(trained)
    draw.shuffle(held_out)
    return trained, held_out


def main():
    folder = pathlib.Path(__file__).resolve().parent
    for name, asked in zip(("questions.jsonl", "held_out_questions.jsonl"), questions()):
        lines = (json.dumps({"prompt": f"{text} {FORM}"}) + "\n" for text in asked)
        (folder / name).write_text("".join(lines), encoding="utf-8")


if __name__ == "__main__":
    main()
