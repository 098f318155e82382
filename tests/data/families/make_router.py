#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Writes tests/data/families/router.json: transformers' loss of the routers of the models with experts, in float64.

    tests/data/families/make_router.py

The rows are those of expected.json, all chosen sequences and then all rejected ones in one padded batch with its mask,
as TRL gives them to a model: aux_loss of output_router_logits, and its gradient by weight.
"""
import json

import torch
import transformers
from transformers import AutoModelForCausalLM
from transformers.models import mixtral, qwen3_moe

import make_families as families

MODELS = {"mixtral": [dict(), dict(num_experts_per_tok=1)], "qwen3_moe": [dict()]}


def in_float64(function):
    """The same function, where it asks for float32: it divides counts of tokens in it."""
    def call(*args, **named):
        narrow, torch.float32 = torch.float32, torch.float64
        try:
            return function(*args, **named)
        finally:
            torch.float32 = narrow
    return call


def padded(rows):
    texts = [row["prompt"] + row[side] for side in ("chosen", "rejected") for row in rows]
    width = max(map(len, texts))
    ids = torch.tensor([text + [0] * (width - len(text)) for text in texts])
    mask = torch.tensor([[1] * len(text) + [0] * (width - len(text)) for text in texts])
    return dict(input_ids=ids, attention_mask=mask)


def record(name, changes, batch):
    model = AutoModelForCausalLM.from_pretrained(families.HERE / name, dtype=torch.float64,
                                                 attn_implementation="eager", experts_implementation="eager",
                                                 **changes).eval()
    loss = model(**batch, output_router_logits=True, use_cache=False).aux_loss
    loss.backward()
    grads = families.gradients_by_file_name(model, model.config)
    return dict(changes=changes, aux_loss=families.numbers([loss.item()])[0],
                gradients={weight: families.summary(grad) for weight, grad in grads.items()})


def main():
    families.keep_float64()
    for module in (mixtral.modeling_mixtral, qwen3_moe.modeling_qwen3_moe):
        module.load_balancing_loss_func = in_float64(module.load_balancing_loss_func)
    rows = json.loads((families.HERE / "expected.json").read_text())["rows"]
    batch = padded(rows)
    result = {"transformers": transformers.__version__,
              "models": {name: [record(name, changes, batch) for changes in variants]
                         for name, variants in MODELS.items()}}
    (families.HERE / "router.json").write_text(json.dumps(result) + "\n")


if __name__ == "__main__":
    main()
