// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "prefopt/data/dataset.h"

namespace prefopt::detail {

/// Choices of a run for those that use its model, in `prefopt.json` next to the weights.
struct ModelMemory {
  std::string tokenizer;    ///< "byte", or empty: the files of the folder say
  std::string chat_format;  ///< empty: nothing is remembered
  std::string data;         ///< the run's row_memory(); empty: nothing is remembered
};

inline constexpr std::string_view kMemoryFile = "prefopt.json";

/// Options of DataOptions that do not say how a row is read: where rows are, and what the memory
/// has in another place.
inline constexpr std::string_view kNotOfRows[] = {
    "train", "eval", "eval_fraction", "max_rows", "leak", "token_cache", "chat_format"};

/// Empty where the folder has no such file. Throws CheckpointError, which names file and field, for
/// one that is damaged.
ModelMemory read_memory(const std::string& folder);

/// Returns the file's text.
std::string written_memory(const ModelMemory& memory);

/// Returns a JSON object of all options that say how rows become tokens and which of them are used.
std::string row_memory(const DataOptions& options);

/// The options of rows that a folder remembers.
struct RowMemory {
  std::string folder;
  std::string options;  ///< as of row_memory(); empty: nothing is remembered
};

/// Returns that of the first folder that has one. Skips paths of files and empty ones.
RowMemory remembered_rows(const std::vector<std::string>& folders);

}  // namespace prefopt::detail
