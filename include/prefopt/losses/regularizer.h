// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>

#include "prefopt/losses/loss.h"
#include "prefopt/losses/pair_logps.h"
#include "prefopt/math/functions.h"

// Regularizers: terms beside the link that look at one side of a pair or at fresh samples. Each
// adds its per-pair value and its derivatives to a BasicLossSum. Values are scaled so that the mean
// over the pairs of the whole step is the term itself.
namespace prefopt {

/// Per-pair losses and derivatives while a loss is put together; undefined members are zero.
template <class T>
struct BasicLossSum {
  T losses;      ///< [batch]
  T d_chosen;    ///< [batch] d losses_i / d chosen_logps_i
  T d_rejected;  ///< [batch]
  T d_samples;   ///< [batch * samples_per_prompt]

  static void add(T& sum, const T& part) { sum = math::defined(sum) ? T(sum + part) : part; }
};

/// Pairs to divide by: those of the step, or this batch's where no totals were given.
template <class T>
double step_pairs(const BasicPairLogps<T>& in) {
  return in.totals.pairs > 0 ? in.totals.pairs : static_cast<double>(math::length(in.chosen_logps));
}

/// Value and gradient coefficients of the step's mean.
template <class T>
BasicLossOutput<T> finish(const BasicLossSum<T>& sum, double pairs) {
  BasicLossOutput<T> out;
  out.loss = math::sum(sum.losses) / pairs;
  out.losses = sum.losses;
  out.grad_chosen = sum.d_chosen / pairs;
  if (math::defined(sum.d_rejected)) out.grad_rejected = sum.d_rejected / pairs;
  if (math::defined(sum.d_samples)) out.grad_samples = sum.d_samples / pairs;
  return out;
}

/// How token log-probs of one completion set become one number.
enum class Reduction {
  kTokenMean,     ///< sum over all tokens of the step / number of those tokens
  kSequenceMean,  ///< mean over pairs of (sequence sum / sequence length)
  kSum,           ///< mean over pairs of the sequence sum
};

/// No regularizer.
struct NoRegularizer {
  static constexpr const char* kName = nullptr;
  template <class T>
  void add_to(BasicLossSum<T>&, const BasicPairLogps<T>&, double /*pairs*/) const {}
};

/// Whose likelihood the NLL regularizer keeps up.
enum class Baseline { kChosen, kRejected };

/// weight * negative log-likelihood of the baseline completion (RPO, 2405.16436 eq. 4.8, where
/// weight = eta beta and the reduction is kSum; kSequenceMean is 2404.19733 v3 eq. 1).
struct NllRegularizer {
  static constexpr const char* kName = "nll";
  double weight = 1;
  Reduction reduction = Reduction::kTokenMean;
  Baseline baseline = Baseline::kChosen;

  template <class T>
  void add_to(BasicLossSum<T>& sum, const BasicPairLogps<T>& in, double pairs) const {
    const bool chosen = baseline == Baseline::kChosen;
    const T& logps = chosen ? in.chosen_logps : in.rejected_logps;
    const T& lens = chosen ? in.chosen_lens : in.rejected_lens;
    const double step_tokens = chosen ? in.totals.chosen_tokens : in.totals.rejected_tokens;
    // d loss_i / d logps_i
    const T slope = [&]() -> T {
      switch (reduction) {
        case Reduction::kTokenMean: {
          const ScalarOf<T> tokens =
              step_tokens > 0 ? math::scalar_like(lens, step_tokens) : math::sum(lens);
          return math::constant(logps, -weight * pairs) / tokens;
        }
        case Reduction::kSequenceMean:
          return -weight / lens;
        default:
          return math::constant(logps, -weight);
      }
    }();
    sum.add(sum.losses, T(slope * logps));
    sum.add(chosen ? sum.d_chosen : sum.d_rejected, slope);
  }
};

/// Which completions stand for the calibration policy of VPO.
enum class Calibration { kChosen, kRejected, kSamples };

/// weight * mean over calibration completions of (log pi - log pi_ref) (VPO, 2405.19320 eqs. 11,
/// 16).
struct ValueIncentive {
  static constexpr const char* kName = "value_incentive";
  double weight = 0;
  Calibration calibration = Calibration::kChosen;

  template <class T>
  void add_to(BasicLossSum<T>& sum, const BasicPairLogps<T>& in, double /*pairs*/) const {
    switch (calibration) {
      case Calibration::kChosen:
        sum.add(sum.losses, T(weight * (in.chosen_logps - in.ref_chosen_logps)));
        sum.add(sum.d_chosen, math::constant(in.chosen_logps, weight));
        break;
      case Calibration::kRejected:
        sum.add(sum.losses, T(weight * (in.rejected_logps - in.ref_rejected_logps)));
        sum.add(sum.d_rejected, math::constant(in.rejected_logps, weight));
        break;
      case Calibration::kSamples: {
        const double each = weight / static_cast<double>(in.samples_per_prompt);
        const T logratios = in.sample_logps - in.ref_sample_logps;
        sum.add(sum.losses, T(each * math::group_sum(logratios, in.samples_per_prompt)));
        sum.add(sum.d_samples, math::constant(in.sample_logps, each));
        break;
      }
    }
  }
};

/// weight * KL(pi || pi_ref) on fresh samples y ~ pi (HyPO, 2406.01462). The value is
/// the Monte-Carlo estimate, mean of log pi/pi_ref. Its derivative is not the derivative of that
/// value but the score-function estimate of the KL's gradient,
///   mean of stop(log pi/pi_ref - baseline) * d log pi,
/// with the mean of the other samples of the prompt as the baseline (none for a single sample).
/// That is unbiased; `clip` and `token_mean` are not, and the value is never clipped.
struct OnPolicyKl {
  static constexpr const char* kName = "kl";
  double weight = 0;
  double clip = 0;          ///< limit on |log pi/pi_ref| in the derivative; 0: none
  bool token_mean = false;  ///< divide each sample's log-ratio by its length

  template <class T>
  void add_to(BasicLossSum<T>& sum, const BasicPairLogps<T>& in, double /*pairs*/) const {
    const auto group = in.samples_per_prompt;
    const auto k = static_cast<double>(group);
    T logratios = in.sample_logps - in.ref_sample_logps;
    if (token_mean) logratios = logratios / in.sample_lens;
    sum.add(sum.losses, T(weight / k * math::group_sum(logratios, group)));
    T advantage = clip > 0 ? T(math::clamp(logratios, clip)) : logratios;
    if (group > 1) {
      // a_i - mean of the others = k/(k-1) * (a_i - mean of all).
      const T total = math::spread(math::group_sum(advantage, group), group);
      advantage = k / (k - 1) * (advantage - total / k);
    }
    sum.add(sum.d_samples, T(weight / k * advantage));
  }
};

}  // namespace prefopt
