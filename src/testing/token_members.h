// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <array>
#include <string_view>

#include "prefopt/objectives/token_objective.h"

namespace prefopt::testing {

/// An array of BasicTokenArrays and its name.
template <class T>
struct TokenMember {
  std::string_view name;
  T BasicTokenArrays<T>::*value;
};

template <class T>
inline constexpr std::array<TokenMember<T>, 14> kTokenMembers = {{
    {"logps", &BasicTokenArrays<T>::logps},
    {"old_logps", &BasicTokenArrays<T>::old_logps},
    {"ref_logps", &BasicTokenArrays<T>::ref_logps},
    {"sampler_logps", &BasicTokenArrays<T>::sampler_logps},
    {"advantages", &BasicTokenArrays<T>::advantages},
    {"entropies", &BasicTokenArrays<T>::entropies},
    {"exact_kls", &BasicTokenArrays<T>::exact_kls},
    {"values", &BasicTokenArrays<T>::values},
    {"old_values", &BasicTokenArrays<T>::old_values},
    {"returns", &BasicTokenArrays<T>::returns},
    {"completions", &BasicTokenArrays<T>::completions},
    {"turns", &BasicTokenArrays<T>::turns},
    {"lens", &BasicTokenArrays<T>::lens},
    {"group_lens", &BasicTokenArrays<T>::group_lens},
}};

/// An input that a loss moves, and its gradient.
template <class T>
struct TokenGradient {
  std::string_view name;
  T BasicTokenArrays<T>::*value;
  T BasicObjectiveOutput<T>::*gradient;
};

template <class T>
inline constexpr std::array<TokenGradient<T>, 4> kTokenGradients = {{
    {"logps", &BasicTokenArrays<T>::logps, &BasicObjectiveOutput<T>::grad_logps},
    {"entropies", &BasicTokenArrays<T>::entropies, &BasicObjectiveOutput<T>::grad_entropies},
    {"exact_kls", &BasicTokenArrays<T>::exact_kls, &BasicObjectiveOutput<T>::grad_exact_kls},
    {"values", &BasicTokenArrays<T>::values, &BasicObjectiveOutput<T>::grad_values},
}};

}  // namespace prefopt::testing
