#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Times prefopt's tokenizers against the package `tokenizers`: megabytes of text a second, and the ratio.

    compare_tokenizer.py TEXTS [--bench build/release/bench/bench_tokenizer] [--size 8000] [FAMILY...]

TEXTS are rows as tools/check_tokenizer reads them. A tokenizer of each kind (tools/train_tokenizers.py) is trained on
them first. Needs the Python packages tokenizers, sentencepiece and transformers (for SentencePiece's protocol).
"""
import argparse
import itertools
import json
import os
import pathlib
import subprocess
import sys
import tempfile

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tools"))
PEER = """
import json, sys, time
from tokenizers import Tokenizer
tokenizer = Tokenizer.from_file(sys.argv[1])
texts = [json.loads(line) for line in open(sys.argv[2])]
size = sum(len(text.encode()) for text in texts)
best = tokens = 0
for _ in range(5):
    start = time.perf_counter()
    encodings = tokenizer.encode_batch_fast(texts, add_special_tokens=False)
    best = max(best, size / (time.perf_counter() - start) / 1e6)
    tokens = sum(len(encoding) for encoding in encodings)
print(json.dumps({"tokens": tokens, "megabytes_per_second": best}))
"""


def measured(command, **more):
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, env={**os.environ, **more}).stdout)


def main():
    from row_texts import real_lines
    from train_tokenizers import byte_level_families, families
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("texts", type=pathlib.Path)
    arguments.add_argument("families", nargs="*")
    arguments.add_argument("--bench", default=ROOT / "build/release/bench/bench_tokenizer", type=pathlib.Path)
    arguments.add_argument("--size", default=8000, type=int)
    args = arguments.parse_args()
    texts = real_lines(args.texts)
    with tempfile.TemporaryDirectory() as folder:
        sample = pathlib.Path(folder) / "texts.jsonl"
        sample.write_text("".join(json.dumps(text) + "\n" for text in texts))
        print("| tokenizer | threads | prefopt, MB/s | tokenizers, MB/s | ratio |\n| --- | --- | --- | --- | --- |")
        for name, tokenizer in itertools.chain(byte_level_families(lambda: iter(texts), args.size),
                                               families(lambda: iter(texts), args.size)):
            if args.families and name not in args.families:
                continue
            path = pathlib.Path(folder) / name / "tokenizer.json"
            path.parent.mkdir()
            tokenizer.save(str(path))
            for threads in (1, 2):
                own = measured([args.bench, path.parent, sample, "--threads", str(threads)])
                peer = measured([sys.executable, "-c", PEER, path, sample], RAYON_NUM_THREADS=str(threads))
                assert own["tokens"] == peer["tokens"], (own, peer)
                speeds = own["megabytes_per_second"], peer["megabytes_per_second"]
                print(f"| {name} | {threads} | {speeds[0]:.1f} | {speeds[1]:.1f} | {speeds[0] / speeds[1]:.1f} |", flush=True)


if __name__ == "__main__":
    main()
