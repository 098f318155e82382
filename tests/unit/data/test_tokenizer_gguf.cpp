// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <cmath>
#include <fstream>
#include <nlohmann/json.hpp>

#include "data/tokenizer_gguf.h"
#include "data/tokenizers/pipeline.h"
#include "prefopt/error.h"
#include "support/catch.h"
#include "support/errors.h"
#include "support/gguf_builder.h"
#include "support/temp_dir.h"
#include "support/text_files.h"

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

// Each name's pattern compiles, leaves nothing of a text out and cuts it where the others may not.
TEST_CASE("named pre-tokenizers cut whole texts", "[data]") {
  BpeVocabulary vocabulary;
  for (int byte = 0; byte < 256; ++byte) vocabulary.tokens.push_back("");
  // GPT-2's alphabet of ASCII but for control characters, line ends and the space.
  vocabulary.tokens = {"\xC4\xA0", "\xC4\x8A", "\xC4\x8D"};
  for (char c = '!'; c <= '~'; ++c) vocabulary.tokens.emplace_back(1, c);
  const auto tokens = [&](const std::string& text, const char* pre) {
    vocabulary.splits = named_word_splits(pre, "test");
    return make_bpe_tokenizer(vocabulary, "test")->encode(text);
  };
  const std::string text = "It's 12345 o'Clock,  WE'VE\r\n\n {x_1/2} left?!   ";
  for (const char* pre : {"gpt-2", "smollm", "llama-bpe", "dbrx", "qwen2", "tekken", "gpt-4o",
                          "deepseek-v3", "deepseek-coder", "jais-2", "bailingmoe", "seed-coder",
                          "exaone-moe", "minicpm5", "ufakzeka", "laguna"}) {
    INFO(pre);
    CHECK(tokens(text, pre).size() == text.size());
  }
  // Digits: as many as merge to one token here.
  const auto digits = [&](const char* pre) {
    BpeVocabulary numbers{.tokens = {"1", "11", "111", "1111"},
                          .merges = {{"1", "1"}, {"11", "1"}, {"11", "11"}}};
    numbers.splits = named_word_splits(pre, "test");
    return make_bpe_tokenizer(numbers, "test")->encode("1111");
  };
  CHECK(digits("mpt") == Ids{3});
  CHECK(digits("starcoder") == Ids{0, 0, 0, 0});
  CHECK(digits("glm4") == Ids{2, 0});
  CHECK(digits("deepseek-v3") == Ids{2, 0});
  CHECK(digits("deepseek-coder") == Ids{0, 0, 0, 0});
  CHECK(digits("tekken") == Ids{0, 0, 0, 0});
  CHECK(digits("llama4") == Ids{2, 0});
}

// --- SentencePiece's vocabularies

/// The vocabulary of tests/data/tokenizers/spm, whose merges follow from scores: that of a token is
/// how early a merge makes it.
GgufVocabulary sentence_piece() {
  const std::string folder = PREFOPT_TEST_DATA_DIR "/tokenizers/spm/";
  const auto file = nlohmann::json::parse(testing_support::read_text(folder + "tokenizer.json"));
  const auto& model = file["model"];
  GgufVocabulary gguf{.model = "llama", .add_space_prefix = true};
  gguf.tokens.resize(model["vocab"].size());
  gguf.scores.resize(gguf.tokens.size());
  gguf.token_type.assign(gguf.tokens.size(), 1);
  for (const auto& [token, id] : model["vocab"].items()) {
    const std::size_t at = id;
    gguf.tokens[at] = token;
    gguf.scores[at] = -1e6 - static_cast<double>(at);
    if (token.size() == 6 && token.starts_with("<0x")) gguf.token_type[at] = 6;
  }
  for (const auto& token : file["added_tokens"]) gguf.token_type[token["id"]] = 3;
  double score = 0;
  for (const auto& merge : model["merges"]) {
    const std::string text = merge[0].get<std::string>() + merge[1].get<std::string>();
    double& known = gguf.scores[model["vocab"][text]];
    if (known <= -1e6) known = score -= 1;
  }
  return gguf;
}

testing_support::GgufBuilder sentence_piece_file(const GgufVocabulary& gguf) {
  namespace ts = testing_support;
  std::string texts, types, scores;
  for (const std::string& token : gguf.tokens) texts += ts::gguf_text(token);
  for (const std::int64_t type : gguf.token_type) types += ts::raw(static_cast<std::int32_t>(type));
  for (const double score : gguf.scores) scores += ts::raw(static_cast<float>(score));
  const auto list = [&](ts::GgufKind kind, const std::string& elements) {
    return ts::gguf_list(kind, gguf.tokens.size(), elements);
  };
  ts::GgufBuilder builder;
  builder.text("tokenizer.ggml.model", "llama")
      .text("tokenizer.ggml.pre", "default")
      .set("tokenizer.ggml.tokens", ts::kList, list(ts::kText, texts))
      .set("tokenizer.ggml.scores", ts::kList, list(ts::kFloat32, scores))
      .set("tokenizer.ggml.token_type", ts::kList, list(ts::kInt32, types));
  return builder;
}

