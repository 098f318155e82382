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
};

/// What a loss sees: sums over completion tokens (never the prompt) of log-probs, in nats.
/// `T` is at::Tensor in training and Eigen::ArrayXd in the exact lab.
template <class T>
struct BasicPairLogps {
  T chosen_logps;        ///< [batch] log pi(y_w|x)
  T rejected_logps;      ///< [batch] log pi(y_l|x)
  T ref_chosen_logps;    ///< [batch] log pi_ref(y_w|x)
  T ref_rejected_logps;  ///< [batch] log pi_ref(y_l|x)
  T chosen_lens;         ///< [batch] completion token counts n_w; only where a loss needs them
  T rejected_lens;       ///< [batch] n_l

  /// Fresh samples, `samples_per_prompt` for each row, those of one row side by side.
  std::int64_t samples_per_prompt = 0;
  T sample_logps;      ///< [batch * samples_per_prompt] log pi(y|x)
  T ref_sample_logps;  ///< [batch * samples_per_prompt]
  T sample_lens;       ///< [batch * samples_per_prompt]

  StepTotals totals;
};

using PairLogps = BasicPairLogps<at::Tensor>;

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

/// One summand of a loss, for the metrics.
template <class T>
struct BasicLossTerm {
  std::string name;
  ScalarOf<T> value;
};

/// Value, gradient coefficients and rewards of one (micro-)batch.
template <class T>
struct BasicLossOutput {
  ScalarOf<T> loss;  ///< scalar; `losses` summed over this batch, divided by the pairs of the step
  T losses;          ///< [batch] per pair
  T grad_chosen;     ///< [batch] d loss / d chosen_logps
  T grad_rejected;   ///< [batch] d loss / d rejected_logps; undefined where there is no rejected
  T grad_samples;    ///< [batch * samples_per_prompt]; undefined where there are no samples
  T chosen_rewards;  ///< [batch] beta * (log pi - log pi_ref), no gradient
  T rejected_rewards;
  T margins;  ///< chosen_rewards - rejected_rewards
  std::vector<BasicLossTerm<T>> terms;
};

/// `loss` carries the gradient into the log-probs it was computed from: `out.loss.backward()`.
using LossOutput = BasicLossOutput<at::Tensor>;
using LossTerm = BasicLossTerm<at::Tensor>;

}  // namespace prefopt
