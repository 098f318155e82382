// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>

#include "prefopt/export.h"
#include "prefopt/losses/loss.h"
#include "prefopt/losses/loss_base.h"
#include "prefopt/losses/pair_fields.h"
#include "prefopt/losses/pair_logps.h"
#include "prefopt/math/functions.h"
#include "prefopt/options.h"

// Regularizers: terms in addition to the link, on one side of a pair or on fresh samples. Each adds
// its per-pair value to `losses` and the derivatives of their sum to the grad_*. Values are scaled
// so that the mean over the pairs of the whole step is the term itself.
namespace prefopt {

/// The way in which token log-probs of a set of completions become one number.
enum class Reduction {
  kTokenMean,     ///< sum over all tokens of the step / number of those tokens
  kSequenceMean,  ///< mean over pairs of (sequence sum / sequence length)
  kSum,           ///< mean over pairs of the sequence sum
};

/// Lists the option that chooses a Reduction.
PREFOPT_API void reduction_field(FieldVisitor& v, Reduction& reduction);

/// No regularizer.
struct NoRegularizer {
  static constexpr const char* kName = nullptr;
  void add_needs(LossRequirements&) const {}
  template <class T>
  void add_to(BasicLossOutput<T>&, const BasicPairLogps<T>&, double /*pairs*/) const {}
};

/// The completion whose likelihood the NLL regularizer keeps up.
enum class NllTarget {
  kChosen,
  kRejected,
  kGold,
  kConfident,  ///< the chosen one, each token by the policy's own probability (DFT, 2508.05629)
};

/// weight * negative log-likelihood of the baseline completion (RPO, 2405.16436 eq. 4.8, where
/// weight = eta beta and the reduction is kSum; kSequenceMean is 2404.19733 v3 eq. 1). With
/// `with_prompt` the prompt's tokens are imitated as well, and count in the divisor of a mean. No
/// term at weight 0.
struct NllRegularizer {
  static constexpr const char* kName = "nll";
  double weight = 1;
  Reduction reduction = Reduction::kTokenMean;
  NllTarget baseline = NllTarget::kChosen;
  bool with_prompt = false;

  void add_needs(LossRequirements& needs) const {
    if (weight == 0) return;
    const bool by_length = reduction != Reduction::kSum;
    needs.inputs |= imitated() | when(by_length, lens()) |
                    when(with_prompt, {Input::prompt_logps, Input::prompt_lens});
  }
  template <class T>
  void add_to(BasicLossOutput<T>& out, const BasicPairLogps<T>& in, double pairs) const {
    if (weight == 0) return;
    const Completion<T> part = completion<T>(in, out);
    // d loss_i / d logps_i
    const T slope = [&]() -> T {
      switch (reduction) {
        case Reduction::kTokenMean:
          return T(math::constant(part.logps, -weight * pairs) / tokens_of_step(part, in));
        case Reduction::kSequenceMean:
          return with_prompt ? T(-weight / (part.lens + in.prompt_lens)) : T(-weight / part.lens);
        default:
          return math::constant(part.logps, -weight);
      }
    }();
    detail::add_to(out.losses, T(slope * part.logps));
    detail::add_to(part.gradient, slope);
    if (!with_prompt) return;
    detail::add_to(out.losses, T(slope * in.prompt_logps));
    detail::add_to(out.grad_prompt, slope);
  }

 private:
  constexpr Input imitated() const {
    switch (baseline) {
      case NllTarget::kGold:
        return Input::gold_logps;
      case NllTarget::kRejected:
        return Input::rejected_logps;
      case NllTarget::kConfident:
        return Input::chosen_confident_logps;
      default:
        return Input::chosen_logps;
    }
  }
  constexpr Input lens() const {
    switch (baseline) {
      case NllTarget::kGold:
        return Input::gold_lens;
      case NllTarget::kRejected:
        return Input::rejected_lens;
      default:
        return Input::chosen_lens;
    }
  }

  template <class T>
  struct Completion {
    const T& logps;
    const T& lens;
    double step_tokens;
    T& gradient;
  };

  template <class T>
  ScalarOf<T> tokens_of_step(const Completion<T>& part, const BasicPairLogps<T>& in) const {
    if (part.step_tokens > 0) {
      return math::scalar_like(part.lens,
                               part.step_tokens + (with_prompt ? in.totals.prompt_tokens : 0));
    }
    const ScalarOf<T> tokens = math::sum(part.lens);
    return with_prompt ? ScalarOf<T>(tokens + math::sum(in.prompt_lens)) : tokens;
  }

  template <class T>
  Completion<T> completion(const BasicPairLogps<T>& in, BasicLossOutput<T>& out) const {
    switch (baseline) {
      case NllTarget::kGold:
        return {in.gold_logps, in.gold_lens, in.totals.gold_tokens, out.grad_gold};
      case NllTarget::kRejected:
        return {in.rejected_logps, in.rejected_lens, in.totals.rejected_tokens, out.grad_rejected};
      case NllTarget::kConfident:
        return {in.chosen_confident_logps, in.chosen_lens, in.totals.chosen_tokens,
                out.grad_confident};
      default:
        return {in.chosen_logps, in.chosen_lens, in.totals.chosen_tokens, out.grad_chosen};
    }
  }
};

/// The completions that represent the calibration policy of VPO.
enum class Calibration {
  kChosen,
  kRejected,
  kSamples,
  kReferenceSide,  ///< of each pair the one that the reference drew, if any (XPO)
};

/// weight * mean over calibration completions of (log pi - log pi_ref) (VPO, 2405.19320 eqs. 11,
/// 16), or of log pi alone (XPO, 2405.21046).
struct ValueIncentive {
  static constexpr const char* kName = "value_incentive";
  double weight = 0;
  Calibration calibration = Calibration::kChosen;
  bool of_policy_alone = false;  ///< without log pi_ref; on a side of the pair

