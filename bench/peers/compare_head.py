#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Times prefopt's log-prob layer against TRL, Liger and PyTorch in one run, taking turns.

Run by the Python of the environment that README.md describes. A round times each peer `--repeat`
times and then each benchmark program as often; medians are over all rounds.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time

import torch
import torch.nn.functional as F
from trl.kernels.chunked_logprob import ChunkedLogProbFunction
from trl.trainer import utils as trl_utils

BETA = 0.1
POLICY_OUTPUTS = ("log_probs", "entropy", "mean_logits", "is_top1")  # what DPOTrainer asks for
IGNORED = -100


def arguments():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--token-bench", required=True, help="path of bench_token_logps")
    parser.add_argument("--linear-bench", required=True, help="path of bench_linear_token_logps")
    parser.add_argument("--parts", default="k1,k2,k3,k5,k6")
    parser.add_argument("--rows", type=int, default=384)
    parser.add_argument("--vocab", type=int, default=49152)
    parser.add_argument("--hidden", type=int, default=576)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--repeat", type=int, default=3, help="timed runs of each in a round")
    parser.add_argument("--pairs", type=int, default=4, help="pairs a step of k5")
    parser.add_argument("--prompt", type=int, default=114)
    parser.add_argument("--chosen", type=int, default=56)
    parser.add_argument("--rejected", type=int, default=56)
    parser.add_argument("--lengths", help="JSON of [prompt, chosen, rejected] counts for k5")
    parser.add_argument("--simd", default="auto", help="instructions of prefopt's kernels")
    parser.add_argument("--no-liger", action="store_true")
    parser.add_argument("--json", help="also write all samples to this file")
    return parser.parse_args()


class Peer:
    def __init__(self, part, name, run, once=False):
        self.part, self.name, self.run = part, name, run
        self.once = once  # once a round, for those that take seconds


# --- k1, k2: logits to log-probs ------------------------------------------------------------------


def trl_logps(logits, targets, sequences):
    shape = (sequences, -1, logits.size(-1))
    found = trl_utils.selective_log_softmax(logits.view(shape), targets.view(sequences, -1))
    return found.flatten()


def log_softmax_logps(logits, targets):
    return torch.log_softmax(logits, -1).gather(-1, targets[:, None])[:, 0]


def without_grad(run):
    def wrapped():
        with torch.no_grad():
            run()

    return wrapped


def logits_peers(a):
    logits = (3 * torch.randn(a.rows, a.vocab)).requires_grad_()
    targets = torch.randint(0, a.vocab, (a.rows,))
    c = torch.randn(a.rows)
    copy = torch.zeros(a.rows, a.vocab)
    ways = [
        ("TRL selective_log_softmax, 1 sequence", lambda: trl_logps(logits, targets, 1)),
        ("log_softmax + gather", lambda: log_softmax_logps(logits, targets)),
    ]
    if a.rows % 8 == 0:
        eight = ("TRL selective_log_softmax, 8 sequences", lambda: trl_logps(logits, targets, 8))
        ways.insert(1, eight)

    def both_passes(way):
        def run():
            logits.grad = None
            (way() * c).sum().backward()

        return run

    peers = [Peer("k1", name, without_grad(way)) for name, way in ways]
    peers.append(Peer("k1", "one read (amax)", without_grad(lambda: logits.amax(-1))))
    peers += [Peer("k2", name, both_passes(way)) for name, way in ways]
    peers.append(Peer("k2", "one copy", without_grad(lambda: copy.copy_(logits))))
    return peers


# --- k3, k6: hidden states to log-probs -----------------------------------------------------------


def head_peers(a, part, dtype):
    x = torch.randn(a.rows, a.hidden).to(dtype).requires_grad_()
    w = (0.02 * torch.randn(a.vocab, a.hidden)).to(dtype).requires_grad_()
    targets = torch.randint(0, a.vocab, (a.rows,))
    c = torch.randn(a.rows).to(dtype)
    z = torch.randn(a.rows, a.vocab).to(dtype)

    def eager():
        x.grad = w.grad = None
        (log_softmax_logps(x @ w.T, targets) * c).sum().backward()

    def products():
        logits, hidden_grad, weight_grad = x @ w.T, z @ w, z.T @ x
        del logits, hidden_grad, weight_grad

    return [
        Peer(part, "eager: mm, log_softmax, gather", eager),
        Peer(part, "three mm", without_grad(products)),
    ]


# --- k5: a DPO head with reference ----------------------------------------------------------------


