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

/// Shape of a Llama-family decoder, under the names of Hugging Face's `config.json`.
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

  /// Reads `config.json` and `model.safetensors`. A field that would change results and is not
  /// understood is refused by name (CheckpointError). `dtype` "keep" keeps the file's.
  static std::shared_ptr<Decoder> load(const std::string& directory,
                                       std::string_view dtype = "keep");

  PolicyOutput forward(const TokenBatch& batch) override;
  OutputHead head() const override;
  std::int64_t vocab_size() const override;
  std::vector<NamedParameter> named_parameters() const override;
  std::string config() const override;
  std::shared_ptr<Policy> frozen_copy() const override;
  /// A config read from a folder is written back with everything it held.
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
