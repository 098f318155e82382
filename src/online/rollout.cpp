// SPDX-License-Identifier: Apache-2.0
#include "prefopt/online/rollout.h"

#include <fmt/format.h>

#include <algorithm>
#include <utility>

#include "prefopt/error.h"

namespace prefopt {
namespace {

void check_positive(const char* name, std::int64_t value) {
  if (value >= 1) return;
  throw ConfigError(fmt::format("rollouts: expected {} of at least 1, got {}", name, value));
}

}  // namespace

std::string completion_text(const std::vector<std::int64_t>& completion, const Tokenizer& tokenizer,
                            const SamplingOptions& options,
                            const std::vector<std::int64_t>& prompt) {
  const bool has_end = !completion.empty() && is_end_token(completion.back(), options);
  return tokenizer.decode_part({completion.begin(), completion.end() - (has_end ? 1 : 0)}, prompt);
}

std::vector<Rollout> draw_rollouts(Policy& policy,
                                   const std::vector<std::vector<std::int64_t>>& prompts,
                                   const RolloutOptions& options, const RolloutProgress& progress) {
  check_positive("samples_per_prompt", options.samples_per_prompt);
  check_positive("at_once", options.at_once);
  const auto each = static_cast<std::size_t>(options.samples_per_prompt);
  const std::size_t total = prompts.size() * each;
  const auto at_once = static_cast<std::size_t>(options.at_once);
  std::vector<Rollout> rollouts;
  for (std::size_t first = 0; first < total; first += at_once) {
    const std::size_t last = std::min(first + at_once, total);
    std::vector<std::vector<std::int64_t>> part;
    for (std::size_t i = first; i < last; ++i) part.push_back(prompts[i / each]);
    SamplingOptions sampling = options.sampling;
    sampling.first_index += static_cast<std::int64_t>(first);
    Samples drawn = sample_with_logps(policy, part, sampling);
    for (std::size_t i = first; i < last; ++i) {
      std::vector<std::int64_t>& completion = drawn.completions[i - first];
      const bool ended = has_ended(completion, sampling);
      rollouts.push_back({.prompt = std::move(part[i - first]),
                          .completion = std::move(completion),
                          .token_logps = std::move(drawn.token_logps[i - first]),
                          .ended = ended,
                          .group = static_cast<std::int64_t>(i / each)});
    }
    if (progress) progress(last, total);
  }
  return rollouts;
}

}  // namespace prefopt
