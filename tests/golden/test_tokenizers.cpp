// SPDX-License-Identifier: Apache-2.0

// Token ids and decoded texts that the package tokenizers 0.23.3 gives, and conversations that
// transformers 5.23.0 writes by the models' own templates (tests/data/README.md).

#include <fstream>
#include <nlohmann/json.hpp>
#include <set>
#include <string>

#include "prefopt/data/chat.h"
#include "prefopt/data/tokenizer.h"
#include "support/catch.h"

namespace prefopt {
namespace {

using nlohmann::json;
using Ids = std::vector<std::int64_t>;

json read(const std::string& name) {
  std::ifstream file(PREFOPT_TEST_DATA_DIR "/" + name);
  return json::parse(file);
}

std::string text_of(const json& golden) {
  if (golden.contains("text")) return golden["text"];
  std::string text;
  for (unsigned byte : golden["bytes"]) text += static_cast<char>(byte);
  return text;
}

// Of bytes; SentencePiece's BPE, as Llama 2, Mistral 3 and Gemma have it, and with other parts;
// Unigram.
constexpr const char* kFamilies[] = {
    "gpt2",  "llama3",  "qwen2", "smollm2",     "odd", "llama2", "spm",          "mistral3",
    "gemma", "unknown", "split", "inner_bytes", "t5",  "albert", "unigram_bytes"};

TEST_CASE("tokens of the package tokenizers", "[golden]") {
  for (const char* family : kFamilies) {
    CAPTURE(family);
    const std::string folder = std::string("tokenizers/") + family;
    const auto tokenizer = make_tokenizer(PREFOPT_TEST_DATA_DIR "/" + folder);
    const json cases = read(folder + "/cases.json");
    REQUIRE(cases.size() > 100);
    std::vector<std::string> texts;
    std::vector<Ids> expected;
    for (const json& golden : cases) {
      texts.push_back(text_of(golden));
      expected.push_back(golden["ids"]);
      const Ids ids = tokenizer->encode(texts.back());
      if (ids != expected.back()) CHECK(golden.dump() == json(ids).dump());
      const std::string decoded = golden.value("decoded", golden.value("text", ""));
      if (tokenizer->decode(ids) != decoded) CHECK(golden.dump() == tokenizer->decode(ids));
    }
    // Again, from a warm cache and on all threads.
    const std::vector<std::string_view> views(texts.begin(), texts.end());
    CHECK(tokenizer->encode_batch(views) == expected);
  }
}

// The whole text has a boundary between tokens there.
TEST_CASE("parts of a text have the tokens of the whole", "[golden]") {
  std::size_t checked = 0;
  for (const char* family : {"llama2", "spm", "mistral3", "gemma", "unknown", "split",
                             "inner_bytes", "t5", "albert", "unigram_bytes"}) {
    CAPTURE(family);
    const std::string folder = std::string("tokenizers/") + family;
    const auto tokenizer = make_tokenizer(PREFOPT_TEST_DATA_DIR "/" + folder);
    for (const json& golden : read(folder + "/parts.json")) {
      const std::string before = golden["before"], text = golden["text"];
      CAPTURE(before, text);
      CHECK(tokenizer->encode_part(before, {}, {.is_last = false}) ==
            golden["before_ids"].get<Ids>());
      CHECK(tokenizer->encode_part(text, {}, {.before = before}) == golden["ids"].get<Ids>());
      ++checked;
    }
  }
  CHECK(checked > 250);
}

std::string replaced(std::string text, const std::string& from, const std::string& to) {
  for (std::size_t at = text.find(from); at != std::string::npos;
       at = text.find(from, at + to.size())) {
    text.replace(at, from.size(), to);
  }
  return text;
}

TEST_CASE("conversations of the models' own templates", "[golden]") {
  std::set<std::string> checked;
  for (const json& format : read("chat.json")) {
    const std::string name = format["format"];
    checked.insert(name);
    CAPTURE(name);
    for (const json& golden : format["cases"]) {
      std::vector<Message> messages;
      for (const json& message : golden["messages"]) {
        messages.push_back({message["role"], message["content"]});
      }
      CHECK(format_chat(name, messages, golden["open"]) == golden["text"].get<std::string>());
    }
    if (!format["template"].is_null()) {
      const std::string text = format["template"];
      CHECK(recognize_chat_format(text, "model") == name);
      CHECK(recognize_chat_format(text + "\n", "model") == name);
      // Spelled otherwise, it says the same.
      CHECK(recognize_chat_format(replaced(text, "{{ ", "{{"), "model") == name);
      CHECK(recognize_chat_format(replaced(text, " %}", "%}"), "model") == name);
      CHECK(recognize_chat_format(replaced(text, "message['role']", "message.role"), "model") ==
            name);
      CHECK(recognize_chat_format(replaced(text, "['content']", "[\"content\"]"), "model") == name);
      CHECK_THROWS(recognize_chat_format(replaced(text, "assistant", "Assistant"), "model"));
    }
  }
  for (std::string_view name : chat_format_names()) {
    // The form of hh-rlhf is older than templates.
    CHECK(checked.contains(std::string(name)) == (name != "dialogue"));
  }
}

}  // namespace
}  // namespace prefopt
