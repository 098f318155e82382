// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <string>
#include <string_view>
#include <vector>

#include "prefopt/data/dataset.h"
#include "prefopt/export.h"

namespace prefopt {

/// A training pair whose prompt, in tokens, is one of the held-out pairs too.
struct Leak {
  std::size_t train = 0;     ///< place among the training pairs
  std::size_t held_out = 0;  ///< the first held-out pair that is equal, else of the same prompt
  bool whole_row = false;    ///< completions and columns are equal as well
};

/// In the order of the training pairs.
PREFOPT_API std::vector<Leak> find_leaks(const std::vector<TokenRow>& train,
                                         const std::vector<TokenRow>& held_out);

/// Does what `policy` says with the leaks of `train`, whose file is `path`: kDrop takes them out.
/// Gives a line for people, as RowReport::summary does; empty: there are none. Throws DataError for
/// kError, and for kDrop where no pair would be left.
PREFOPT_API std::string settle_leaks(Dataset& train, const Dataset& held_out, RowPolicy policy,
                                     std::string_view path);

}  // namespace prefopt
