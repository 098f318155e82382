// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <string_view>
#include <vector>

namespace prefopt::detail {

/// A pre-tokenizer of llama.cpp and what its name implies.
struct NamedSplits {
  std::vector<std::string_view> names;
  std::vector<std::string_view> patterns;  ///< each cuts what the one before it left
  bool nfc = false;
  bool ignore_merges = false;
  bool adds_bos = false;  ///< unless the file says otherwise
};

const std::vector<NamedSplits>& all_named_splits();

/// Returns the one of this name. Throws CheckpointError, led by `where`, with the known names.
const NamedSplits& find_named_splits(std::string_view name, std::string_view where);

}  // namespace prefopt::detail
