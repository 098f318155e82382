// SPDX-License-Identifier: Apache-2.0
#include "prefopt/objectives/token_objective.h"

#include <ATen/TensorOperators.h>
#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <string_view>

#include "core/json.h"
#include "losses/attach_gradient.h"
#include "prefopt/error.h"
#include "prefopt/losses/loss_base.h"
#include "prefopt/objectives/segments.h"

namespace prefopt {

using detail::Json;

namespace {

/// Largest |ℓ| whose ratio is taken as it is.
constexpr double kMostLogRatio = 20;

bool is_of_completions(CorrectionKind kind) {
  return kind == CorrectionKind::kSequenceTruncate || kind == CorrectionKind::kSequenceMask;
}

bool is_mask(CorrectionKind kind) {
  return kind == CorrectionKind::kMask || kind == CorrectionKind::kSequenceMask;
}

/// The tokens that share a ratio: each alone, those of a turn, or those of a completion.
template <class T>
struct RatioSegments {
  bool is_single = true;
  bool is_mean = false;
  T places = {};
  T lens = {};
  std::int64_t count = 0;

  T sums(const T& x) const { return is_single ? x : segment_sums(x, places, count); }
  T log_ratios(const T& x) const { return is_mean ? T(sums(x) / lens) : sums(x); }
};

template <class T>
RatioSegments<T> segments_of(RatioLevel level, const BasicTokenArrays<T>& in) {
  switch (level) {
    case RatioLevel::kToken:
      break;
    case RatioLevel::kSequenceMean:
    case RatioLevel::kSequenceSum:
      return {.is_single = false,
              .is_mean = level == RatioLevel::kSequenceMean,
              .places = in.completions,
              .lens = in.lens,
              .count = in.completion_count};
    case RatioLevel::kTurn: {
      if (!math::defined(in.turns)) return segments_of(RatioLevel::kSequenceSum, in);
      const T ones = math::constant(in.logps, 1);
      return {.is_single = false,
              .places = in.turns,
              .lens = segment_sums(ones, in.turns, in.turn_count),
              .count = in.turn_count};
    }
  }
  return {};
}

/// 1 where |x| is within the limit, else 0.
template <class T>
T is_within(const T& x, double limit) {
  return 1 - math::is_positive(T(math::square(x) - limit * limit));
}

template <class T>
T ratios_of(const T& log_ratios) {
  return math::tame_exp_slope(math::clamp(log_ratios, kMostLogRatio));
}

/// The ratio of each token at a level, and its derivative in the log-ratio of the segment.
template <class T>
struct Ratios {
  RatioSegments<T> segments;
  T logs, values, slopes;

  Ratios(RatioLevel level, const BasicTokenArrays<T>& in, const T& old_logps)
      : segments(segments_of(level, in)),
        logs(segments.log_ratios(T(in.logps - old_logps))),
        values(ratios_of(logs)),
        slopes(values * is_within(logs, kMostLogRatio)) {}

