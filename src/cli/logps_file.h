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
  std::size_t entries = 1;  ///< numbers in the file, over which a gradient is spread
  std::optional<std::int64_t> tokens = {};  ///< unknown for a sum without its `_len`
};

/// A row maps each key that it has to its completions: one, or several for fresh samples. Keys:
/// `chosen_logps`, `rejected_logps`, `sample_logps`, and each of them with `ref_` in front.
struct LogpsRow {
  std::int64_t line = 0;
  std::map<std::string, std::vector<CompletionLogps>, std::less<>> completions = {};
};

/// At least one row. Throws DataError, led by `PATH:LINE`, for what is not finite log-probs; tokens
/// and samples are counted from 0.
std::vector<LogpsRow> read_logps(const std::string& path);

}  // namespace prefopt::cli
