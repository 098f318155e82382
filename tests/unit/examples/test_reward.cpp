// SPDX-License-Identifier: Apache-2.0
#include <string>

#include "demo/reward.h"
#include "support/catch.h"

namespace demo {
namespace {

constexpr auto kQuestion = "Why does bread rise when it is baked?";
constexpr auto kGood =
    "Bread rises because yeast makes gas in the dough. The heat of the oven lets that gas expand, "
    "and the baked crust keeps its shape.";

TEST_CASE("A short, direct answer in plain prose gets the whole reward", "[examples]") {
  const RewardTerms terms = reward_terms(kQuestion, kGood, true);
  for (const auto& [name, value] : terms.named()) {
    INFO(name);
    CHECK(value == 1);
  }
  CHECK(terms.total() == 1);
}

TEST_CASE("The reward is the mean of its terms, and 0 without a word", "[examples]") {
  const RewardTerms terms{.complete = 1, .concise = 0.5, .plain = 0.5, .direct = 1};
  CHECK(terms.total() == Approx(0.5));
  for (const char* nothing : {"", " \n ", "...", "- **"}) {
    INFO(nothing);
    CHECK(reward_terms(kQuestion, nothing, true).total() == 0);
  }
}

TEST_CASE("complete wants the end token and a sentence's end", "[examples]") {
  const auto complete = [](const std::string& text, bool ended) {
    return reward_terms(kQuestion, text, ended).complete;
  };
  CHECK(complete("It rises because of yeast.", true) == 1);
  CHECK(complete("It rises because of yeast.\n", true) == 1);
  CHECK(complete("They said \"it rises!\"", true) == 1);
  CHECK(complete("It rises (because of yeast.)", true) == 1);
  CHECK(complete("It rises because of yeast.", false) == 0);
  CHECK(complete("It rises because of", true) == 0);
  CHECK(complete("Because of:", true) == 0);
}

TEST_CASE("concise counts words and sentences", "[examples]") {
  const auto concise = [](const std::string& text) {
    return reward_terms(kQuestion, text, true).concise;
  };
  CHECK(concise("One two three four five six seven.") == 0);
  CHECK(concise("One two three four five six seven eight.") == 1);
  std::string text = "First of all it rises. Then it bakes. Then it cools.";
  CHECK(concise(text) == 1);
  text += " Then it is cut.";
  CHECK(concise(text) == Approx(2.0 / 3));
  text += " Then it is sold!";
  CHECK(concise(text) == Approx(1.0 / 3));
  text += " Then it is gone?";
  CHECK(concise(text) == 0);
  // Lines are sentences too, and numbers of lists and decimal points are not.
  CHECK(concise("The steps are these:\n1. Mix it well\n2. Bake it\n3. Eat it") == Approx(2.0 / 3));
  CHECK(concise("It takes 1.5 hours at 3.5 bars in the oven, or 2.5 without.") == 1);
}

TEST_CASE("plain takes half off for each line of Markdown", "[examples]") {
  const auto plain = [](const std::string& text) {
    return reward_terms(kQuestion, text, true).plain;
  };
  CHECK(plain("Yeast, heat - and time: 2 hours * 1.") == 1);
  for (const char* line :
       {"- yeast", "* yeast", "+ yeast", "• yeast", "1. yeast", "12) yeast", "# Yeast", "| yeast |",
        "> yeast", "the **yeast** rises", "the `yeast` rises", "  - yeast"}) {
    INFO(line);
    CHECK(plain(std::string("It rises.\n") + line) == 0.5);
    CHECK(plain(std::string(line) + "\n" + line) == 0);
    CHECK(plain(std::string(line) + "\n" + line + "\n" + line) == 0);
  }
  CHECK(plain("1984 was a good year for bread.") == 1);
}

TEST_CASE("direct refuses openings without content", "[examples]") {
  const auto direct = [](const std::string& text) {
    return reward_terms(kQuestion, text, true).direct;
  };
  for (const char* filler :
       {"Sure, it rises.", "I'm glad that you ask.", "Of course!", "\"Certainly\", it rises.",
        "Here are three reasons.", "HELLO there"}) {
    INFO(filler);
    CHECK(direct(filler) == 0);
  }
  for (const char* content :
       {"Bread rises.", "Of all reasons, yeast is the first.", "Surely yeast.",
        "Here, yeast is at work.", "In the dough, yeast makes gas."}) {
    INFO(content);
    CHECK(direct(content) == 1);
  }
}

TEST_CASE("on_topic is the share of the question's content words", "[examples]") {
  // Content words: bread, rise, baked; half of them is enough.
  const auto on_topic = [](const std::string& text) {
    return reward_terms(kQuestion, text, true).on_topic;
  };
  CHECK(on_topic("It depends on many things.") == 0);
  CHECK(on_topic("The BREAD is good.") == Approx(2.0 / 3));
  CHECK(on_topic("Breads are rising, no, they rise.") == 1);
  CHECK(on_topic("Bakers know.") == 0);
  CHECK(on_topic("It is baked.") == Approx(2.0 / 3));
  // Only the beginning of a long word counts.
  CHECK(reward_terms("What is photosynthesis?", "Photons.", true).on_topic == 1);
  // A question of function words alone asks for nothing in particular.
  CHECK(reward_terms("What is it?", "A thing.", true).on_topic == 1);
}

TEST_CASE("varied is the share of word triples that are new", "[examples]") {
  const auto varied = [](const std::string& text) {
    return reward_terms(kQuestion, text, true).varied;
  };
  CHECK(varied("It rises.") == 1);
  CHECK(varied("a b c d e") == 1);
  CHECK(varied("a b c a b c a b c") == Approx(3.0 / 7));
  CHECK(varied("yes yes yes yes yes yes") == Approx(1.0 / 4));
}

TEST_CASE("The reward lies between 0 and 1 whatever the bytes are", "[examples]") {
  std::string bytes;
  unsigned state = 1;
  for (int i = 0; i < 4096; ++i) {
    state = state * 1664525 + 1013904223;
    bytes += static_cast<char>(state >> 24);
    const double total = reward_terms(bytes, bytes, i % 2 == 0).total();
    REQUIRE(total >= 0);
    REQUIRE(total <= 1);
  }
}

}  // namespace
}  // namespace demo
