// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <string>
#include <vector>

#include "prefopt/export.h"

namespace prefopt {

/// Counts over one whole optimizer step (all micro-batches, all ranks). A loss divides by them, so
/// the accumulated gradient does not depend on how the step was cut up. Zero means "just this
/// batch".
struct StepTotals {
  double pairs = 0;
  double chosen_tokens = 0;
  double rejected_tokens = 0;
  double gold_tokens = 0;
  double prompt_tokens = 0;  ///< those that the prompt's first token leads to
};

namespace detail {
template <class T>
struct ScalarOf {
  using type = double;
};
template <>
struct ScalarOf<at::Tensor> {
  using type = at::Tensor;
};
}  // namespace detail

/// A sum over a `T`: a zero-dimensional tensor (no device sync) or a double.
template <class T>
using ScalarOf = typename detail::ScalarOf<T>::type;

/// A mean over everything that was seen since training began.
template <class T>
struct RunningMean {
  ScalarOf<T> mean = {};  ///< not looked at while `count` is 0
  double count = 0;
  bool is_frozen = false;  ///< in an evaluation: no value changes the mean, which begins at 0
};

/// The view of a loss: sums over completion tokens (never the prompt) of log-probs, in nats, or any
/// other scores in their place (a diffusion model's, a verifier's). All are [batch] but the
/// samples; a loss looks only at what its requirements name.
/// `T` is at::Tensor in training and Eigen::ArrayXd in the exact lab.
template <class T>
struct BasicPairLogps {
  T chosen_logps;        ///< log pi(y_w|x); of an unpaired row, its only completion
  T rejected_logps;      ///< log pi(y_l|x)
  T ref_chosen_logps;    ///< log pi_ref(y_w|x)
  T ref_rejected_logps;  ///< log pi_ref(y_l|x)
  T chosen_lens;         ///< completion token counts n_w
  T rejected_lens;       ///< n_l

  /// The sums over the first min(n_w, n_l) tokens alone (LD-DPO).
  T chosen_head_logps, rejected_head_logps;
  T ref_chosen_head_logps, ref_rejected_head_logps;
  /// Sums over completion tokens of log sum_v pi(v)^2 (WPO).
  T chosen_log_sum_p_squared, rejected_log_sum_p_squared;
  /// Sums over completion tokens of KL(pi_ref || pi) over the vocabulary (TDPO).
  T chosen_seq_kl, rejected_seq_kl;
  /// Sums over completion tokens of log(pi/pi_ref), each within the limits of LogRatioLimits
  /// (humanline); the last of the completion of another row under this row's prompt (KTO).
  T chosen_limited_logratios, rejected_limited_logratios, kl_limited_logratios;
  /// Sum over the chosen completion's tokens of stop(pi) log pi (DFT).
  T chosen_confident_logps;
  T prompt_logps, prompt_lens;  ///< of the prompt's own tokens, from the second on (ORPO in TRL)
  T gold_logps, gold_lens;      ///< a third completion that is only imitated (TPO)
  T labels;                     ///< of unpaired rows: 1 desirable, 0 not
  T kl_logps, ref_kl_logps;     ///< the completion of another row under this row's prompt (KTO)
  T margins;                    ///< given reward gap r_w - r_l
  T weights;                    ///< given weight of the row
  T label_probs;                ///< probability that the chosen completion is the better one
  T chosen_win_rates;           ///< probability that y_w beats a completion of the policy
  T rejected_win_rates;

  /// Fresh samples, `samples_per_prompt` for each row, those of one row side by side.
  std::int64_t samples_per_prompt = 0;
  T sample_logps;      ///< [batch * samples_per_prompt] log pi(y|x)
  T ref_sample_logps;  ///< [batch * samples_per_prompt]
  T sample_lens;       ///< [batch * samples_per_prompt]

  RunningMean<T> running;  ///< as it is before this step
  StepTotals totals;
};

using PairLogps = BasicPairLogps<at::Tensor>;

/// One summand of a loss, for the metrics.
template <class T>
struct BasicLossTerm {
  std::string name;
  ScalarOf<T> value;
};

/// Value, gradient coefficients and rewards of one (micro-)batch. A grad_* is d loss / d the input
/// of that name; undefined where the loss does not depend on it.
template <class T>
struct BasicLossOutput {
  ScalarOf<T> loss = {};  ///< `losses` summed over this batch, divided by the pairs of the step
  T losses;               ///< [batch] per pair
  T grad_chosen, grad_rejected;
  T grad_chosen_head, grad_rejected_head;
  T grad_chosen_seq_kl, grad_rejected_seq_kl;
  T grad_chosen_limited, grad_rejected_limited;
  T grad_confident;
  T grad_prompt;
  T grad_gold;
  T grad_samples;  ///< [batch * samples_per_prompt]
  /// [batch] what the metrics call rewards, without gradient: beta (log pi - log pi_ref), of a loss
  /// without a reference beta log pi, a token where it looks at means, and beta r of that where it
  /// shapes them (AlphaPO); of tdpo beta (log pi - log pi_ref + D)
  T chosen_rewards;
  T rejected_rewards;
  T margins;  ///< chosen_rewards - rejected_rewards
  /// [batch] what the metrics call logps where that is not the sum: a token where a loss without a
  /// reference looks at means, tails weighted by ld_alpha; no gradient
  T logged_chosen_logps;
  T logged_rejected_logps;
  std::vector<BasicLossTerm<T>> terms;
  ScalarOf<T> kl = {};     ///< KTO's z0, nats, for the metrics; undefined: the loss has none
  RunningMean<T> running;  ///< as it is after this step
};

/// `loss` carries the gradient into the log-probs it was computed from: `out.loss.backward()`.
using LossOutput = BasicLossOutput<at::Tensor>;
using LossTerm = BasicLossTerm<at::Tensor>;

}  // namespace prefopt
