// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <span>
#include <vector>

#include "logps/kernels/cpu/gemm.h"
#include "prefopt/model/sampling.h"

namespace prefopt::detail {

/// What the next token is drawn from: a row of logits after temperature, top-k and top-p.
template <class T>
class NextToken {
 public:
  NextToken(const T* logits, std::int64_t size, const SamplingOptions& options);

  /// The row's highest logit, or NaN. Where it is not finite there is no distribution.
  T highest() const { return highest_; }
  /// The first token whose cumulative probability exceeds `share`, in [0, 1).
  std::int64_t draw(double share) const;
  /// Fills a row [size].
  void write_probabilities(float* out) const;

 private:
  bool is_limited(std::int64_t top_k) const { return top_k > 0 && top_k < size_; }
  void keep_all(double temperature);
  void keep_most_likely(const SamplingOptions& options);
  std::vector<double> weights_of(const std::vector<std::int64_t>& tokens, double temperature) const;

  const T* logits_;
  std::int64_t size_;
  T highest_;
  /// Tokens that are kept, ascending, and their weights; without tokens the weights are of all.
  std::vector<std::int64_t> tokens_;
  std::vector<double> weights_;
  kernels::cpu::Buffer<T> all_weights_;
  std::vector<double> sums_;  ///< of parts of all_weights_
};

/// The next token of each row of `logits` [S, vocab], float32 or float64, dense, on the CPU; row i
/// draws with shares[i]. Throws NonFiniteError for a row without a distribution.
std::vector<std::int64_t> draw_tokens(const at::Tensor& logits, const SamplingOptions& options,
                                      std::span<const double> shares);

/// [S, vocab] float32.
at::Tensor token_probabilities(const at::Tensor& logits, const SamplingOptions& options);

}  // namespace prefopt::detail
