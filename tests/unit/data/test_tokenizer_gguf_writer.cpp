// SPDX-License-Identifier: Apache-2.0
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "data/tokenizer_gguf_writer.h"
#include "prefopt/data/tokenizer.h"
#include "prefopt/error.h"
#include "prefopt/files/gguf.h"
#include "support/catch.h"
#include "support/errors.h"
#include "support/temp_dir.h"
#include "support/text_files.h"

namespace tokenizer_gguf_writer_test {
namespace {

using nlohmann::json;
using namespace prefopt;
using namespace prefopt::testing_support;
using prefopt::detail::write_gguf_tokenizer;

using Ids = std::vector<std::int64_t>;

const std::string kTokenizers = PREFOPT_TEST_DATA_DIR "/tokenizers/";

/// A folder with a changed tokenizer.json, written to a GGUF file.
class Changed {
 public:
  explicit Changed(const std::string& name)
      : tokenizer(json::parse(read_text(kTokenizers + name + "/tokenizer.json"))) {}

  std::string gguf(std::int64_t rows = 2000, const Ids& ends = {}) {
    save();
    GgufWriter writer;
    left = write_gguf_tokenizer(folder.path(), rows, ends, writer);
    writer.write(folder.file("x.gguf"));
    return folder.file("x.gguf");
  }
  /// Added tokens take no white space around them, and are found before normalization.
  void make_plain() {
    for (json& token : tokenizer["added_tokens"]) {
      token["lstrip"] = token["rstrip"] = token["normalized"] = false;
    }
  }
  void save() const {
    write_text(path, tokenizer.dump());
    write_text(folder.file("tokenizer_config.json"), config.dump());
  }
  void refused(const std::string& text, std::int64_t rows = 2000) const {
    save();
    GgufWriter writer;
    CHECK_THROWS_TEXT(write_gguf_tokenizer(folder.path(), rows, {}, writer), CheckpointError,
                      path + ": expected " + text +
                          "; export a folder (--out) for programs that read tokenizer.json");
  }