TEST_CASE("a SentencePiece vocabulary in GGUF merges by score", "[data]") {
  const std::string folder = PREFOPT_TEST_DATA_DIR "/tokenizers/spm/";
  const testing_support::TempDir dir;
  const std::string path = dir.file("m.gguf");
  std::ofstream(path, std::ios::binary) << sentence_piece_file(sentence_piece()).bytes();
  const auto tokenizer = make_tokenizer(path);
  // The file says nothing of these, and llama.cpp has them so.
  CHECK(tokenizer->bos_id() == 1);
  CHECK(tokenizer->eos_id() == 2);
  write_files(tokenizer_files(path), dir.file("written"));
  const auto written = make_tokenizer(dir.file("written"));
  CHECK(written->fingerprint() == tokenizer->fingerprint());
  CHECK(written->bos_id() == 1);
  CHECK(written->vocab_size() == tokenizer->vocab_size());
  const auto cases = nlohmann::json::parse(testing_support::read_text(folder + "cases.json"));
  REQUIRE(cases.size() > 100);
  for (const auto& golden : cases) {
    if (!golden.contains("text")) continue;
    const std::string text = golden["text"];
    const auto ids = golden["ids"].get<Ids>();
    CHECK(tokenizer->encode(text) == ids);
    CHECK(written->encode(text) == ids);
    CHECK(tokenizer->decode(ids) == golden.value("decoded", text));
  }
}

TEST_CASE("keys of a SentencePiece vocabulary change its tokens", "[data]") {
  GgufVocabulary gguf = sentence_piece();
  const auto encode = [&](const std::string& text) {
    return make_pipeline(spec_of(gguf, "m.gguf"), "m.gguf")->encode(text);
  };
  const Ids prefixed = encode("the");
  CHECK(encode(" the") != prefixed);
  gguf.add_space_prefix = false;
  CHECK(encode(" the") == prefixed);
  gguf.add_bos_token = false;
  gguf.bos_token_id = 7;
  gguf.eos_token_id = 9;
  TokenizerSpec spec = spec_of(gguf, "m.gguf");
  CHECK(spec.bos_id == -1);
  CHECK(spec.begin_id == 7);
  CHECK(spec.eos_id == 9);
  // llama.cpp knows by the model's name that these tokens take white space along.
  CHECK(encode("</s>\n\n") != Ids{2});
  gguf.name = "Phi-3 mini";
  CHECK(encode("</s>\n\n") == Ids{2});
  CHECK(encode("<s>\n\n") != Ids{1});
}

TEST_CASE("scores that do not say what merges are refused", "[data]") {
  const GgufVocabulary good = sentence_piece();
  const auto refuse = [](const GgufVocabulary& gguf, const std::string& text) {
    CHECK_THROWS_TEXT(spec_of(gguf, "m.gguf"), CheckpointError, "m.gguf: tokenizer.ggml." + text);
  };
  const auto id_of = [&](const char* token) {
    const auto found = std::find(good.tokens.begin(), good.tokens.end(), token);
    REQUIRE(found != good.tokens.end());
    return static_cast<std::size_t>(found - good.tokens.begin());
  };
  GgufVocabulary gguf = good;
  gguf.scores.pop_back();
  refuse(gguf, "scores: expected a score for each of 500 tokens, got 499");
  gguf = good;
  gguf.scores[300] = std::nan("");
  refuse(gguf, "scores: expected a number for token 300, got nan");
  gguf = good;
  gguf.tokens[id_of("<0x0A>")] = "<0x0a>x";
  refuse(gguf, "tokens: expected a token for each byte, got none for <0x0A>");
  gguf = good;
  gguf.tokens[300] = "\xFF";
  refuse(gguf, "tokens: expected token 300 in UTF-8, got other bytes");
  gguf = good;
  gguf.scores[id_of("<|")] = gguf.scores[id_of("|>")] = -0.5;
  refuse(gguf,
         "scores: expected scores that say which tokens merge first, got -0.5 for '<|' and "
         "'|>'");
  gguf = good;
  gguf.tokens.back() = "\xE6\xB0\xB4\xE6\xB0\xB5";
  refuse(gguf,
         "tokens: expected each character of token 499 to be a token, got "
         "'\xE6\xB0\xB4\xE6\xB0\xB5'");
}

TEST_CASE("GGUF metadata that makes no tokenizer is refused by key", "[data]") {
  const auto refuse = [](const GgufVocabulary& gguf, const std::string& text) {
    CHECK_THROWS_TEXT(spec_of(gguf, "m.gguf"), CheckpointError, "m.gguf: tokenizer.ggml." + text);
  };
  GgufVocabulary gguf = small_vocabulary();
  gguf.model = "t5";
  refuse(gguf, "model: expected 'gpt2' or 'llama', which are all that is known here, got 't5'");
  gguf = small_vocabulary();
  gguf.pre = "default";
  refuse(
      gguf,
      "pre: expected one of the pre-tokenizers a.x-4.0, bailingmoe, bailingmoe2, chatglm-bpe, "
      "codeshell, command-r, dbrx, deepseek-coder, deepseek-r1-qwen, deepseek-v3, exaone, "
      "exaone-moe, exaone4, f2llmv2, falcon-h1, falcon3, gigachat, glm4, gpt-2, gpt-4o, "
      "granite-docling, grok-2, hunyuan, hunyuan-dense, hy_v4, jais, jais-2, jina-de, jina-es, "
      "jina-v2-de, jina-v2-es, jina-v5-nano, joyai-llm, kanana2, kormo, laguna, lfm2, llada-moe, "
      "llama-bpe, llama-v3, llama3, llama4, megrez, mellum, mellum2, midm-2.0, minerva-7b, "
      "minicpm5, minimax-m2, modern-bert, mpt, olmo, phi-2, pixtral, qwen2, refact, seed-coder, "
      "smaug-bpe, smollm, solar-open, stablelm2, starcoder, talkie, tekken, trillion, ufakzeka; "
      "got 'default'");
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
