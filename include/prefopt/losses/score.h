// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <numbers>
#include <string_view>
#include <vector>

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
  kTotalVariation,
};

struct ScoreOptions {
  Divergence divergence = Divergence::kReverseKl;
  double alpha = 0.5;
  double gamma = 1;
  bool length_normalized = false;
  bool reference_free = false;
  double ld_alpha = 1;
  bool ld_policy_only = false;

  PREFOPT_API void fields(FieldVisitor& v);
};

/// One side of a pair.
template <class T>
struct BasicSideLogps {
  const T& logps;
  const T& ref_logps;
  const T& head_logps;
  const T& ref_head_logps;
  const T& lens;
};

template <class T>
BasicSideLogps<T> chosen_side(const BasicPairLogps<T>& in) {
  return {in.chosen_logps, in.ref_chosen_logps, in.chosen_head_logps, in.ref_chosen_head_logps,
          in.chosen_lens};
}

template <class T>
BasicSideLogps<T> rejected_side(const BasicPairLogps<T>& in) {
  return {in.rejected_logps, in.ref_rejected_logps, in.rejected_head_logps,
          in.ref_rejected_head_logps, in.rejected_lens};
}

template <class T>
struct BasicSideScore {
  T logratio;  ///< [batch] Delta, nats
  T score;     ///< [batch] s
  T d_logps;   ///< [batch] d score / d logps
  T d_head;    ///< [batch] d score / d head_logps; undefined where ld_alpha is 1
};

/// What beta makes a reward of: the log-ratio, as in TRL, or without a reference the mean log-prob
/// of a token where the loss looks at that.
template <class T>
const T& rewarded(const ScoreOptions& options, const BasicSideScore<T>& side) {
  return options.reference_free && options.length_normalized ? side.score : side.logratio;
}

/// Score s of a completion from its log-probs, in nats:
///   Delta = lp - lp_ref        (reference_free: Delta = lp)
///   s = f'(e^Delta), over the completion's tokens where `length_normalized`
/// with the f' of the divergence f that takes the place of the KL term, up to a constant that
/// cancels in s_w - s_l (f-DPO, 2309.16240; chi_squared_mix as in chi-PO, 2407.13399, whose own
/// score has gamma = 1; jeffrey from f(u) = (u - 1) log u):
///   reverse_kl        Delta                             slope 1
///   forward_kl        1 - e^-Delta                            e^-Delta
///   js_divergence     log 2 + log sigmoid(Delta)              sigmoid(-Delta)
///   alpha_divergence  (e^((a-1) Delta) - 1) / (a-1)           e^((a-1) Delta)
///   jeffrey           Delta + 1 - e^-Delta                    1 + e^-Delta
///   chi_squared_mix   Delta + gamma e^Delta                   1 + gamma e^Delta
/// `alpha` is TRL's f_alpha_divergence_coef; the paper's alpha is 1 - a, in (0, 1); its limit at
/// a = 1 is reverse_kl. Exponentials go on as their tangent beyond the limit of math/functions.h,
/// so scores and slopes are finite for any |Delta| up to 1e4, and the slope does not vanish where
/// the formula's does not.
///
/// With ld_alpha below 1, lp counts the tokens beyond min(n_w, n_l) only so much (LD-DPO,
/// 2409.06411): lp = head + ld_alpha (full - head). The reference does as well, as in TRL, unless
/// `ld_policy_only`, as in LLaMA-Factory.
struct Score {
  ScoreOptions options = {};

  template <class T>
  T value(const T& delta) const {
    switch (options.divergence) {
      case Divergence::kForwardKl:
        return -math::tame_expm1(T(-delta));
      case Divergence::kJensenShannon:
        return std::numbers::ln2 + math::log_sigmoid(delta);
      case Divergence::kAlpha:
        return math::tame_expm1(T((options.alpha - 1) * delta)) / (options.alpha - 1);
      case Divergence::kJeffrey:
        return delta - math::tame_expm1(T(-delta));
      case Divergence::kChiSquaredMix:
        return delta + options.gamma * (math::tame_expm1(delta) + 1);
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

  /// Log-probs of a side under the policy and under the reference, tails weighted.
  template <class T>
  T policy(const BasicSideLogps<T>& side) const {
    return weighted(side.logps, side.head_logps, options.ld_alpha);
  }
  template <class T>
  T reference(const BasicSideLogps<T>& side) const {
    const double tail = options.ld_policy_only ? 1 : options.ld_alpha;
    return weighted(side.ref_logps, side.ref_head_logps, tail);
  }

  /// What a score is of: a difference of two models, or the log-probs of one.
  template <class T>
  T logratio(const BasicSideLogps<T>& side) const {
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
    result.d_logps = options.ld_alpha * slope;
    if (options.ld_alpha != 1) result.d_head = (1 - options.ld_alpha) * slope;
    return result;
  }

 private:
  template <class T>
  static T weighted(const T& full, const T& head, double tail) {
    return tail == 1 ? full : T(head + tail * (full - head));
  }
};

/// Throws ConfigError, led by `where`, for options from which no score follows. `of_difference`:
/// the loss depends on s_w - s_l alone, so that the normalizer of a divergence cancels.
PREFOPT_API Score make_score(const ScoreOptions& options, std::string_view where,
                             bool of_difference = true);

}  // namespace prefopt
