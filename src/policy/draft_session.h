// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <vector>

#include "prefopt/policy/policy.h"

namespace prefopt::detail {

/// A session that takes several tokens of a sequence at once and some of them back. Logits are
/// those of tokens that are appended one by one, bit for bit.
class DraftSession : public DecodeSession {
 public:
  /// Appends tokens to each sequence, at least one, and returns logits [all tokens, vocab] after
  /// each of them, sequence by sequence.
  virtual at::Tensor append_all(const std::vector<std::vector<std::int64_t>>& tokens) = 0;
  /// Takes the last `counts[i]` appended tokens of sequence i back.
  virtual void take_back(const std::vector<std::int64_t>& counts) = 0;
};

}  // namespace prefopt::detail
