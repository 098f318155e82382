// SPDX-License-Identifier: Apache-2.0
#include "core/json_text.h"
#include "support/catch.h"

namespace prefopt::detail {
namespace {

TEST_CASE("bare NaN and infinities are put into quotes", "[core]") {
  CHECK(quote_non_finite(R"({"a": NaN, "b": [-Infinity,Infinity]})") ==
        R"({"a": "NaN", "b": ["-Infinity","Infinity"]})");
  CHECK(quote_non_finite("NaN", "not: ") == R"("not: NaN")");
  // Texts and keys stay what they are.
  for (const char* json : {R"({"NaN": "Infinity", "b\"NaN": "\\"})", "", "-1", "null", "\"NaN"}) {
    CHECK(quote_non_finite(json) == json);
  }
}

TEST_CASE("escapes of half a surrogate pair are found and replaced", "[core]") {
  struct Case {
    const char* json;
    std::size_t at;
    const char* replaced;
  };
  constexpr std::size_t kNone = std::string_view::npos;
  const Case cases[] = {
      {R"("\ud83d")", 1, R"("\ufffd")"},
      {R"("x\uDFFF\uD800")", 2, R"("x\ufffd\ufffd")"},
      {R"("\ud83d\ud83d\ude00")", 1, R"("\ufffd\ud83d\ude00")"},
      {R"("\ud83d\n\ude00")", 1, R"("\ufffd\n\ufffd")"},
      {R"("\ud83d\ude00")", kNone, R"("\ud83d\ude00")"},
      {R"("\\ud83d \u00e9")", kNone, R"("\\ud83d \u00e9")"},
      {R"("\\\ud83d")", 3, R"("\\\ufffd")"},
      {R"("\ud83)", kNone, R"("\ud83)"},
      {"\\", kNone, "\\"},
      {"", kNone, ""},
  };
  for (const Case& c : cases) {
    INFO(c.json);
    CHECK(find_lone_surrogate(c.json) == c.at);
    CHECK(replace_lone_surrogates(c.json) == c.replaced);
  }
}

}  // namespace
}  // namespace prefopt::detail
