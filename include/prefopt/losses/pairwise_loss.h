// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <cstdint>
#include <string>
#include <utility>

#include "prefopt/losses/link.h"
#include "prefopt/losses/loss.h"
#include "prefopt/losses/pair_logps.h"
#include "prefopt/losses/regularizer.h"
#include "prefopt/losses/score.h"
#include "prefopt/math/tensor.h"

namespace prefopt {

namespace detail {
/// Shapes, dtypes, devices of `logps` against what the loss needs; detached float tensors back.
PREFOPT_API PairLogps checked_inputs(const PairLogps& logps, const LossRequirements& needs,
                                     bool needs_lens, const std::string& name);
/// Throws ShapeError where `length` is not `expected`.
PREFOPT_API void check_length(std::int64_t length, std::int64_t expected, const char* field,
                              const std::string& name);

/// The lengths of all arrays that a loss needs.
template <class T>
void check_lengths(const BasicPairLogps<T>& in, const LossRequirements& needs, bool needs_lens,
                   const std::string& name) {
  const std::int64_t batch = math::length(in.chosen_logps);
  const std::int64_t samples = batch * needs.samples_per_prompt;
  const auto check = [&](bool needed, const T& x, std::int64_t expected, const char* field) {
    if (needed) check_length(math::length(x), expected, field, name);
  };
  check_length(std::min<std::int64_t>(batch, 1), 1, "chosen_logps", name);
  check(needs.rejected, in.rejected_logps, batch, "rejected_logps");
  check(needs.reference, in.ref_chosen_logps, batch, "ref_chosen_logps");
  check(needs.reference && needs.rejected, in.ref_rejected_logps, batch, "ref_rejected_logps");
  check(needs_lens, in.chosen_lens, batch, "chosen_lens");
  check(needs_lens && needs.rejected, in.rejected_lens, batch, "rejected_lens");
  check(samples > 0, in.sample_logps, samples, "sample_logps");
  check(samples > 0, in.ref_sample_logps, samples, "ref_sample_logps");
  check(samples > 0 && needs_lens, in.sample_lens, samples, "sample_lens");
}

/// Ties `out.loss` to the log-probs it came from, with out.grad_* as its derivatives.
PREFOPT_API void attach_gradient(LossOutput& out, const PairLogps& logps);

/// Grad mode off for a scope, without LibTorch's header for it.
class PREFOPT_API NoGrad {
 public:
  NoGrad();
  ~NoGrad();
  NoGrad(const NoGrad&) = delete;
  NoGrad& operator=(const NoGrad&) = delete;

 private:
  bool before_;
};
}  // namespace detail

/// Base of the named losses: options, checks, and the step from a formula to a gradient. `Derived`
/// has `formula(const BasicPairLogps<T>&) const` for any array type and `static LossInfo info()`.
template <class Derived, class OptionsType>
class LossBase {
 public:
  using Options = OptionsType;

  /// Throws ConfigError if an option is out of its range.
  explicit LossBase(Options options = {})
      : options_(checked(std::move(options), Derived::info().name)) {}

  /// Throws ShapeError, DtypeError or DeviceError; never syncs a device.
  LossOutput forward(const PairLogps& logps) const {
    const PairLogps inputs = detail::checked_inputs(logps, self().requirements(),
                                                    self().needs_lens(), Derived::info().name);
    LossOutput out = [&] {
      const detail::NoGrad no_grad;  // the derivatives are written out, autograd need not follow
      return self().formula(inputs);
    }();
    detail::attach_gradient(out, logps);
    return out;
  }
  LossOutput operator()(const PairLogps& logps) const { return forward(logps); }

  /// The same formula on another array type (exact/pair_logps.h). Throws ShapeError.
  template <class T>
  BasicLossOutput<T> evaluate(const BasicPairLogps<T>& in) const {
    detail::check_lengths(in, self().requirements(), self().needs_lens(), Derived::info().name);
    return self().formula(in);
  }

  const Options& options() const { return options_; }
  LossRequirements requirements() const { return {}; }
  bool needs_lens() const { return false; }

 protected:
  const Derived& self() const { return static_cast<const Derived&>(*this); }

  Options options_;
};

/// score x link + regularizer:
///   loss = 1/pairs * sum_i [ link(s(Delta_w) - s(Delta_l)) + regularizer_i ]
/// with Delta = log pi - log pi_ref per sequence, and s(Delta)/n where `length_normalized()`.
/// `Derived` says link() and, where they differ from the defaults here, score(), regularizer() and
/// length_normalized(); its options have `beta` and `score`.
template <class Derived, class OptionsType>
class PairwiseLoss : public LossBase<Derived, OptionsType> {
 public:
  explicit PairwiseLoss(OptionsType options = {})
      : LossBase<Derived, OptionsType>(std::move(options)) {
    (void)this->self().score();  // a score that cannot be built is refused here, not in training
  }

  template <class T>
  BasicLossOutput<T> formula(const BasicPairLogps<T>& in) const {
    const Derived& loss = this->self();
    const double pairs = step_pairs(in);
    const Score score = loss.score();
    const auto link = loss.link();
    const auto regularizer = loss.regularizer();

    const T delta_w = in.chosen_logps - in.ref_chosen_logps;
    const T delta_l = in.rejected_logps - in.ref_rejected_logps;
    T score_w = score.value(delta_w);
    T score_l = score.value(delta_l);
    T slope_w = score.derivative(delta_w);
    T slope_l = score.derivative(delta_l);
    if (loss.length_normalized()) {
      score_w = score_w / in.chosen_lens;
      score_l = score_l / in.rejected_lens;
      slope_w = slope_w / in.chosen_lens;
      slope_l = slope_l / in.rejected_lens;
    }
    const T delta = score_w - score_l;
    const T slope = link.derivative(delta);
    BasicLossSum<T> sum{link.value(delta), slope * slope_w, -slope * slope_l, {}};
    const ScalarOf<T> preference = math::sum(sum.losses) / pairs;
    regularizer.add_to(sum, in, pairs);

    BasicLossOutput<T> out = finish(sum, pairs);
    out.chosen_rewards = loss.beta() * delta_w;
    out.rejected_rewards = loss.beta() * delta_l;
    out.margins = out.chosen_rewards - out.rejected_rewards;
    if (regularizer.kName != nullptr) {
      out.terms = {{"preference", preference}, {regularizer.kName, out.loss - preference}};
    }
    return out;
  }

  Score score() const { return make_score(this->options_.score); }
  NoRegularizer regularizer() const { return {}; }
  double beta() const { return this->options_.beta; }
  bool length_normalized() const { return false; }
  bool needs_lens() const { return this->self().length_normalized(); }
};

}  // namespace prefopt
