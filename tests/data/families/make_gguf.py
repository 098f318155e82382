#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Writes tests/data/families/gguf: random small models as llama.cpp's converter writes them, and what transformers
makes of the same weights.

    tests/data/families/make_gguf.py [FOLDER]

Names of tensors are those of the package gguf; which rows are reordered, which norms have one added, and what is in
the metadata follows the converter. Configs are such that transformers and llama.cpp mean the same: llama.cpp takes the
scale of Gemma's queries, the layers that slide and the layers that rotate nothing from the architecture alone.
"""
import json
import pathlib
import sys
import tempfile

import gguf
import torch
import transformers
from safetensors.torch import load_file
from transformers.models import gemma2, gemma3, granite, llama, mixtral, olmo2, phi3, qwen3_moe, smollm3

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))
from make_families import LONG, SHORT, SIZES, keep_float64, random_rows, results, rope, write_model  # noqa: E402

FOLDER = pathlib.Path(__file__).resolve().parent / "gguf"
SMALL = SIZES | dict(num_key_value_heads=1)
PHI = SIZES | dict(hidden_size=24)
# name: architecture, config, whether rows of heads are reordered
MODELS = {
    "llama-linear": ("llama", llama.LlamaConfig(**SIZES, rope_parameters=rope(rope_type="linear", factor=3.0)), True),
    "llama-yarn": ("llama", llama.LlamaConfig(**SIZES, rope_parameters=rope(
        rope_type="yarn", factor=4.0, original_max_position_embeddings=16)), True),
    "granite": ("granite", granite.GraniteConfig(
        **SIZES, rope_parameters=rope(), embedding_multiplier=3.0, logits_scaling=1.7, residual_multiplier=0.6,
        attention_multiplier=0.3), True),
    "smollm3": ("smollm3", smollm3.SmolLM3Config(**SMALL | dict(num_hidden_layers=4), rope_parameters=rope()), True),
    "phi3": ("phi3", phi3.Phi3Config(**PHI, original_max_position_embeddings=11, rope_parameters=rope(
        rope_type="longrope", short_factor=SHORT[:2], long_factor=LONG[:2], partial_rotary_factor=0.67)), False),
    "phi3-window": ("phi3", phi3.Phi3Config(**PHI, sliding_window=4, rope_parameters=rope()), False),
    "gemma2": ("gemma2", gemma2.Gemma2Config(**SIZES, rope_parameters=rope(10000.0), sliding_window=5,
                                             query_pre_attn_scalar=6, attn_logit_softcapping=2.0,
                                             final_logit_softcapping=3.0), False),
    "gemma3": ("gemma3", gemma3.Gemma3TextConfig(
        **SMALL | dict(num_hidden_layers=6), sliding_window=4, query_pre_attn_scalar=6, rope_parameters=dict(
            full_attention=rope(500.0, rope_type="linear", factor=4.0),
            sliding_attention=rope(10000.0))), False),
    "olmo2": ("olmo2", olmo2.Olmo2Config(**PHI | dict(tie_word_embeddings=False), rope_parameters=rope()), False),
    "mixtral": ("llama", mixtral.MixtralConfig(**SIZES, rope_parameters=rope(), num_local_experts=3,
                                               num_experts_per_tok=2), True),
    "qwen3_moe": ("qwen3moe", qwen3_moe.Qwen3MoeConfig(**SIZES, rope_parameters=rope(), num_experts=3,
                                                       num_experts_per_tok=2, moe_intermediate_size=5,
                                                       norm_topk_prob=True), False),
}


def permuted(weight, heads):
    halves = weight.reshape(heads, 2, weight.shape[0] // heads // 2, *weight.shape[1:])
    return halves.swapaxes(1, 2).reshape(weight.shape)


def merged_experts(tensors, config):
    """One tensor for all experts of a layer, under the converter's name."""
    count = getattr(config, "num_experts", None) or config.num_local_experts
    merged, rest = {}, {}
    for name, tensor in tensors.items():
        if ".experts." not in name:
            rest[name] = tensor
            continue
        base, tail = name.split(".experts.")
        expert, part, _ = tail.split(".")
        base = base.replace("model.layers", "layers").replace("block_sparse_moe", "feed_forward")
        base = base.replace("layers", "model.layers") if part.endswith("proj") else base
        merged.setdefault(f"{base}.experts.{part}.weight", [None] * count)[int(expert)] = tensor
    return rest | {name: torch.stack(parts) for name, parts in merged.items()}


