// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <string>
#include <string_view>
#include <vector>

#include "prefopt/data/dataset.h"
#include "prefopt/export.h"

namespace prefopt {

/// A training pair whose prompt, in tokens, is also that of a held-out pair.
struct Leak {
  std::size_t train = 0;     ///< place among the training pairs
  std::size_t held_out = 0;  ///< the first held-out pair that is equal, else of the same prompt
  bool whole_row = false;    ///< completions and columns are equal as well
};

/// Returns the leaks in the order of the training pairs.
PREFOPT_API std::vector<Leak> find_leaks(const std::vector<TokenRow>& train,
                                         const std::vector<TokenRow>& held_out);

/// Applies `policy` to the leaks of `train`, whose rows `path` names: kDrop removes them. Returns a
/// line for the user, as RowReport::summary does; empty if there are none. Throws DataError for
/// kError, and for kDrop if no pair would be left.
PREFOPT_API std::string apply_leak_policy(Dataset& train, const Dataset& held_out, RowAction policy,
                                          std::string_view path);

}  // namespace prefopt