  void add_needs(LossRequirements& needs) const {
    if (calibration == Calibration::kSamples) {
      needs.inputs |= kSampleLogps;
      return;
    }
    needs.inputs |= when(!of_policy_alone, kPairReferenceLogps) |
                    when(calibration == Calibration::kReferenceSide, Input::from_reference);
  }
  template <class T>
  void add_to(BasicLossOutput<T>& out, const BasicPairLogps<T>& in, double /*pairs*/) const {
    switch (calibration) {
      case Calibration::kChosen:
        add_side(out.losses, out.grad_chosen, in.chosen_logps, in.ref_chosen_logps,
                 math::constant(in.chosen_logps, weight));
        break;
      case Calibration::kRejected:
        add_side(out.losses, out.grad_rejected, in.rejected_logps, in.ref_rejected_logps,
                 math::constant(in.rejected_logps, weight));
        break;
      case Calibration::kReferenceSide: {
        // Of f = 0, 1, 2: 0, 1, 0 and 0, 0, 1.
        const T& f = in.from_reference;
        add_side(out.losses, out.grad_chosen, in.chosen_logps, in.ref_chosen_logps,
                 T(weight * f * (2 - f)));
        add_side(out.losses, out.grad_rejected, in.rejected_logps, in.ref_rejected_logps,
                 T(weight / 2 * f * (f - 1)));
        break;
      }
      case Calibration::kSamples: {
        const double each = weight / static_cast<double>(in.samples_per_prompt);
        const T logratios = in.sample_logps - in.ref_sample_logps;
        detail::add_to(out.losses, T(each * math::group_sum(logratios, in.samples_per_prompt)));
        detail::add_to(out.grad_samples, math::constant(in.sample_logps, each));
        break;
      }
    }
  }

 private:
  template <class T>
  void add_side(T& losses, T& gradient, const T& logps, const T& ref_logps, const T& slope) const {
    detail::add_to(losses, of_policy_alone ? T(slope * logps) : T(slope * (logps - ref_logps)));
    detail::add_to(gradient, slope);
  }
};

/// The part of the gradient of E loss that goes through the data, where the policy writes its own
/// pairs (PARL and SAIL, 2406.15567; the single-level form is derived here and checked against the
/// exact gradient): for y, y' ~ pi
///   grad E l(y, y') = E grad l + E (l - b) grad (log pi(y) + log pi(y')).
/// Adds the second term, times `weight`, to the derivatives in both log-probs and nothing to the
/// value, which is E l already. b is the mean of the other pairs' l, none for a single pair: the
/// estimate is unbiased for pairs that are independent of each other and drawn at temperature 1.
struct DataGradient {
  double weight = 0;

  /// `losses` of all pairs of the step, [batch].
  template <class T>
  void add_to(BasicLossOutput<T>& out, const T& losses) const {
    const auto pairs = static_cast<double>(math::length(losses));
    // l_i - mean of the others = n/(n-1) (l_i - mean of all).
    const T gain = pairs > 1
                       ? T(weight * pairs / (pairs - 1) * (losses - math::sum(losses) / pairs))
                       : T(weight * losses);
    detail::add_to(out.grad_chosen, gain);
    detail::add_to(out.grad_rejected, gain);
  }
};

/// weight * KL(pi || pi_ref) on fresh samples y ~ pi (HyPO, 2406.01462). The value is the
/// Monte-Carlo estimate, the mean of log pi/pi_ref. Its gradient is not the derivative of that
/// value but the score-function estimate of the KL's gradient,
///   mean of stop(log pi/pi_ref - baseline) * d log pi,
/// with the mean of the other samples of the prompt as the baseline (none for a single sample).
/// That is unbiased; with `clip` and `token_mean` it is not. The value is never clipped. No term at
/// weight 0.
struct OnPolicyKl {
  static constexpr const char* kName = "kl";
  double weight = 0;
  double clip = 0;          ///< limit on |log pi/pi_ref| in the derivative; 0: none
  bool token_mean = false;  ///< divide each sample's log-ratio by its length
  void add_needs(LossRequirements& needs) const {
    if (weight == 0) return;
    needs.inputs |= kSampleLogps | when(token_mean, Input::sample_lens);
  }
  template <class T>
  void add_to(BasicLossOutput<T>& out, const BasicPairLogps<T>& in, double /*pairs*/) const {
    if (weight == 0) return;
    const auto group = in.samples_per_prompt;
    const auto k = static_cast<double>(group);
    T logratios = in.sample_logps - in.ref_sample_logps;
    if (token_mean) logratios = logratios / in.sample_lens;
    detail::add_to(out.losses, T(weight / k * math::group_sum(logratios, group)));
    T advantage = clip > 0 ? T(math::clamp(logratios, clip)) : logratios;
    if (group > 1) {
      // a_i - mean of the others = k/(k-1) * (a_i - mean of all).
      const T total = math::spread(math::group_sum(advantage, group), group);
      advantage = k / (k - 1) * (advantage - total / k);
    }
    detail::add_to(out.grad_samples, T(weight / k * advantage));
  }
};

}  // namespace prefopt
