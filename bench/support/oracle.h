// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <ATen/core/Tensor.h>

// The expected results, in float64 from the definitions, without autograd and a few rows at
// a time.
namespace prefopt::bench {

/// Greatest |error| / (1 + |logp|) of a log-prob.
double logps_error(const at::Tensor& logps, const at::Tensor& expected);
/// |error| / |expected| over all elements.
double relative_error(const at::Tensor& got, const at::Tensor& expected);

struct LogitsErrors {
  double logps = 0;     ///< as logps_error
  double gradient = 0;  ///< as relative_error
};

/// Of log-probs of `logits` and of the gradient of Σ c · logp (undefined: not looked at).
LogitsErrors logits_errors(const at::Tensor& logits, const at::Tensor& targets, const at::Tensor& c,
                           const at::Tensor& logps, const at::Tensor& gradient);

struct HeadOracle {
  at::Tensor logps, hidden_grad, weight_grad;  ///< float64
};

/// Log-probs of hidden · weightᵀ and the gradients of Σ c · logp (undefined c: none).
HeadOracle head_oracle(const at::Tensor& hidden, const at::Tensor& weight,
                       const at::Tensor& targets, const at::Tensor& c);

}  // namespace prefopt::bench
