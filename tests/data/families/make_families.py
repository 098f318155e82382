#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Writes tests/data/families: random small models of each family and what transformers makes of them.

    tests/data/families/make_families.py [FOLDER]

A folder a model, as save_pretrained writes it, in bfloat16, and expected.json. Log-probs and gradients are by autograd
in float64: where transformers goes through float32 on the way (norms, softmax), the script keeps float64, but for
rotary angles, which are float32 in both. The gradient is of the sum of all chosen tokens' log-probs less half of the
rejected ones'. Variants change the config of a model and nothing else.
"""
import json
import pathlib
import sys

import torch
import transformers
from transformers import AutoModelForCausalLM
from transformers.models import (gemma2, gemma3, granite, llama, mistral, mixtral, olmo2, olmo3, phi3, qwen2, qwen3,
                                 qwen3_moe, smollm3)

HERE = pathlib.Path(__file__).resolve().parent
VOCABULARY = 32
SIZES = dict(vocab_size=VOCABULARY, hidden_size=12, intermediate_size=8, num_hidden_layers=2, num_attention_heads=4,
             num_key_value_heads=2, head_dim=6, max_position_embeddings=64, initializer_range=0.5, bos_token_id=1,
             eos_token_id=2, pad_token_id=0, tie_word_embeddings=True)
THREE = SIZES | dict(num_hidden_layers=3)
SHORT, LONG = [1.0, 1.1, 1.3], [1.2, 2.5, 4.0]
FULL, SLIDE = "full_attention", "sliding_attention"
NESTED = {FULL: dict(rope_type="linear", factor=4.0, rope_theta=500.0),
          SLIDE: dict(rope_type="default", rope_theta=50.0)}


def rope(theta=100.0, **fields):
    return dict(rope_type="default", rope_theta=theta) | fields


def longrope(**fields):
    return rope(rope_type="longrope", short_factor=SHORT, long_factor=LONG) | fields


YARN = rope(rope_type="yarn", factor=4.0, original_max_position_embeddings=8)
# name: config, and changes of its config.json that leave the weights alone
MODELS = {
    "llama": (llama.LlamaConfig(**SIZES, rope_parameters=rope()), [
        dict(rope_parameters=rope(rope_type="linear", factor=3.0)),
        dict(rope_parameters=None, rope_theta=100.0, rope_scaling=dict(type="linear", factor=2.5)),
        dict(rope_parameters=YARN),
        dict(rope_parameters=YARN | dict(factor=16.0, beta_fast=4.0, beta_slow=0.5, truncate=False)),
        dict(rope_parameters=YARN | dict(mscale=0.7, mscale_all_dim=1.3)),
        dict(rope_parameters=YARN | dict(attention_factor=0.8)),
        dict(rope_parameters=None, rope_theta=100.0, original_max_position_embeddings=12,
             rope_scaling=dict(rope_type="yarn", factor=2.0)),
        dict(rope_parameters=rope(rope_type="yarn", factor=2.0), max_position_embeddings=10),
        dict(rope_parameters=rope(rope_type="dynamic", factor=2.0)),
        dict(rope_parameters=rope(rope_type="llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0,
                                  original_max_position_embeddings=16)),
        dict(rope_parameters=longrope(original_max_position_embeddings=11)),
        dict(rope_parameters=longrope(original_max_position_embeddings=11, factor=3.0)),
        dict(rope_parameters=longrope(original_max_position_embeddings=64, attention_factor=1.5)),
    ]),
    "mistral": (mistral.MistralConfig(**SIZES, sliding_window=5, rope_parameters=rope()), [dict(sliding_window=1)]),
    "qwen2": (qwen2.Qwen2Config(**THREE, use_sliding_window=True, sliding_window=4, max_window_layers=1,
                                rope_parameters=rope()), [dict(layer_types=[SLIDE, FULL, SLIDE])]),
    "qwen3": (qwen3.Qwen3Config(**SIZES, rope_parameters=YARN), []),
    "granite": (granite.GraniteConfig(**SIZES, rope_parameters=rope(), embedding_multiplier=3.0, logits_scaling=1.7,
                                      residual_multiplier=0.6, attention_multiplier=0.3, attention_bias=True,
                                      mlp_bias=True), [dict(residual_multiplier=1.0, logits_scaling=0.5)]),
    "smollm3": (smollm3.SmolLM3Config(**THREE, rope_parameters=rope(), no_rope_layers=[1, 0, 1]), [
        dict(no_rope_layers=None, no_rope_layer_interval=2, layer_types=None),
        dict(use_sliding_window=True, sliding_window=3, layer_types=None),
    ]),
    "phi3": (phi3.Phi3Config(**SIZES | dict(hidden_size=24), original_max_position_embeddings=11, rope_parameters=longrope()), [
        dict(rope_parameters=None, rope_theta=100.0,
             rope_scaling=dict(type="su", short_factor=SHORT, long_factor=LONG,
                               original_max_position_embeddings=11)),
        dict(rope_parameters=rope(), sliding_window=4),
        dict(rope_parameters=None, rope_theta=100.0, partial_rotary_factor=0.67),
        dict(rope_parameters=longrope(partial_rotary_factor=0.67, short_factor=SHORT[:2], long_factor=LONG[:2])),
    ]),
    "gemma2": (gemma2.Gemma2Config(**SIZES, rope_parameters=rope(), sliding_window=5, query_pre_attn_scalar=9,
                                   attn_logit_softcapping=2.0, final_logit_softcapping=3.0), [
        dict(attn_logit_softcapping=None, final_logit_softcapping=None, sliding_window=2),
        dict(layer_types=[FULL, SLIDE]),
    ]),
    "gemma3": (gemma3.Gemma3TextConfig(**THREE, rope_parameters=NESTED, sliding_window=4, query_pre_attn_scalar=9,
                                       layer_types=[SLIDE, FULL, SLIDE]), [
        dict(rope_parameters=None, rope_theta=300.0, rope_local_base_freq=30.0, layer_types=None,
             sliding_window_pattern=2, rope_scaling=dict(rope_type="linear", factor=8.0)),
        dict(final_logit_softcapping=2.0, sliding_window=3),
    ]),
    "olmo2": (olmo2.Olmo2Config(**SIZES, rope_parameters=rope()), [dict(rope_parameters=YARN)]),
    "olmo3": (olmo3.Olmo3Config(**THREE, sliding_window=4, layer_types=[SLIDE, FULL, SLIDE],
                                rope_parameters={FULL: YARN, SLIDE: rope()}), []),
    "mixtral": (mixtral.MixtralConfig(**SIZES, rope_parameters=rope(), num_local_experts=3, num_experts_per_tok=2,
                                      sliding_window=6), [dict(num_experts_per_tok=1)]),
    "qwen3_moe": (qwen3_moe.Qwen3MoeConfig(**SIZES, rope_parameters=rope(), num_experts=3, num_experts_per_tok=2,
                                           moe_intermediate_size=5, norm_topk_prob=True, mlp_only_layers=[1]), [
        dict(norm_topk_prob=False),
    ]),
}


def keep_float64():
    """transformers asks for float32 on the way; what is float64 already stays."""
    to, wide, softmax = torch.Tensor.to, torch.Tensor.float, torch.nn.functional.softmax

    def is_double(x):
        return x.dtype == torch.float64

    torch.Tensor.float = lambda x: x if is_double(x) else wide(x)
    torch.Tensor.to = lambda x, *args, **named: (
        x if is_double(x) and args == (torch.float32,) and not named else to(x, *args, **named))
    torch.nn.functional.softmax = lambda x, *args, dtype=None, **named: softmax(
        x, *args, dtype=None if is_double(x) else dtype, **named)


def random_rows():
    def ids(length):
        return torch.randint(3, VOCABULARY, (length,)).tolist()

    # Short ones within every window and context, long ones beyond, and none of a group on both sides of 11 tokens.
    return [dict(prompt=ids(a), chosen=ids(b), rejected=ids(c)) for a, b, c in [(3, 4, 2), (7, 6, 8), (11, 12, 1)]]


def token_logps(model, prompt, completion):
    ids = torch.tensor([prompt + completion])
    logps = model(input_ids=ids, use_cache=False).logits[0, len(prompt) - 1:-1].log_softmax(-1)
    return logps.gather(1, ids[0, len(prompt):, None]).squeeze(1)


def gradients_by_file_name(model, config):
    """Experts are one tensor in memory and a matrix each in a file."""
    grads = {}
    for name, value in model.named_parameters():
        grad = torch.zeros_like(value) if value.grad is None else value.grad
        stem = "block_sparse_moe" if config.model_type == "mixtral" else "mlp"
        names = ("w1", "w3", "w2") if config.model_type == "mixtral" else ("gate_proj", "up_proj", "down_proj")
        if ".experts." not in name:
            grads[name.replace(".mlp.gate.", f".{stem}.gate.")] = grad
            continue
        base, part = name.replace(".mlp.", f".{stem}.").rsplit(".", 1)
        for e, matrix in enumerate(grad):
            parts = zip(names[:2], matrix.chunk(2)) if part == "gate_up_proj" else [(names[2], matrix)]
            grads |= {f"{base}.{e}.{which}.weight": piece for which, piece in parts}
    return grads


def numbers(values):
    return [float(f"{value:.11g}") for value in values]


def summary(grad):
    flat = grad.flatten()
    return numbers([grad.norm().item()] + [flat[i].item() for i in (0, len(flat) // 2, len(flat) - 1)])


def results(folder, rows, with_gradients):
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64, attn_implementation="eager",
                                                 experts_implementation="eager").eval()
    if hasattr(model.model.embed_tokens, "embed_scale"):  # rounded to float32
        model.model.embed_tokens.embed_scale = torch.tensor(model.config.hidden_size**0.5, dtype=torch.float64)
    record, total = [], 0
    for row in rows:
        chosen, rejected = (token_logps(model, row["prompt"], row[side]) for side in ("chosen", "rejected"))
        total = total + chosen.sum() - rejected.sum() / 2
        record.append(dict(chosen=numbers(chosen.tolist()), rejected=numbers(rejected.tolist())))
    if not with_gradients:
        return dict(logps=record)
    total.backward()
    grads = gradients_by_file_name(model, model.config)
    return dict(logps=record, gradients={name: summary(grad) for name, grad in grads.items()})


def write_model(folder, config):
    model = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():  # norms are the identity and biases 0 otherwise
        for parameter in model.parameters():
            parameter.add_((0.3 if parameter.dim() == 1 else 0.05) * torch.randn_like(parameter))
    model.to(torch.bfloat16).save_pretrained(folder)
    (folder / "generation_config.json").unlink(missing_ok=True)


def main():
    folder = pathlib.Path(sys.argv[1]) if len(sys.argv) > 1 else HERE
    torch.manual_seed(21)
    keep_float64()
    rows = random_rows()
    expected = {"transformers": transformers.__version__, "torch": torch.__version__.split("+")[0], "rows": rows,
                "models": {}}
    for name, (config, variants) in MODELS.items():
        place = folder / name
        write_model(place, config)
        text = (place / "config.json").read_text()
        record = results(place, rows, with_gradients=True)
        record["variants"] = []
        for changes in variants:
            changed = json.loads(text) | changes
            changed = {key: value for key, value in changed.items() if value is not None}
            (place / "config.json").write_text(json.dumps(changed))
            record["variants"].append(dict(changes=changes) | results(place, rows, with_gradients=False))
        (place / "config.json").write_text(text)
        expected["models"][name] = record
    (folder / "expected.json").write_text(json.dumps(expected) + "\n")


if __name__ == "__main__":
    main()
