// SPDX-License-Identifier: Apache-2.0
#include <numeric>

#include "prefopt/data/tokenizer.h"
#include "prefopt/error.h"
#include "support/catch.h"
#include "support/errors.h"

using namespace prefopt;
using Ids = std::vector<std::int64_t>;

TEST_CASE("the byte tokenizer gives one id a byte", "[data]") {
  const ByteTokenizer tokenizer;
  CHECK(tokenizer.name() == "byte");
  CHECK(tokenizer.encode("").empty());
  CHECK(tokenizer.encode("Az\n") == Ids{65, 122, 10});
  // U+00E9, U+20AC: bytes above 127 stay positive.
  CHECK(tokenizer.encode("\xC3\xA9\xE2\x82\xAC") == Ids{0xC3, 0xA9, 0xE2, 0x82, 0xAC});
  CHECK(tokenizer.vocab_size() == 259);
  CHECK(tokenizer.bos_id() == 256);
  CHECK(tokenizer.eos_id() == 257);
  CHECK(tokenizer.pad_id() == 258);
}

TEST_CASE("the byte tokenizer decodes every byte and leaves special ids out", "[data]") {
  const ByteTokenizer tokenizer;
  Ids all(256);
  std::iota(all.begin(), all.end(), 0);
  const std::string text = tokenizer.decode(all);
  REQUIRE(text.size() == 256);
  CHECK(text[0] == '\0');
  CHECK(text[255] == '\xFF');
  CHECK(tokenizer.encode(text) == all);
  CHECK(tokenizer.decode({256, 104, 105, 258, 257, -1, 1000}) == "hi");
}

TEST_CASE("tokenizers are made by name", "[data]") {
  CHECK(make_tokenizer("byte")->vocab_size() == 259);
  CHECK_THROWS_TEXT(
      make_tokenizer("bpe"), ConfigError,
      "tokenizer: expected 'byte', a tokenizer.json, a folder that holds one or a .gguf file, "
      "got 'bpe'");
}
