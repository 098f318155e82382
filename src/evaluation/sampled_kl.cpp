// SPDX-License-Identifier: Apache-2.0
#include "prefopt/evaluation/sampled_kl.h"

#include <ATen/core/grad_mode.h>
#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <utility>

#include "policy/logit_rules.h"
#include "prefopt/data/batch.h"
#include "prefopt/error.h"
#include "prefopt/policy/sequence_kl.h"

namespace prefopt {
namespace {

using Ids = std::vector<std::int64_t>;

// Sequences that are drawn and measured at a time.
constexpr std::size_t kPart = 16;

void check(const std::vector<Ids>& prompts, std::int64_t samples_per_prompt,
           const SamplingOptions& sampling) {
  if (prompts.empty()) throw DataError("sampled_kl: expected at least one prompt, got none");
  if (samples_per_prompt < 1) {
    throw ConfigError(fmt::format("sampled_kl: expected at least one sample a prompt, got {}",
                                  samples_per_prompt));
  }
  detail::check_own_distribution(sampling, "sampled_kl");
}

/// KL of each completion, summed over its tokens.
std::vector<double> sequence_kls(Policy& policy, Policy& reference, const std::vector<Ids>& prompts,
                                 const std::vector<Ids>& completions) {
  std::vector<TokenSequence> sequences;
  for (std::size_t i = 0; i < prompts.size(); ++i) {
    sequences.push_back({.prompt = prompts[i], .completion = completions[i]});
  }
  // Its KL goes from the second model to the first.
  const at::Tensor kls =
      sequence_kl(reference, policy, make_batch(sequences).to(policy.device())).cpu().contiguous();
  const double* first = kls.const_data_ptr<double>();
  return {first, first + kls.numel()};
}

}  // namespace

SampledKl sampled_kl(Policy& policy, Policy& reference, const std::vector<Ids>& prompts,
                     std::int64_t samples_per_prompt, const SamplingOptions& sampling) {
  check(prompts, samples_per_prompt, sampling);
  const at::NoGradGuard no_grad;
  const auto each = static_cast<std::size_t>(samples_per_prompt);
  const std::size_t total = prompts.size() * each;
  SampledKl result;
  result.samples = static_cast<std::int64_t>(total);
  std::vector<double> by_prompt(prompts.size());
  for (std::size_t first = 0; first < total; first += kPart) {
    std::vector<Ids> part;
    for (std::size_t i = first; i < std::min(first + kPart, total); ++i) {
      part.push_back(prompts[i / each]);
    }
    SamplingOptions options = sampling;
    options.first_index = sampling.first_index + static_cast<std::int64_t>(first);
    std::vector<Ids> completions = sample(policy, part, options);
    const auto kls = sequence_kls(policy, reference, part, completions);
    for (std::size_t i = 0; i < part.size(); ++i) {
      by_prompt[(first + i) / each] += kls[i] / static_cast<double>(each);
      result.unfinished += has_ended(completions[i], sampling) ? 0 : 1;
      result.mean_length += static_cast<double>(completions[i].size()) / static_cast<double>(total);
      result.completions.push_back(std::move(completions[i]));
    }
  }
  for (const double kl : by_prompt) {
    if (!std::isfinite(kl)) {
      throw NonFiniteError(
          fmt::format("sampled_kl: expected a finite KL, got {}; the weights of a model may be "
                      "broken",
                      std::abs(kl)));
    }
  }
  result.kl = bootstrap_mean(by_prompt, static_cast<std::uint64_t>(sampling.seed));
  return result;
}

}  // namespace prefopt
