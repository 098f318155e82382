// SPDX-License-Identifier: Apache-2.0
#include <string>
#include <vector>

#include "prefopt/data/step_ends.h"
#include "prefopt/error.h"
#include "support/catch.h"
#include "support/errors.h"

namespace prefopt {
namespace {

using Ends = std::vector<std::int64_t>;

TEST_CASE("step ends: after the token that completes the text", "[data]") {
  const ByteTokenizer bytes;
  const auto ends = [&](const std::string& text, bool ended = false) {
    std::vector<std::int64_t> ids = bytes.encode(text);
    if (ended) ids.push_back(bytes.eos_id());
    return find_step_ends(ids, bytes, "\n\n");
  };
  CHECK(ends("ab\n\ncd\n\ne") == Ends{4, 8, 9});
  CHECK(ends("ab\n\ncd") == Ends{4, 6});
  CHECK(ends("abcd") == Ends{4});
  CHECK(ends("ab\n\n") == Ends{4});
  // Three line ends: the third one begins the next step.
  CHECK(ends("a\n\n\nb") == Ends{3, 5});
  CHECK(ends("") == Ends{});
  // An end token has no text: it belongs to the step before it, or is one where there is none.
  CHECK(ends("ab\n\n", true) == Ends{5});
  CHECK(ends("ab\n\nc", true) == Ends{4, 6});
  CHECK(ends("", true) == Ends{1});
}

TEST_CASE("step ends: a text that ends nothing", "[data]") {
  CHECK_THROWS_TEXT(find_step_ends({1}, ByteTokenizer(), ""), ConfigError,
                    "step_end: expected a text that ends steps, got ''");
}

}  // namespace
}  // namespace prefopt