class Step:
    """A batch of pairs as TRL makes it: [chosen..., rejected...] after their prompts, padded."""

    def __init__(self, lengths, hidden, vocab):
        self.lengths = lengths
        sequences = [(p, c) for p, c, _ in lengths] + [(p, r) for p, _, r in lengths]
        longest = max(p + n for p, n in sequences)
        self.x = torch.randn(len(sequences), longest, hidden).requires_grad_()
        self.ref_x = torch.randn(len(sequences), longest, hidden)
        self.labels = torch.full((len(sequences), longest), IGNORED)
        for row, (prompt, count) in enumerate(sequences):
            self.labels[row, prompt : prompt + count] = torch.randint(0, vocab, (count,))

    def micro_batches(self):
        pairs = len(self.lengths)
        for i, (prompt, chosen, rejected) in enumerate(self.lengths):
            rows = [i, pairs + i]
            end = prompt + max(chosen, rejected)
            yield rows, end


def dpo_loss(logps, ref_logps):
    chosen, rejected = (logps - ref_logps).chunk(2)
    return -F.logsigmoid(BETA * (chosen - rejected)).mean()


def trl_sums(x, weight, labels, outputs):
    """add_fused_lm_head of TRL 1.16 where there is no Triton device: every position is scored."""
    hidden, labels = x[:, :-1], labels[:, 1:]
    mask = labels != IGNORED
    found = ChunkedLogProbFunction.apply(
        hidden.reshape(-1, hidden.size(-1)),
        weight,
        None,
        labels.clamp(min=0).reshape(-1),
        1.0,
        trl_utils._CHUNKED_LOGPROB_CHUNK_SIZE,
        None,
        1.0,
        outputs,
    )
    return found[0].view(mask.shape).masked_fill(~mask, 0).sum(1)


def dpo_peers(a, steps):
    weight = (0.02 * torch.randn(a.vocab, a.hidden)).requires_grad_()
    ref_weight = 0.02 * torch.randn(a.vocab, a.hidden)
    losses = {}  # of the first step, to see that all do the same work

    def each_step(name, run):
        def all_steps():
            for number, step in enumerate(steps):
                weight.grad = step.x.grad = None
                loss = run(step)
                if number == 0:
                    losses[name] = loss.item()

        return all_steps

    def trl_batch(x, ref_x, labels):
        logps = trl_sums(x, weight, labels, POLICY_OUTPUTS)
        with torch.no_grad():
            ref_logps = trl_sums(ref_x, ref_weight, labels, ("log_probs",))
        return dpo_loss(logps, ref_logps)

    def trl_whole(step):
        loss = trl_batch(step.x, step.ref_x, step.labels)
        loss.backward()
        return loss

    def trl_micro(step):
        total = 0.0
        for rows, end in step.micro_batches():
            x = step.x.detach()[rows, :end].requires_grad_()
            loss = trl_batch(x, step.ref_x[rows, :end], step.labels[rows, :end]) / len(step.lengths)
            loss.backward()
            total += loss.item()
        return torch.tensor(total)

    def eager_sums(x, w, labels):
        mask = labels[:, 1:] != IGNORED
        logps = log_softmax_logps(x[:, :-1][mask] @ w.T, labels[:, 1:][mask])
        return torch.zeros(mask.shape).masked_scatter(mask, logps).sum(1)

    def eager(step):
        logps = eager_sums(step.x, weight, step.labels)
        with torch.no_grad():
            ref_logps = eager_sums(step.ref_x, ref_weight, step.labels)
        loss = dpo_loss(logps, ref_logps)
        loss.backward()
        return loss

    peers = [
        Peer("k5", "TRL chunked head, one batch", each_step("trl", trl_whole)),
        Peer("k5", "TRL chunked head, micro-batches of 1", each_step("trl micro", trl_micro)),
        Peer("k5", "eager on the completion rows", each_step("eager", eager)),
    ]
    if a.no_liger:
        return peers, losses

    from liger_kernel.chunked_loss import LigerFusedLinearDPOLoss

    fused = LigerFusedLinearDPOLoss(beta=BETA, compiled=False)

    def liger(x, ref_x, labels):
        loss, *_ = fused(weight, x, labels, ref_input=ref_x, ref_weight=ref_weight)
        loss.backward()
        return loss

    def liger_all(step):
        return liger(step.x[:, :-1], step.ref_x[:, :-1], step.labels[:, 1:])

    cut = []  # the completion rows alone, padded to the longest
    for step in steps:
        width = max(max(c, r) for _, c, r in step.lengths)
        x, ref_x = (torch.zeros(step.x.size(0), width, a.hidden) for _ in range(2))
        labels = torch.full((step.x.size(0), width), IGNORED)
        for row, of_row in enumerate(step.labels[:, 1:]):
            at = (of_row != IGNORED).nonzero()[:, 0]
            x[row, : len(at)] = step.x.detach()[row, at]
            ref_x[row, : len(at)] = step.ref_x[row, at]
            labels[row, : len(at)] = of_row[at]
        cut.append((x.requires_grad_(), ref_x, labels))

    def liger_cut(step):
        x, ref_x, labels = cut[steps.index(step)]
        x.grad = None
        return liger(x, ref_x, labels)

    name = "Liger fused DPO loss, "
    peers += [
        Peer("k5", name + "TRL's rows", each_step("liger", liger_all), once=True),
        Peer("k5", name + "completion rows", each_step("liger cut", liger_cut), once=True),
    ]
    return peers, losses


