// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "prefopt/decoder/lora_options.h"
#include "prefopt/export.h"
#include "prefopt/options.h"
#include "prefopt/policy/policy.h"

namespace prefopt {

namespace detail {
struct AdapterParts;
class DecoderReader;
}  // namespace detail

/// Family and shape of a decoder, under the names of Hugging Face's `config.json` where it has one.
struct DecoderOptions {
  /// Hugging Face's model_type, one of docs/models.md. A fresh "llama" with norms or biases of
  /// mistral, qwen2 or qwen3 becomes a model of that family.
  std::string family = "llama";
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
  /// Further end tokens of `config.json` and `generation_config.json`, or of a GGUF file. Not an
  /// option of a config; `fields` leaves it out.
  std::vector<std::int64_t> extra_eos_token_ids = {};
  /// Tokens that a position sees back in the layers that slide, itself included; 0: all.
  std::int64_t sliding_window = 0;
  /// Further fields of `config.json` that a family reads, as the text of a JSON object:
  /// layer_types, rope_parameters, query_pre_attn_scalar, … (docs/models.md).
  std::string family_fields = "{}";

  PREFOPT_API void fields(FieldVisitor& v);
};

/// The tensors that layers keep for the backward pass; the rest is computed again. Results
/// are the same to the last bit.
enum class Checkpointing {
  kNone,       ///< all but norms and products of gate and up
  kSelective,  ///< not gate and up, 2 of a layer's 7 products
  kFull,       ///< the input of each layer only
};

/// Decoder-only transformer: RMSNorm (1910.07467), rotary positions (2104.09864), grouped-query
/// attention (2305.13245), gated feed-forward parts (2002.05202) or routed experts (2101.03961),
/// tied or untied head. Parameters carry Hugging Face's names.
class PREFOPT_API Decoder final : public Policy {
 public:
  /// Draws fresh weights, N(0, initializer_range^2), from LibTorch's default generator.
  explicit Decoder(DecoderOptions options);
  ~Decoder() override;

  /// Reads a Hugging Face folder, `config.json` with `model.safetensors` or its shards, or a
  /// `.gguf` file, of the families and architectures in docs/models.md. A field that would change
  /// results and is not understood is refused by name (CheckpointError). `dtype` "keep" keeps the
  /// folder's: matrices of several dtypes are widened to the widest, vectors stay as stored. It
  /// takes float32 from a GGUF file. Weights of the dtype wanted stay where they are, mapped from
  /// the file. `dtype` "quantized" leaves the matrices of a GGUF file in its blocks, which are
  /// decoded a slice at a time where they are used, to the bits that float32 gives: for a model on
  /// the CPU that is not trained, or under an adapter.
  static std::shared_ptr<Decoder> load(const std::string& path, std::string_view dtype = "keep");

  PolicyOutput forward(const TokenBatch& batch) override;
  /// Returns true. Activations are at least float32 on the CPU, where narrow weights are widened
  /// for each product, and of the weights' dtype on other devices.
  bool packs() const override;
  at::Tensor forward_packed(const PackedTokens& tokens) override;
  OutputHead head() const override;
  std::int64_t vocab_size() const override;
  std::vector<NamedParameter> named_parameters() const override;
  std::string config() const override;
  std::shared_ptr<Policy> frozen_copy() const override;
  std::shared_ptr<Decoder> frozen_decoder() const;
  std::vector<TrainedWeight> trained_weights() const override;
  /// Matrices with an adapter are in the adapter's dtype.
  std::shared_ptr<Policy> merged_copy() const override;
  std::shared_ptr<Decoder> merged_decoder() const;
  /// Writes a Hugging Face folder that transformers loads, in shards above 5 GB. A config read from
  /// a folder is written back with everything it held. A model with an adapter writes that alone.
  void save(const std::string& directory) const override;
  void load_weights(const std::string& directory) override;
  std::unique_ptr<DecodeSession> start_decoding(
      const std::vector<std::vector<std::int64_t>>& prompts) override;
  /// Cuts the weights of a layer together and the others each by itself; an adapter stays whole.
  /// Throws ConfigError for weights in blocks, experts, and an adapter that makes whole matrices.
  void keep_slices(const std::shared_ptr<Ranks>& ranks) override;

