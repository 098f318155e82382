// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>

namespace prefopt::kernels::cpu {

/// Returns the highest of a row of logits; NaN where the row has one.
template <class T>
T highest_logit(const T* row, std::int64_t size);

/// Weights of so many tokens are one of `sums`.
inline constexpr std::int64_t kWeightsOfSum = 1024;

/// weights[i] = e^((row[i] − highest) / temperature), and the float64 sum of each kWeightsOfSum of
/// them. The highest logit has weight 1 whatever the temperature, -inf has 0.
template <class T>
void token_weights(const T* row, std::int64_t size, T highest, double temperature, T* weights,
                   double* sums);

}  // namespace prefopt::kernels::cpu
