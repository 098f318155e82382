// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <numbers>
#include <vector>

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

  PREFOPT_API void fields(FieldVisitor& v);
};

/// Score s of a log-ratio Delta = log pi - log pi_ref, in nats: f'(e^Delta) of the divergence f
/// that takes the place of the KL term, up to a constant that cancels in s_w - s_l (f-DPO,
/// 2309.16240; chi_squared_mix as in chi-PO, 2407.13399, whose own score has gamma = 1; jeffrey
/// from f(u) = (u - 1) log u).
///   reverse_kl        Delta                                    slope 1
///   forward_kl        1 - e^-Delta                                   e^-Delta
///   js_divergence     log 2 + log sigmoid(Delta)                     sigmoid(-Delta)
///   alpha_divergence  (e^((a-1) Delta) - 1) / (a-1); a = 1: Delta    e^((a-1) Delta)
///   jeffrey           Delta + 1 - e^-Delta                           1 + e^-Delta
///   chi_squared_mix   Delta + gamma e^Delta                          1 + gamma e^Delta
/// `alpha` is TRL's f_alpha_divergence_coef; the paper's alpha is 1 - a, in (0, 1). Exponentials
/// continue as their tangent above 30 in float32 and 300 in float64 (math::Functions). At Delta = 0
/// every score is 0, but chi_squared_mix, which is gamma.
struct Score {
  Divergence divergence = Divergence::kReverseKl;
  double alpha = 0.5;
  double gamma = 1;

  template <class T>
  T value(const T& delta) const {
    switch (divergence) {
      case Divergence::kForwardKl:
        return -math::tame_expm1(T(-delta));
      case Divergence::kJensenShannon:
        return std::numbers::ln2 + math::log_sigmoid(delta);
      case Divergence::kAlpha:
        if (alpha == 1) return delta;
        return math::tame_expm1(T((alpha - 1) * delta)) / (alpha - 1);
      case Divergence::kJeffrey:
        return delta - math::tame_expm1(T(-delta));
      case Divergence::kChiSquaredMix:
        return delta + gamma * (math::tame_expm1(delta) + 1);
      default:
        return delta;
    }
  }

  template <class T>
  T derivative(const T& delta) const {
    switch (divergence) {
      case Divergence::kForwardKl:
        return math::tame_exp_slope(T(-delta));
      case Divergence::kJensenShannon:
        return math::sigmoid(T(-delta));
      case Divergence::kAlpha:
        return math::tame_exp_slope(T((alpha - 1) * delta));
      case Divergence::kJeffrey:
        return 1 + math::tame_exp_slope(T(-delta));
      case Divergence::kChiSquaredMix:
        return 1 + gamma * math::tame_exp_slope(delta);
      default:
        return math::constant(delta, 1);
    }
  }
};

/// Throws ConfigError for total_variation, whose f' cannot be inverted.
PREFOPT_API Score make_score(const ScoreOptions& options);

}  // namespace prefopt
