// SPDX-License-Identifier: Apache-2.0
#include "prefopt/policy/token_rewards.h"

#include <ATen/TensorOperators.h>
#include <ATen/core/grad_mode.h>
#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "prefopt/error.h"
#include "prefopt/policy/sequence_logps.h"

namespace prefopt {
namespace {

at::Tensor token_logps_of(Policy& model, const TokenBatch& batch) {
  return sequence_logps(model, batch.to(model.device())).token_logps.to(at::kCPU, at::kDouble);
}

}  // namespace

std::vector<std::vector<double>> implicit_token_rewards(Policy& model, Policy& reference,
                                                        const std::vector<TokenSequence>& sequences,
                                                        double beta, std::int64_t at_once) {
  if (model.vocab_size() != reference.vocab_size()) {
    throw ConfigError(fmt::format(
        "implicit rewards: expected a reference with the model's vocabulary of {} tokens, got {}",
        model.vocab_size(), reference.vocab_size()));
  }
  if (at_once < 1) {
    throw ConfigError(
        fmt::format("implicit rewards: expected at least one text at once, got {}", at_once));
  }
  const at::NoGradGuard no_grad;
  const auto step = static_cast<std::size_t>(at_once);
  std::vector<std::vector<double>> all;
  for (std::size_t first = 0; first < sequences.size(); first += step) {
    const std::size_t last = std::min(first + step, sequences.size());
    const std::vector<TokenSequence> some(sequences.begin() + static_cast<std::ptrdiff_t>(first),
                                          sequences.begin() + static_cast<std::ptrdiff_t>(last));
    const TokenBatch batch = make_batch(some);
    const at::Tensor rewards =
        (beta * (token_logps_of(model, batch) - token_logps_of(reference, batch))).contiguous();
    const double* next = rewards.const_data_ptr<double>();
    for (const TokenSequence& sequence : some) {
      const std::int64_t tokens = counted_tokens(sequence.completion, sequence.mask);
      all.emplace_back(next, next + tokens);
      next += tokens;
      for (std::size_t t = 0; t < all.back().size(); ++t) {
        if (std::isfinite(all.back()[t])) continue;
        throw NonFiniteError(fmt::format(
            "implicit rewards: expected finite log-probs of model and reference, got a reward of "
            "{} for token {} of sequence {}",
            std::abs(all.back()[t]), t, all.size() - 1));
      }
    }
  }
  return all;
}

}  // namespace prefopt
