// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <functional>
#include <string>
#include <string_view>
#include <vector>

#include "data/tokenizers/spec.h"

namespace prefopt::detail {

/// Turns the texts of tokens into text.
class TokenDecoder {
 public:
  /// Throws CheckpointError, led by `where`, for a step that cannot be made.
  TokenDecoder(const std::vector<DecoderStep>& steps, bool joins_with_spaces,
               std::string_view where);

  /// Returns whether the text is that of the tokens' bytes, one after the other.
  bool is_byte_level() const { return is_byte_level_; }

  /// Tokens that are no beginning keep the space that the tokenizer puts before a text.
  std::string decode(std::vector<std::string> tokens, bool begins = true) const;

  /// Returns the bytes of a token in the middle of a text.
  std::string spelling(const std::string& token) const;

 private:
  using Step = std::function<void(std::vector<std::string>&, bool begins)>;
  std::vector<Step> steps_;
  bool joins_with_spaces_;
  bool is_byte_level_ = false;
  bool has_byte_tokens_ = false;
};

}  // namespace prefopt::detail
