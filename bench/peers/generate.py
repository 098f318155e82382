#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Times transformers' generate on the prompts that bench_sampling takes, and keeps what it said.

Run by the Python of the environment that README.md describes.
"""

import argparse
import gzip
import json
import os
import time

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer


def arguments():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", help="Hugging Face folder")
    parser.add_argument("prompts", help="JSON list of token lists; made of --data if it is missing")
    parser.add_argument("--data", help="JSONL.gz rows whose first question becomes a prompt")
    parser.add_argument("--count", type=int, default=64, help="prompts to make")
    parser.add_argument("--tokens", type=int, default=64, help="new tokens of each prompt")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--temperature", type=float, default=0.0, help="0: greedy")
    parser.add_argument("--out", help="JSON file for the completions of the last round")
    return parser.parse_args()


def make_prompts(args):
    """The first question of each row, cut after 12 to 30 tokens: 21 on average."""
    tokenizer = AutoTokenizer.from_pretrained(args.model)
    prompts = []
    with gzip.open(args.data, "rt", encoding="utf-8") as rows:
        for row in rows:
            text = json.loads(row)["chosen"].split("\n\nAssistant:")[0]
            ids = tokenizer(text.strip(), add_special_tokens=False)["input_ids"]
            length = 12 + 7 * len(prompts) % 19
            if len(ids) < length:
                continue
            prompts.append(ids[:length])
            if len(prompts) == args.count:
                return prompts
    raise SystemExit(f"{args.data}: expected {args.count} long enough rows, got {len(prompts)}")


def left_padded(prompts):
    width = max(len(prompt) for prompt in prompts)
    ids = torch.zeros(len(prompts), width, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for row, prompt in enumerate(prompts):
        ids[row, width - len(prompt) :] = torch.tensor(prompt)
        mask[row, width - len(prompt) :] = 1
    return ids, mask


def main():
    args = arguments()
    torch.set_num_threads(args.threads)
    if not os.path.exists(args.prompts):
        with open(args.prompts, "w", encoding="utf-8") as file:
            json.dump(make_prompts(args), file)
    with open(args.prompts, encoding="utf-8") as file:
        prompts = json.load(file)
    model = AutoModelForCausalLM.from_pretrained(args.model, dtype=torch.float32).eval()
    model.generation_config.eos_token_id = None  # equal work in every run
    ids, mask = left_padded(prompts)
    how = {"do_sample": False}
    if args.temperature > 0:
        how = {"do_sample": True, "temperature": args.temperature, "top_k": 0, "top_p": 1.0}
    for _ in range(args.rounds):
        start = time.perf_counter()
        with torch.no_grad():
            result = model.generate(
                input_ids=ids,
                attention_mask=mask,
                max_new_tokens=args.tokens,
                pad_token_id=0,
                **how,
            )
        seconds = time.perf_counter() - start
        tokens = len(prompts) * args.tokens
        print(json.dumps({"seconds": seconds, "tokens_per_second": tokens / seconds}), flush=True)
    if args.out:
        with open(args.out, "w", encoding="utf-8") as file:
            json.dump(result[:, ids.size(1) :].tolist(), file, separators=(",", ":"))


if __name__ == "__main__":
    main()
