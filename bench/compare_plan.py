#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Compares the step time that `prefopt plan` predicts with the time that steps take, on this machine.

    bench/compare_plan.py PREFOPT MODEL ROWS.jsonl [--ranks 2] [--set KEY=VALUE ...] [--json FILE]

For one rank: speeds by `prefopt plan --calibrate`, then the steps of a run with the same options.
For several, as many calibrations run at once on their shares of the cores, the slowest counts, and
alpha and beta of a collective come from two trainings on these ranks, of a model with next to no
weights and of one with many in several buckets, on rows of a few tokens: what their steps take
beyond those of as many processes that train alone at the same time. Each prediction is made before the run that it
is for; one JSON line tells predicted and measured seconds of a step and their ratio. The machine
has to be idle. Ranks are started as by a plain shell, and meet in a file.
"""
import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

ALMOST_NOTHING = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1}
MANY_WEIGHTS = {"hidden_size": 512, "intermediate_size": 1536, "num_hidden_layers": 12}
SHAPE = {"vocab_size": 300, "num_attention_heads": 2, "num_key_value_heads": 2}
SHORT_ROWS = [{"prompt": f"{i} ", "chosen": "yes", "rejected": "no"} for i in range(100, 124)]


def environment(ranks, rank=None, store=None):
    cores = os.cpu_count()
    env = os.environ | {"OMP_NUM_THREADS": str(max(1, cores // ranks))}
    if rank is not None and ranks > 1:
        env |= {"RANK": str(rank), "WORLD_SIZE": str(ranks), "PREFOPT_STORE": str(store)}
        env |= {"LOCAL_RANK": str(rank), "LOCAL_WORLD_SIZE": str(ranks)}
    return env


def run_all(commands_and_environments):
    """Runs programs at once, and returns what they print."""
    programs = [
        subprocess.Popen(list(map(str, c)), env=e, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for c, e in commands_and_environments
    ]
    texts = [program.communicate() for program in programs]
    for program, (_, errors) in zip(programs, texts):
        if program.returncode != 0:
            sys.exit(f"compare_plan: {program.args[1]}: {errors.strip()}")
    return [out for out, _ in texts]


def sets_of(options):
    return [argument for item in options for argument in ("--set", item)]


class Comparison:
    def __init__(self, args, folder):
        self.args, self.folder = args, Path(folder)
        self.threads = max(1, os.cpu_count() // args.ranks)

    def options(self, model, steps, more, rows=None):
        given = [f"batch.steps={steps}", f"machine.threads={self.threads}", "batch.shuffle=false"]
        given += ["evaluate.sample_prompts=0", f"data.train={rows or self.args.rows}", *model, *more]
        return sets_of(given)

    def plan(self, options, *flags):
        command = [self.args.prefopt, "plan", *options, "--json", *flags]
        ranks = self.args.ranks if "--calibrate" in flags else 1
        texts = run_all([(command, environment(self.args.ranks)) for _ in range(ranks)])
        return [json.loads(text) for text in texts]

    def training(self, options, name):
        config = self.folder / f"{name}.json"
        config.write_text(json.dumps({"output_dir": str(self.folder / name)}))
        return [self.args.prefopt, "train", "--config", config, "--quiet", *options]

    def step_seconds(self, name):
        """Seconds of a step, mean of those after the first."""
        text = (self.folder / name / "metrics.jsonl").read_text()
        lines = [json.loads(line) for line in text.splitlines()]
        ends = [line["seconds"] for line in lines if "loss" in line]
        return statistics.mean(b - a for a, b in zip(ends, ends[1:]))

    def together(self, options, name):
        """Seconds of a step that all ranks take."""
        ranks, store = self.args.ranks, self.folder / f"{name}.store"
        command = self.training(options, name)
        run_all([(command, environment(ranks, rank, store)) for rank in range(ranks)])
        return self.step_seconds(name)

    def apart(self, options, name):
        """Seconds of a step of as many processes, each by itself."""
        names = [f"{name}-{rank}" for rank in range(self.args.ranks)]
        run_all([(self.training(options, one), environment(self.args.ranks)) for one in names])
        return statistics.mean(self.step_seconds(one) for one in names)

    def fitted_network(self):
        """Flags of alpha and beta: what steps on all ranks take beyond the computation of one."""
        if self.args.ranks == 1:
            return []
        ranks, beyond, moved = self.args.ranks, [], []
        short = self.folder / "short.jsonl"
        short.write_text("".join(json.dumps(row) + "\n" for row in SHORT_ROWS))
        for name, shape in (("small", ALMOST_NOTHING), ("large", MANY_WEIGHTS)):
            model = [f"model.decoder.{key}={value}" for key, value in (SHAPE | shape).items()]
            byte = ["model.tokenizer=byte", "data.duplicate=keep"]
            one = self.options(model, 12, ["batch.rows=1", *byte], short)
            all_of_them = self.options(model, 12, [f"batch.rows={ranks}", *byte], short)
            apart = self.apart(one, f"apart-{name}")
            beyond.append(self.together(all_of_them, f"together-{name}") - apart)
            [plan] = self.plan(all_of_them, "--ranks", ranks)
            moved.append(plan["collectives"])
        share = 2 * (ranks - 1) / ranks

        def sums(collectives):
            return next(one for one in collectives if one["name"] == "sum of gradients")

        small, large = (sums(collectives) for collectives in moved)
        # t = messages * alpha * hops + share * bytes / beta
        beta = share * (large["bytes"] - small["bytes"]) / max(beyond[1] - beyond[0], 1e-6)
        messages = sum(one["count"] for one in moved[0])
        alpha = max(beyond[0] - share * small["bytes"] / beta, 0) / messages / (2 * (ranks - 1))
        return ["--alpha-us", alpha * 1e6, "--bus-gb-s", beta / 1e9, "--call-us", 0, "--overlap", 0]

    def compare(self):
        model = [f"model.path={self.args.model}"]
        if self.args.tokenizer:
            model.append(f"model.tokenizer={self.args.tokenizer}")
        options = self.options(model, self.args.steps, self.args.set)
        speeds = [plan["assumptions"] for plan in self.plan(options, "--calibrate", "--plan-steps", 1)]
        flags = ["--ranks", self.args.ranks, "--plan-steps", self.args.steps, *self.fitted_network()]
        for name, slowest in (
            ("layers_tflops", min), ("head_tflops", min), ("memory_gb_s", min), ("fixed_ms", max),
        ):  # fmt: skip
            flags += [f"--{name.replace('_', '-')}", slowest(speed[name] for speed in speeds)]
        [plan] = self.plan(options, *flags)
        measured = self.together(options, "measured")
        predicted = plan["seconds"]["step"]
        return {
            "ranks": self.args.ranks,
            "set": self.args.set,
            "predicted": predicted,
            "measured": measured,
            "ratio": predicted / measured,
            "within_15_percent": abs(predicted / measured - 1) <= 0.15,
            "parts": plan["seconds"],
            "assumptions": plan["assumptions"],
        }


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("prefopt", help="the command")
    parser.add_argument("model", help="folder or GGUF file")
    parser.add_argument("rows")
    parser.add_argument("--tokenizer")
    parser.add_argument("--ranks", type=int, default=1)
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--set", action="append", default=[], help="an option of the run, repeatable")
    parser.add_argument("--json", help="file to which the line is added")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        line = json.dumps(Comparison(args, folder).compare())
    print(line)
    if args.json:
        with open(args.json, "a") as file:
            file.write(line + "\n")


if __name__ == "__main__":
    main()
