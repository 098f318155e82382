// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "prefopt/export.h"
#include "prefopt/policy/policy.h"

namespace prefopt {

/// A TorchScript file whose `forward(input_ids, attention_mask)` returns logits [S, T, vocab].
class PREFOPT_API ScriptPolicy final : public Policy {
 public:
  /// Throws CheckpointError for a file that cannot be read.
  static std::shared_ptr<ScriptPolicy> load(const std::string& path, std::int64_t vocab_size);
  ~ScriptPolicy() override;

  PolicyOutput forward(const TokenBatch& batch) override;
  std::int64_t vocab_size() const override;
  std::vector<NamedParameter> named_parameters() const override;
  /// Returns a hash of the file.
  std::string config() const override;
  std::shared_ptr<Policy> frozen_copy() const override;
  /// Writes a TorchScript file, `model.pt` in a folder that is there.
  void save(const std::string& path) const override;
  /// Reads `model.pt` of a folder.
  void load_weights(const std::string& directory) override;

 private:
  struct Impl;
  explicit ScriptPolicy(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace prefopt