# --- prefopt --------------------------------------------------------------------------------------


class Programs:
    """The benchmark programs; their contenders of `only` are timed along with the peers."""

    def __init__(self, a, parts):
        self.a = a
        self.machine = None
        self.checked = set()
        shape = ["--rows", a.rows, "--vocab", a.vocab, "--simd", a.simd]
        head = shape + ["--hidden", a.hidden]
        self.commands = []
        if {"k1", "k2"} & parts:
            only = "prefopt forward,prefopt in place"
            self.commands.append([a.token_bench, *shape, "--only", only])
        if "k5" in parts:
            pairs = ["--pairs", a.pairs, "--prompt", a.prompt]
            pairs += ["--chosen", a.chosen, "--rejected", a.rejected]
            pairs += ["--lengths", a.lengths] if a.lengths else []
            only = "prefopt"
            self.commands.append([a.linear_bench, *head, "--part", "k5", *pairs, "--only", only])
        for part in sorted({"k3", "k6"} & parts):
            only = "prefopt automatic,prefopt forward only"
            self.commands.append([a.linear_bench, *head, "--part", part, "--only", only])

    def run(self, samples):
        for command in self.commands:
            words = [str(word) for word in command]
            # The oracle has to agree once.
            skip = ["--no-check"] if tuple(words) in self.checked else []
            with tempfile.NamedTemporaryFile(suffix=".json") as file:
                timing = ["--threads", str(self.a.threads), "--repeat", str(self.a.repeat)]
                whole = words + timing + skip + ["--json", file.name]
                done = subprocess.run(whole, capture_output=True, text=True)
                if done.returncode != 0:
                    sys.exit(f"{words[0]} failed:\n{done.stdout}{done.stderr}")
                found = json.load(open(file.name))
            self.checked.add(tuple(words))
            self.machine = found["machine"]
            for row in found["rows"]:
                samples.setdefault((row["part"], row["name"]), []).extend(row["samples_ms"])


# --- all together ---------------------------------------------------------------------------------


def time_peer(peer):
    start = time.perf_counter()
    peer.run()
    return 1e3 * (time.perf_counter() - start)


def verdicts(samples, parts):
    """(target, measure, value, bound, limit); limit None: for comparison only."""

    def median(part, *names):
        known = [statistics.median(samples[part, n]) for n in names if (part, n) in samples]
        return min(known) if known else None

    def times(part, peer, ours):
        peer, ours = median(part, *peer), median(part, ours)
        return peer / ours if peer and ours else None

    trl = [f"TRL selective_log_softmax, {n}" for n in ("1 sequence", "8 sequences")]
    plain = ["log_softmax + gather"]
    trl_head = ["TRL chunked head, one batch", "TRL chunked head, micro-batches of 1"]
    eager = ["eager: mm, log_softmax, gather"]
    forward, in_place, automatic = "prefopt forward", "prefopt in place", "prefopt automatic"
    head = "prefopt"
    copy = times("k2", ["one copy"], in_place)
    liger = [f"Liger fused DPO loss, {rows}" for rows in ("TRL's rows", "completion rows")]
    read = ["one read (amax)"]
    on_rows = ["eager on the completion rows"]
    speed = "times the speed of "
    rows = [
        ("K1", speed + "TRL, 1 sequence", times("k1", trl[:1], forward), ">=", 10),
        ("K1", speed + "TRL, 8 sequences", times("k1", trl[1:], forward), ">=", 10),
        ("K1", speed + "log_softmax + gather", times("k1", plain, forward), ">=", 6),
        ("K1", "of the bandwidth of one read", times("k1", read, forward), ">=", 0.6),
        ("K2", speed + "TRL, 1 sequence", times("k2", trl[:1], in_place), ">=", 12),
        ("K2", speed + "TRL, 8 sequences", times("k2", trl[1:], in_place), ">=", 12),
        ("K2", speed + "log_softmax + gather", times("k2", plain, in_place), ">=", 6),
        ("K2", "times the time of one copy", 1 / copy if copy else None, "<=", 2),
        ("K3", speed + "eager", times("k3", eager, automatic), ">=", 1.2),
        ("K3", "of the speed of three mm", times("k3", ["three mm"], automatic), ">=", 1.0),
        ("K3", "of the speed of three mm, next", times("k3", ["three mm"], automatic), ">=", 1.2),
        ("K5", speed + "TRL's head, the faster way", times("k5", trl_head, head), ">=", 3.5),
        ("K5", speed + "Liger's loss, TRL's rows", times("k5", liger[:1], head), ">=", 3.5),
        ("K5", speed + "Liger's loss, completion rows", times("k5", liger[1:], head), "", None),
        ("K5", speed + "eager, completion rows", times("k5", on_rows, head), "", None),
        ("K6", speed + "eager bfloat16", times("k6", eager, automatic), ">=", 4),
    ]
    return [row for row in rows if row[2] is not None and row[0].lower() in parts]


