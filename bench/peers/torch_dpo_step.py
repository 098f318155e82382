# SPDX-License-Identifier: Apache-2.0
"""Times DPO steps of a Llama in plain PyTorch, one JSON line a step: pairs padded to the longest,
prompts twice, scaled_dot_product_attention, log-probs of completion tokens, fused AdamW.

    python torch_dpo_step.py MODEL_DIR ROWS.jsonl [--device cuda] [--dtype bfloat16] [--steps 8]

MODEL_DIR holds config.json and model.safetensors of a Llama; ROWS lines of prompt_ids, chosen_ids
and rejected_ids, of which each step takes the first --pairs. In bfloat16 the weights are float32 and
autocast computes, as trainers do. The reference is the model before training.
"""
import argparse
import json
import time
from pathlib import Path

import torch
import torch.nn.functional as F


def read_safetensors(path):
    names = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}
    data = bytearray(Path(path).read_bytes())
    size = int.from_bytes(data[:8], "little")
    tensors = {}
    for name, of in json.loads(data[8 : 8 + size]).items():
        if name == "__metadata__":
            continue
        begin, end = (8 + size + offset for offset in of["data_offsets"])
        tensors[name] = torch.frombuffer(
            data, dtype=names[of["dtype"]], offset=begin, count=(end - begin) // names[of["dtype"]].itemsize
        ).reshape(of["shape"])
    return tensors


class Llama:
    """A model of tensors by their names in the file."""

    def __init__(self, config, weights):
        self.config, self.weights = config, weights

    def weight(self, name):
        return self.weights[name]

    def norm(self, x, name):
        return F.rms_norm(x, x.shape[-1:], self.weight(name).to(x.dtype), self.config["rms_norm_eps"])

    def layer(self, x, index, cos, sin):
        c = self.config
        part = f"model.layers.{index}."
        batch, length, _ = x.shape
        rows = self.norm(x, part + "input_layernorm.weight")

        def heads(name, count):
            y = F.linear(rows, self.weight(part + f"self_attn.{name}.weight"))
            return y.view(batch, length, count, -1).transpose(1, 2)

        def turned(y):
            a, b = y.chunk(2, -1)
            return torch.cat([a * cos - b * sin, b * cos + a * sin], -1).to(y.dtype)

        attended = F.scaled_dot_product_attention(
            turned(heads("q_proj", c["num_attention_heads"])),
            turned(heads("k_proj", c["num_key_value_heads"])),
            heads("v_proj", c["num_key_value_heads"]),
            is_causal=True,
            enable_gqa=c["num_attention_heads"] != c["num_key_value_heads"],
        )
        joined = attended.transpose(1, 2).reshape(batch, length, -1)
        x = x + F.linear(joined, self.weight(part + "self_attn.o_proj.weight"))
        rows = self.norm(x, part + "post_attention_layernorm.weight")
        gate = F.linear(rows, self.weight(part + "mlp.gate_proj.weight"))
        up = F.linear(rows, self.weight(part + "mlp.up_proj.weight"))
        return x + F.linear(F.silu(gate) * up, self.weight(part + "mlp.down_proj.weight"))

    def logps(self, ids, mask):
        """Sums of log-probs of the tokens that the mask picks, a sequence each."""
        c = self.config
        embedding = self.weight("model.embed_tokens.weight")
        width = c.get("head_dim") or c["hidden_size"] // c["num_attention_heads"]
        theta = (c.get("rope_parameters") or c).get("rope_theta", 10000.0)
        places = torch.arange(ids.shape[1], device=ids.device, dtype=torch.float32)
        turns = torch.arange(0, width, 2, device=ids.device, dtype=torch.float32) / width
        angles = torch.outer(places, theta ** -turns)
        x = F.embedding(ids, embedding)
        for index in range(c["num_hidden_layers"]):
            x = self.layer(x, index, angles.cos(), angles.sin())
        picked = mask[:, 1:]
        rows = self.norm(x, "model.norm.weight")[:, :-1][picked]
        head = self.weights.get("lm_head.weight", embedding)
        logps = -F.cross_entropy(F.linear(rows, head).float(), ids[:, 1:][picked], reduction="none")
        sums = torch.zeros(ids.shape[0], device=ids.device)
        return sums.index_add(0, picked.nonzero()[:, 0], logps)


def batch_of(rows, device):
    sequences = [(r["prompt_ids"], r[side]) for side in ("chosen_ids", "rejected_ids") for r in rows]
    longest = max(len(p) + len(c) for p, c in sequences)
    ids = torch.zeros(len(sequences), longest, dtype=torch.long)
    mask = torch.zeros(len(sequences), longest, dtype=torch.bool)
    for i, (prompt, completion) in enumerate(sequences):
        ids[i, : len(prompt) + len(completion)] = torch.tensor(prompt + completion)
        mask[i, len(prompt) : len(prompt) + len(completion)] = True
    return ids.to(device), mask.to(device)


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model")
    parser.add_argument("rows")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--pairs", type=int, default=4)
    parser.add_argument("--learning-rate", type=float, default=1e-4)
    parser.add_argument("--beta", type=float, default=0.1)
    args = parser.parse_args()

    device = torch.device(args.device)
    config = json.loads((Path(args.model) / "config.json").read_text())
    stored = read_safetensors(Path(args.model) / "model.safetensors")
    policy = Llama(config, {n: t.float().to(device).requires_grad_() for n, t in stored.items()})
    reference = Llama(config, {n: t.detach().clone() for n, t in policy.weights.items()})
    rows = [json.loads(line) for line in open(args.rows)][: args.pairs]
    ids, mask = batch_of(rows, device)
    optimizer = torch.optim.AdamW(
        policy.weights.values(), lr=args.learning_rate, weight_decay=0, fused=device.type == "cuda"
    )
    autocast = torch.autocast(device.type, torch.bfloat16, enabled=args.dtype == "bfloat16")

    for step in range(args.steps):
        if device.type == "cuda":
            torch.cuda.synchronize()
        start = time.perf_counter()
        with autocast:
            with torch.no_grad():
                before = reference.logps(ids, mask)
            chosen, rejected = (policy.logps(ids, mask) - before).chunk(2)
            loss = -F.logsigmoid(args.beta * (chosen - rejected)).mean()
        optimizer.zero_grad()
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(policy.weights.values(), 1.0)
        optimizer.step()
        if device.type == "cuda":
            torch.cuda.synchronize()
        line = {"step": step + 1, "seconds": time.perf_counter() - start}
        line |= {"loss": loss.item(), "grad_norm": norm.item()}
        if device.type == "cuda":
            line["peak_gib"] = torch.cuda.max_memory_allocated() / 2**30
        print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
