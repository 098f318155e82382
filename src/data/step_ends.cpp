// SPDX-License-Identifier: Apache-2.0
#include "prefopt/data/step_ends.h"

#include <string>

#include "prefopt/error.h"

namespace prefopt {

std::vector<std::int64_t> find_step_ends(const std::vector<std::int64_t>& completion,
                                         const Tokenizer& tokenizer, std::string_view step_end) {
  if (step_end.empty()) throw ConfigError("step_end: expected a text that ends steps, got ''");
  std::vector<std::int64_t> ends;
  std::vector<std::int64_t> step;
  for (std::size_t t = 0; t < completion.size(); ++t) {
    step.push_back(completion[t]);
    if (tokenizer.decode(step).find(step_end) == std::string::npos) continue;
    ends.push_back(static_cast<std::int64_t>(t) + 1);
    step.clear();
  }
  if (step.empty()) return ends;
  const auto length = static_cast<std::int64_t>(completion.size());
  // Tokens without a text, such as an end token, are no step.
  if (!ends.empty() && tokenizer.decode(step).empty()) {
    ends.back() = length;
  } else {
    ends.push_back(length);
  }
  return ends;
}

}  // namespace prefopt
