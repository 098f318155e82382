// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <array>

#include "prefopt/losses/inputs.h"
#include "prefopt/losses/loss.h"
#include "prefopt/losses/pair_logps.h"

namespace prefopt {

/// One input of a loss with its members, for code that treats all inputs alike (checks, gradients,
/// cutting a step up and joining it).
template <class T>
struct PairField : InputInfo {
  T BasicPairLogps<T>::*value;
  T BasicLossOutput<T>::*gradient;  ///< null: no derivative is taken

  constexpr bool needed(const LossRequirements& needs) const {
    return needs.inputs.has(this->input);
  }
  /// Returns whether it is [batch * samples_per_prompt] in place of [batch].
  constexpr bool per_sample() const { return this->of == InputOf::kSample; }
  /// Returns whether any floating dtype or int64 is accepted, not only that of chosen_logps.
  constexpr bool is_number() const {
    return this->kind == InputKind::kCount || this->kind == InputKind::kGroup || this->is_column();
  }
  /// Returns whether the data row gives it.
  constexpr bool is_column() const {
    return this->kind == InputKind::kLabel || this->kind == InputKind::kNumber ||
           this->kind == InputKind::kWeight || this->kind == InputKind::kProbability ||
           this->kind == InputKind::kSide;
  }
};

namespace detail {
template <class T>
constexpr auto make_pair_fields() {
  using In = BasicPairLogps<T>;
  using Out = BasicLossOutput<T>;
  constexpr auto index = [](Input input) { return static_cast<std::size_t>(input); };
  return std::array{
#define PREFOPT_FIELD(name, ...) PairField<T>{kInputs[index(Input::name)], &In::name, nullptr},
#define PREFOPT_FIELD_OF_GRADIENT(name, gradient, ...) \
  PairField<T>{kInputs[index(Input::name)], &In::name, &Out::gradient},
      PREFOPT_LOSS_INPUTS(PREFOPT_FIELD, PREFOPT_FIELD_OF_GRADIENT)
#undef PREFOPT_FIELD
#undef PREFOPT_FIELD_OF_GRADIENT
  };
}
}  // namespace detail

template <class T>
inline constexpr auto kPairFields = detail::make_pair_fields<T>();

}  // namespace prefopt
