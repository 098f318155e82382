// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <string>
#include <utility>

#include "prefopt/error.h"
#include "prefopt/losses/loss_base.h"
#include "prefopt/math/functions.h"
#include "prefopt/objectives/segments.h"
#include "prefopt/objectives/token_loss.h"
#include "prefopt/objectives/token_sequences.h"

namespace prefopt {

/// The states whose soft Bellman residual counts.
enum class BellmanLevel {
  kToken,     ///< that of each token
  kStep,      ///< that which each step starts in
  kResponse,  ///< that after the prompt
};

struct OreoOptions {
  double beta = 0.03;
  double alpha = 0.01;
  BellmanLevel level = BellmanLevel::kToken;
  std::string step_end = "\n\n";

  void fields(FieldVisitor& v) {
    v.real({"beta", "strength of the KL to the reference in the soft values"}, beta,
           Range::at_least(0));
    v.real({"alpha", "weight of KL(pi || pi_ref) over the vocabulary; 0: none"}, alpha,
           Range::at_least(0));
    v.choice({"level", "states whose residual counts: of each token, step or response"}, level,
             {"token", "step", "response"});
    v.text({"step_end", "text that ends a step, for level step"}, step_end);
  }
};

/// Offline reasoning optimization (2412.16145 eqs. 8, 9, 10): policy and values that fulfil the
/// soft Bellman equation on given completions with a reward R of the whole:
///   e_t = V(s_t) − R + beta Σ_{i≥t} (log π − log π_ref)_i
///   loss = mean over completions of the mean over their states of e_t², + alpha of the mean KL of
///          their tokens
/// The gradient in V holds the log-ratios (eq. 8): 2 e_t / (S N), S states of the completion, N
/// completions. That in log π_t holds V and the log-ratios of later states: 2 beta e / (S N) with e
/// of the state that its token (eq. 9), step, or response (eq. 10) begins in. The KL is over the
/// vocabulary, as in the authors' code. At the optimal policy and its soft values every e is 0, and
/// with beta = alpha = 0 the values are regressed on R and the policy has no gradient. Level step
/// with steps of one token is level token, with one step level response.
class OreoLoss : public TokenLossBase<OreoLoss, OreoOptions> {
 public:
  /// Throws ConfigError for a step_end without steps, and for steps that nothing ends.
  explicit OreoLoss(OreoOptions options = {}) : TokenLossBase(std::move(options)) {
    const bool has_steps = options_.level == BellmanLevel::kStep;
    detail::refuse_idle(!has_steps && options_.step_end != OreoOptions{}.step_end, "oreo",
                        "step_end", "level 'step' alone has steps");
    if (has_steps && options_.step_end.empty()) {
      throw ConfigError("oreo: expected a step_end for level 'step', got ''");
    }
  }

  template <class T>
  BasicTokenLossOutput<T> formula(const BasicTokenRows<T>& in) const {
    const double completions = in.totals.completions;
    const double beta = options_.beta;
    const T to_go = sums_to_go(T(in.logps - in.ref_logps), in.completions, in.completion_count);
    const T errors = in.values - in.rewards + beta * to_go;
    const auto [segments, count] = segments_of(in);
    const bool is_token = options_.level == BellmanLevel::kToken;
    const T ones = math::constant(in.logps, 1);
    const T starts = is_token ? ones : T(1 - previous_values(ones, segments));
    const T states = segment_sums(starts, in.completions, in.completion_count) * completions;
    const T weights = starts / states;
    const T of_states = is_token ? errors : segment_sums(T(errors * starts), segments, count);
    BasicTokenLossOutput<T> out;
    const ScalarOf<T> bellman = math::sum(T(weights * math::square(errors)));
    out.loss = bellman;
    out.grad_values = 2 * weights * errors;
    out.grad_logps = 2 * beta * of_states / states;
    out.terms = {{"bellman", bellman}};
    if (options_.alpha > 0) {
      out.grad_exact_kls = options_.alpha / (in.lens * completions);
      const ScalarOf<T> kl = math::sum(T(out.grad_exact_kls * in.exact_kls));
      out.loss = bellman + kl;
      out.terms.push_back({"kl", kl});
    }
    out.statistics = {{"value/mean", math::sum(in.values)}};
    return out;
  }
  TokenLossNeeds needs() const {
    const bool has_steps = options_.level == BellmanLevel::kStep;
    return {.ref_logps = true,
            .values = true,
            .exact_kls = options_.alpha > 0,
            .rewards = true,
            .steps = has_steps,
            .step_end = has_steps ? options_.step_end : std::string()};
  }

  static PieceInfo info() {
    return {.kind = "oreo",
            .formula = "mean_t (V(s_t) − R + beta Σ_{i≥t} (lp − lp_ref)_i)² + alpha KL",
            .source = "arXiv:2412.16145 eqs. 8, 9, 10",
            .elsewhere = {{"OREO authors' code", "oreo"}}};
  }

 private:
  template <class T>
  struct Segments {
    T places;
    std::int64_t count;
  };

  template <class T>
  Segments<T> segments_of(const BasicTokenRows<T>& in) const {
    if (options_.level == BellmanLevel::kStep) return {in.steps, in.step_count};
    return {in.completions, in.completion_count};
  }
};

}  // namespace prefopt
