// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <array>
#include <string>
#include <string_view>

namespace prefopt::detail {

/// GPT-2's alphabet: a byte that Latin-1 prints is that character, and the others follow from
/// U+0100 on (https://github.com/openai/gpt-2, encoder.py).
class ByteAlphabet {
 public:
  ByteAlphabet();

  /// Sets the bytes that `token` spells; returns false if a character of it is no byte.
  bool bytes_of(std::string_view token, std::string& bytes) const;

  /// Returns the character of a byte, in UTF-8.
  const std::string& character_of(unsigned char byte) const { return character_of_[byte]; }

 private:
  std::array<int, 0x100 + 68> byte_of_;
  std::array<std::string, 256> character_of_;
};

/// Sets the byte that a token such as <0x0A> means; returns false for other tokens.
bool byte_of_token(std::string_view token, unsigned char& byte);

/// Returns the token of a byte, <0x00> to <0xFF>.
std::string token_of_byte(unsigned char byte);

}  // namespace prefopt::detail
