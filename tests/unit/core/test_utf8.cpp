// SPDX-License-Identifier: Apache-2.0
#include <string>

#include "core/utf8.h"
#include "support/catch.h"

namespace prefopt::detail {
namespace {

// U+FFFD
const std::string kMark = "\xEF\xBF\xBD";

TEST_CASE("characters are read from UTF-8", "[core]") {
  const std::string text = "a\xC3\xA9\xE2\x82\xAC\xF0\x9F\x98\x80";
  const std::u32string codes = U"a\u00e9\u20ac\U0001f600";
  std::size_t at = 0;
  for (char32_t code : codes) {
    const Utf8Character character = utf8_character(text, at);
    CHECK(character.valid);
    CHECK(character.code == code);
    at += character.length;
  }
  CHECK(at == text.size());
  CHECK(find_invalid_utf8(text) == std::string::npos);
  CHECK(find_invalid_utf8(text.substr(0, text.size() - 1)) == 6);
}

TEST_CASE("what is no UTF-8 is replaced as Python's errors=\"replace\" does", "[core]") {
  // Unicode 15.0, table 3-8, and the cases that bound the second byte.
  struct Case {
    std::string bytes, expected;
  };
  const std::string bad = kMark;
  const Case cases[] = {
      {"\xC0\xAF\xE0\x80\xBF\xF0\x81\x82\x41", bad + bad + bad + bad + bad + bad + bad + bad + "A"},
      {"\xED\xA0\x80\xED\xBF\xBF\xED\xAF\x41", bad + bad + bad + bad + bad + bad + bad + bad + "A"},
      {"\xF4\x91\x92\x93\xFF\x41\x80\xBF\x42", bad + bad + bad + bad + bad + "A" + bad + bad + "B"},
      {"\xE1\x80\xE2\xF0\x91\x92\xF1\xBF\x41", bad + bad + bad + bad + "A"},
      {"a\xE2\x82", "a" + bad},
      {"\xF0\x9F\x98", bad},
      {std::string("\x00\x7F", 2), std::string("\x00\x7F", 2)},
      {"\xEF\xBF\xBF\xF4\x8F\xBF\xBF", "\xEF\xBF\xBF\xF4\x8F\xBF\xBF"},
      {"", ""},
  };
  for (const auto& [bytes, expected] : cases) CHECK(replace_invalid_utf8(bytes) == expected);
}

TEST_CASE("white space is Unicode's White_Space", "[core]") {
  std::size_t count = 0;
  for (char32_t code = 0; code < 0x110000; ++code) count += is_white_space(code) ? 1 : 0;
  CHECK(count == 25);  // PropList.txt of Unicode 6.3 and later
  for (char32_t code : {U'\t', U'\r', U' ', U'\u0085', U'\u00a0', U'\u2028', U'\u3000'}) {
    CHECK(is_white_space(code));
  }
  CHECK_FALSE(is_white_space(U'\u180e'));
  CHECK_FALSE(is_white_space(U'\u200b'));
}

}  // namespace
}  // namespace prefopt::detail
