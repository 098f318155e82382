// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <numbers>
#include <optional>
#include <string_view>
#include <vector>

#include "prefopt/losses/loss.h"
#include "prefopt/losses/loss_base.h"
#include "prefopt/losses/pair_logps.h"
#include "prefopt/math/functions.h"
#include "prefopt/options.h"

namespace prefopt {

enum class Divergence {
  kReverseKl,
  kForwardKl,
  kJensenShannon,
  kAlpha,
  kJeffrey,
  kChiSquaredMix,
};

/// Humanline (2509.24207): log(pi/pi_ref) of each token is limited.
struct HumanlineOptions {
  bool humanline = false;
  double log_epsilon_p = -1;
  double log_epsilon_r = 1.5;

  PREFOPT_API void fields(FieldVisitor& v);
  /// Returns no limits unless `humanline`. Throws ConfigError, led by `where`, for unused limits.
  PREFOPT_API std::optional<LogRatioLimits> limits(std::string_view where) const;
};

struct ScoreOptions {
  Divergence divergence = Divergence::kReverseKl;
  double alpha = 0.5;
  double gamma = 1;
  bool length_normalized = false;
  bool reference_free = false;
  double ld_alpha = 1;
  bool ld_policy_only = false;
  HumanlineOptions humanline = {};

  PREFOPT_API void fields(FieldVisitor& v);
};

/// One side of a pair.
template <class T>
struct BasicSideLogps {
  const T& logps;
  const T& ref_logps;
  const T& overlap_logps;
  const T& ref_head_logps;
  const T& lens;
  const T& limited_logratios;
};

template <class T>
BasicSideLogps<T> chosen_side(const BasicPairLogps<T>& in) {
  return {in.chosen_logps,         in.ref_chosen_logps,
          in.chosen_overlap_logps, in.ref_chosen_overlap_logps,
          in.chosen_lens,          in.chosen_limited_logratios};
}

template <class T>
BasicSideLogps<T> rejected_side(const BasicPairLogps<T>& in) {
  return {in.rejected_logps,         in.ref_rejected_logps,
          in.rejected_overlap_logps, in.ref_rejected_overlap_logps,
          in.rejected_lens,          in.rejected_limited_logratios};
}

template <class T>
struct BasicSideScore {
  T logratio;   ///< [batch] Delta, nats
  T score;      ///< [batch] s
  T reward;     ///< [batch] times beta: the reward
  T logged;     ///< [batch] the logps of the metrics; undefined: the sum
  T d_logps;    ///< [batch] d score / d logps; undefined with humanline
  T d_overlap;  ///< [batch] d score / d overlap_logps; undefined where ld_alpha is 1
  T d_limited;  ///< [batch] d score / d limited_logratios; undefined without humanline
};

/// Score s of a completion from its log-probs, in nats:
///   Delta = lp - lp_ref        (reference_free: Delta = lp)
///   s = f'(e^Delta), over the completion's tokens if `length_normalized`
/// with the f' of the divergence f that replaces the KL term, up to a constant that cancels in s_w
/// - s_l (f-DPO, 2309.16240; chi_squared_mix as in chi-PO, 2407.13399, whose score has gamma = 1;
/// jeffrey from f(u) = (u - 1) log u):
///   reverse_kl        Delta                             slope 1
///   forward_kl        1 - e^-Delta                            e^-Delta
///   js_divergence     log 2 + log sigmoid(Delta)              sigmoid(-Delta)
///   alpha_divergence  (e^((a-1) Delta) - 1) / (a-1)           e^((a-1) Delta)
///   jeffrey           Delta + 1 - e^-Delta                    1 + e^-Delta
///   chi_squared_mix   Delta + gamma e^Delta                   1 + gamma e^Delta
/// `alpha` is TRL's f_alpha_divergence_coef; the paper's alpha is 1 - a, in (0, 1); its limit at a
/// = 1 is reverse_kl. Exponentials continue as their tangent beyond the limit of math/functions.h,
/// so that scores and slopes are finite for any |Delta| up to 1e4, and the slope vanishes only
/// where that of the formula does.
///
/// With ld_alpha below 1, tokens beyond min(n_w, n_l) have that weight in lp (LD-DPO, 2409.06411):
/// lp = overlap + ld_alpha (full - overlap). The same holds for the reference, as in TRL, unless
/// `ld_policy_only`, as in LLaMA-Factory and TRL up to 0.26.
///
/// With `humanline` (2509.24207) Delta is the sum over tokens of log(pi/pi_ref) within
/// [log_epsilon_p, log_epsilon_r]: a token beyond a limit has no gradient. The authors also set the
/// reference to the policy after each step (`reference.update`, rule hard).
struct Score {
  ScoreOptions options = {};

