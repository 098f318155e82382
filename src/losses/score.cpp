// SPDX-License-Identifier: Apache-2.0
#include "prefopt/losses/score.h"

#include <fmt/format.h>

#include "prefopt/error.h"

namespace prefopt {
namespace {

const std::vector<std::string_view> kDivergences{
    "reverse_kl", "forward_kl",      "js_divergence",   "alpha_divergence",
    "jeffrey",    "chi_squared_mix", "total_variation",
};

}  // namespace

void ScoreOptions::fields(FieldVisitor& v) {
  v.choice(
      {"divergence", "f-divergence that takes the place of the KL term", {"f_divergence_type"}},
      divergence, kDivergences);
  v.real({"divergence_alpha",
          "a of alpha_divergence; the paper's alpha is 1 - a",
          {"f_alpha_divergence_coef"}},
         alpha, Range::any());
  v.real({"divergence_gamma", "gamma of chi_squared_mix"}, gamma, Range::at_least(0));
  v.flag({"length_normalized", "divide each score by its completion's tokens"}, length_normalized);
  v.flag({"reference_free", "scores from the policy's log-probs alone"}, reference_free);
  v.real({"ld_alpha", "weight of the tokens beyond the shorter completion (LD-DPO); 1: as others"},
         ld_alpha, Range::between(0, 1));
  v.flag({"ld_policy_only", "ld_alpha for the policy, not for the reference"}, ld_policy_only);
}

Score make_score(const ScoreOptions& options, std::string_view where, bool of_difference) {
  const auto refuse = [&](std::string_view why) {
    throw ConfigError(fmt::format("{}: expected divergence 'reverse_kl', got '{}'; {}", where,
                                  kDivergences.at(static_cast<std::size_t>(options.divergence)),
                                  why));
  };
  if (options.divergence == Divergence::kTotalVariation) {
    throw ConfigError(
        "score: expected a divergence whose f' can be inverted, got 'total_variation'; its f' is a "
        "step function, so no reward follows from the policy (arXiv:2309.16240)");
  }
  if (options.divergence == Divergence::kAlpha && options.alpha == 1) {
    throw ConfigError(fmt::format(
        "{}: expected divergence_alpha other than 1, got 1; the formula divides by a - 1, its "
        "limit is divergence 'reverse_kl'",
        where));
  }
  if (options.divergence != Divergence::kReverseKl) {
    if (!of_difference) {
      refuse(
          "the loss looks at each completion by itself, and the normalizer of a divergence cancels "
          "in a difference only (arXiv:2309.16240)");
    }
    if (options.reference_free) {
      refuse("without a reference there is nothing to diverge from");
    }
  }
  return {.options = options};
}

}  // namespace prefopt
