// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <utility>

#include "prefopt/error.h"
#include "prefopt/losses/pairwise_loss.h"

namespace prefopt {

struct AotOptions {
  double beta = 0.1;
  double label_smoothing = 0;
  ScoreOptions score = {};

  void fields(FieldVisitor& v) {
    v.real({"beta", "strength of the KL penalty"}, beta, kBetaRange);
    v.real({"label_smoothing", "assumed share of wrong labels"}, label_smoothing,
           kLabelSmoothingRange);
    score.fields(v);
  }
};

namespace detail {
/// The logistic loss of two lists' quantiles, and its slopes in both. Losses are in the order of
/// the rows of the first list.
template <class T>
struct QuantileLoss {
  T losses;
  T d_first, d_second;
};

template <class T>
QuantileLoss<T> quantile_loss(const AotOptions& options, const T& first, const T& second) {
  const double eps = options.label_smoothing;
  const LogisticLink link{options.beta, 1 - eps, eps};
  const T first_order = math::sort_order(first);
  const T second_order = math::sort_order(second);
  const T delta = math::take(first, first_order) - math::take(second, second_order);
  const T slope = link.derivative(delta);
  return {math::put_back(link.value(delta), first_order), math::put_back(slope, first_order),
          math::put_back(T(-slope), second_order)};
}

/// Returns the loss and its gradient, from the slopes in both scores and the scores themselves.
template <class T>
BasicLossOutput<T> transport_output(const BasicPairLogps<T>& in, const AotOptions& options,
                                    const T& losses, const BasicSlopes<T>& slopes,
                                    const BasicSideScore<T>& w, const BasicSideScore<T>& l) {
  BasicLossOutput<T> out;
  out.losses = losses;
  set_sides(out, slopes, w, l);
  finish(out, step_pairs(in));
  set_rewards(out, options.beta, w, l);
  return out;
}

inline LossRequirements transport_needs(const ScoreOptions& score) {
  LossRequirements needs = score_needs(score);
  needs.whole_step = true;
  return needs;
}
}  // namespace detail

/// Alignment by optimal transport, paired (2406.05882): the margins of the policy should dominate
/// those of the reference, quantile by quantile of the whole step,
///   delta'_k = sort(lp_w - lp_l)_k - sort(ref_w - ref_l)_k
///   -(1 - eps) log sigmoid(beta delta'_k) - eps log sigmoid(-beta delta'_k)
/// where lp and ref are divided by their token counts if `length_normalized`, and count their tails
/// by `ld_alpha`. [batch] log-probs in nats; the batch is the whole optimizer step. Derivative: the
/// logistic one, at the row that holds the k-th margin. At policy = reference: log 2. Rows have no
/// weights: a quantile of one list belongs to no row of the other.
class AotLoss : public LossBase<AotLoss, AotOptions> {
 public:
  /// Throws ConfigError for a score that is not a log-ratio.
  explicit AotLoss(AotOptions options = {}) : LossBase(std::move(options)) {
    (void)make_score(options_.score, "aot", false);
    if (options_.score.reference_free) {
      throw ConfigError(
          "aot: expected reference_free false, got true; the policy's margins are held against "
          "the reference's");
    }
    if (options_.score.humanline.humanline) {
      throw ConfigError(
          "aot: expected humanline false, got true; policy and reference are sorted apart, so that "
          "no token has a log-ratio");
    }
  }

  template <class T>
  BasicLossOutput<T> formula(const BasicPairLogps<T>& in) const {
    const Score score{options_.score};
    const BasicSideLogps<T> chosen = chosen_side(in);
    const BasicSideLogps<T> rejected = rejected_side(in);
    const auto margins = [&](const T& w, const T& l) {
      return options_.score.length_normalized ? T(w / in.chosen_lens - l / in.rejected_lens)
                                              : T(w - l);
    };
    const auto loss =
        detail::quantile_loss<T>(options_, margins(score.policy(chosen), score.policy(rejected)),
                                 margins(score.reference(chosen), score.reference(rejected)));
    const BasicSlopes<T> slopes{loss.d_first, -loss.d_first};
    return detail::transport_output(in, options_, loss.losses, slopes, score.of(chosen),
                                    score.of(rejected));
  }
  LossRequirements requirements() const { return detail::transport_needs(options_.score); }

  static LossProperties properties() {
    return {
        .log_ratios_only = true, .difference_only = true, .non_negative = true, .monotone = true};
  }
  static LossInfo info() {
    return {.name = "aot",
            .aliases = {},
            .formula = "dpo's loss of sort(lp_w - lp_l) - sort(ref_w - ref_l)",
            .source = "arXiv:2406.05882",
            .anchors = {{0, 0, 0.69314718055994531}, {10, 0, 0.31326168751822284}},
            .when_to_use = "Large steps, where the distribution of margins matters more than each.",
            .elsewhere = {{"TRL", "aot", "sorts each micro-batch by itself"}}};
  }
};

/// The unpaired form: chosen and rejected scores are sorted separately,
///   delta'_k = sort(s_w)_k - sort(s_l)_k
/// so that it does not matter which rejected completion belongs to which chosen one.
class AotUnpairedLoss : public LossBase<AotUnpairedLoss, AotOptions> {
 public:
  /// Throws ConfigError for a divergence other than the reverse KL: its normalizer is that of the
  /// prompt, and quantiles come from different prompts.
  explicit AotUnpairedLoss(AotOptions options = {}) : LossBase(std::move(options)) {
    (void)make_score(options_.score, "aot_unpaired", false);
  }

  template <class T>
  BasicLossOutput<T> formula(const BasicPairLogps<T>& in) const {
    const Score score{options_.score};
    const BasicSideScore<T> w = score.of(chosen_side(in));
    const BasicSideScore<T> l = score.of(rejected_side(in));
    const auto loss = detail::quantile_loss<T>(options_, w.score, l.score);
    return detail::transport_output(in, options_, loss.losses,
                                    BasicSlopes<T>{loss.d_first, loss.d_second}, w, l);
  }
  LossRequirements requirements() const { return detail::transport_needs(options_.score); }

  static LossProperties properties() {
    return {
        .log_ratios_only = true, .difference_only = true, .non_negative = true, .monotone = true};
  }
  static LossInfo info() {
    return {.name = "aot_unpaired",
            .aliases = {"aot_pair"},
            .formula = "dpo's loss of sort(Delta_w) - sort(Delta_l)",
            .source = "arXiv:2406.05882",
            .anchors = {{0, 0, 0.69314718055994531}, {10, 0, 0.31326168751822284}},
            .when_to_use = "Good and bad completions that do not belong together in pairs.",
            .elsewhere = {{"TRL", "aot_unpaired", "sorts each micro-batch by itself"},
                          {"TRL up to 0.26, ms-swift", "aot_pair", "the same"}}};
  }
};

}  // namespace prefopt
