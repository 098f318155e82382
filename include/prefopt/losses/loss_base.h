// SPDX-License-Identifier: Apache-2.0
#pragma once

// The base of every named loss: options, checks, and the step from a formula to a gradient.

#include <algorithm>
#include <cstdint>
#include <string>
#include <string_view>
#include <utility>

#include "prefopt/losses/loss.h"
#include "prefopt/losses/pair_fields.h"
#include "prefopt/losses/pair_logps.h"
#include "prefopt/math/tensor.h"

namespace prefopt {

namespace detail {
/// Throws ConfigError for an option that is set and changes nothing, with the reason.
PREFOPT_API void refuse_idle(bool is_set, std::string_view where, std::string_view option,
                             std::string_view reason);
}  // namespace detail

/// Returns the pairs to divide by: those of the step, or this batch's without totals.
template <class T>
double step_pairs(const BasicPairLogps<T>& in) {
  return in.totals.pairs > 0 ? in.totals.pairs : static_cast<double>(math::length(in.chosen_logps));
}

namespace detail {
/// Adds `part` to `sum`, which is 0 if undefined.
template <class T>
void add_to(T& sum, const T& part) {
  sum = math::defined(sum) ? T(sum + part) : part;
}
}  // namespace detail

/// Turns sums over pairs into the step's mean: `losses` and the gradients of their sum become
/// `loss` and its gradients.
template <class T>
void finish(BasicLossOutput<T>& out, double pairs) {
  out.loss = math::sum(out.losses) / pairs;
  for (const auto& field : kPairFields<T>) {
    if (field.gradient == nullptr) continue;
    T& gradient = out.*field.gradient;
    if (math::defined(gradient)) gradient = gradient / pairs;
  }
}

/// The range of `beta`, and of `lambda` in orpo.
inline constexpr Range kBetaRange = Range::above(0).because(
    "it scales what separates chosen from rejected, and only a positive scale prefers the chosen");
/// The range of `label_smoothing`, except in exo_pair, which needs some.
inline constexpr Range kLabelSmoothingRange = Range::half_open(0, 0.5).because(
    "with one half of the labels wrong they say nothing, with more the opposite");

namespace detail {
/// Checks shapes, dtypes and devices of `logps` against the needs of the loss; returns detached
/// float tensors.
PREFOPT_API PairLogps checked_inputs(const PairLogps& logps, const LossRequirements& needs,
                                     const std::string& name);
/// Throws ShapeError if `length` is not `expected`.
PREFOPT_API void check_length(std::int64_t length, std::int64_t expected, std::string_view field,
                              const std::string& name);
/// Throws ShapeError if a loss that must see the whole step sees only `pairs` of it.
PREFOPT_API void check_whole_step(std::int64_t pairs, const StepTotals& totals,
                                  const LossRequirements& needs, const std::string& name);

/// Checks the lengths of all arrays that a loss needs.
template <class T>
void check_lengths(const BasicPairLogps<T>& in, const LossRequirements& needs,
                   const std::string& name) {
  const std::int64_t batch = math::length(in.chosen_logps);
  check_length(std::min<std::int64_t>(batch, 1), 1, "chosen_logps", name);
  for (const auto& field : kPairFields<T>) {
    if (!field.needed(needs)) continue;
    const std::int64_t expected = field.per_sample() ? batch * needs.samples_per_prompt : batch;
    check_length(math::length(in.*field.value), expected, field.name, name);
  }
  check_whole_step(batch, in.totals, needs, name);
}

/// Ties `out.loss` to the log-probs it came from, with out.grad_* as its derivatives.
PREFOPT_API void attach_gradient(LossOutput& out, const PairLogps& logps);

/// Turns grad mode off for a scope, without LibTorch's header for it.
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
    const PairLogps inputs =
        detail::checked_inputs(logps, self().requirements(), Derived::info().name);
    LossOutput out = [&] {
      const detail::NoGrad no_grad;  // the derivatives are written out, autograd need not follow
      return self().formula(inputs);
    }();
    detail::attach_gradient(out, logps);
    return out;
  }
  LossOutput operator()(const PairLogps& logps) const { return forward(logps); }

  /// Evaluates the formula on another array type (exact/pair_logps.h). Throws ShapeError.
  template <class T>
  BasicLossOutput<T> evaluate(const BasicPairLogps<T>& in) const {
    detail::check_lengths(in, self().requirements(), Derived::info().name);
    return self().formula(in);
  }

  const Options& options() const { return options_; }
  LossRequirements requirements() const { return {}; }
  GradientExceptions gradient_exceptions() const { return {}; }

 protected:
  const Derived& self() const { return static_cast<const Derived&>(*this); }

  Options options_;
};

}  // namespace prefopt
