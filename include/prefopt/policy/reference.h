// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "prefopt/data/batch.h"
#include "prefopt/dist/ranks.h"
#include "prefopt/export.h"
#include "prefopt/policy/policy.h"

namespace prefopt {

/// The source of reference log-probs. Results never carry a gradient.
class PREFOPT_API Reference {
 public:
  virtual ~Reference() = default;
  /// Returns [S] float64: sums over the completion tokens of each sequence, nats, with the batch's
  /// token_weights, if any, as factors.
  virtual at::Tensor sequence_logps(const TokenBatch& batch) = 0;
  /// Returns [rows] float32 or float64: one value per completion token, sequence after sequence,
  /// without weights.
  virtual at::Tensor token_logps(const TokenBatch& batch) = 0;
  /// Returns token_logps of the reference's logits divided by `temperature`, see
  /// SequenceLogpsOptions; at 1 exactly token_logps. Throws ConfigError for another temperature
  /// unless the reference can divide its logits (the default: it cannot).
  virtual at::Tensor tempered_token_logps(const TokenBatch& batch, double temperature);
  /// Moves the reference; the trainer calls it after each update of the policy. `step` counts
  /// optimizer steps from 1; a step without an update counts too, but makes no call.
  virtual void after_step(const Policy& policy, std::int64_t step);
  /// Returns all that `after_step` changes, by name, for a checkpoint: not copies; resuming writes
  /// into them. The default: nothing.
  virtual std::vector<std::pair<std::string, at::Tensor>> state() const;
  /// Returns whether log-probs are those of a distribution. Otherwise they lack a constant of each
  /// prompt, and only their differences within a prompt mean something. The default: they are.
  virtual bool is_normalized() const { return true; }
  /// Writes to disk what the reference keeps there. The default: nothing.
  virtual void flush() {}
  /// Returns the model behind it, for fresh samples; null if there is none.
  virtual Policy* policy() { return nullptr; }
};

/// Returns a reference from a frozen policy, usually `policy.frozen_copy()`.
PREFOPT_API std::shared_ptr<Reference> make_frozen_reference(std::shared_ptr<Policy> policy);

enum class CacheLevel { kSequence, kToken };

/// Log-probs on disk in `directory`, in one safetensors file keyed by the model's content and the
/// level. A missing sequence is computed by `inner` and added; nothing is ever taken from a file of
/// another model. `flush` writes new entries (to a temporary file, then renamed); the destructor
/// too. Of two processes on one folder, the last to flush keeps its entries.
class PREFOPT_API CachedReference final : public Reference {
 public:
  CachedReference(std::shared_ptr<Policy> inner, std::string directory,
                  CacheLevel level = CacheLevel::kSequence);
  ~CachedReference() override;

  at::Tensor sequence_logps(const TokenBatch& batch) override;
  /// Throws ConfigError at sequence level.
  at::Tensor token_logps(const TokenBatch& batch) override;
  /// Throws ConfigError unless the temperature is 1: what is on disk was computed at 1.
  at::Tensor tempered_token_logps(const TokenBatch& batch, double temperature) override;
  Policy* policy() override;

  void flush() override;
  /// Lets these ranks have one cache: from here on all of them call `flush` together, which gives
  /// each the new entries of the others, and rank 0 alone writes.
  void share(std::shared_ptr<Ranks> ranks);
  const std::string& path() const;
  std::int64_t hits() const;
  std::int64_t misses() const;

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace prefopt