def add_scaling(writer, parameters):
    parameters = parameters.get("full_attention", parameters)
    kind = parameters["rope_type"]
    if kind in ("linear", "yarn"):
        writer.add_rope_scaling_type(gguf.RopeScalingType(kind))
        writer.add_rope_scaling_factor(parameters["factor"])
    if kind == "yarn":
        writer.add_rope_scaling_orig_ctx_len(parameters["original_max_position_embeddings"])


def write_gguf(path, architecture, config, tensors, reordered):
    writer = gguf.GGUFWriter(path, architecture)
    c, head = config, config.head_dim
    writer.add_context_length(c.max_position_embeddings)
    writer.add_embedding_length(c.hidden_size)
    writer.add_block_count(c.num_hidden_layers)
    writer.add_feed_forward_length(c.intermediate_size)
    writer.add_head_count(c.num_attention_heads)
    writer.add_head_count_kv(c.num_key_value_heads)
    writer.add_layer_norm_rms_eps(c.rms_norm_eps)
    parameters = c.rope_parameters.get("full_attention", c.rope_parameters)
    if architecture == "phi3":
        writer.add_rope_dimension_count(int(head * parameters.get("partial_rotary_factor", 1.0)))
        writer.add_rope_scaling_orig_ctx_len(c.original_max_position_embeddings)
        writer.add_sliding_window(c.sliding_window or 0)
    else:
        writer.add_key_length(head)
        writer.add_value_length(head)
    if architecture != "gemma2":
        writer.add_rope_freq_base(parameters["rope_theta"])
    if architecture.startswith("gemma"):
        writer.add_sliding_window(c.sliding_window)
    if architecture == "gemma2":
        writer.add_attn_logit_softcapping(c.attn_logit_softcapping)
        writer.add_final_logit_softcapping(c.final_logit_softcapping)
    if architecture == "granite":
        writer.add_embedding_scale(c.embedding_multiplier)
        writer.add_logit_scale(c.logits_scaling)
        writer.add_residual_scale(c.residual_multiplier)
        writer.add_attention_scale(c.attention_multiplier)
    if hasattr(c, "num_experts_per_tok"):
        writer.add_expert_count(getattr(c, "num_experts", None) or c.num_local_experts)
        writer.add_expert_used_count(c.num_experts_per_tok)
        tensors = merged_experts(tensors, c)
    if architecture == "qwen3moe":
        writer.add_expert_feed_forward_length(c.moe_intermediate_size)
    add_scaling(writer, c.rope_parameters)
    if parameters["rope_type"] == "longrope":
        scale = c.max_position_embeddings / c.original_max_position_embeddings
        factor = torch.sqrt(1 + torch.tensor(scale).log() / torch.tensor(float(c.original_max_position_embeddings)).log())
        writer.add_rope_scaling_attn_factors(factor.item())
        writer.add_tensor("rope_factors_long.weight", torch.tensor(parameters["long_factor"]).numpy())
        writer.add_tensor("rope_factors_short.weight", torch.tensor(parameters["short_factor"]).numpy())
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH[architecture.upper()], c.num_hidden_layers)
    for name, tensor in tensors.items():
        values = tensor.float()
        if reordered and name.endswith(("q_proj.weight", "k_proj.weight")):
            values = permuted(values, c.num_attention_heads if "q_proj" in name else c.num_key_value_heads)
        if architecture.startswith("gemma") and name.endswith("norm.weight"):
            values = values + 1
        here = names.get_name(name, try_suffixes=(".weight", ".bias"))
        assert here, name
        kind = gguf.GGMLQuantizationType.F32 if values.dim() == 1 else gguf.GGMLQuantizationType.BF16
        writer.add_tensor(here, gguf.quantize(values.numpy(), kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def main():
    folder = pathlib.Path(sys.argv[1]) if len(sys.argv) > 1 else FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(22)
    keep_float64()
    rows = random_rows()
    expected = {"transformers": transformers.__version__, "gguf": "0.19.0", "rows": rows, "models": {}}
    for name, (architecture, config, reordered) in MODELS.items():
        with tempfile.TemporaryDirectory() as place:
            write_model(pathlib.Path(place), config)
            expected["models"][name] = results(place, rows, with_gradients=False)
            expected["models"][name]["model_type"] = config.model_type
            tensors = load_file(f"{place}/model.safetensors")
            write_gguf(folder / f"{name}.gguf", architecture, config, tensors, reordered)
    (folder / "expected.json").write_text(json.dumps(expected) + "\n")


if __name__ == "__main__":
    main()
