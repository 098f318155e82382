// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <utility>

#include "prefopt/losses/loss_base.h"
#include "prefopt/math/functions.h"
#include "prefopt/objectives/token_loss.h"
#include "prefopt/objectives/token_sequences.h"

namespace prefopt {

/// The divisor of the sum over tokens.
enum class TokenReduction {
  kTokenMean,  ///< the tokens of the step
  kSum,        ///< its completions
};

struct IqlearnOptions {
  double lambda = 0.1;
  double gamma = 0.99;
  TokenReduction reduction = TokenReduction::kTokenMean;
  double own_samples = 0;

  void fields(FieldVisitor& v) {
    v.real({"lambda", "weight of the squared rewards; 0: sft"}, lambda, Range::at_least(0));
    v.real({"gamma", "discount of the value of the next state"}, gamma, Range::between(0, 1));
    v.choice({"reduction", "the sum over tokens is divided by the step's tokens, or its rows"},
             reduction, {"token_mean", "sum"});
    v.real({"own_samples",
            "share of the squared rewards that is of completions of the policy, one for that share "
            "of the rows; 0: offline"},
           own_samples, Range::half_open(0, 1));
  }
};

/// Imitation by inverse soft Q-learning (IQLearn for language models, 2409.01369 eq. 14): logits
/// are Q-values, their log-normalizer v_t = log Σ_v exp(z_t,v) is the soft value of a state, so
/// that lp_t + v_t = Q(s_t, y_t), and the reward r_t = lp_t + v_t − gamma v_{t+1} that they imply,
/// with v = 0 after the end, is kept small:
///   mean_t (lambda r_t² − lp_t)
/// Derivatives, times the number of tokens: in lp_t 2 lambda r_t − 1, in v_t 2 lambda (r_t − gamma
/// r_{t−1}). With lambda = 0 it is sft, with gamma = 0 lambda z_t,y² − lp_t. Unlike losses of
/// log-probs, it changes where all logits of a state are shifted by a constant.
///
/// With `own_samples` m > 0 (eq. 16: the paper's share is 0.1) the squares are (1 − m) of the mean
/// over given tokens and m of that over tokens of completions that the policy draws for prompts of
/// the step; these are not imitated. Equation numbers, lambda and the form of the mixture are as a
/// third party gives them.
///
/// A completion that is cut counts as ended. Between tokens that do not count, as an
/// environment's, the next state is the next one in which the policy acts.
class IqlearnLoss : public TokenLossBase<IqlearnLoss, IqlearnOptions> {
 public:
  /// Throws ConfigError for own samples that lambda gives no weight.
  explicit IqlearnLoss(IqlearnOptions options = {}) : TokenLossBase(std::move(options)) {
    detail::refuse_idle(options_.own_samples > 0 && options_.lambda == 0, "iqlearn", "own_samples",
                        "the squared rewards have weight 0");
  }

  template <class T>
  BasicTokenLossOutput<T> formula(const BasicTokenRows<T>& in) const {
    const bool is_mean = options_.reduction == TokenReduction::kTokenMean;
    const double weight = 1 / (is_mean ? in.totals.tokens : in.totals.completions);
    const double share = in.are_own ? options_.own_samples : 1 - options_.own_samples;
    const double scale = weight * share * options_.lambda;
    const T rewards = in.logps + in.log_normalizers -
                      options_.gamma * next_values(in.log_normalizers, in.completions);
    const T slopes = 2 * scale * rewards;
    BasicTokenLossOutput<T> out;
    const ScalarOf<T> squares = scale * math::sum(T(math::square(rewards)));
    out.loss = squares;
    out.grad_logps = slopes;
    out.grad_log_normalizers = slopes - options_.gamma * previous_values(slopes, in.completions);
    out.terms = {{"rewards", squares}};
    if (in.are_own) return out;
    const ScalarOf<T> nll = -weight * math::sum(in.logps);
    out.loss = squares + nll;
    out.grad_logps = slopes - weight;
    out.terms.push_back({"nll", nll});
    out.statistics = {{"rewards/implicit", math::sum(rewards)}};
    return out;
  }
  TokenLossNeeds needs() const {
    return {.log_normalizers = true, .own_samples = options_.own_samples};
  }

  static PieceInfo info() {
    return {.kind = "iqlearn",
            .formula = "mean_t (lambda (lp_t + v_t − gamma v_{t+1})² − lp_t)",
            .source = "arXiv:2409.01369 eqs. 14, 16"};
  }
};

}  // namespace prefopt
