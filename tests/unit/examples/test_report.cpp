// SPDX-License-Identifier: Apache-2.0
#include <string>
#include <vector>

#include "demo/report.h"
#include "support/catch.h"

namespace demo {
namespace {

Response response(const std::string& text, double complete, std::size_t tokens) {
  Response made;
  made.text = text;
  made.ids.resize(tokens);
  made.ended = complete == 1;
  made.terms.complete = complete;
  return made;
}

TEST_CASE("A comparison pairs the responses by prompt", "[examples]") {
  const Responses before{{response("a", 0, 4)}, {response("b", 1, 6)}};
  const Responses after{{response("c", 1, 2)}, {response("d", 1, 2)}};
  const Comparison comparison = compare(before, after);
  CHECK(comparison.reward_before == Approx(1.0 / 12));
  CHECK(comparison.reward_after == Approx(1.0 / 6));
  CHECK(comparison.gain.mean == Approx(1.0 / 12));
  CHECK(comparison.gain.low == 0);
  CHECK(comparison.gain.high == Approx(1.0 / 6));
  CHECK(comparison.wins.mean == 0.75);  // one win, one tie
  CHECK(comparison.terms.at(0).name == "complete");
  CHECK(comparison.terms.at(0).before == 0.5);
  CHECK(comparison.terms.at(0).after == 1);
  CHECK(comparison.tokens_before == 5);
  CHECK(comparison.tokens_after == 2);
}

TEST_CASE("Responses follow their question", "[examples]") {
  const std::vector<prefopt::Prompt> prompts{{.ids = {}, .text = {}, .question = "Why?"}};
  CHECK(shown_responses(prompts, {{response("one\ntwo", 0, 1)}}, {{response("three", 1, 1)}}) ==
        "\n» Why?\n"
        "  before, reward 0.00: one\n    two …\n"
        "  after, reward 0.17: three\n");
}

}  // namespace
}  // namespace demo
