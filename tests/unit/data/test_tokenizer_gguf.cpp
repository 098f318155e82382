// SPDX-License-Identifier: Apache-2.0
#include <fstream>

#include "data/tokenizer_gguf.h"
#include "prefopt/error.h"
#include "support/catch.h"
#include "support/errors.h"
#include "support/gguf_builder.h"
#include "support/temp_dir.h"

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

testing_support::GgufBuilder file_of(const GgufVocabulary& gguf) {
  namespace ts = testing_support;
  const auto texts = [](const std::vector<std::string>& values) {
    std::string bytes;
    for (const std::string& value : values) bytes += ts::gguf_text(value);
    return ts::gguf_list(ts::kText, values.size(), bytes);
  };
  std::string types;
  for (std::int64_t type : gguf.token_type) types += ts::raw(static_cast<std::int32_t>(type));
  ts::GgufBuilder builder;
  builder.text("tokenizer.ggml.model", gguf.model)
      .text("tokenizer.ggml.pre", gguf.pre)
      .set("tokenizer.ggml.tokens", ts::kList, texts(gguf.tokens))
      .set("tokenizer.ggml.merges", ts::kList, texts(gguf.merges))
      .set("tokenizer.ggml.token_type", ts::kList,
           ts::gguf_list(ts::kInt32, gguf.token_type.size(), types))
      .integer("tokenizer.ggml.bos_token_id", 0)
      .integer("tokenizer.ggml.eos_token_id", 5)
      .text("tokenizer.chat_template", gguf.chat_template);
  if (gguf.add_bos_token) builder.flag("tokenizer.ggml.add_bos_token", *gguf.add_bos_token);
  return builder;
}

TEST_CASE("a GGUF file without add_bos_token has llama.cpp's default", "[data]") {
  GgufVocabulary gguf = small_vocabulary();
  for (const auto& [pre, adds] : {std::pair<const char*, bool>{"gpt-2", false},
                                  {"smollm", false},
                                  {"qwen2", false},
                                  {"llama-bpe", true},
                                  {"llama3", true},
                                  {"llama-v3", true}}) {
    INFO(pre);
    gguf.pre = pre;
    gguf.add_bos_token.reset();
    CHECK(bpe_vocabulary(gguf, "").bos_id == (adds ? 0 : -1));
    CHECK(bpe_vocabulary(gguf, "").ignore_merges == adds);
    for (const bool said : {false, true}) {
      gguf.add_bos_token = said;
      CHECK(bpe_vocabulary(gguf, "").bos_id == (said ? 0 : -1));
    }
  }
  const testing_support::TempDir dir;
  gguf.pre = "llama-bpe";
  gguf.add_bos_token.reset();
  std::ofstream(dir.file("m.gguf"), std::ios::binary) << file_of(gguf).bytes();
  CHECK(make_tokenizer(dir.file("m.gguf"))->bos_id() == 0);
}

TEST_CASE("a GGUF file's tokenizer is written as tokenizer.json", "[data]") {
  const testing_support::TempDir dir;
  const std::string path = dir.file("m.gguf");
  const std::string folder = dir.file("folder");
  for (const char* pre : {"gpt-2", "smollm", "qwen2", "llama-bpe"}) {
    for (const std::optional<bool> adds : {std::optional<bool>(), {true}, {false}}) {
      INFO(pre);
      GgufVocabulary gguf = small_vocabulary();
      gguf.pre = pre;
      gguf.add_bos_token = adds;
      gguf.chat_template = "{{ \"\u00e9\" }}\n";
      std::ofstream(path, std::ios::binary) << file_of(gguf).bytes();
      write_files(tokenizer_files(path, "chatml"), folder);
      const auto before = make_tokenizer(path);
      const auto after = make_tokenizer(folder);
      CHECK(after->fingerprint() == before->fingerprint());
      for (const char* text : {"", "a", "<s>a a11<u> ", "e\u0301 11a", "\n<s", "aa  1 "}) {
        CHECK(after->encode(text) == before->encode(text));
      }
      CHECK(after->decode({0, 1, 6, 5}) == before->decode({0, 1, 6, 5}));
      CHECK(after->vocab_size() == before->vocab_size());
      CHECK(after->bos_id() == before->bos_id());
      CHECK(after->eos_id() == 5);
      CHECK(after->pad_id() == before->pad_id());
      CHECK(after->chat_template() == gguf.chat_template);
      CHECK(after->chat_format() == "chatml");
    }
  }
}

TEST_CASE("a GGUF file says whether it has a tokenizer", "[data]") {
  const testing_support::TempDir dir;
  const std::string path = dir.file("m.gguf");
  auto builder = file_of(small_vocabulary());
  const auto found = [&] {
    std::ofstream(path, std::ios::binary) << builder.bytes();
    return find_tokenizer(path);
  };
  CHECK(found() == path);
  builder.text("tokenizer.ggml.model", "none");
  CHECK(found().empty());
  builder.erase("tokenizer.ggml.model");
  CHECK(found().empty());
  testing_support::GgufBuilder of_bytes = builder;
  builder.floats("token_embd.weight", {2, 40});
  CHECK(found().empty());
  CHECK_THROWS_TEXT(open_tokenizer("", path)->encode("a"), ConfigError,
                    path +
                        ": expected a tokenizer.json with the model, or a tokenizer in a GGUF "
                        "file, to read text with, got none for 40 tokens; name one "
                        "(model.tokenizer, --tokenizer), or say 'byte' for a model of bytes");
  CHECK(open_tokenizer("", path)->eos_id() == 5);
  builder = of_bytes.floats("token_embd.weight", {2, 259});
  CHECK(found() == "byte");
}

TEST_CASE("a GGUF file's tokenizer is made by its path", "[data]") {
  GgufVocabulary gguf = small_vocabulary();
  gguf.add_bos_token = true;
  auto builder = file_of(gguf);
  const testing_support::TempDir dir;
  const std::string path = dir.file("m.gguf");
  const auto make = [&] {
    std::ofstream(path, std::ios::binary) << builder.bytes();
    return make_tokenizer(path);
  };
  const auto tokenizer = make();
  CHECK(tokenizer->name() == path);
  CHECK(tokenizer->encode("<s>a a11<u>") == Ids{0, 1, 6, 2, 2, 5});
  CHECK(tokenizer->bos_id() == 0);
  CHECK(tokenizer->eos_id() == 5);
  CHECK(tokenizer->pad_id() == -1);
  CHECK(tokenizer->chat_template() == "x");

  builder.flag("tokenizer.ggml.add_space_prefix", true);
  CHECK_THROWS_TEXT(make(), CheckpointError,
                    path +
                        ": tokenizer.ggml.add_space_prefix: expected false, which is all that "
                        "is known here, got true");
  builder.flag("tokenizer.ggml.add_space_prefix", false).erase("tokenizer.ggml.pre");
  CHECK_THROWS_TEXT(make(), CheckpointError,
                    path + ": expected metadata 'tokenizer.ggml.pre', got none of that name");
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
