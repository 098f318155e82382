// SPDX-License-Identifier: Apache-2.0
#pragma once

// The rows of `prefopt loss`: log-probs given as numbers, without a model.

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace prefopt::cli {

/// Log-probs of one completion: token by token, or their sum alone.
struct CompletionLogps {
  double sum = 0;
  std::vector<double> each = {};            ///< empty where the file has the sum
  std::optional<std::int64_t> tokens = {};  ///< unknown for a sum without its `_len`
};

/// One line, under the names that the arrays have in PairLogps (losses/pair_fields.h).
struct LogpsRow {
  std::int64_t line = 0;
  /// One completion, or several for fresh samples.
  std::map<std::string, std::vector<CompletionLogps>, std::less<>> completions = {};
  std::map<std::string, double, std::less<>> numbers = {};
};

/// The key of a file that holds `field` of a PairLogps, as `label` holds `labels`. Rows without a
/// partner have other names for what is in the chosen place.
std::string_view row_key(std::string_view field, bool unpaired);

/// At least one row. Throws DataError, led by `PATH:LINE`, for what is not finite log-probs; tokens
/// and samples are counted from 0.
std::vector<LogpsRow> read_logps(const std::string& path);

}  // namespace prefopt::cli
