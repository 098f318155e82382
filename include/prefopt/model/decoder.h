// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "prefopt/export.h"
#include "prefopt/model/policy.h"
#include "prefopt/options.h"

namespace prefopt {

/// Shape of a decoder of the Llama and Qwen families, under the names of Hugging Face's
/// `config.json` where it has one.
struct DecoderOptions {
  std::int64_t vocab_size = 259;
  std::int64_t hidden_size = 256;
  std::int64_t intermediate_size = 688;
  std::int64_t num_hidden_layers = 6;
  std::int64_t num_attention_heads = 8;
  std::int64_t num_key_value_heads = 8;
  std::int64_t head_dim = 0;  ///< 0: hidden_size / num_attention_heads
  std::int64_t max_position_embeddings = 2048;
  double rms_norm_eps = 1e-5;
  double rope_theta = 10000;
  double rope_scaling_factor = 1;  ///< of Llama 3's rotary scaling; 1: none
  double rope_low_freq_factor = 1;
  double rope_high_freq_factor = 4;
  std::int64_t rope_original_max_position_embeddings = 8192;
  bool attention_bias = false;         ///< of the query, key and value projections
  bool attention_output_bias = false;  ///< of the output projection
  bool qk_norm = false;                ///< RMSNorm of each query and key head, before rotation
  bool tie_word_embeddings = true;
  double initializer_range = 0.02;
  std::int64_t bos_token_id = -1;
  std::int64_t eos_token_id = -1;
  std::int64_t pad_token_id = -1;

  PREFOPT_API void fields(FieldVisitor& v);
};

/// Decoder-only transformer: RMSNorm (1910.07467), rotary positions (2104.09864), grouped-query
/// attention (2305.13245), SwiGLU (2002.05202), tied or untied head. Parameters carry Hugging
/// Face's names.
class PREFOPT_API Decoder final : public Policy {
 public:
  /// Fresh weights, N(0, initializer_range^2), from LibTorch's default generator.
  explicit Decoder(DecoderOptions options);
  ~Decoder() override;

  /// Reads a Hugging Face folder, `config.json` with `model.safetensors` or its shards, of the
  /// families llama, mistral, qwen2 and qwen3; or a `.gguf` file of the architectures llama, qwen2
  /// and qwen3. A field that would change results and is not understood is refused by name
  /// (CheckpointError). `dtype` "keep" keeps the folder's, and takes float32 from a GGUF file.
  /// Weights of the dtype wanted stay where they are, mapped from the file.
  static std::shared_ptr<Decoder> load(const std::string& path, std::string_view dtype = "keep");

  PolicyOutput forward(const TokenBatch& batch) override;
  OutputHead head() const override;
  std::int64_t vocab_size() const override;
  std::vector<NamedParameter> named_parameters() const override;
  std::string config() const override;
  std::shared_ptr<Policy> frozen_copy() const override;
  /// Writes a Hugging Face folder that transformers loads, in shards above 5 GB. A config read from
  /// a folder is written back with everything it held.
  void save(const std::string& directory) const override;
  std::unique_ptr<DecodeSession> start_decoding(
      const std::vector<std::vector<std::int64_t>>& prompts) override;

  const DecoderOptions& options() const;
  /// Replaces the parameters: before a trainer or an optimizer holds them, not after.
  void to(at::ScalarType dtype);

 private:
  struct Impl;
  explicit Decoder(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

/// "float32", "float64", "bfloat16" or "float16"; throws ConfigError for another name.
PREFOPT_API at::ScalarType parse_dtype(std::string_view name);

}  // namespace prefopt