  template <class T>
  T value(const T& delta) const {
    switch (options.divergence) {
      case Divergence::kForwardKl:
        return -math::capped_expm1(T(-delta));
      case Divergence::kJensenShannon:
        return std::numbers::ln2 + math::log_sigmoid(delta);
      case Divergence::kAlpha:
        return math::capped_expm1(T((options.alpha - 1) * delta)) / (options.alpha - 1);
      case Divergence::kJeffrey:
        return delta - math::capped_expm1(T(-delta));
      case Divergence::kChiSquaredMix:
        return delta + options.gamma * (math::capped_expm1(delta) + 1);
      default:
        return delta;
    }
  }

  template <class T>
  T derivative(const T& delta) const {
    switch (options.divergence) {
      case Divergence::kForwardKl:
        return math::tame_exp_slope(T(-delta));
      case Divergence::kJensenShannon:
        return math::sigmoid(T(-delta));
      case Divergence::kAlpha:
        return math::tame_exp_slope(T((options.alpha - 1) * delta));
      case Divergence::kJeffrey:
        return 1 + math::tame_exp_slope(T(-delta));
      case Divergence::kChiSquaredMix:
        return 1 + options.gamma * math::tame_exp_slope(delta);
      default:
        return math::constant(delta, 1);
    }
  }

  /// Returns the log-probs of a side under the policy, and under the reference; tails are weighted.
  template <class T>
  T policy(const BasicSideLogps<T>& side) const {
    return weighted(side.logps, side.overlap_logps, options.ld_alpha);
  }
  template <class T>
  T reference(const BasicSideLogps<T>& side) const {
    const double tail = options.ld_policy_only ? 1 : options.ld_alpha;
    return weighted(side.ref_logps, side.ref_head_logps, tail);
  }

  /// Returns the argument of the score: a difference of two models, or the log-probs of one.
  template <class T>
  T logratio(const BasicSideLogps<T>& side) const {
    if (options.humanline.humanline) return side.limited_logratios;
    return options.reference_free ? policy(side) : T(policy(side) - reference(side));
  }

  template <class T>
  BasicSideScore<T> of(const BasicSideLogps<T>& side) const {
    BasicSideScore<T> result;
    result.logratio = logratio(side);
    result.score = value(result.logratio);
    T slope = derivative(result.logratio);
    if (options.length_normalized) {
      result.score = result.score / side.lens;
      slope = slope / side.lens;
    }
    const bool of_means = options.reference_free && options.length_normalized;
    result.reward = of_means ? result.score : result.logratio;
    if (of_means || options.ld_alpha != 1) {
      result.logged = of_means ? T(policy(side) / side.lens) : policy(side);
    }
    if (options.humanline.humanline) {
      result.d_limited = slope;
      return result;
    }
    result.d_logps = options.ld_alpha * slope;
    if (options.ld_alpha != 1) result.d_overlap = (1 - options.ld_alpha) * slope;
    return result;
  }

 private:
  template <class T>
  static T weighted(const T& full, const T& head, double tail) {
    return tail == 1 ? full : T(head + tail * (full - head));
  }
};

/// A score s as AlphaPO's reward (2501.03884), r = (1 - e^(-alpha s)) / alpha; at alpha 0 its
/// limit, s itself. Slope: e^(-alpha s) times that of s. Exponentials continue as their tangent, as
/// in Score.
struct ShapedScore {
  Score score = {};
  double alpha = 0;

  template <class T>
  BasicSideScore<T> of(const BasicSideLogps<T>& side) const {
    BasicSideScore<T> result = score.of(side);
    if (alpha == 0) return result;
    const T exponent = -alpha * result.score;
    const T slope = math::tame_exp_slope(exponent);
    result.score = -math::capped_expm1(exponent) / alpha;
    result.reward = result.score;
    for (T* part : {&result.d_logps, &result.d_overlap, &result.d_limited}) {
      if (math::defined(*part)) *part = *part * slope;
    }
    return result;
  }
};

namespace detail {
/// Throws ConfigError for a divergence in a score that `alpha` shapes.
PREFOPT_API void check_shaped(const ScoreOptions& options, double alpha, std::string_view where);
}  // namespace detail

/// Throws ConfigError, led by `where`, for options that give no score, or have no effect with the
/// others. `of_difference`: the loss depends on s_w - s_l alone, so that the normalizer of a
/// divergence cancels.
PREFOPT_API Score make_score(const ScoreOptions& options, std::string_view where,
                             bool of_difference = true);

}  // namespace prefopt
