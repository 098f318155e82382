# SPDX-License-Identifier: Apache-2.0
"""Updates of GRPO by prefopt and TRL on the same rollouts, in turn.

    python compare_grpo.py BUILD/bench/bench_grpo_step MODEL_DIR [--constant | --draw] [--beta 0.04]

An update trains on one prompt of 256 random tokens with 8 completions of 20 to 128 tokens, or of 128
each, and their rewards; nothing is sampled. Prints seconds an update, ratios and peak memory (the
first update warms up and counts in memory alone), the floating-point operations of each and the time
that they take at the speed of this machine's products; then what sharing the prompt gains in the
layers. Exit code 1 if loss or gradient norm of the first update are apart by more than 1e-3.

With --draw each side draws its completions first, each as long as the longest, and the time includes
that. Tokens, losses and gradients then differ, and operations are those of the update.
"""
import argparse
import json
import random
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

COMPLETIONS = 8
LOWEST_ID, HIGHEST_ID = 100, 40000  # ordinary tokens


def make_group(draw, args):
    longest, shortest, last = args.tokens, args.shortest, COMPLETIONS - 1
    lengths = [longest] * COMPLETIONS
    if not args.constant and not args.draw:
        lengths = [shortest + (longest - shortest) * i // last for i in range(COMPLETIONS)]
    ids = lambda count: [draw.randint(LOWEST_ID, HIGHEST_ID) for _ in range(count)]
    return {
        "prompt": ids(args.prompt_tokens),
        "completions": [ids(length) for length in lengths],
        "rewards": [draw.random() for _ in lengths],
    }


class Work:
    """Floating-point operations of an update (docs/benchmarks.md); those of attention are left out."""

    def __init__(self, config, group, beta):
        hidden, head = config["hidden_size"], config["head_dim"]
        queries, keys = config["num_attention_heads"] * head, config["num_key_value_heads"] * head
        maps = hidden * (2 * queries + 2 * keys + 3 * config["intermediate_size"])
        self.layers = 2 * maps * config["num_hidden_layers"]  # a token, one pass
        self.head = 2 * hidden * config["vocab_size"]  # a row, one product
        self.reference = 1 if beta else 0  # passes
        prompt, lengths = len(group["prompt"]), [len(c) for c in group["completions"]]
        # The last token of a sequence predicts nothing.
        self.shared = prompt + sum(lengths) - len(lengths)
        self.apart = len(lengths) * (prompt - 1) + sum(lengths)
        self.padded = len(lengths) * (prompt + max(lengths))
        self.scored = sum(lengths)

    def prefopt(self):
        passes = 3 + self.reference
        return passes * (self.layers * self.shared + self.head * self.scored)

    def trl(self, checkpointing):
        """Its head is computed again in the backward pass, and at every position."""
        layers = 3 + self.reference + (1 if checkpointing else 0)
        return (layers * self.layers + (4 + self.reference) * self.head) * self.padded


def product_speed(threads):
    """Operations a second of PyTorch's float32 product, the best of some."""
    import torch

    torch.set_num_threads(threads)
    left, right = torch.randn(1024, 2048), torch.randn(2048, 2048)
    best = float("inf")
    for _ in range(20):
        start = time.perf_counter()
        left @ right
        best = min(best, time.perf_counter() - start)
    return 2 * left.numel() * right.size(1) / best


def run(command):
    with tempfile.TemporaryFile("w+") as errors:
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=errors, text=True)
        if done.returncode != 0:
            errors.seek(0)
            sys.exit(f"{command}:\n{errors.read()[-2000:]}")
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith('{"')]


