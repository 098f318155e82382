// SPDX-License-Identifier: Apache-2.0
#include "lab/gains.h"

#include <cstddef>

#include "prefopt/exact/measures.h"

namespace prefopt::lab {

double gain(const exact::Table& logps, const exact::Table& ref, const exact::Table& rewards) {
  return exact::expectation(logps, rewards) - exact::expectation(ref, rewards);
}

double chosen_gain(const exact::Table& logps, const exact::Table& ref, const exact::Pairs& pairs) {
  double sum = 0;
  for (exact::Index i = 0; i < pairs.size(); ++i) {
    const auto at = static_cast<std::size_t>(i);
    const exact::Index x = pairs.prompts[at], y = pairs.chosen[at];
    sum += pairs.weights[i] * (logps(y, x) - ref(y, x));
  }
  return sum;
}

}  // namespace prefopt::lab
