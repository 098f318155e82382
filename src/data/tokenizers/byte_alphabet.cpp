// SPDX-License-Identifier: Apache-2.0
#include "data/tokenizers/byte_alphabet.h"

#include <fmt/format.h>

#include <charconv>

#include "core/utf8.h"
#include "data/tokenizers/unicode.h"

namespace prefopt::detail {

ByteAlphabet::ByteAlphabet() {
  byte_of_.fill(-1);
  char32_t next = 0x100;
  for (unsigned byte = 0; byte < 256; ++byte) {
    const bool printable = (byte >= 0x21 && byte <= 0x7E) || (byte >= 0xA1 && byte != 0xAD);
    const char32_t code = printable ? byte : next++;
    byte_of_[code] = static_cast<int>(byte);
    append_utf8(code, character_of_[byte]);
  }
}

bool ByteAlphabet::bytes_of(std::string_view token, std::string& bytes) const {
  bytes.clear();
  for (std::size_t at = 0; at < token.size();) {
    const Utf8Character character = utf8_character(token, at);
    const int byte = character.code < byte_of_.size() ? byte_of_[character.code] : -1;
    if (byte < 0 || !character.valid) return false;
    bytes += static_cast<char>(byte);
    at += character.length;
  }
  return true;
}

bool byte_of_token(std::string_view token, unsigned char& byte) {
  if (token.size() != 6 || !token.starts_with("<0x") || token.back() != '>') return false;
  const char* const end = token.data() + 5;
  const auto [rest, error] = std::from_chars(token.data() + 3, end, byte, 16);
  return error == std::errc() && rest == end;
}

std::string token_of_byte(unsigned char byte) { return fmt::format("<0x{:02X}>", byte); }

}  // namespace prefopt::detail
