// SPDX-License-Identifier: Apache-2.0
#include <string>
#include <vector>

#include "demo/report.h"
#include "support/catch.h"

namespace demo {
namespace {

using Lines = std::vector<std::string>;

Response response(const std::string& text, double complete, std::size_t tokens) {
  Response made;
  made.text = text;
  made.ids.resize(tokens);
  made.ended = complete == 1;
  made.terms.complete = complete;
  made.reward = made.terms.total();
  return made;
}

TEST_CASE("Text is broken between words where that is possible", "[examples]") {
  CHECK(wrapped("a bb ccc", 4) == Lines{"a bb", "ccc"});
  CHECK(wrapped("a bb ccc", 8) == Lines{"a bb ccc"});
  CHECK(wrapped("abcdefgh", 3) == Lines{"abc", "def", "gh"});
  CHECK(wrapped("one\n\ntwo", 4) == Lines{"one", "", "two"});
  CHECK(wrapped("ééé é", 3) == Lines{"ééé", "é"});  // characters, not bytes
  CHECK(wrapped("", 4) == Lines{""});
}

TEST_CASE("A comparison pairs the responses by prompt", "[examples]") {
  const Responses before{{response("a", 0, 4)}, {response("b", 1, 6)}};
  const Responses after{{response("c", 1, 2)}, {response("d", 1, 2)}};
  const Comparison comparison = compare(before, after, {.per_response = 3, .per_token = 1.5}, 1);
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
  CHECK(comparison.kl.per_token == 1.5);
}

TEST_CASE("Responses stand side by side", "[examples]") {
  const std::vector<Prompt> prompts{{.text = "Why?", .ids = {}}};
  const std::string text =
      side_by_side(prompts, {{response("one\ntwo", 0, 1)}}, {{response("three", 1, 1)}});
  const std::string gap(48 - 5, ' ');
  CHECK(text == "\n» Why?\n  before, reward 0.00" + std::string(48 - 21, ' ') +
                    " │ after, reward 0.17\n  one" + gap + " │ three\n  two …" +
                    std::string(48 - 7, ' ') + " │\n");
}

}  // namespace
}  // namespace demo
