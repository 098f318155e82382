// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace prefopt::detail {

/// SentencePiece's compiled table of replacements: a double-array trie
/// (https://github.com/s-yata/darts-clone) of texts, whose values are offsets of zero-terminated
/// replacements. It is read as the package `tokenizers` reads it: a grapheme cluster below six
/// bytes is replaced as a whole by what its shortest prefix in the trie becomes, other characters
/// one by one.
class CharsmapTable {
 public:
  /// Throws CheckpointError, led by `where`, for bytes that are no such table.
  CharsmapTable(std::string_view bytes, std::string_view where);

  std::string apply(std::string_view text) const;

 private:
  std::optional<std::string_view> find(std::string_view text) const;
  void check(std::string_view where) const;

  std::vector<std::uint32_t> units_;
  std::string replacements_;
};

}  // namespace prefopt::detail
