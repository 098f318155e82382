#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Times llama.cpp (the package xllamacpp) on the prompts that bench_sampling takes.

    llama_decode.py MODEL.gguf PROMPTS.json [--tokens 64] [--threads 2] [--rounds 3]

All prompts are sequences of one batch, greedy, without an end token. One JSON line a round, of the
tokens after the first ones: the time of the prompts and the first tokens is taken off.
"""
import argparse
import json
import sys
import time

import xllamacpp


def server_of(args, prompts):
    params = xllamacpp.CommonParams()
    params.model.path = args.model
    room = max(len(prompt) for prompt in prompts) + args.tokens + 1
    params.n_parallel = len(prompts)
    params.n_ctx = len(prompts) * ((room + 255) // 256 * 256)
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = args.threads
    params.cache_prompt = False
    params.verbosity = 0
    return xllamacpp.Server(params)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("prompts")
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    with open(args.prompts, encoding="utf-8") as file:
        prompts = json.load(file)
    server = server_of(args, prompts)
    request = {
        "prompt": prompts if len(prompts) > 1 else prompts[0],
        "temperature": 0,
        "samplers": [],
        "ignore_eos": True,
        "cache_prompt": False,
    }
    def complete(tokens):
        start = time.perf_counter()
        answers = server.handle_completions({**request, "n_predict": tokens})
        seconds = time.perf_counter() - start
        answers = answers if isinstance(answers, list) else [answers]
        got = sum(answer["timings"]["predicted_n"] for answer in answers)
        if got != tokens * len(prompts):
            sys.exit(f"llama_decode: expected {tokens * len(prompts)} tokens, got {got}")
        return seconds

    for _ in range(args.rounds):
        seconds = complete(args.tokens) - complete(1)
        tokens = (args.tokens - 1) * len(prompts)
        print(json.dumps({"seconds": seconds, "tokens": tokens, "tokens_per_second": tokens / seconds}), flush=True)


if __name__ == "__main__":
    main()
