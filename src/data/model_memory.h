// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <string>
#include <string_view>

namespace prefopt::detail {

/// What a run leaves for those that use its model, in `prefopt.json` next to the weights.
struct ModelMemory {
  std::string tokenizer;    ///< "byte", or empty: the files of the folder say
  std::string chat_format;  ///< empty: nothing is remembered
};

inline constexpr std::string_view kMemoryFile = "prefopt.json";

/// Empty where the folder has no such file. Throws CheckpointError, which names file and field, for
/// one that is damaged.
ModelMemory read_memory(const std::string& folder);

/// The file's text.
std::string written_memory(const ModelMemory& memory);

}  // namespace prefopt::detail
