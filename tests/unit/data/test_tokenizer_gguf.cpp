// SPDX-License-Identifier: Apache-2.0
#include "data/tokenizer_gguf.h"
#include "prefopt/error.h"
#include "support/catch.h"
#include "support/errors.h"

namespace prefopt::detail {
namespace {

using Ids = std::vector<std::int64_t>;

GgufVocabulary small_vocabulary() {
  return {.model = "gpt2",
          .pre = "smollm",
          .tokens = {"<s>", "a", "1", "11", "\xC4\xA0", "<u>",
                     "\xC4\xA0"
                     "a"},
          .merges = {"1 1", "\xC4\xA0 a"},
          .token_type = {3, 1, 1, 1, 1, 4, 1},
          .bos_token_id = 0,
          .eos_token_id = 5,
          .padding_token_id = 0,
          .chat_template = "x"};
}

TEST_CASE("GGUF metadata makes a tokenizer", "[data]") {
  const auto make = [](GgufVocabulary gguf) {
    return make_bpe_tokenizer(bpe_vocabulary(std::move(gguf), "m.gguf"), "m.gguf");
  };
  GgufVocabulary gguf = small_vocabulary();
  const auto tokenizer = make(gguf);
  CHECK(tokenizer->encode("<s>a a11<u>") == Ids{0, 1, 6, 2, 2, 5});  // each digit alone
  CHECK(tokenizer->decode({0, 1, 6, 5}) == "a a<u>");
  CHECK(tokenizer->bos_id() == -1);
  CHECK(tokenizer->eos_id() == 5);
  CHECK(tokenizer->pad_id() == 0);
  CHECK(tokenizer->chat_template() == "x");
  gguf.pre = "gpt-2";
  gguf.add_bos_token = true;
  CHECK(make(gguf)->encode("a11") == Ids{1, 3});
  CHECK(make(gguf)->bos_id() == 0);
  CHECK_FALSE(bpe_vocabulary(gguf, "").nfc);
  gguf.pre = "qwen2";
  CHECK(bpe_vocabulary(gguf, "").nfc);
  gguf.pre = "llama-bpe";
  CHECK(bpe_vocabulary(gguf, "").ignore_merges);
}

TEST_CASE("GGUF metadata that makes no tokenizer is refused by key", "[data]") {
  const auto refuse = [](const GgufVocabulary& gguf, const std::string& text) {
    CHECK_THROWS_TEXT(bpe_vocabulary(gguf, "m.gguf"), CheckpointError,
                      "m.gguf: tokenizer.ggml." + text);
  };
  GgufVocabulary gguf = small_vocabulary();
  gguf.model = "llama";
  refuse(gguf, "model: expected 'gpt2', which is all that is known here, got 'llama'");
  gguf = small_vocabulary();
  gguf.pre = "default";
  refuse(gguf,
         "pre: expected the pre-tokenizer 'gpt-2', 'llama-bpe', 'qwen2' or 'smollm', got "
         "'default'");
  gguf = small_vocabulary();
  gguf.token_type.pop_back();
  refuse(gguf, "token_type: expected a type for each of 7 tokens, got 6");
  gguf = small_vocabulary();
  gguf.token_type[1] = 7;
  refuse(gguf, "token_type: expected a type in [1, 6] of token 1, got 7");
  for (const char* merge : {"", "ab", " a", "a "}) {
    gguf = small_vocabulary();
    gguf.merges[1] = merge;
    refuse(gguf, "merges: expected two tokens in merge 1, got '" + std::string(merge) + "'");
  }
}

}  // namespace
}  // namespace prefopt::detail