  const DecoderOptions& options() const;
  /// Returns a remark on how the weights were read; else empty.
  const std::string& load_note() const;
  /// Returns the text of `generation_config.json`: the folder's, or the equivalent of a GGUF file's
  /// metadata; empty if there is none. save() writes it.
  std::string generation_config() const;
  /// Throws DataError, led by `where`, for sequences beyond the context of dynamic rotary scaling.
  void check_length(std::int64_t tokens, std::string_view where) const override;

  /// Sets the checkpointing of forward_packed.
  void set_checkpointing(Checkpointing checkpointing);
  /// Returns the bytes that forward_packed keeps for a backward pass over `rows` tokens.
  std::int64_t activation_bytes(std::int64_t rows, Checkpointing checkpointing) const;

  /// Freezes the weights and adds an adapter, drawn as PEFT draws it from LibTorch's default
  /// generator: it changes nothing yet, unless init_lora_weights is false. Throws ConfigError for
  /// an unknown target or if there is an adapter.
  void add_adapter(const LoraOptions& options);
  const std::optional<LoraOptions>& adapter() const;
  /// Adds the adapter to the weights and removes it. Where it makes a tied embedding and head
  /// differ, the model has a separate head afterwards. Throws ConfigError where a trained bias
  /// has no place in the family.
  void merge_adapter();
  /// Returns the model without its adapter, sharing the frozen weights: the reference of a policy
  /// that trains an adapter. Throws ConfigError if there is none.
  std::shared_ptr<Decoder> without_adapter() const;
  /// Returns the model with the adapter of a folder in place of the present one, if any. It
  /// shares the weights under the adapter, which are frozen in both.
  std::shared_ptr<Decoder> with_adapter(const std::string& directory) const;
  /// Returns a frozen copy that shares the weights under the adapter; without one,
  /// frozen_decoder().
  std::shared_ptr<Decoder> frozen_adapter_copy() const;
  /// Writes `adapter_config.json`, which names the path that the model was loaded from, and
  /// `adapter_model.safetensors`, as PEFT writes and reads them.
  void save_adapter(const std::string& directory) const;
  /// Freezes the weights and adds the adapter of a folder. One that took the largest singular
  /// values (PiSSA) or a part of QR (OLoRA) out of the weights becomes one of twice the rank on
  /// weights as they are. Throws CheckpointError for one that is not of this model, or whose
  /// initialization changed the weights in another way (CorDA, LoftQ, LoRA-GA).
  void load_adapter(const std::string& directory);
  /// Replaces the parameters: before a trainer or an optimizer holds them, not after.
  void to(at::ScalarType dtype);
  /// Moves weights and adapter to a device (prefopt/device.h). Replaces them, too.
  void to(at::Device device);

 private:
  friend class RewardModel;

  struct Impl;
  explicit Decoder(std::unique_ptr<Impl> impl);
  /// Without a head, the embedding is in its place.
  static std::shared_ptr<Decoder> read(detail::DecoderReader& reader, const std::string& path,
                                       bool with_head);
  /// With `score`, unless that is undefined, as the weight of a score head next to the adapter.
  void write_adapter(const std::string& directory, const at::Tensor& score) const;
  /// Returns the weight of the adapter's score head, of the shape of `score`; undefined if there is
  /// no such head. An undefined `score` refuses an adapter with one.
  at::Tensor read_adapter(const std::string& directory, const at::Tensor& score);
  void check_no_adapter() const;
  void place_adapter(const LoraOptions& options, detail::AdapterParts parts);
  /// Puts the weights with the adapter in the place of those under it.
  static void put_merged(Impl& impl, bool keeps_dtype);
  std::shared_ptr<Decoder> base() const;

  std::unique_ptr<Impl> impl_;
};

/// Parses "float32", "float64", "bfloat16" or "float16"; throws ConfigError for another name.
PREFOPT_API at::ScalarType parse_dtype(std::string_view name);

}  // namespace prefopt
