// SPDX-License-Identifier: Apache-2.0
#include "prefopt/losses/score.h"

#include <fmt/format.h>

#include "prefopt/error.h"

namespace prefopt {
namespace {

const std::vector<std::string_view> kDivergences{
    "reverse_kl", "forward_kl", "js_divergence", "alpha_divergence", "jeffrey", "chi_squared_mix",
};

constexpr std::string_view kRatioReason =
    "a token that the policy holds as likely as the reference does has a log-ratio of 0, which the "
    "limits must let through";

}  // namespace

void ScoreOptions::fields(FieldVisitor& v) {
  v.choice({"divergence", "f-divergence that replaces the KL term", {"f_divergence_type"}},
           divergence, kDivergences);
  v.real({"divergence_alpha",
          "a of alpha_divergence; the paper's alpha is 1 - a",
          {"f_alpha_divergence_coef"}},
         alpha, Range::any());
  v.real({"divergence_gamma", "gamma of chi_squared_mix"}, gamma, Range::at_least(0));
  v.flag({"length_normalized", "divide each score by its completion's tokens"}, length_normalized);
  v.flag({"reference_free", "scores from the policy's log-probs alone"}, reference_free);
  v.real({"ld_alpha", "weight of the tokens beyond the shorter completion (LD-DPO); 1: full"},
         ld_alpha, Range::between(0, 1));
  v.flag({"ld_policy_only", "ld_alpha for the policy, not for the reference"}, ld_policy_only);
  humanline.fields(v);
}

void HumanlineOptions::fields(FieldVisitor& v) {
  v.flag({"humanline", "limit each token's log(pi/pi_ref) to [log_epsilon_p, log_epsilon_r]"},
         humanline);
  v.real({"log_epsilon_p", "lower limit of humanline, nats", {"log_epsilon_P"}}, log_epsilon_p,
         Range{.max = 0}.because(kRatioReason));
  v.real({"log_epsilon_r", "upper limit of humanline, nats", {"log_epsilon_R"}}, log_epsilon_r,
         Range::at_least(0).because(kRatioReason));
}

std::optional<LogRatioLimits> HumanlineOptions::limits(std::string_view where) const {
  if (humanline) return LogRatioLimits{log_epsilon_p, log_epsilon_r};
  const HumanlineOptions usual;
  detail::refuse_idle(log_epsilon_p != usual.log_epsilon_p, where, "log_epsilon_p",
                      "only humanline limits the log-ratios of tokens");
  detail::refuse_idle(log_epsilon_r != usual.log_epsilon_r, where, "log_epsilon_r",
                      "only humanline limits the log-ratios of tokens");
  return std::nullopt;
}

namespace detail {

void refuse_idle(bool is_set, std::string_view where, std::string_view option,
                 std::string_view reason) {
  if (!is_set) return;
  throw ConfigError(
      fmt::format("{}: expected {} at its default, got another value that would do nothing; {}",
                  where, option, reason));
}

}  // namespace detail

void detail::check_shaped(const ScoreOptions& options, double alpha, std::string_view where) {
  if (alpha == 0 || options.divergence == Divergence::kReverseKl) return;
  throw ConfigError(
      fmt::format("{}: expected divergence 'reverse_kl', got '{}'; the reward has a shape already",
                  where, kDivergences.at(static_cast<std::size_t>(options.divergence))));
}

Score make_score(const ScoreOptions& options, std::string_view where, bool of_difference) {
  const auto refuse = [&](std::string_view why) {
    throw ConfigError(fmt::format("{}: expected divergence 'reverse_kl', got '{}'; {}", where,
                                  kDivergences.at(static_cast<std::size_t>(options.divergence)),
                                  why));
  };
  if (options.divergence == Divergence::kAlpha && options.alpha == 1) {
    throw ConfigError(fmt::format(
        "{}: expected divergence_alpha other than 1, got 1; the formula divides by a - 1, its "
        "limit is divergence 'reverse_kl'",
        where));
  }
  const ScoreOptions usual;
  detail::refuse_idle(options.alpha != usual.alpha && options.divergence != Divergence::kAlpha,
                      where, "divergence_alpha", "only divergence 'alpha_divergence' reads it");
  detail::refuse_idle(
      options.gamma != usual.gamma && options.divergence != Divergence::kChiSquaredMix, where,
      "divergence_gamma", "only divergence 'chi_squared_mix' reads it");
  detail::refuse_idle(options.ld_policy_only && options.ld_alpha == 1, where, "ld_policy_only",
                      "at ld_alpha 1 no token counts less");
  detail::refuse_idle(options.ld_policy_only && options.reference_free, where, "ld_policy_only",
                      "without a reference there is the policy alone");
  if (options.humanline.limits(where)) {
    if (options.reference_free) {
      throw ConfigError(fmt::format(
          "{}: expected humanline false where reference_free is true, got true; it limits what "
          "separates a token of the policy from the reference's",
          where));
    }
    if (options.ld_alpha != 1) {
      throw ConfigError(fmt::format(
          "{}: expected ld_alpha 1 next to humanline, got {}; both say how much a token "
          "counts",
          where, options.ld_alpha));
    }
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
