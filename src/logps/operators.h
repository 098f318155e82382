// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <optional>
#include <tuple>

#include "logps/kernels/statistics.h"
#include "prefopt/logps/token_logps.h"

namespace prefopt {

/// The target of a row that is left out: its statistics and its gradient are 0.
inline constexpr std::int64_t kIgnoredTarget = -1;

/// The operators that each device implements, registered as prefopt::_token_logps and so on. Their
/// arguments were checked; targets are in [0, vocab) or kIgnoredTarget (token_logps only).
///
/// Statistics: float64 [kFewStatistics or kAllStatistics, rows], see statistics.h.
/// Factors: float64 [kLogpFactors or kAllFactors, rows], likewise.
/// `gradient`, shaped as the logits and perhaps the logits themselves, is written with the
/// derivative of each row's log-prob with respect to its raw logits, in the backward pass with the
/// gradient that the factors make.
struct LogpsOperators {
  at::Tensor (*token_logps)(const at::Tensor& logits, const at::Tensor& targets, double scale,
                            double softcap, double temperature, bool all_statistics,
                            const std::optional<at::Tensor>& gradient);

  void (*token_logps_backward)(const at::Tensor& factors, const at::Tensor& logits,
                               const at::Tensor& targets, const at::Tensor& logsumexp, double scale,
                               double softcap, double temperature, at::Tensor gradient);

  /// Statistics, and what the backward pass needs again: for kFrozenHead the gradient of each
  /// log-prob with respect to hidden, [rows, H].
  std::tuple<at::Tensor, at::Tensor> (*linear_token_logps)(
      const at::Tensor& hidden, const at::Tensor& weight, const std::optional<at::Tensor>& bias,
      const at::Tensor& targets, double scale, double softcap, double temperature,
      bool all_statistics, bool hidden_grad, bool weight_grad, bool by_product_grad,
      std::int64_t path, std::int64_t budget_bytes);

  /// Gradients of hidden, weight and bias, those that are needed; a wide gradient of the weight
  /// (see math/wide_gradient.h) takes its own at once. hidden_grad, weight_grad, by_product_grad,
  /// path and budget are those of the forward pass. Not called for kFrozenHead.
  std::tuple<at::Tensor, at::Tensor, at::Tensor> (*linear_token_logps_backward)(
      const at::Tensor& factors, const at::Tensor& hidden, const at::Tensor& weight,
      const std::optional<at::Tensor>& bias, const at::Tensor& targets, const at::Tensor& logsumexp,
      const at::Tensor& kept, double scale, double softcap, double temperature, bool hidden_grad,
      bool weight_grad, bool by_product_grad, bool needs_hidden, bool needs_weight, bool needs_bias,
      std::int64_t path, std::int64_t budget_bytes);
};

extern const LogpsOperators kCpuLogps;
/// Plain ATen, for every other device; the tests' reference.
extern const LogpsOperators kAtenLogps;

}  // namespace prefopt