  TempDir folder;
  std::string path = folder.file("tokenizer.json");
  json tokenizer;
  json config = json::object();
  Ids left;
};

TEST_CASE("tokenizer gguf writer: ids are those of the package tokenizers", "[data]") {
  const auto& [name, pre] = GENERATE(std::pair<std::string, std::string>{"gpt2", "gpt-2"},
                                     std::pair<std::string, std::string>{"llama3", "llama-bpe"},
                                     std::pair<std::string, std::string>{"qwen2", "qwen2"},
                                     std::pair<std::string, std::string>{"smollm2", "smollm"});
  INFO(name);
  Changed changed(name);
  changed.make_plain();
  changed.config = {{"chat_template", "{{ messages }}"}};
  const std::string path = changed.gguf();
  const GgufFile file = GgufFile::open(path);
  CHECK(file.text("tokenizer.ggml.model") == "gpt2");
  CHECK(file.text("tokenizer.ggml.pre") == pre);
  CHECK(file.texts("tokenizer.ggml.tokens").size() == 2000);
  const auto original = make_tokenizer(changed.folder.path());
  const auto tokenizer = make_tokenizer(path);
  CHECK(tokenizer->chat_template() == "{{ messages }}");
  CHECK(tokenizer->bos_id() == original->bos_id());
  CHECK(tokenizer->eos_id() == original->eos_id());
  CHECK(tokenizer->pad_id() == original->pad_id());
  int as_recorded = 0;
  int changed_by_plain_tokens = 0;
  for (const json& golden : json::parse(read_text(kTokenizers + name + "/cases.json"))) {
    if (!golden.contains("text") || !golden["text"].is_string()) continue;
    const std::string text = golden["text"];
    const Ids ids = golden["ids"];
    INFO(text);
    CHECK(tokenizer->encode(text) == original->encode(text));
    ++(tokenizer->encode(text) == ids ? as_recorded : changed_by_plain_tokens);
    CHECK(tokenizer->decode(ids) == original->decode(ids));
  }
  CHECK(as_recorded > 500);
  CHECK(changed_by_plain_tokens < 100);
}

TEST_CASE("tokenizer gguf writer: SentencePiece's merges become scores", "[data]") {
  Changed changed("spm");
  changed.config = {{"bos_token", "<s>"}, {"eos_token", "</s>"}, {"add_bos_token", true}};
  const std::string path = changed.gguf();
  const GgufFile file = GgufFile::open(path);
  CHECK(file.text("tokenizer.ggml.model") == "llama");
  CHECK(file.flag("tokenizer.ggml.add_space_prefix"));
  const auto types = file.integers("tokenizer.ggml.token_type");
  CHECK(std::count(types.begin(), types.end(), 6) == 256);  // bytes
  CHECK(std::count(types.begin(), types.end(), 2) == 1);    // the unknown token
  const auto tokenizer = make_tokenizer(path);
  const auto original = make_tokenizer(changed.folder.path());
  CHECK(tokenizer->bos_id() == original->bos_id());
  CHECK(tokenizer->eos_id() == original->eos_id());
  for (const json& golden : json::parse(read_text(kTokenizers + "spm/cases.json"))) {
    if (!golden.contains("text") || !golden["text"].is_string()) continue;
    const std::string text = golden["text"];
    INFO(text);
    CHECK(tokenizer->encode(text) == golden["ids"].get<Ids>());
  }

  auto& merges = changed.tokenizer["model"]["merges"];
  merges.erase(merges.size() - 1);
  changed.refused(
      "SentencePiece's BPE as in Llama 2's tokenizer.json, which scores of tokens can tell, got "
      "another form of it");
}

TEST_CASE("tokenizer gguf writer: types, gaps and ends", "[data]") {
  Changed changed("smollm2");
  const auto size =
      static_cast<std::int64_t>(make_tokenizer(kTokenizers + "smollm2")->vocab_size());
  changed.tokenizer["added_tokens"].push_back({{"id", size + 1},
                                               {"content", "<own>"},
                                               {"single_word", false},
                                               {"lstrip", false},
                                               {"rstrip", false},
                                               {"normalized", false},
                                               {"special", false}});
  changed.config = {{"eos_token", "<own>"}};
  const GgufFile file = GgufFile::open(changed.gguf(size + 3, {0, size + 1, 5, 6, 7}));
  const auto tokens = file.texts("tokenizer.ggml.tokens");
  const auto types = file.integers("tokenizer.ggml.token_type");
  const auto at = static_cast<std::size_t>(size);
  CHECK(tokens[at] == "[PAD" + std::to_string(size) + "]");
  CHECK(types[at] == 5);
  CHECK(tokens[at + 1] == "<own>");
  CHECK(types[at + 1] == 4);
  CHECK(types[at + 2] == 5);
  CHECK(types[static_cast<std::size_t>(changed.tokenizer["added_tokens"][0]["id"])] == 3);
  CHECK(file.integer("tokenizer.ggml.eos_token_id") == size + 1);
  CHECK(file.integer("tokenizer.ggml.eot_token_id") == 0);
  CHECK(file.integer("tokenizer.ggml.eom_token_id") == 5);
  CHECK(changed.left == Ids{6, 7});
  CHECK_FALSE(file.flag("tokenizer.ggml.add_bos_token"));
}

TEST_CASE("tokenizer gguf writer: that of a GGUF file stays as it is", "[data]") {
  const TempDir dir;
  GgufWriter source;
  source.text("tokenizer.ggml.model", "llama");  // not read here, and copied all the same
  source.texts("tokenizer.ggml.tokens", {"a", "b", "c", "d"});
  source.reals("tokenizer.ggml.scores", {0, -1, -2, -3});
  source.integer("tokenizer.ggml.eos_token_id", 2);
  source.integer("tokenizer.ggml.eom_token_id", 3);
  source.text("general.name", "left behind");
  source.write(dir.file("source.gguf"));
  const GgufFile file = GgufFile::open(dir.file("source.gguf"));
  GgufWriter writer;
  CHECK(write_gguf_tokenizer(file.path(), 4, {3, 2, 1, 0}, writer) == Ids{0});
  writer.write(dir.file("x.gguf"));
  const GgufFile copy = GgufFile::open(dir.file("x.gguf"));
  for (const std::string& key : file.keys()) {
    INFO(key);
    if (key == "general.name") {
      CHECK_FALSE(copy.has(key));
    } else {
      CHECK(copy.encoded(key) == file.encoded(key));
    }
  }
  CHECK(copy.integer("tokenizer.ggml.eot_token_id") == 1);
  CHECK_THROWS_TEXT(write_gguf_tokenizer(file.path(), 5, {}, writer), CheckpointError,
                    file.path() +
                        ": tokenizer.ggml.tokens: expected 5 tokens, as the model has, "
                        "got 4");
}

TEST_CASE("tokenizer gguf writer: what a GGUF file cannot hold is refused", "[data]") {
  {
    Changed changed("smollm2");
    changed.tokenizer["added_tokens"][0]["lstrip"] = true;
    const std::string content = changed.tokenizer["added_tokens"][0]["content"];
    changed.refused("added tokens that leave white space alone, as all are in a GGUF file, got '" +
                    content + "' with lstrip");
  }
  {
    Changed changed("qwen2");
    changed.tokenizer["added_tokens"][0]["normalized"] = true;
    const std::string content = changed.tokenizer["added_tokens"][0]["content"];
    changed.refused(
        "added tokens that are found before normalization, as all are in a GGUF file, got '" +
        content + "' with normalized");
  }
  {
    Changed changed("gpt2");
    changed.make_plain();
    const auto size = make_tokenizer(kTokenizers + "gpt2")->vocab_size();
    changed.refused("at most 9 tokens, as the model has, got " + std::to_string(size), 9);
    changed.tokenizer["normalizer"] = {{"type", "NFC"}};
    changed.refused(
        "a pre-tokenizer that llama.cpp has a name for, got 'ByteLevel' after a normalizer");
  }
  {
    Changed changed("gpt2");
    changed.make_plain();
    changed.tokenizer["model"]["vocab"].erase("!");
    changed.tokenizer["model"]["unk_token"] = "?";
    const std::string unknown = changed.tokenizer["model"]["vocab"]["?"].dump();
    changed.refused(
        "a token for each byte, or no unknown token, got those of 255 bytes, and "
        "unknown token " +
        unknown);
  }
  {
    Changed changed("t5");
    changed.tokenizer["added_tokens"] = json::array();
    changed.refused(
        "byte-level or SentencePiece's BPE, which are all that is written to a GGUF file, got "
        "Unigram");
  }
}

}  // namespace
}  // namespace tokenizer_gguf_writer_test
