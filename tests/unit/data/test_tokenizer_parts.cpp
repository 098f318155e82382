// SPDX-License-Identifier: Apache-2.0

// Tokenizers of other parts than bytes, one rule at a time; that the rules together are those of
// the package `tokenizers` is in tests/golden.

#include <nlohmann/json.hpp>
#include <string>

#include "prefopt/data/dataset.h"
#include "prefopt/data/tokenizer.h"
#include "prefopt/error.h"
#include "support/catch.h"
#include "support/errors.h"
#include "support/temp_dir.h"
#include "support/text_files.h"

namespace prefopt::tokenizer_parts_test {
namespace {

using nlohmann::json;
using testing_support::TempDir;
using testing_support::write_text;
using Ids = std::vector<std::int64_t>;

constexpr const char* kMeta = "\xE2\x96\x81";

/// `▁`, then the letters a to e, then what merges make of them: `▁a` 6, `▁b` 7, `ab` 8.
json small_bpe() {
  const std::string meta = kMeta;
  const json vocab{{meta, 0}, {"a", 1},        {"b", 2},        {"c", 3},  {"d", 4},
                   {"e", 5},  {meta + "a", 6}, {meta + "b", 7}, {"ab", 8}, {"<unk>", 9}};
  return {{"added_tokens", json::array()},
          {"normalizer", nullptr},
          {"pre_tokenizer", nullptr},
          {"post_processor", nullptr},
          {"decoder", {{"type", "Metaspace"}, {"replacement", meta}}},
          {"model",
           {{"type", "BPE"},
            {"vocab", vocab},
            {"unk_token", "<unk>"},
            {"merges", {meta + " a", meta + " b", "a b"}}}}};
}

json added(int id, const std::string& content, bool special = false) {
  return {{"id", id},        {"content", content},  {"single_word", false}, {"lstrip", false},
          {"rstrip", false}, {"normalized", false}, {"special", special}};
}

json metaspace(const char* scheme, bool split = true) {
  return {
      {"type", "Metaspace"}, {"replacement", kMeta}, {"prepend_scheme", scheme}, {"split", split}};
}

json legacy_normalizer() {
  return {{"type", "Sequence"},
          {"normalizers",
           {{{"type", "Prepend"}, {"prepend", kMeta}},
            {{"type", "Replace"}, {"pattern", {{"String", " "}}}, {"content", kMeta}}}}};
}

std::shared_ptr<const Tokenizer> made(const json& content) {
  const TempDir dir;
  write_text(dir.file("tokenizer.json"), content.dump());
  return make_tokenizer(dir.path());
}

TEST_CASE("a space before a text comes by the scheme", "[data]") {
  json content = small_bpe();
  content["added_tokens"] = {added(10, "<s>", true)};
  const auto encode = [&](const json& pre_tokenizer, const std::string& text) {
    content["pre_tokenizer"] = pre_tokenizer;
    return made(content)->encode(text);
  };
  CHECK(encode(metaspace("always"), "a b<s>a") == Ids{6, 7, 10, 6});
  CHECK(encode(metaspace("first"), "a b<s>a") == Ids{6, 7, 10, 1});
  CHECK(encode(metaspace("first"), "<s>a") == Ids{10, 1});
  CHECK(encode(metaspace("never"), "a b<s>a") == Ids{1, 7, 10, 1});
  CHECK(encode(metaspace("always"), " a") == Ids{6});
  CHECK(encode(metaspace("always", false), "a  b") == Ids{6, 0, 7});
  content["normalizer"] = legacy_normalizer();
  CHECK(encode(nullptr, "a b<s>a") == Ids{6, 7, 10, 6});
  CHECK(encode(nullptr, " a") == Ids{0, 6});  // unlike Metaspace, one more
  CHECK(encode(nullptr, "").empty());
}

TEST_CASE("what follows a text gets no space of a beginning", "[data]") {
  json content = small_bpe();
  content["added_tokens"] = {added(10, "<s>", true), added(11, "<r>")};
  content["added_tokens"][1]["rstrip"] = true;
  const auto after = [&](const std::string& before, const std::string& text) {
    return made(content)->encode_part(text, {}, {.before = before});
  };
  const auto check_all = [&](const Ids& after_token) {
    CHECK(after("", "a b") == Ids{6, 7});
    CHECK(after("c", "a b") == Ids{1, 7});
    CHECK(after("c", " a b") == Ids{6, 7});
    CHECK(after("c ", "a b") == Ids{1, 7});
    CHECK(after("c<s>", "a b") == after_token);
    CHECK(after("c<s>d", "a b") == Ids{1, 7});
    // The token takes along white space up to the part, and in it.
    CHECK(after("c<r>\n", "a b") == after_token);
    CHECK(after("c<r>\n", "\t a b") == after_token);
    CHECK(after("c<r>\nd", " a b") == Ids{6, 7});
    CHECK(after("c", "<s>a") == Ids{10, after_token.front()});
  };
  content["pre_tokenizer"] = metaspace("always");
  check_all({6, 7});
  content["pre_tokenizer"] = metaspace("first");
  check_all({1, 7});
  content["pre_tokenizer"] = nullptr;
  content["normalizer"] = legacy_normalizer();
  check_all({6, 7});
}

TEST_CASE("a part begins a word where the text before it ended one", "[data]") {
  json content = small_bpe();
  content["pre_tokenizer"] = {
      {"type", "Sequence"},
      {"pretokenizers", {{{"type", "WhitespaceSplit"}}, metaspace("always")}}};
  const auto tokenizer = made(content);
  const auto after = [&](const std::string& before, const std::string& text) {
    return tokenizer->encode_part(text, {}, {.before = before});
  };
  CHECK(tokenizer->encode("c a") == Ids{0, 3, 6});
  CHECK(after("c ", "a b") == Ids{6, 7});
  CHECK(after("c\n", "a b") == Ids{6, 7});
  CHECK(after("c", " a b") == Ids{6, 7});
  CHECK(after("c", "a b") == Ids{1, 7});
}

TEST_CASE("ends of a text are stripped where the whole text has them", "[data]") {
  json content = small_bpe();
  content["normalizer"] = {{"type", "Strip"}, {"strip_left", true}, {"strip_right", true}};
  content["pre_tokenizer"] = metaspace("never");
  const auto tokenizer = made(content);
  CHECK(tokenizer->encode(" a ") == Ids{1});
  CHECK(tokenizer->encode_part(" a ", {}, {.is_last = false}) == Ids{1, 0});
  CHECK(tokenizer->encode_part(" a ", {}, {.before = "c"}) == Ids{6});
  CHECK(tokenizer->encode_part(" a ", {}, {.before = "c", .is_last = false}) == Ids{6, 0});
}

TEST_CASE("rows have the tokens of prompt and completion as one text", "[data]") {
  const TempDir dir;
  json content = small_bpe();
  content["normalizer"] = legacy_normalizer();
  write_text(dir.file("tokenizer.json"), content.dump());
  write_text(dir.file("rows.jsonl"), R"({"prompt": "c", "chosen": " a", "rejected": "a b"})"
                                     "\n");
  const Dataset dataset = load_dataset(dir.file("rows.jsonl"), *make_tokenizer(dir.path()), {});
  REQUIRE(dataset.pairs.size() == 1);
  CHECK(dataset.pairs[0].prompt == Ids{0, 3});
  CHECK(dataset.pairs[0].chosen == Ids{6});
  CHECK(dataset.pairs[0].rejected == Ids{1, 7});
}

TEST_CASE("the text of a part is what was encoded", "[data]") {
  json content = small_bpe();
  content["added_tokens"] = {added(10, "<s>", true)};
  content["normalizer"] = legacy_normalizer();
  content["decoder"] = {{"type", "Sequence"},
                        {"decoders",
                         {{{"type", "Replace"}, {"pattern", {{"String", kMeta}}}, {"content", " "}},
                          {{"type", "ByteFallback"}},
                          {{"type", "Fuse"}},
                          {{"type", "Strip"}, {"content", " "}, {"start", 1}, {"stop", 0}}}}};
  const auto check = [&](const std::string& before, const std::string& text) {
    const auto tokenizer = made(content);
    const Ids prompt = tokenizer->encode_part(before, {}, {.is_last = false});
    const Ids ids = tokenizer->encode_part(text, {}, {.before = before});
    CHECK(tokenizer->decode_part(ids, prompt) == text);
  };
  for (const char* before : {"", "c", "c ", "c<s>"}) {
    for (const char* text : {"a b", " a", "  b", "ab"}) check(before, text);
  }
  content["normalizer"] = nullptr;
  content["pre_tokenizer"] = metaspace("first");
  for (const char* before : {"c", "c ", "c<s>"}) {
    for (const char* text : {"a b", " a", "  b", "ab"}) check(before, text);
  }
  CHECK(made(content)->decode({6, 7}) == "a b");
  CHECK(made(content)->spelling(6) == " a");
}

TEST_CASE("characters without a token are bytes, or unknown", "[data]") {
  json content = small_bpe();
  const std::string text =
      "a\xC3\xA9\xC3\xA9"
      "b";
  CHECK(made(content)->encode(text) == Ids{1, 9, 9, 2});
  content["model"]["fuse_unk"] = true;
  CHECK(made(content)->encode(text) == Ids{1, 9, 2});
  content["model"]["byte_fallback"] = true;
  content["model"]["vocab"]["<0xC3>"] = 10;
  CHECK(made(content)->encode(text) == Ids{1, 9, 2});  // one byte has a token, the other not
  content["model"]["vocab"]["<0xA9>"] = 11;
  CHECK(made(content)->encode(text) == Ids{1, 10, 11, 10, 11, 2});
  content["decoder"] = {{"type", "ByteFallback"}};
  CHECK(made(content)->decode({1, 10, 11, 2}) ==
        "a\xC3\xA9"
        "b");
  CHECK(made(content)->decode({10, 2}) ==
        "\xEF\xBF\xBD"
        "b");
  CHECK(made(content)->spelling(10) == "\xC3");
}

TEST_CASE("without a decoder tokens are joined by spaces", "[data]") {
  json content = small_bpe();
  content["decoder"] = nullptr;
  CHECK(made(content)->decode({1, 2}) == "a b");
}

TEST_CASE("a token that is a single word is none within one", "[data]") {
  json content = small_bpe();
  content["pre_tokenizer"] = metaspace("never");
  content["added_tokens"] = {added(10, "ab")};
  content["added_tokens"][0]["single_word"] = true;
  content["model"]["vocab"].erase("ab");
  content["model"]["merges"].erase(2);
  content["added_tokens"][0]["id"] = 8;
  const auto tokenizer = made(content);
  CHECK(tokenizer->encode("ab") == Ids{8});
  CHECK(tokenizer->encode("c-ab.") == Ids{3, 9, 8, 9});
  CHECK(tokenizer->encode("cab") == Ids{3, 1, 2});
  CHECK(tokenizer->encode("ab\xCC\x81") == Ids{1, 2, 9});  // a mark
  CHECK(tokenizer->encode("ab_") == Ids{1, 2, 9});
}

TEST_CASE("added tokens are looked for in the normalized text", "[data]") {
  json content = small_bpe();
  content["normalizer"] = {{"type", "Lowercase"}};
  content["pre_tokenizer"] = metaspace("never");
  content["added_tokens"] = {added(10, "Dad")};
  content["added_tokens"][0]["normalized"] = true;
  const auto tokenizer = made(content);
  CHECK(tokenizer->encode("cDAD dad") == Ids{3, 10, 0, 10});
  CHECK(tokenizer->decode({10}) == "dad");
  content["added_tokens"].push_back(added(11, "DAD"));
  content["added_tokens"][1]["normalized"] = true;
  const TempDir dir;
  write_text(dir.file("tokenizer.json"), content.dump());
  CHECK_THROWS_TEXT(make_tokenizer(dir.path()), CheckpointError,
                    dir.file("tokenizer.json") +
                        ": expected added tokens that differ after normalization, got 'dad' twice");
}

json small_unigram() {
  json content = small_bpe();
  content["model"] = {{"type", "Unigram"},
                      {"unk_id", 0},
                      {"vocab", json::parse(R"([["<unk>", 0.0], ["a", -2.0], ["b", -2.0],
                         ["ab", -4.0], ["abc", -4.5], ["c", -3.0], ["<0x64>", -9.0]])")}};
  return content;
}

TEST_CASE("Unigram takes the best sum of scores", "[data]") {
  json content = small_unigram();
  CHECK(made(content)->encode("abc") == Ids{4});
  // Of equal sums the first that is found, whose last token is the longest.
  CHECK(made(content)->encode("ab") == Ids{3});
  CHECK(made(content)->encode("cab") == Ids{5, 3});
  // Unknown characters in a row are one token; each costs the lowest score less 10.
  CHECK(made(content)->encode("axyb") == Ids{1, 0, 2});
  CHECK(made(content)->encode("d") == Ids{0});
  content["model"]["byte_fallback"] = true;
  CHECK(made(content)->encode("ad") == Ids{1, 6});
  CHECK(made(content)->encode("adx") == Ids{1, 0});  // a byte of the two has no token
  content["model"]["vocab"].push_back(json::array({"xy", -100.0}));
  CHECK(made(content)->encode("xy") == Ids{7});
}

TEST_CASE("long words take time in proportion", "[data]") {
  const std::string text(1'000'000, 'a');
  CHECK(made(small_unigram())->encode(text).size() == text.size());
  CHECK(made(small_bpe())->encode(text).size() == text.size());
  std::string pairs;
  for (int i = 0; i < 500'000; ++i) pairs += "ab";
  CHECK(made(small_bpe())->encode(pairs) == Ids(500'000, 8));
}

}  // namespace
}  // namespace prefopt::tokenizer_parts_test
