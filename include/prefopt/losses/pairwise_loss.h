// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <cstdint>
#include <string>
#include <string_view>
#include <utility>

#include "prefopt/losses/link.h"
#include "prefopt/losses/loss.h"
#include "prefopt/losses/loss_base.h"
#include "prefopt/losses/pair_fields.h"
#include "prefopt/losses/pair_logps.h"
#include "prefopt/losses/regularizer.h"
#include "prefopt/losses/score.h"
#include "prefopt/math/tensor.h"

namespace prefopt {

/// A weight of a pair: the likelihood of both completions under the current policy (WPO,
/// 2406.11827), e^(mean token log pi(y_w)) * e^(mean token log pi(y_l)), without gradient.
enum class Weighting {
  kNone,
  kUnaligned,         ///< as above
  kSampledAlignment,  ///< each token's log pi less its log sum_v pi(v)^2 (TRL's use_weighting)
};

/// The quantity that margin_scale multiplies.
enum class MarginOf {
  kGap,     ///< the given reward gap
  kLogGap,  ///< its logarithm (ODPO, 2402.10571)
};

/// Facts that a data row may give about its pair, and WPO's weights. All of it is detached.
struct PairOptions {
  double margin_scale = 0;
  MarginOf margin_of = MarginOf::kGap;
  bool use_label_probs = false;
  bool use_weights = false;
  Weighting weighting = Weighting::kNone;
  bool clamp_weighting = false;
  double data_gradient = 0;  ///< weight of the DataGradient of losses/regularizer.h

