// SPDX-License-Identifier: Apache-2.0
#include <string>
#include <vector>

#include "prefopt/data/prompts.h"
#include "prefopt/error.h"
#include "support/catch.h"
#include "support/errors.h"
#include "support/files.h"
#include "support/temp_dir.h"

namespace prefopt {
namespace {

using Ids = std::vector<std::int64_t>;

/// A file of prompts, read with bytes as tokens and hh-rlhf's turns around messages.
class PromptFile {
 public:
  explicit PromptFile(const std::string& text) : path(dir_.file("prompts.jsonl")) {
    testing_support::put(path, text);
  }
  std::vector<Prompt> load(DataOptions options = {}) const {
    if (options.chat_format == "auto") options.chat_format = "dialogue";
    return load_prompts(path, ByteTokenizer(), options);
  }

 private:
  testing_support::TempDir dir_;

 public:
  const std::string path;
};

Prompt only(const std::string& row, const DataOptions& options = {}) {
  const auto prompts = PromptFile(row).load(options);
  REQUIRE(prompts.size() == 1);
  return prompts.front();
}

void check_refused(const std::string& row, const std::string& expected,
                   const DataOptions& options = {}) {
  INFO(row);
  const PromptFile file("{\"prompt\": \"a\"}\n\n" + row + "\n");
  CHECK_THROWS_TEXT(file.load(options), DataError, file.path + ":3: " + expected);
}

}  // namespace

TEST_CASE("prompts of texts, messages and ids", "[data]") {
  const auto prompts = PromptFile("{\"prompt\": \"ab\"}\n\n{\"prompt_ids\": [99, 100]}\n").load();
  REQUIRE(prompts.size() == 2);
  CHECK(prompts[0].ids == Ids{256, 'a', 'b'});
  CHECK(prompts[0].text == "ab");
  CHECK(prompts[0].question == "ab");
  CHECK(prompts[1].ids == Ids{99, 100});
  CHECK(prompts[1].text == "cd");

  const std::string turns = "\n\nHuman: Q?\n\nAssistant:";
  for (const std::string row : {R"({"prompt": [{"role": "user", "content": "Q?"}], "id": 7})",
                                R"({"messages": [{"role": "user", "content": "Q?"}]})",
                                R"({"question": "Q?"})", R"([{"instruction": "Q?"}])"}) {
    INFO(row);
    const Prompt prompt = only(row);
    CHECK(prompt.text == turns);
    CHECK(prompt.question == "Q?");
    CHECK(ByteTokenizer().decode(prompt.ids) == turns);
  }
  CHECK(only(R"({"prompt": "Q?"})", {.columns = R"({"question": "prompt"})"}).text == turns);
}

TEST_CASE("the question of a prompt is the last message that is not the assistant's", "[data]") {
  const Prompt prompt = only(
      R"({"prompt": [{"role": "user", "content": "A?"}, {"role": "assistant", "content": "B."}, )"
      R"({"role": "user", "content": "C?"}, {"role": "assistant", "content": "D"}]})");
  CHECK(prompt.text == "\n\nHuman: A?\n\nAssistant: B.\n\nHuman: C?\n\nAssistant: D");
  CHECK(prompt.question == "C?");
}

TEST_CASE("prompts are whole, whatever the budgets", "[data]") {
  const DataOptions options{.max_prompt_length = 2, .max_length = 4};
  CHECK(only(R"({"prompt": "abcdef"})", options).ids.size() == 7);
}

TEST_CASE("prompts with completions are refused", "[data]") {
  const auto refused = [](const std::string& row, const std::string& column) {
    check_refused(row, "expected a prompt alone, got a completion in '" + column + "'");
  };
  refused(R"({"prompt": "a", "chosen": "b", "rejected": "c"})", "chosen");
  refused(R"({"prompt": "a", "completion": "b"})", "completion");
  refused(R"({"prompt": "a", "completion": ""})", "completion");
  refused(R"({"question": "a", "response": "b"})", "response");
  refused(R"({"text": "a b"})", "text");
  refused(R"({"prompt_ids": [1], "completion_ids": [2]})", "completion_ids");
  refused(
      R"({"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]})",
      "messages");
}

TEST_CASE("rows that are no prompts are refused", "[data]") {
  check_refused(R"({"prompt": 3})",
                "expected 'prompt' to be text or a list of messages, got number");
  check_refused("{",
                "expected JSON, got something else: parse error at line 1, column 2: syntax error "
                "while parsing object key - unexpected end of input; expected string literal");
  check_refused(R"({"prompt_ids": []})", "expected a prompt with at least one token, got none");
  check_refused(R"({"prompt": "a", "context": "b"})",
                "expected every column of a prompt to be read, got 'context', which nothing reads; "
                "name what it is in data.columns, or leave it out with data.unused = 'note'");
  for (const std::string text : {"", "\n\n", "[]"}) {
    const PromptFile file(text);
    CHECK_THROWS_TEXT(file.load(), DataError,
                      file.path + ": expected at least one prompt, got none");
  }
  CHECK_THROWS_AS(only(R"({"prompt": "a"})", {.chat_format = "chatlm"}), ConfigError);
}

}  // namespace prefopt