  /// Returns the derivative in log π of each token, of that in the log-ratio of each token's
  /// segment.
  T to_logps(const T& by_log_ratios) const {
    return segments.is_mean ? T(segments.sums(by_log_ratios) / segments.lens)
                            : segments.sums(by_log_ratios);
  }
};

bool is_flat(const at::Tensor& x) { return x.defined() && x.dim() == 1; }
bool is_flat(const Eigen::ArrayXd& /*x*/) { return true; }

std::string shape_text(const at::Tensor& x) {
  if (!x.defined()) return "none";
  return fmt::format("[{}]", fmt::join(x.sizes().begin(), x.sizes().end(), ", "));
}
std::string shape_text(const Eigen::ArrayXd& x) { return fmt::format("[{}]", x.size()); }

}  // namespace

void CorrectionOptions::fields(FieldVisitor& v) {
  v.choice(
      {"kind",
       "of q = exp(old - sampler): truncate min(q, cap), mask q within [low, cap], the same of "
       "whole completions"},
      kind, {"none", "truncate", "mask", "sequence_truncate", "sequence_mask"});
  v.real({"low", "least q of a mask"}, low, Range::at_least(0));
  v.real({"cap", "largest q; 0: 2 of truncate, 5 of mask, 3 of whole completions"}, cap,
         Range::at_least(0));
}

double CorrectionOptions::limit() const {
  if (cap > 0) return cap;
  if (is_of_completions(kind)) return 3;
  return kind == CorrectionKind::kMask ? 5 : 2;
}

void DpoRewardOptions::fields(FieldVisitor& v) {
  v.real({"coefficient", "β1 of log π_dpo − log π_ref as a token's reward; 0: none"}, coefficient,
         Range::at_least(0));
  v.real({"clip", "largest size of that reward; 0: no limit"}, clip, Range::at_least(0));
}

void TokenObjectiveOptions::fields(FieldVisitor& v) {
  v.json({"advantage", "how much better a token is than expected, with its options"}, advantage);
  v.json({"rule", "what becomes of ratio and advantage, with its options"}, rule);
  v.choice({"level", "whose log-ratios make a ratio"}, level,
           {"token", "sequence_mean", "sequence_sum", "turn"});
  v.choice({"aggregation", "weights of tokens in the loss of a step"}, aggregation,
           {"token_mean", "sequence_token_mean", "sequence_sum", "fixed", "group_token_mean"});
  v.integer({"max_completion_length", "tokens that aggregation fixed divides by"},
            max_completion_length, Range::at_least(0));
  v.group({"kl", "penalty for the distance to the reference"}, kl);
  v.group({"correction", "for a sampler that is not the trainer"}, correction);
  v.real({"off_policy_drop",
          "nats a token by which the sampler may exceed the policy in completions of negative "
          "advantage; 0: any"},
         off_policy_drop, Range::at_least(0));
  v.real({"entropy_coefficient", "bonus for the entropy of each token, nats"}, entropy_coefficient,
         Range::any());
  v.group({"value_loss", "of a value model"}, value_loss);
  v.group({"dpo_reward", "token rewards from a model that DPO trained"}, dpo_reward);
  v.choice({"unfinished", "completions without an end token: keep, or mask, which drops them"},
           unfinished, {"keep", "mask"});
}

TokenObjective::TokenObjective(TokenObjectiveOptions options, std::string name)
    : TokenObjective(make_advantage(options.advantage), make_rule(options.rule), options,
                     std::move(name)) {}

TokenObjective::TokenObjective(Advantage advantage, TokenRule rule, TokenObjectiveOptions options,
                               std::string name)
    : options_(checked(std::move(options), name)),
      name_(std::move(name)),
      advantage_(std::move(advantage)),
      rule_(std::move(rule)) {
  const auto refuse = [&](bool is_wrong, std::string_view expected, std::string_view got) {
    if (is_wrong) throw ConfigError(fmt::format("{}: expected {}, got {}", name_, expected, got));
  };
  const KlOptions& kl = options_.kl;
  refuse(options_.aggregation == Aggregation::kFixed && options_.max_completion_length == 0,
         "max_completion_length above 0 for aggregation 'fixed'", "0");
  refuse(kl.estimator == KlEstimator::kExact && kl.is_in_advantages(),
         "kl.place 'loss' for the exact KL, which has its own gradient", "another place");
  refuse(kl.place == KlPlace::kReward && kl.coefficient > 0 && advantage_.needs().given,
         "kl.place 'loss' or 'advantage' for advantage 'given', which reads no rewards",
         "'reward'");
  refuse(kl.weight == KlWeight::kRatio && kl.place != KlPlace::kLoss,
         "kl.weight 'none' for a KL that is not in the loss", "'ratio'");
  refuse(kl.target > 0 && kl.is_in_loss(),
         "kl.target 0 for a KL in the loss, whose coefficient stays", "another target");
  refuse(kl.target > 0 && kl.coefficient == 0, "kl.target 0 without a kl.coefficient to adapt",
         "another target");
  refuse(options_.value_loss.coefficient > 0 && !advantage_.needs().values,
         "value_loss.coefficient 0 for an advantage without values", "another coefficient");
  refuse(options_.dpo_reward.coefficient > 0 && !advantage_.needs().per_token,
         "dpo_reward.coefficient 0 for an advantage without rewards of tokens (gae, to_go)",
         "another coefficient");
  refuse(rule_.of_completions() && options_.level != RatioLevel::kToken &&
             options_.level != RatioLevel::kSequenceSum,
         fmt::format("level 'sequence_sum' for rule '{}', whose ratio is that of the completion",
                     rule_.info().kind),
         "another level");
  const CorrectionOptions& correction = options_.correction;
  refuse(correction.low > 0 && !is_mask(correction.kind), "correction.low 0 without a mask",
         fmt::format("{}", correction.low));
  refuse(correction.cap > 0 && correction.kind == CorrectionKind::kNone,
         "correction.cap 0 without a kind of correction", fmt::format("{}", correction.cap));
  refuse(is_mask(correction.kind) && correction.low > correction.limit(),
         fmt::format("correction.low of at most the cap {}", correction.limit()),
         fmt::format("{}", correction.low));
  options_.advantage = advantage_.config();
  options_.rule = rule_.config();
}

ObjectiveNeeds TokenObjective::needs() const {
  const AdvantageNeeds of = advantage_.needs();
  const bool has_kl = options_.kl.coefficient > 0;
  return {.ref_logps = has_kl || options_.dpo_reward.coefficient > 0,
          .sampler_logps = options_.correction.kind != CorrectionKind::kNone,
          .entropies = options_.entropy_coefficient != 0,
          .exact_kls = has_kl && options_.kl.estimator == KlEstimator::kExact,
          .values = of.values,
          .extra_logps = options_.dpo_reward.coefficient > 0,
          .greedy_rewards = of.greedy_rewards,
          .given = of.given,
          .groups = of.groups || options_.aggregation == Aggregation::kGroupTokenMean,
          .ratios = rule_.info().kind != "none"};
}

bool TokenObjective::ignores_zero_advantages() const {
  return rule_.is_linear() && !options_.kl.is_in_loss() && options_.entropy_coefficient == 0 &&
         options_.value_loss.coefficient == 0;
}

// Advantages.

StepAdvantages TokenObjective::advantages(const RolloutStep& step, double kl_coefficient) const {
  check_rollout_step(step);
  const ObjectiveNeeds needs = this->needs();
  const bool has_kl = kl_coefficient > 0 && options_.kl.place != KlPlace::kLoss;
  const auto require = [&](bool is_needed, const Eigen::ArrayXd& x, std::string_view what) {
    if (!is_needed || x.size() == step.tokens()) return;
    throw ShapeError(fmt::format("{}: expected {} of the rollouts, got none", name_, what));
  };
  require(needs.extra_logps, step.extra_logps, "extra_logps");
  require(needs.extra_logps || has_kl, step.ref_logps, "ref_logps");
  require(has_kl, step.old_logps, "old_logps");

  RolloutStep used = step;
  const bool per_token = advantage_.needs().per_token;
  const auto add_token_rewards = [&](const Eigen::ArrayXd& rewards) {
    const Eigen::ArrayXd acted = (step.acted > 0).select(rewards, 0);
    used.token_rewards =
        used.token_rewards.size() > 0 ? Eigen::ArrayXd(used.token_rewards + acted) : acted;
  };
  Eigen::ArrayXd kl;
  if (has_kl) {
    kl = (step.acted > 0)
             .select(
                 estimate_kl<Eigen::ArrayXd>(options_.kl.estimator, step.old_logps, step.ref_logps)
                     .values,
                 0) *
         kl_coefficient;
  }
  if (has_kl && options_.kl.place == KlPlace::kReward) {
    if (per_token) {
      add_token_rewards(-kl);
    } else {
      const auto places = step.starts();
      for (std::int64_t i = 0; i < step.completions(); ++i) {
        const auto of = static_cast<std::size_t>(i);
        used.rewards[i] -= kl.segment(places[of], step.lens[of]).sum();
      }
    }
  }
  if (options_.dpo_reward.coefficient > 0) {
    const double limit = options_.dpo_reward.clip;
    const Eigen::ArrayXd rewards =
        options_.dpo_reward.coefficient * (step.extra_logps - step.ref_logps);
    add_token_rewards(limit > 0 ? Eigen::ArrayXd(rewards.max(-limit).min(limit)) : rewards);
  }
  StepAdvantages result;
  result.advantages = advantage_.of(used);
  if (needs.values) result.returns = advantage_.returns(used);
  result.kept = advantage_.kept(step, result.advantages);
  if (has_kl && options_.kl.place == KlPlace::kAdvantage) result.advantages -= kl;
  return result;
}

// The loss.

template <class T>
void TokenObjective::check(const BasicTokenArrays<T>& in) const {
  const ObjectiveNeeds needs = this->needs();
  if (!is_flat(in.logps)) {
    throw ShapeError(
        fmt::format("{}: expected logps [tokens], got {}", name_, shape_text(in.logps)));
  }
  const std::int64_t tokens = math::length(in.logps);
  if (tokens == 0) return;  // a part of the step without an acted token
  const auto require = [&](bool is_needed, const T& x, std::string_view name) {
    if (!is_needed && !math::defined(x)) return;
    if (math::defined(x) && is_flat(x) && math::length(x) == tokens) return;
    throw ShapeError(fmt::format("{}: expected {} [{}], got {}", name_, name, tokens,
                                 math::defined(x) ? shape_text(x) : "none"));
  };
  const auto require_total = [&](bool is_needed, double total, std::int64_t given,
                                 std::string_view name) {
    if (!is_needed || total >= static_cast<double>(given)) return;
    throw ShapeError(
        fmt::format("{}: expected totals.{} of the whole step, at least the {} given, got {}",
                    name_, name, given, total));
  };
  const bool trains_values = options_.value_loss.coefficient > 0;
  require(true, in.advantages, "advantages");
  require(true, in.completions, "completions");
  require(true, in.lens, "lens");
  require(false, in.old_logps, "old_logps");
  require(needs.ref_logps && options_.kl.place == KlPlace::kLoss && !needs.exact_kls, in.ref_logps,
          "ref_logps");
  require(needs.sampler_logps, in.sampler_logps, "sampler_logps");
  require(needs.entropies, in.entropies, "entropies");
  require(needs.exact_kls, in.exact_kls, "exact_kls");
  require(trains_values, in.values, "values");
  require(trains_values, in.old_values, "old_values");
  require(trains_values, in.returns, "returns");
  require(options_.aggregation == Aggregation::kGroupTokenMean, in.group_lens, "group_lens");
  require(false, in.turns, "turns");
  const bool has_entropy = options_.entropy_coefficient != 0;
  const Aggregation by = options_.aggregation;
  require_total(by == Aggregation::kTokenMean || has_entropy, in.totals.tokens, tokens, "tokens");
  require_total(by == Aggregation::kSequenceTokenMean || by == Aggregation::kSequenceSum ||
                    by == Aggregation::kFixed,
                in.totals.completions, in.completion_count, "completions");
  require_total(by == Aggregation::kGroupTokenMean, in.totals.groups, 1, "groups");
}

template <class T>
T TokenObjective::weights(const BasicTokenArrays<T>& in) const {
  const ObjectiveTotals& of = in.totals;
  switch (options_.aggregation) {
    case Aggregation::kTokenMean:
      break;
    case Aggregation::kSequenceTokenMean:
      return 1 / (in.lens * of.completions);
    case Aggregation::kSequenceSum:
      return math::constant(in.logps, 1 / of.completions);
    case Aggregation::kFixed:
      return math::constant(
          in.logps, 1 / (of.completions * static_cast<double>(options_.max_completion_length)));
    case Aggregation::kGroupTokenMean:
      return 1 / (in.group_lens * of.groups);
  }
  return math::constant(in.logps, 1 / of.tokens);
}

template <class T>
T TokenObjective::correction(const BasicTokenArrays<T>& in, const T& old_logps) const {
  T factors = math::constant(in.logps, 1);
  const CorrectionOptions& of = options_.correction;
  if (of.kind != CorrectionKind::kNone) {
    T gaps = old_logps - in.sampler_logps;
    if (is_of_completions(of.kind)) gaps = segment_sums(gaps, in.completions, in.completion_count);
    const T ratios = ratios_of(gaps);
    const T over = math::is_positive(T(ratios - of.limit()));
    if (is_mask(of.kind)) {
      factors = ratios * (1 - over) * (1 - math::is_positive(T(of.low - ratios)));
    } else {
      factors = ratios * (1 - over) + over * of.limit();
    }
  }
  if (options_.off_policy_drop > 0) {
    const T gaps = (math::defined(in.sampler_logps) ? in.sampler_logps : old_logps) - in.logps;
    const T means = segment_sums(gaps, in.completions, in.completion_count) / in.lens;
    const T dropped = math::is_positive(T(means - options_.off_policy_drop)) *
                      math::is_positive(T(-in.advantages));
    factors = factors * (1 - dropped);
  }
  return factors;
}

template <class T>
BasicObjectiveOutput<T> TokenObjective::formula(const BasicTokenArrays<T>& in,
                                                double kl_coefficient) const {
  check(in);
  if (math::length(in.logps) == 0) {
    const auto nothing = math::sum(in.logps);
    return {.loss = nothing, .grad_logps = in.logps, .terms = {{"policy", nothing}}};
  }
  const bool has_old = math::defined(in.old_logps);
  const T old_logps = has_old ? in.old_logps : in.logps;
  const Ratios<T> ratios(rule_.of_completions() ? RatioLevel::kSequenceSum : options_.level, in,
                         old_logps);
  const RatioSegments<T>& segments = ratios.segments;
  const RuleOutputs<T> rule = rule_(RuleInputs<T>{.log_ratios = ratios.logs,
                                                  .ratios = ratios.values,
                                                  .ratio_slopes = ratios.slopes,
                                                  .logps = in.logps,
                                                  .advantages = in.advantages});
  const T weights = this->weights(in);
  const T factors = weights * correction(in, old_logps);
  BasicObjectiveOutput<T> out;
  const auto add_gradient = [&](const T& part) { detail::add_to(out.grad_logps, part); };

  // The loss of a segment that is one action is spread over its tokens.
  const bool is_one_action =
      !segments.is_single && !segments.is_mean && math::defined(rule.by_log_ratio);
  const T each = is_one_action ? T(factors / segments.lens) : factors;
  out.terms.push_back({"policy", math::sum(T(each * rule.losses))});
  if (math::defined(rule.by_logp)) add_gradient(each * rule.by_logp);
  if (math::defined(rule.by_log_ratio)) add_gradient(ratios.to_logps(T(each * rule.by_log_ratio)));

  const bool has_kl = kl_coefficient > 0 && options_.kl.place == KlPlace::kLoss;
  const bool is_exact = options_.kl.estimator == KlEstimator::kExact;
  TokenKl<T> kl;
  if (math::defined(in.ref_logps) && !(is_exact && has_kl)) {
    kl = estimate_kl(options_.kl.estimator, in.logps, in.ref_logps);
  } else if (is_exact && has_kl) {
    kl.values = in.exact_kls;
  }
  if (has_kl) {
    T scale = kl_coefficient * weights;
    if (options_.kl.weight == KlWeight::kRatio) {
      // Of the level, whatever ratio the rule itself takes.
      const Ratios<T> of_kl(options_.level, in, old_logps);
      add_gradient(of_kl.to_logps(T(scale * of_kl.slopes * kl.values)));
      scale = scale * of_kl.values;
    }
    out.terms.push_back({"kl", math::sum(T(scale * kl.values))});
    if (is_exact) {
      out.grad_exact_kls = scale;
    } else {
      add_gradient(scale * kl.slopes);
    }
  }
  if (options_.entropy_coefficient != 0) {
    // A mean over tokens, however the policy's loss weighs them, as in TRL.
    out.grad_entropies = math::constant(in.logps, -options_.entropy_coefficient / in.totals.tokens);
    out.terms.push_back({"entropy", math::sum(T(out.grad_entropies * in.entropies))});
  }
  if (options_.value_loss.coefficient > 0) {
    const ValueErrors<T> errors =
        value_errors(in.values, in.old_values, in.returns, options_.value_loss.clip);
    const T scale = options_.value_loss.coefficient * weights;
    out.grad_values = scale * errors.gradients;
    out.terms.push_back({"value", math::sum(T(scale * errors.losses))});
  }
  out.loss = out.terms.front().value;
  for (std::size_t i = 1; i < out.terms.size(); ++i) out.loss = out.loss + out.terms[i].value;

  const auto add_statistic = [&](std::string name, const T& each) {
    if (math::defined(each)) out.statistics.push_back({std::move(name), math::sum(each)});
  };
  add_statistic("kl", kl.values);
  add_statistic("clip_ratio/low_mean", rule.limited_below);
  add_statistic("clip_ratio/high_mean", rule.limited_above);
  if (math::defined(rule.limited_below)) {
    add_statistic("clip_ratio/region_mean", T(rule.limited_below + rule.limited_above));
  }
  if (has_old) add_statistic("approx_kl", T(ratios.values - 1 - ratios.logs));
  if (math::defined(in.sampler_logps)) {
    add_statistic("sampling/logp_difference", T(in.sampler_logps - old_logps));
  }
  return out;
}

template BasicObjectiveOutput<at::Tensor> TokenObjective::formula(
    const BasicTokenArrays<at::Tensor>& in, double kl_coefficient) const;
template BasicObjectiveOutput<Eigen::ArrayXd> TokenObjective::formula(
    const BasicTokenArrays<Eigen::ArrayXd>& in, double kl_coefficient) const;

ObjectiveOutput TokenObjective::forward(const TokenArrays& in, double kl_coefficient) const {
  TokenArrays plain = in;
  detail::detach_wide(
      {&plain.logps, &plain.old_logps, &plain.ref_logps, &plain.sampler_logps, &plain.advantages,
       &plain.entropies, &plain.exact_kls, &plain.values, &plain.old_values, &plain.returns,
       &plain.completions, &plain.turns, &plain.lens, &plain.group_lens},
      in.logps.device());
  ObjectiveOutput out = [&] {
    const detail::NoGrad no_grad;
    return formula(plain, kl_coefficient);
  }();
  out.loss = detail::attach_wanted_gradients({{in.logps, out.grad_logps},
                                              {in.entropies, out.grad_entropies},
                                              {in.exact_kls, out.grad_exact_kls},
                                              {in.values, out.grad_values}},
                                             out.loss);
  return out;
}

std::string TokenObjective::config() const {
  return detail::typed_config("policy_gradient", options_to_json(options_));
}

}  // namespace prefopt