def apart(first, own):
    """How far losses and gradient norms are from prefopt's. A loss of advantages that cancel is 0
    but for rounding: it is compared on the scale of the advantages, 1."""
    loss = abs(first["loss"] - own["loss"]) / max(abs(own["loss"]), 1)
    return loss, abs(first["grad_norm"] - own["grad_norm"]) / own["grad_norm"]


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("bench", help="the program bench_grpo_step")
    parser.add_argument("model", help="Hugging Face folder with a tokenizer")
    parser.add_argument("--beta", type=float, default=0.0, help="of the KL to the reference")
    parser.add_argument("--constant", action="store_true", help="completions of equal length")
    parser.add_argument("--draw", action="store_true", help="draw the completions within the time")
    parser.add_argument("--prompt-tokens", type=int, default=256)
    parser.add_argument("--tokens", type=int, default=128, help="of the longest completion")
    parser.add_argument("--shortest", type=int, default=20, help="tokens of the shortest completion")
    parser.add_argument("--updates", type=int, default=4, help="of a run, the first included")
    parser.add_argument("--rounds", type=int, default=2, help="runs of each, in turn")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--trl", nargs="*", default=["default", "kept", "micro"],
                        choices=["default", "kept", "micro"],
                        help="default: with checkpointing; kept: without it; micro: without it, "
                        "completion by completion")
    parser.add_argument("--bench-args", default="", help="more arguments of bench_grpo_step")
    args = parser.parse_args()

    draw = random.Random(0)
    groups = [make_group(draw, args) for _ in range(args.updates)]
    config = json.loads((Path(args.model) / "config.json").read_text(encoding="utf-8"))
    work = Work(config, groups[0], args.beta)
    speed = product_speed(args.threads)
    with tempfile.TemporaryDirectory() as folder:
        rollouts = Path(folder) / "rollouts.jsonl"
        rollouts.write_text("".join(json.dumps(group) + "\n" for group in groups), encoding="utf-8")
        shape = [args.model, str(rollouts), "--beta", str(args.beta), "--threads", str(args.threads)]
        if args.draw:
            shape.append("--draw")
        own = [args.bench, *shape, *args.bench_args.split()]
        trl = [sys.executable, str(Path(__file__).with_name("trl_grpo_step.py")), *shape]
        contenders = {"prefopt": (own, work.prefopt())}
        peers = {
            "default": ("TRL, checkpointing", trl, work.trl(True)),
            "kept": ("TRL", [*trl, "--no-checkpointing"], work.trl(False)),
            "micro": ("TRL, micro-batches of 1", [*trl, "--no-checkpointing", "--micro", "1"],
                      work.trl(False)),
        }
        for name, command, flops in (peers[key] for key in args.trl):
            contenders[name] = (command, flops)
        results = {name: [] for name in contenders}
        for _ in range(args.rounds):
            for name, (command, _) in contenders.items():
                results[name].append(run(command))
        body = run([*own, "--body"])[0]

    timed = {name: [line["seconds"] for lines in runs for line in lines[1:]]
             for name, runs in results.items()}
    peaks = {name: statistics.median(lines[-1]["peak_rss_gib"] for lines in runs)
             for name, runs in results.items()}
    base = statistics.median(timed["prefopt"])
    print(f"products run at {speed / 1e9:.0f} GFLOP/s; limit: the operations at that speed")
    print(f"{'':<26} {'s':>6} {'least':>6} {'most':>6} {'ratio':>6} {'GiB':>6} {'memory':>7} "
          f"{'TFLOP':>6} {'limit':>6} {'of it':>6}")
    for name, (_, flops) in contenders.items():
        seconds, limit = statistics.median(timed[name]), flops / speed
        print(f"{name:<26} {seconds:6.2f} {min(timed[name]):6.2f} {max(timed[name]):6.2f} "
              f"{seconds / base:6.2f} {peaks[name]:6.2f} {peaks['prefopt'] / peaks[name]:7.2f} "
              f"{flops / 1e12:6.2f} {limit:6.2f} {limit / seconds:6.2f}")
    print(f"layers, forward and backward: {work.shared} tokens with the prompt once "
          f"{body['shared_seconds']:.2f} s, {work.apart} with it in each sequence "
          f"{body['apart_seconds']:.2f} s, {body['apart_seconds'] / body['shared_seconds']:.2f} times "
          f"(tokens: {work.apart / work.shared:.2f})")
    if args.draw:
        for name, runs in results.items():
            drawing = statistics.median(line["drawing"] for lines in runs for line in lines[1:])
            print(f"{name:<26} draws in {drawing:.2f} s")
        return
    failed = False
    first = {name: runs[0][0] for name, runs in results.items()}
    for name, step in first.items():
        loss, norm = apart(step, first["prefopt"])
        failed |= max(loss, norm) > 1e-3
        print(f"{name:<26} first update: loss {step['loss']:.6g}, apart by {loss:.1e}; "
              f"gradient norm {step['grad_norm']:.6g}, apart by {norm:.1e}")
    sys.exit(failed)


if __name__ == "__main__":
    main()
