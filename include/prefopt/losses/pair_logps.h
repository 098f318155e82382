// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <string>
#include <vector>

#include "prefopt/export.h"
#include "prefopt/losses/inputs.h"

namespace prefopt {

/// Counts over one whole optimizer step (all micro-batches, all ranks). A loss divides by them, so
/// the accumulated gradient does not depend on how the step was cut up. Zero means "just this
/// batch".
struct StepTotals {
  double pairs = 0;
  double chosen_tokens = 0;
  double rejected_tokens = 0;
  double gold_tokens = 0;
  double prompt_tokens = 0;  ///< without the first, which nothing predicts
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

/// A mean over all values since training began.
template <class T>
struct RunningMean {
  ScalarOf<T> mean = {};  ///< not read while `count` is 0
  double count = 0;
  bool is_frozen = false;  ///< in an evaluation: no value changes the mean, which starts at 0
};

/// The inputs of a loss: sums over completion tokens (never the prompt) of log-probs, in nats, or
/// any other scores in their place (a diffusion model's, a verifier's). All but the samples are
/// [batch]; a loss reads only those that its requirements name. inputs.h has the meaning of each.
/// `T` is at::Tensor in training and Eigen::ArrayXd in the exact lab.
template <class T>
struct BasicPairLogps {
#define PREFOPT_MEMBER(name, ...) T name;
  PREFOPT_LOSS_INPUTS(PREFOPT_MEMBER, PREFOPT_MEMBER)
#undef PREFOPT_MEMBER

  /// Fresh samples of each row; those of one row are contiguous.
  std::int64_t samples_per_prompt = 0;
  RunningMean<T> running;  ///< before this step
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
#define PREFOPT_NO_MEMBER(...)
#define PREFOPT_GRADIENT(name, gradient, ...) T gradient;
  PREFOPT_LOSS_INPUTS(PREFOPT_NO_MEMBER, PREFOPT_GRADIENT)
#undef PREFOPT_NO_MEMBER
#undef PREFOPT_GRADIENT
  /// [batch] the rewards of the metrics, without gradient: beta (log pi - log pi_ref); for a loss
  /// without a reference beta log pi, per token if it uses means, and beta r of that if it shapes
  /// them (AlphaPO); for tdpo beta (log pi - log pi_ref + D)
  T chosen_rewards;
  T rejected_rewards;
  T margins;  ///< chosen_rewards - rejected_rewards
  /// [batch] the logps of the metrics if they are not the sum: per token for a loss without a
  /// reference that uses means, tails weighted by ld_alpha; no gradient
  T logged_chosen_logps;
  T logged_rejected_logps;
  std::vector<BasicLossTerm<T>> terms;
  ScalarOf<T> kl = {};     ///< KTO's z0, nats, for the metrics; undefined: the loss has none
  RunningMean<T> running;  ///< after this step
};

/// `loss` carries the gradient into the log-probs it was computed from: `out.loss.backward()`.
using LossOutput = BasicLossOutput<at::Tensor>;
using LossTerm = BasicLossTerm<at::Tensor>;

}  // namespace prefopt
