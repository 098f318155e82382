// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "prefopt/data/batch.h"
#include "prefopt/export.h"
#include "prefopt/logps/token_logps.h"

namespace prefopt {

class Ranks;  // prefopt/dist/ranks.h

struct NamedParameter {
  std::string name;
  at::Tensor value;
};

/// The output of a model for a batch: hidden states in front of the output head, or logits if the
/// head is not accessible. Exactly one is defined.
struct PolicyOutput {
  at::Tensor hidden;  ///< [S, T, hidden]
  at::Tensor logits;  ///< [S, T, vocab]
};

/// The map from hidden states to logits: transform(weight · hidden + bias). Logits that a policy
/// gives, in a batch or while decoding, have gone through it.
struct OutputHead {
  at::Tensor weight = {};  ///< [vocab, hidden]; undefined for a policy that gives logits
  at::Tensor bias = {};    ///< [vocab]; undefined: none
  LogitTransform transform = {};
};

/// A weight that training changes, by itself or through an adapter (2106.09685).
struct TrainedWeight {
  std::string name;                     ///< in the model without adapters
  at::Tensor weight;                    ///< undefined: zero
  at::Tensor lora_a = {}, lora_b = {};  ///< undefined: no adapter, or only b, a vector: no product
  double lora_scale = 0;
  /// Lengths of rows, [out, 1], or of columns, [1, in] (DoRA, 2402.09353); undefined: any.
  at::Tensor magnitude = {};

  /// Returns weight + lora_scale · lora_b lora_a in the adapter's dtype, brought to the lengths of
  /// `magnitude`; the weight itself without an adapter. With a graph, in which the lengths that
  /// `magnitude` is divided by are constant (section 4.3).
  PREFOPT_API at::Tensor value() const;
  /// Returns value() without a graph.
  PREFOPT_API at::Tensor merged() const;
};

/// Token-by-token decoding of several prompts, with the state that the model keeps between calls.
class PREFOPT_API DecodeSession {
 public:
  virtual ~DecodeSession() = default;
  /// Returns logits [S, vocab] after the prompts.
  virtual at::Tensor prefill() = 0;
  /// Appends one token to each sequence and returns logits [S, vocab] after it.
  virtual at::Tensor append(const at::Tensor& tokens) = 0;
  /// Keeps only the sequences at these ascending indices; S becomes their count, and the others
  /// cost nothing from then on.
  virtual void keep(const std::vector<std::int64_t>& sequences) = 0;
};

/// The interface of a model.
class PREFOPT_API Policy {
 public:
  virtual ~Policy() = default;

  /// Position t of the result sees tokens 0..t of its sequence only.
  virtual PolicyOutput forward(const TokenBatch& batch) = 0;
  /// Returns whether `forward_packed` may be called.
  virtual bool packs() const { return false; }
  /// Returns hidden states [R, hidden] of the stream's `rows`, equal to those of `forward`: a row
  /// sees the rows before it in its own sequence only, wherever the stream holds them. Throws
  /// ConfigError unless the policy packs.
  virtual at::Tensor forward_packed(const PackedTokens& tokens);
  virtual OutputHead head() const { return {}; }
  virtual std::int64_t vocab_size() const = 0;
  virtual std::vector<NamedParameter> named_parameters() const = 0;
  /// Returns the settings that determine results in addition to the parameters (attention heads,
  /// rotary base, …), as text.
  virtual std::string config() const { return {}; }
  /// Throws DataError, led by `where`, for a sequence that is too long for the model. The default:
  /// no sequence is.
  virtual void check_length(std::int64_t tokens, std::string_view where) const;
  /// Returns a frozen copy that shares nothing with this one. Throws ConfigError if impossible.
  virtual std::shared_ptr<Policy> frozen_copy() const;
  /// Returns the weights that training changes. The default: parameters that require a gradient.
  virtual std::vector<TrainedWeight> trained_weights() const;
  /// Returns a frozen model of the merged weights. It owns those that are trained and may share the
  /// others with this policy. The default is frozen_copy().
  virtual std::shared_ptr<Policy> merged_copy() const;
  /// Writes the model in its own format. Throws CheckpointError if it has none.
  virtual void save(const std::string& directory) const;
  /// Reads the trained weights that `save` wrote into the parameters, which keep their places.
  /// Throws CheckpointError if one is missing or differs in shape or dtype, ConfigError if the
  /// policy cannot (the default).
  virtual void load_weights(const std::string& directory);
  /// The default runs the whole forward again for each token.
  virtual std::unique_ptr<DecodeSession> start_decoding(
      const std::vector<std::vector<std::int64_t>>& prompts);
  /// Leaves this one of `ranks`, which all call it, a slice of each weight; whole ones are gathered
  /// where they are read and given back (Sharding::kWeights). Weights that are in slices already
  /// stay so. Throws ConfigError if the policy cannot (the default).
  virtual void keep_slices(const std::shared_ptr<Ranks>& ranks);

  at::Device device() const;
  void set_requires_grad(bool on);
};

namespace detail {
/// Writes `model.safetensors` of parameters into a folder, which is created if necessary.
PREFOPT_API void save_parameters(const std::vector<NamedParameter>& parameters,
                                 const std::string& directory);
/// Reads it into those that require a gradient. Throws CheckpointError, and changes nothing, where
/// one is missing or differs in shape or dtype.
PREFOPT_API void load_parameters(const std::vector<NamedParameter>& parameters,
                                 const std::string& directory);
/// Returns a hash of names and values.
PREFOPT_API std::string hash_of(const std::vector<NamedParameter>& tensors);
}  // namespace detail

/// Returns a hash over config, names, shapes, dtypes and bytes of all parameters, and the scale of
/// an adapter: the key of cached log-probs.
PREFOPT_API std::string content_hash(const Policy& policy);

}  // namespace prefopt