  PREFOPT_API void fields(FieldVisitor& v);
  /// Throws ConfigError, led by `where`, for options that contradict each other or do nothing.
  PREFOPT_API void check(std::string_view where) const;
};

/// Lower limit of a reward gap whose logarithm is taken: a pair whose scores are equal, or
/// contradict its order, has next to no weight.
inline constexpr double kLeastRewardGap = 1e-12;

namespace detail {
/// Throws ConfigError for label probabilities next to a term on the chosen completion.
PREFOPT_API void refuse_label_probs(bool use_label_probs, const std::string& name);
/// Throws ConfigError for a margin in a loss without a difference.
PREFOPT_API void refuse_margin(double margin_scale, const std::string& name);
/// Returns the margin that delta should exceed, in units of the score; undefined: 0.
template <class T>
T pair_margins(const PairOptions& options, const BasicPairLogps<T>& in, double beta) {
  if (options.margin_scale == 0) return T();
  const double scale = options.margin_scale / beta;
  if (options.margin_of == MarginOf::kLogGap) {
    return scale * math::log_at_least(in.margins, kLeastRewardGap);
  }
  return scale * in.margins;
}

/// Returns the weight of each pair; undefined: 1.
template <class T>
T pair_weights(const PairOptions& options, const BasicPairLogps<T>& in) {
  T weights = options.use_weights ? in.weights : T();
  if (options.weighting == Weighting::kNone) return weights;
  T likelihood = in.chosen_logps / in.chosen_lens + in.rejected_logps / in.rejected_lens;
  if (options.weighting == Weighting::kSampledAlignment) {
    likelihood = likelihood - in.chosen_log_sum_p_squared / in.chosen_lens -
                 in.rejected_log_sum_p_squared / in.rejected_lens;
  }
  // In the exponent, so that weights far below 1 keep their digits.
  if (options.clamp_weighting) likelihood = -math::relu(T(-likelihood));
  const T factor = math::tame_exp_slope(likelihood);
  return math::defined(weights) ? T(weights * factor) : factor;
}

/// Sets the gradients of the policy's log-probs from the slopes of the sum of `losses` in both
/// scores, and the values of both sides for the metrics.
template <class T>
void set_sides(BasicLossOutput<T>& out, const BasicSlopes<T>& slopes, const BasicSideScore<T>& w,
               const BasicSideScore<T>& l) {
  const auto set = [](T& gradient, const T& slope, const T& d_input) {
    if (math::defined(d_input)) gradient = slope * d_input;
  };
  set(out.grad_chosen, slopes.chosen, w.d_logps);
  set(out.grad_rejected, slopes.rejected, l.d_logps);
  set(out.grad_chosen_overlap, slopes.chosen, w.d_overlap);
  set(out.grad_rejected_overlap, slopes.rejected, l.d_overlap);
  set(out.grad_chosen_limited, slopes.chosen, w.d_limited);
  set(out.grad_rejected_limited, slopes.rejected, l.d_limited);
  out.logged_chosen_logps = w.logged;
  out.logged_rejected_logps = l.logged;
}

template <class T>
void set_rewards(BasicLossOutput<T>& out, double beta, const BasicSideScore<T>& w,
                 const BasicSideScore<T>& l) {
  out.chosen_rewards = beta * w.reward;
  out.rejected_rewards = beta * l.reward;
  out.margins = out.chosen_rewards - out.rejected_rewards;
}

/// Returns the inputs that scores need.
PREFOPT_API LossRequirements score_needs(const ScoreOptions& score);

/// A link that takes each side by itself.
template <class Link, class T>
concept LinkOfSides = requires(const Link& link, const T& x) {
  link.slopes(x, x);
};

/// Per-pair losses and their slopes in both scores.
template <class T>
struct PairValue {
  T losses, d_chosen, d_rejected;
};

template <class T, class Link>
PairValue<T> pair_value(const Link& link, const T& w, const T& l, const T& margin) {
  if constexpr (LinkOfSides<Link, T>) {
    auto slopes = link.slopes(w, l);
    return {link.value(w, l), std::move(slopes.chosen), std::move(slopes.rejected)};
  } else {
    T delta = w - l;
    if (math::defined(margin)) delta = delta - margin;
    const T slope = link.derivative(delta);
    return {link.value(delta), slope, -slope};
  }
}

/// Returns the link of the pair with the other label: its swapped(), if the link knows more of the
/// pair than its scores.
template <class Link>
Link of_swapped_labels(const Link& link) {
  if constexpr (requires { link.swapped(); }) {
    return link.swapped();
  } else {
    return link;
  }
}

/// Returns the expectation over which completion is the better one: with probability p the given
/// one.
template <class T, class Link>
PairValue<T> expected_pair_value(const Link& link, const T& w, const T& l, const T& margin,
                                 const T& p) {
  const PairValue<T> kept = pair_value(link, w, l, margin);
  const PairValue<T> swapped =
      pair_value(of_swapped_labels(link), l, w, math::defined(margin) ? T(-margin) : margin);
  return {p * kept.losses + (1 - p) * swapped.losses,
          p * kept.d_chosen + (1 - p) * swapped.d_rejected,
          p * kept.d_rejected + (1 - p) * swapped.d_chosen};
}
}  // namespace detail

/// Lists the option that chooses a DeltaLink.
PREFOPT_API void delta_link_field(FieldVisitor& v, DeltaLinkKind& kind);

namespace detail {
/// Throws ConfigError for an option other than 0 that only the sigmoid link has.
PREFOPT_API void check_link_option(DeltaLinkKind kind, const char* option, double value,
                                   const std::string& name);
/// Throws ConfigError for a `reduction` other than the default in a term of weight 0.
PREFOPT_API void check_reduction(Reduction reduction, double weight, const std::string& name);
}  // namespace detail

/// The options of a pairwise loss without further ones.
struct BetaOptions {
  double beta = 0.1;
  ScoreOptions score = {};
  PairOptions pair = {};

