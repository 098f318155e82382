// SPDX-License-Identifier: Apache-2.0
#include <string>
#include <utility>

#include "data/tokenizer_difference.h"
#include "support/catch.h"
#include "support/temp_dir.h"

namespace prefopt::tokenizer_difference_test {
namespace {

using detail::tokenizer_difference;
using testing_support::TempDir;

/// Letters as bytes have them, and the words "ab" and "abc".
BpeVocabulary vocabulary() {
  BpeVocabulary result;
  result.tokens = {"a", "b", "c", "ab", "abc", "bc", "<s>", "</s>"};
  result.merges = {{"a", "b"}, {"ab", "c"}};
  result.added = {{.content = "<s>", .id = 6, .special = true},
                  {.content = "</s>", .id = 7, .special = true}};
  result.splits = named_word_splits("gpt-2", "test");
  result.unknown_id = 0;
  return result;
}

std::string difference_to(const BpeVocabulary& other) {
  return tokenizer_difference(*make_bpe_tokenizer(vocabulary(), "a"),
                              *make_bpe_tokenizer(other, "b"));
}

TEST_CASE("tokenizers differ where a text becomes other tokens", "[data]") {
  CHECK(difference_to(vocabulary()).empty());
  BpeVocabulary other = vocabulary();
  std::swap(other.tokens[0], other.tokens[2]);
  CHECK(difference_to(other) == "token 0 is 'c' in place of 'a'");
  other = vocabulary();
  other.merges = {{"b", "c"}, {"a", "bc"}};
  CHECK(difference_to(other) == "text 'ab' becomes other tokens");
  other = vocabulary();
  other.added.pop_back();
  other.tokens.pop_back();
  CHECK(difference_to(other).empty());  // what only one of them has says nothing
}

TEST_CASE("tokenizers of one family differ in begin and end alone", "[data]") {
  BpeVocabulary other = vocabulary();
  other.bos_id = 6;
  other.eos_id = 7;
  other.chat_template = "{{ messages }}";
  CHECK(make_bpe_tokenizer(other, "b")->fingerprint() !=
        make_bpe_tokenizer(vocabulary(), "a")->fingerprint());
  CHECK(difference_to(other).empty());
  CHECK(tokenizer_difference(ByteTokenizer(), ByteTokenizer()).empty());
}

TEST_CASE("a model without a tokenizer differs from none", "[data]") {
  const TempDir dir;
  const std::string tokenizers = PREFOPT_TEST_DATA_DIR "/tokenizers/";
  CHECK(tokenizer_difference(ByteTokenizer(), dir.path()).empty());
  CHECK(tokenizer_difference(*make_tokenizer(tokenizers + "gpt2"), tokenizers + "gpt2").empty());
  CHECK_FALSE(
      tokenizer_difference(*make_tokenizer(tokenizers + "gpt2"), tokenizers + "smollm2").empty());
}

}  // namespace
}  // namespace prefopt::tokenizer_difference_test
