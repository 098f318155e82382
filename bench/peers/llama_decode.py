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
        answer = server.handle_completions({**request, "n_predict": tokens})
        seconds = time.perf_counter() - start
        # Its counts are those of the first sequence.
        reasons = [choice["finish_reason"] for choice in answer["choices"]]
        if reasons != ["length"] * len(prompts):
            sys.exit(f"llama_decode: expected {len(prompts)} completions of {tokens} tokens, got {reasons}")
        return seconds

    for _ in range(args.rounds):
        seconds = complete(args.tokens) - complete(1)
        tokens = (args.tokens - 1) * len(prompts)
        print(json.dumps({"seconds": seconds, "tokens": tokens, "tokens_per_second": tokens / seconds}), flush=True)


if __name__ == "__main__":
    main()
