// SPDX-License-Identifier: Apache-2.0
#include <string>
#include <vector>

#include "data/split_pattern.h"
#include "prefopt/error.h"
#include "support/catch.h"
#include "support/errors.h"

namespace prefopt::detail {
namespace {

// The matches, each in brackets.
std::string matches(std::string_view pattern, std::string_view text) {
  const SplitPattern compiled(pattern, "test");
  SplitPattern::Scratch scratch;
  std::string result;
  std::size_t at = 0;
  while (const auto match = compiled.find(text, at, scratch)) {
    result += "[" + std::string(text.substr(match->begin, match->end - match->begin)) + "]";
    at = match->end;
  }
  return result;
}

TEST_CASE("split patterns match UTF-8 by Unicode's categories", "[data]") {
  CHECK(matches(R"(\p{L}+)", "a\xC3\xA9 1\xD0\x96z") == "[a\xC3\xA9][\xD0\x96z]");
  CHECK(matches(R"(\p{N}{1,3})", "12345") == "[123][45]");
  CHECK(matches(R"(\P{L}+)", "ab12cd") == "[12]");
  CHECK(matches(R"([^\s\p{L}])", "a b.\xC2\x85;") == "[.][;]");
  CHECK(matches(R"((?i:'s|'ll))", "'S'lL's") == "['S]['lL]['s]");
  CHECK(matches(R"(a++|b??c|d*?e)", "aaabcdde") == "[aaa][bc][dde]");
  CHECK(matches(R"(x(?=y)|z(?!y))", "xyxzzy") == "[x][z]");
  CHECK(matches(R"([\-\]a-c]+\.)", "b-].x") == "[b-].]");
}

TEST_CASE("white space in a split pattern is White_Space", "[data]") {
  // U+180E is white space to PCRE2's \s; U+0085 to both.
  CHECK(matches(R"(\s)", "\xE1\xA0\x8E\xC2\x85\xE2\x80\xA8\x0B.") ==
        "[\xC2\x85][\xE2\x80\xA8][\x0B]");
  CHECK(matches(R"(\S+)", "a\xE1\xA0\x8E\xC2\x85z") == "[a\xE1\xA0\x8E][z]");
  CHECK(matches(R"(\s+(?!\S)|\s+)", "a   b  ") == "[  ][ ][  ]");
}

TEST_CASE("quoted text matches itself", "[data]") {
  CHECK(matches(quote_pattern("a.(b)*[\\"), "aXb a.(b)*[\\ ") == "[a.(b)*[\\]");
}

TEST_CASE("patterns that may mean something else to Oniguruma are refused", "[data]") {
  const auto refuse = [](const std::string& pattern, const std::string& what, int offset) {
    CHECK_THROWS_TEXT(SplitPattern(pattern, "t.json: p"), CheckpointError,
                      "t.json: p: expected a pattern that PCRE2 and Oniguruma read alike, got " +
                          what + " at offset " + std::to_string(offset) + " of '" + pattern + "'");
  };
  refuse("", "an empty one", 0);
  refuse("^a", "an anchor", 0);
  refuse("a$", "an anchor", 1);
  refuse(R"(\w+)", R"('\w')", 0);
  refuse(R"(a\b)", R"('\b')", 1);
  refuse(R"(\v)", R"('\v')", 0);
  refuse(R"([\S])", R"('\S')", 1);
  refuse(R"(\p{Han})", R"('\p{Han}')", 0);
  refuse(R"(\p{^L})", R"('\p{^L}')", 0);
  refuse(R"(\pL)", R"('\pL')", 0);
  refuse(R"((?i:\p{Lu}))", R"('\p{Lu}')", 4);
  refuse("(?<=a)b", "'(?<'", 0);
  refuse("(?x)b", "'(?x'", 0);
  refuse("(*ANY)b", "'(*'", 0);
  refuse("a)", "')'", 1);
  refuse("a{,3}", "'{'", 1);
  refuse("a{2}+", "'{'", 1);
  refuse("a{2}?", "'{'", 1);
  refuse("a{x", "'{'", 1);
  refuse("[a[b]]", "a set in a set", 2);
  refuse("[a&&b]", "'&&'", 2);
  refuse("[]a]", "an empty set", 1);
  refuse("[^", "a set without end", 2);
  refuse("\\", R"('\')", 0);
}

TEST_CASE("patterns that cannot be compiled or match nothing are refused", "[data]") {
  CHECK_THROWS_TEXT(SplitPattern("(a", "t"), CheckpointError,
                    "t: expected a pattern that can be compiled, got '(a' (missing closing "
                    "parenthesis)");
  CHECK_THROWS_TEXT(SplitPattern("a*", "t"), CheckpointError,
                    "t: expected a pattern that matches one character at least, got 'a*'");
}

TEST_CASE("long runs do not exhaust the matcher", "[data]") {
  const std::string spaces(1 << 20, ' ');
  const SplitPattern pattern(R"(\s*[\r\n]+|\s+(?!\S)|\s+)", "test");
  SplitPattern::Scratch scratch;
  const auto match = pattern.find(spaces + "x", 0, scratch);
  REQUIRE(match.has_value());
  CHECK(match->begin == 0);
  CHECK(match->end == spaces.size() - 1);
}

}  // namespace
}  // namespace prefopt::detail
