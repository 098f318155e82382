// SPDX-License-Identifier: Apache-2.0
#include <filesystem>
#include <nlohmann/json.hpp>

#include "decoder/gguf_decoder.h"
#include "prefopt/decoder/decoder.h"
#include "prefopt/error.h"
#include "prefopt/files/safetensors.h"
#include "prefopt/policy/sequence_logps.h"
#include "support/catch.h"
#include "support/errors.h"
#include "support/files.h"
#include "support/gguf_builder.h"
#include "support/model_logps.h"
#include "support/temp_dir.h"

namespace prefopt::test_decoder_files {
namespace {

using namespace testing_support;
using nlohmann::json;

/// A Llama of one layer, with the metadata that converters write and no more.
GgufBuilder tiny_file(const std::string& architecture = "llama") {
  const std::string prefix = architecture + ".";
  GgufBuilder file;
  file.text("general.architecture", architecture)
      .text("general.type", "model")
      .text("somebody.quantized_by", "somebody")
      .integer(prefix + "block_count", 1)
      .integer(prefix + "context_length", 64)
      .integer(prefix + "embedding_length", 4)
      .integer(prefix + "feed_forward_length", 6)
      .integer(prefix + "attention.head_count", 2)
      .integer(prefix + "attention.head_count_kv", 1)
      .real(prefix + "attention.layer_norm_rms_epsilon", 1e-5F)
      .integer("tokenizer.ggml.eos_token_id", 3);
  file.floats("token_embd.weight", {4, 5})
      .floats("output_norm.weight", {4})
      .floats("blk.0.attn_norm.weight", {4})
      .floats("blk.0.attn_q.weight", {4, 4})
      .floats("blk.0.attn_k.weight", {4, 2})
      .floats("blk.0.attn_v.weight", {4, 2})
      .floats("blk.0.attn_output.weight", {4, 4})
      .floats("blk.0.ffn_norm.weight", {4})
      .floats("blk.0.ffn_gate.weight", {4, 6})
      .floats("blk.0.ffn_up.weight", {4, 6})
      .floats("blk.0.ffn_down.weight", {6, 4});
  return file;
}

DecoderOptions options_of(const GgufBuilder& file) {
  const TempDir dir;
  put(dir.file("x.gguf"), file.bytes());
  return detail::read_gguf_config(GgufFile::open(dir.file("x.gguf"))).options;
}

void refuse(const GgufBuilder& file, const std::string& text) {
  const TempDir dir;
  const std::string path = dir.file("x.gguf");
  put(path, file.bytes());
  CHECK_THROWS_TEXT(Decoder::load(path), CheckpointError, path + ": " + text);
}

}  // namespace

TEST_CASE("decoder files: a Llama in GGUF gives the log-probs of transformers", "[decoder]") {
  const auto decoder = Decoder::load(kGgufModels + "tiny-llama.gguf");
  CHECK(worst_difference(*decoder, "tiny-llama") < 2e-5);
  for (const auto& [name, value] : decoder->named_parameters()) {
    CHECK(value.scalar_type() == at::kFloat);
    CHECK(value.requires_grad());
  }
  const DecoderOptions& options = decoder->options();
  CHECK(options.tie_word_embeddings);
  CHECK(options.vocab_size == 96);
  CHECK(options.head_dim == 16);
  CHECK(options.max_position_embeddings == 256);
  CHECK(options.rms_norm_eps == 1e-5);
  CHECK(options.rope_theta == 100000);
  CHECK(options.bos_token_id == 1);
  CHECK(options.eos_token_id == 2);
  CHECK(options.pad_token_id == 0);
  CHECK(Decoder::load(kGgufModels + "tiny-llama.gguf", "bfloat16")->head().weight.scalar_type() ==
        at::kBFloat16);
}

TEST_CASE("decoder files: a GGUF file's window and end tokens", "[decoder]") {
  GgufBuilder file = tiny_file();
  CHECK(options_of(file).sliding_window == 0);
  CHECK(options_of(file).extra_eos_token_ids.empty());
  file.integer("llama.attention.sliding_window", 4096)
      .integer("tokenizer.ggml.eot_token_id", 2)
      .integer("tokenizer.ggml.eom_token_id", 3);
  const DecoderOptions options = options_of(file);
  CHECK(options.sliding_window == 4096);
  CHECK(options.eos_token_id == 3);
  CHECK(options.extra_eos_token_ids == std::vector<std::int64_t>{2});
  CHECK(options_of(file.erase("tokenizer.ggml.eos_token_id")).eos_token_id == 2);

  // A folder that is made of it says the same, in two places.
  const TempDir dir;
  put(dir.file("x.gguf"), tiny_file().integer("tokenizer.ggml.eot_token_id", 2).bytes());
  Decoder::load(dir.file("x.gguf"))->save(dir.file("folder"));
  for (const char* name : {"/config.json", "/generation_config.json"}) {
    const json written = json::parse(bytes_of(dir.file("folder") + name));
    CHECK(written["eos_token_id"] == json({3, 2}));
  }
}

TEST_CASE("decoder files: a GGUF file is exported as a folder of the same model", "[decoder]") {
  const TempDir dir;
  const auto decoder = Decoder::load(kGgufModels + "tiny-llama.gguf");
  decoder->save(dir.path());
  const json config = json::parse(bytes_of(dir.file("config.json")));
  CHECK(config["model_type"] == "llama");
  CHECK(config["architectures"] == json({"LlamaForCausalLM"}));
  const auto back = Decoder::load(dir.path());
  CHECK(options_to_json(back->options()) == options_to_json(decoder->options()));
  CHECK(content_hash(*back) == content_hash(*decoder));
}

TEST_CASE("decoder files: a folder in shards is the same model", "[decoder]") {
  const TempDir dir;
  const std::string whole = PREFOPT_TEST_DATA_DIR "/tiny-llama/policy";
  std::filesystem::copy_file(whole + "/config.json", dir.file("config.json"));
  write_safetensors_folder(dir.path(), read_safetensors_folder(whole), 100'000);
  CHECK(safetensors_path(dir.path()) == dir.file("model.safetensors.index.json"));
  const auto decoder = Decoder::load(dir.path());
  CHECK(content_hash(*decoder) == content_hash(*Decoder::load(whole)));
  // Over the files that its own weights are mapped from.
  decoder->save(dir.path());
  CHECK(bytes_of(dir.file("model.safetensors")) == bytes_of(whole + "/model.safetensors"));
  CHECK_FALSE(std::filesystem::exists(dir.file("model.safetensors.index.json")));
}

TEST_CASE("decoder files: training does not reach the files", "[decoder]") {
  const TempDir dir;
  const std::string whole = PREFOPT_TEST_DATA_DIR "/tiny-llama/policy";
  std::filesystem::copy(whole, dir.path());
  const std::string before = bytes_of(dir.file("model.safetensors"));
  const auto decoder = Decoder::load(dir.path());
  const at::NoGradGuard no_grad;
  for (const auto& [name, value] : decoder->named_parameters()) value.fill_(3);
  CHECK(bytes_of(dir.file("model.safetensors")) == before);
}

TEST_CASE("decoder files: metadata of a GGUF file", "[decoder]") {
  const DecoderOptions options = options_of(tiny_file());
  CHECK(options.rope_theta == 10000);
  CHECK(options.eos_token_id == 3);
  CHECK(options.bos_token_id == -1);
  CHECK_FALSE(options.attention_bias);
  CHECK(options_of(tiny_file().erase("llama.attention.head_count_kv")).num_key_value_heads == 2);
  CHECK(options_of(tiny_file().integer("llama.attention.key_length", 6)).head_dim == 6);
  CHECK_FALSE(options_of(tiny_file().floats("output.weight", {4, 5})).tie_word_embeddings);

  CHECK(options_of(tiny_file("qwen2")).attention_bias);
  CHECK_FALSE(options_of(tiny_file("qwen2")).attention_output_bias);
  CHECK(options_of(tiny_file("qwen3")).qk_norm);
  CHECK_FALSE(options_of(tiny_file("qwen3")).attention_bias);

  const detail::DecoderConfig scaled =
      detail::read_gguf_config(GgufFile::open(kGgufModels + "tiny-llama3.gguf"));
  CHECK(scaled.options.rope_scaling_factor == 8);
  CHECK(scaled.options.attention_bias);
  CHECK(scaled.options.attention_output_bias);
  CHECK_FALSE(scaled.options.tie_word_embeddings);
  CHECK(scaled.json["rope_scaling"]["rope_type"] == "llama3");
}

TEST_CASE("decoder files: a GGUF file that is not understood is refused by name", "[decoder]") {
  CHECK_NOTHROW(options_of(tiny_file()));
  refuse(tiny_file("falcon"),
         "expected general.architecture to be 'llama', 'qwen2', 'qwen3', 'granite', 'smollm3', "
         "'phi3', 'gemma2', 'gemma3', 'olmo2' or 'qwen3moe', got 'falcon'");
  refuse(tiny_file().erase("general.architecture"),
         "expected metadata 'general.architecture', got none of that name");
  refuse(tiny_file().text("general.type", "adapter"),
         "expected general.type to be 'model', got 'adapter'");
  refuse(tiny_file().integer("split.count", 3), "expected a model in one file, got split.count 3");
  refuse(tiny_file().real("llama.logit_scale", 2),
         "expected metadata that this decoder understands, got 'llama.logit_scale'");
  refuse(tiny_file().integer("llama.expert_count", 8),
         "expected llama.expert_used_count, got none");
  refuse(tiny_file().flag("llama.attention.causal", false),
         "expected llama.attention.causal to be true, got false");
  refuse(tiny_file().text("llama.rope.scaling.type", "ntk"),
         "expected llama.rope.scaling.type to be 'none', 'linear' or 'yarn', got 'ntk'");
  refuse(tiny_file().real("llama.rope.scaling.yarn_log_multiplier", 0.1F),
         "expected metadata that this decoder understands, got "
         "'llama.rope.scaling.yarn_log_multiplier'");
  refuse(tiny_file().real("llama.rope.scaling.factor", 0.5),
         "expected a rotary factor of at least 1, got 0.5");
  refuse(tiny_file().integer("llama.rope.dimension_count", 1),
         "expected llama.rope.dimension_count to be the width of a head, 2, got 1");
  refuse(tiny_file().integer("llama.attention.value_length", 4),
         "expected llama.attention.value_length to be the width of a head, 2, got 4");
  refuse(tiny_file().integer("llama.vocab_size", 6),
         "expected llama.vocab_size to be the rows of 'token_embd.weight', 5, got 6");
  refuse(tiny_file().erase("llama.block_count"),
         "expected metadata 'llama.block_count', got none of that name");
  refuse(tiny_file().integer("llama.attention.head_count", 0),
         "expected num_attention_heads in [1, 1073741824], got 0");
  refuse(tiny_file().integer("llama.attention.head_count", 3),
         "expected hidden_size to be a multiple of num_attention_heads, got 4 and 3");
  refuse(tiny_file().integer("llama.block_count", UINT32_MAX),
         "expected num_hidden_layers in [1, 4096], got 4294967295");
  refuse(tiny_file().real("llama.attention.layer_norm_rms_epsilon",
                          std::numeric_limits<float>::infinity()),
         "expected rms_norm_eps > 0, got inf");
}

TEST_CASE("decoder files: tensors of a GGUF file that do not fit are refused by name",
          "[decoder]") {
  refuse(tiny_file().integer("llama.block_count", 2),
         "expected tensor 'model.layers.1.self_attn.q_proj.weight', got none of that name");
  refuse(tiny_file().integer("llama.feed_forward_length", 8),
         "tensor 'model.layers.0.mlp.gate_proj.weight': expected shape [8, 4], got [6, 4]");
  refuse(tiny_file().floats("blk.0.ffn_gate_inp.weight", {4, 2}),
         "expected the tensors of a llama decoder only, got 'model.layers.0.mlp.gate.weight'");
  refuse(tiny_file().floats("lm_head.weight", {4, 5}),
         "expected the tensors of a llama decoder only, got 'lm_head.weight'");
  refuse(tiny_file().floats("blk.0.ffn_up.bias", {6}),
         "expected the tensors of a llama decoder only, got 'model.layers.0.mlp.up_proj.bias'");
  refuse(tiny_file().floats("blk.7.attn_q.weight", {4, 4}),
         "expected the tensors of a llama decoder only, got "
         "'model.layers.7.self_attn.q_proj.weight'");
  refuse(tiny_file().floats("rope_freqs.weight", {2}),
         "expected tensor 'rope_freqs.weight' of shape [1], got [2]");
  // Llama 3 leaves the first frequency alone.
  refuse(tiny_file().floats("rope_freqs.weight", {1}, 8),
         "expected tensor 'rope_freqs.weight' to be Llama 3's scaling by 8 over 8192 tokens, 1 at "
         "0, got 8");
  CHECK(options_of(tiny_file().floats("rope_freqs.weight", {1}, 1)).rope_scaling_factor == 1);
  GgufBuilder packed = tiny_file();
  packed.tensor("output.weight", {256, 1}, 10, std::string(84, '\0'));
  packed.integer("llama.embedding_length", 4);
  refuse(packed, "tensor 'lm_head.weight': expected shape [5, 4], got [1, 256]");
}

}  // namespace prefopt::test_decoder_files