  void fields(FieldVisitor& v) {
    v.real({"beta", "strength of the KL penalty"}, beta, kBetaRange);
    score.fields(v);
    pair.fields(v);
  }
};

/// link(score(chosen) - score(rejected)) + regularizer:
///   loss = 1/pairs * sum_i [ weight_i link(s_w - s_l - margin) + regularizer_i ]
/// with the scores of losses/score.h; or link(s_w, s_l), for a link of both sides. `margin` is
/// `margin_scale` times the given reward gap or its logarithm, over beta (ODPO, 2402.10571). With
/// `use_label_probs` a pair counts as p times itself and 1 - p times itself with swapped labels:
/// the expectation of the loss over hard labels, and of its gradient. A loss with a term on the
/// chosen or the rejected completion alone refuses it. If a loss has a margin gamma, both orders
/// should exceed it, whereas `label_smoothing` mirrors the unchanged loss (as in TRL), so that p is
/// then not a label_smoothing of 1 - p.
///
/// `Derived` defines link() or link(inputs) and, if they differ from the defaults here, score(),
/// regularizer() and beta(); its options have `score` and `pair`. A link that depends on a mean
/// over the steps carries it as `running`, which goes into the output.
template <class Derived, class OptionsType>
class PairwiseLoss : public LossBase<Derived, OptionsType> {
 public:
  /// Throws ConfigError for options that contradict each other.
  explicit PairwiseLoss(OptionsType options = {})
      : LossBase<Derived, OptionsType>(std::move(options)) {
    const std::string name = Derived::info().name;
    using Link = decltype(link_for(std::declval<const BasicPairLogps<at::Tensor>&>()));
    const bool of_sides = detail::LinkOfSides<Link, at::Tensor>;
    (void)make_score(this->options_.score, name, !of_sides);
    this->options_.pair.check(name);
    if (of_sides) detail::refuse_margin(this->options_.pair.margin_scale, name);
  }

  template <class T>
  BasicLossOutput<T> formula(const BasicPairLogps<T>& in) const {
    const Derived& loss = this->self();
    const double pairs = step_pairs(in);
    const PairOptions& options = this->options_.pair;
    const auto score = loss.score();
    const BasicSideScore<T> w = score.of(chosen_side(in));
    const BasicSideScore<T> l = score.of(rejected_side(in));

    const auto link = link_for(in);
    const T margin = detail::pair_margins(options, in, loss.beta());
    detail::PairValue<T> value =
        options.use_label_probs
            ? detail::expected_pair_value(link, w.score, l.score, margin, in.label_probs)
            : detail::pair_value(link, w.score, l.score, margin);
    if (const T weights = detail::pair_weights(options, in); math::defined(weights)) {
      value = {value.losses * weights, value.d_chosen * weights, value.d_rejected * weights};
    }

    BasicLossOutput<T> out;
    out.losses = value.losses;
    detail::set_sides(out, {value.d_chosen, value.d_rejected}, w, l);
    if (options.data_gradient != 0) DataGradient{options.data_gradient}.add_to(out, out.losses);
    const auto regularizer = loss.regularizer();
    const ScalarOf<T> preference = math::sum(out.losses) / pairs;
    regularizer.add_to(out, in, pairs);
    finish(out, pairs);
    detail::set_rewards(out, loss.beta(), w, l);
    if (regularizer.kName != nullptr) {
      out.terms = {{"preference", preference}, {regularizer.kName, out.loss - preference}};
    }
    if constexpr (requires { link.running; }) out.running = link.running;
    return out;
  }

  Score score() const { return {.options = this->options_.score}; }
  NoRegularizer regularizer() const { return {}; }
  double beta() const { return this->options_.beta; }

  LossRequirements requirements() const {
    const PairOptions& pair = this->options_.pair;
    LossRequirements needs = detail::score_needs(this->options_.score);
    needs.inputs |= when(pair.weighting != Weighting::kNone, kPairLens) |
                    when(pair.weighting == Weighting::kSampledAlignment,
                         {Input::chosen_log_sum_p_squared, Input::rejected_log_sum_p_squared}) |
                    when(pair.margin_scale != 0, Input::margins) |
                    when(pair.use_weights, Input::weights) |
                    when(pair.use_label_probs, Input::label_probs);
    needs.whole_step = needs.of_own_samples = pair.data_gradient != 0;
    this->self().regularizer().add_needs(needs);
    return needs;
  }
  GradientExceptions gradient_exceptions() const {
    const PairOptions& pair = this->options_.pair;
    return {.stops_part = pair.weighting != Weighting::kNone,
            .estimated = when(pair.data_gradient != 0, kPairLogps)};
  }

 private:
  template <class T>
  auto link_for(const BasicPairLogps<T>& in) const {
    if constexpr (requires { this->self().link(in); }) {
      return this->self().link(in);
    } else {
      return this->self().link();
    }
  }
};

}  // namespace prefopt