def print_tables(samples, found):
    base = {
        "k1": "prefopt forward",
        "k2": "prefopt in place",
        "k3": "prefopt automatic",
        "k5": "prefopt",
        "k6": "prefopt automatic",
    }
    print(f"\n{'':4}{'':44}{'median ms':>12}{'min':>12}{'max':>12}{'runs':>6}{'ratio':>8}")
    for (part, name), times in sorted(samples.items(), key=lambda item: item[0][0]):
        ours = samples.get((part, base[part]))
        ratio = f"{statistics.median(times) / statistics.median(ours):.2f}" if ours else ""
        print(
            f"{part:4}{name:44}{statistics.median(times):12.3f}{min(times):12.3f}{max(times):12.3f}"
            f"{len(times):6}{ratio:>8}"
        )
    print("\ntargets")
    for target, measure, value, bound, limit in found:
        if limit is None:
            print(f"{target:4}{measure:52}{value:8.3f}")
            continue
        passes = value >= limit if bound == ">=" else value <= limit
        word = "PASS" if passes else "short of target"
        print(f"{target:4}{measure:52}{value:8.3f} {bound} {limit:<6g}{word}")


def main():
    a = arguments()
    parts = set(a.parts.split(","))
    torch.set_num_threads(a.threads)
    torch.manual_seed(0)

    peers, losses = [], {}
    if {"k1", "k2"} & parts:
        peers += [peer for peer in logits_peers(a) if peer.part in parts]
    if "k3" in parts:
        peers += head_peers(a, "k3", torch.float32)
    if "k6" in parts:
        peers += head_peers(a, "k6", torch.bfloat16)
    if "k5" in parts:
        lengths = [[a.prompt, a.chosen, a.rejected]] * a.pairs
        if a.lengths:
            lengths = json.load(open(a.lengths))
        batches = [lengths[i : i + a.pairs] for i in range(0, len(lengths), a.pairs)]
        of_k5, losses = dpo_peers(a, [Step(batch, a.hidden, a.vocab) for batch in batches])
        peers += of_k5

    programs, samples = Programs(a, parts), {}
    for peer in peers:
        peer.run()  # warm-up
    if losses:
        expected = losses["eager"]
        wrong = {n: loss for n, loss in losses.items() if abs(loss - expected) > 1e-3 * expected}
        if wrong:
            sys.exit(f"the peers' losses differ: eager {expected}, {wrong}")
    for number in range(a.rounds):
        for turn in range(a.repeat):
            for peer in peers:
                if turn == 0 or not peer.once:
                    if not peer.once:
                        peer.run()  # untimed, as the programs do
                    samples.setdefault((peer.part, peer.name), []).append(time_peer(peer))
        programs.run(samples)
        print(f"round {number + 1} of {a.rounds}", file=sys.stderr, flush=True)

    samples = {key: times for key, times in samples.items() if key[0] in parts}
    machine = programs.machine
    print(
        f"{machine['cpu']}, {a.threads} threads, torch {torch.__version__} of the peers, LibTorch "
        f"{machine['libtorch']} of prefopt, kernels {machine['kernels']} {machine['environment']}"
    )
    print(f"N={a.rows} V={a.vocab} H={a.hidden}; ratio: time / time of prefopt")
    found = verdicts(samples, parts)
    print_tables(samples, found)
    if a.json:
        fields = ("target", "measure", "value", "bound", "limit")
        everything = {
            "machine": machine,
            "torch": torch.__version__,
            "arguments": vars(a),
            "samples_ms": [{"part": p, "name": n, "ms": ms} for (p, n), ms in samples.items()],
            "targets": [dict(zip(fields, row)) for row in found],
        }
        with open(a.json, "w") as file:
            json.dump(everything, file, indent=1)


if __name__ == "__main__":
    main()
