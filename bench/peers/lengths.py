#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Writes [prompt, chosen, rejected] token counts of the first rows of hh-rlhf, as TRL cuts them.

lengths.py MODEL_DIR DATA.jsonl.gz OUT.json [--rows 20]; MODEL_DIR holds the tokenizer.
"""

import argparse
import gzip
import json
import os

os.environ["HF_HUB_OFFLINE"] = "1"
from transformers import AutoTokenizer
from trl.data_utils import common_prefix_length

CUT = "\n\nAssistant:"
MAX_LENGTH = 1024  # DPOConfig's default


def completions(line):
    """(prompt, chosen, rejected), or None for a row that cannot be used."""
    row = json.loads(line)
    chosen, rejected = row["chosen"], row["rejected"]
    end = chosen.rfind(CUT) + len(CUT)
    usable = chosen[:end] == rejected[:end] and max(len(chosen), len(rejected)) <= 2200
    if not usable or not chosen[end:].strip() or not rejected[end:].strip():
        return None
    return chosen[:end], chosen[end:], rejected[end:]


def counts(tokenizer, prompt, chosen, rejected):
    def ids(text):
        return tokenizer(text)["input_ids"]

    end = tokenizer.eos_token
    whole = [ids(prompt + text + end) for text in (chosen, rejected)]
    alone = ids(prompt)
    shared = min(common_prefix_length(alone, with_completion) for with_completion in whole)
    return [shared, *(min(len(all_ids), MAX_LENGTH) - shared for all_ids in whole)]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("data")
    parser.add_argument("out")
    parser.add_argument("--rows", type=int, default=20)
    a = parser.parse_args()
    tokenizer = AutoTokenizer.from_pretrained(a.model)
    found = []
    for line in gzip.open(a.data, "rt"):
        if len(found) == a.rows:
            break
        parts = completions(line)
        if parts:
            found.append(counts(tokenizer, *parts))
    with open(a.out, "w") as file:
        json.dump(found, file)
    mean = [round(sum(column) / len(found), 1) for column in zip(*found)]
    print(f"{len(found)} rows; prompt, chosen, rejected on average {mean}")


if __name__ == "__main__":
    main()
