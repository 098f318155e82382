// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <functional>
#include <vector>

#include "prefopt/logps/token_logps.h"
#include "support/catch.h"

namespace prefopt::testing_support {

/// Normal numbers, the same for the same seed.
at::Tensor random_normal(std::vector<std::int64_t> shape, at::ScalarType dtype, std::uint64_t seed);
at::Tensor random_targets(std::int64_t rows, std::int64_t vocab_size, std::uint64_t seed);

/// Log-probs and all by-products in float64 by their definitions, through softmax and log_softmax.
/// Differentiable in the raw logits.
TokenLogps logps_oracle(const at::Tensor& raw_logits, const at::Tensor& targets,
                        const LogitTransform& transform = {});

/// |a - b| / |b| over all elements.
double relative_error(const at::Tensor& a, const at::Tensor& b);

/// Checks every by-product that `got` has, and its log-probs, against the oracle.
void check_against_oracle(const TokenLogps& got, const TokenLogps& expected, double tolerance);

/// Central differences of f over all elements of x, float64.
at::Tensor finite_differences(const std::function<double(const at::Tensor&)>& f,
                              const at::Tensor& x);

}  // namespace prefopt::testing_support
