// SPDX-License-Identifier: Apache-2.0
#include <random>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "data/tokenizers/added_tokens.h"
#include "support/catch.h"

namespace prefopt::detail {
namespace {

/// The end of a search: the last token, where it ends, and the beginning of what follows it.
struct End {
  const AddedToken* token = nullptr;
  std::size_t done = 0, rest = 0;
};

End end_of(const AddedTokens& tokens, std::string_view text) {
  End end;
  end.done = tokens.split(
      text, {}, [&](const AddedToken& token) { end.token = &token; },
      [&](std::size_t begin, std::size_t) { end.rest = begin; });
  return end;
}

class Tokens {
 public:
  explicit Tokens(std::vector<AddedToken> tokens) : tokens_(std::move(tokens)) {
    std::vector<std::pair<std::string, const AddedToken*>> entries;
    for (const AddedToken& token : tokens_) entries.emplace_back(token.content, &token);
    added_.set(entries);
  }
  const AddedTokens& added() const { return added_; }

 private:
  std::vector<AddedToken> tokens_;
  AddedTokens added_;
};

AddedToken token(std::string content) { return {.content = std::move(content), .id = 0}; }

}  // namespace

TEST_CASE("added tokens: from a free place on, a search finds what one of the whole does",
          "[data]") {
  AddedToken left = token("<b>"), right = token("<a>"), word = token("ab");
  left.strip_left = true;
  right.strip_right = true;
  word.single_word = true;
  const Tokens tokens({left, right, word, token("a<"), token("<<"), token("b a"), token("<a><")});
  const std::vector<std::string> letters = {"a", "b", "<", ">", " ", "\n", "é", "\xff", "<a>", "c"};
  std::mt19937 random(3);
  std::size_t moved = 0, with_token = 0;
  for (int repeat = 0; repeat < 4000; ++repeat) {
    std::string text;
    for (int i = 0; i < 12; ++i) text += letters[random() % letters.size()];
    const End whole = end_of(tokens.added(), text);
    for (std::size_t limit = 0; limit < text.size(); ++limit) {
      const std::size_t place = tokens.added().free_place(text, limit);
      REQUIRE(place <= limit);
      const End part = end_of(tokens.added(), std::string_view(text).substr(place));
      if (place > 0) ++moved;
      if (part.token == nullptr) {
        CHECK(whole.done <= place);
        continue;
      }
      if (place > 0) ++with_token;
      CHECK(part.token == whole.token);
      CHECK(part.done + place == whole.done);
      if (part.done + place < text.size()) CHECK(part.rest + place == whole.rest);
    }
  }
  CHECK(moved > 1000);
  CHECK(with_token > 100);
}

TEST_CASE("added tokens: a turn is looked at however many come before it", "[data]") {
  const Tokens tokens({token("<|im_start|>"), token("<|im_end|>")});
  std::string text;
  for (int turn = 0; turn < 500; ++turn) {
    text += "<|im_start|>user\nHow far is it to the next town?<|im_end|>\n";
    const std::size_t limit = text.size() - 30;
    CHECK(limit - tokens.added().free_place(text, limit) < 20);
  }
}

}  // namespace prefopt::detail
