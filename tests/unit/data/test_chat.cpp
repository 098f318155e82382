// SPDX-License-Identifier: Apache-2.0
#include "prefopt/data/chat.h"
#include "prefopt/data/dataset.h"
#include "prefopt/error.h"
#include "support/catch.h"
#include "support/errors.h"

using namespace prefopt;

namespace {

const std::string kNames =
    "chatml, smollm2, qwen2, qwen2.5, llama3, zephyr, alpaca, plain, dialogue";

std::string shown(const PreferenceRow& row) {
  return row.prompt + "|" + row.chosen + "|" + row.rejected;
}

}  // namespace

TEST_CASE("chat formats write turns", "[data]") {
  const std::vector<Message> messages{{"user", " Hi "}, {"assistant", "Hello\n"}};
  CHECK(format_chat("chatml", messages, true) ==
        "<|im_start|>user\n Hi <|im_end|>\n<|im_start|>assistant\nHello\n<|im_end|>\n"
        "<|im_start|>assistant\n");
  CHECK(format_chat("llama3", messages, false) ==
        "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\nHi<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\nHello<|eot_id|>");
  CHECK(format_chat("dialogue", messages, true) ==
        "\n\nHuman:  Hi \n\nAssistant: Hello\n\n\nAssistant:");
  CHECK(format_chat("smollm2", {}, true) == "<|im_start|>assistant\n");
  CHECK(chat_end_of_turn("qwen2.5") == "<|im_end|>");
  CHECK(chat_end_of_turn("plain").empty());
}

TEST_CASE("chat formats refuse what they do not know", "[data]") {
  CHECK_THROWS_TEXT(format_chat("lama3", {}, false), ConfigError,
                    "format_chat: expected a chat format among " + kNames +
                        ", got 'lama3'; did you mean 'llama3'?");
  CHECK_THROWS_TEXT(format_chat("chatml", {{"tool", "42"}}, false), DataError,
                    "format_chat: expected a role 'system', 'user' or 'assistant', got 'tool'");
  CHECK_THROWS_TEXT(format_chat("dialogue", {{"user", "a"}, {"system", "b"}}, false), DataError,
                    "format_chat: expected the role 'system' in the first message only, got it in "
                    "message 2");
  CHECK(format_chat("chatml", {{"user", "a"}, {"system", "b"}}, false).ends_with("b<|im_end|>\n"));
  CHECK_THROWS_TEXT(recognize_chat_format(" \n", "m"), ConfigError,
                    "m: expected a chat template to tell the chat format by, got none; name one "
                    "of " +
                        kNames);
  // sha1sum of "{{ messages }}"
  CHECK_THROWS_TEXT(recognize_chat_format("{{ messages }}\n", "m"), ConfigError,
                    "m: expected the chat template of a known format, got another one (SHA-1 "
                    "28299f8c7a7ad952f74984d6cd5571c242a3dd16); name one of " +
                        kNames);
}

TEST_CASE("rows of messages are cut between the opening and the answer", "[data]") {
  const std::string user = R"({"role": "user", "content": "Hi"})";
  const std::string yes = R"({"role": "assistant", "content": "Yes"})";
  const std::string no = R"({"role": "assistant", "content": "No"})";
  const auto parse = [](const std::string& json, std::string_view format) {
    return parse_row(json, "rows:1", format);
  };
  const std::string explicit_prompt =
      R"({"prompt": [)" + user + R"(], "chosen": [)" + yes + R"(], "rejected": [)" + no + "]}";
  const std::string implicit_prompt =
      R"({"chosen": [)" + user + "," + yes + R"(], "rejected": [)" + user + "," + no + "]}";
  for (const std::string& json : {explicit_prompt, implicit_prompt}) {
    const PreferenceRow row = parse(json, "chatml");
    CHECK(shown(row) ==
          "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n|Yes<|im_end|>|No<|im_end|>");
    CHECK(row.end_of_turn == "<|im_end|>");
    CHECK(shown(parse(json, "plain")) == "Hi\n\n|Yes|No");
    CHECK(shown(parse(json, "alpaca")) ==
          "Below is an instruction that describes a task. Write a response that appropriately "
          "completes the request.\n\n### Instruction:\nHi\n\n### Response:|Yes|No");
    CHECK(parse(json, "plain").end_of_turn.empty());
    CHECK(shown(parse(json, "dialogue")) == "\n\nHuman: Hi\n\nAssistant:| Yes| No");
  }
  // The default system message comes first even where no prompt does.
  const PreferenceRow bare =
      parse(R"({"chosen": [)" + yes + R"(], "rejected": [)" + no + "]}", "qwen2");
  CHECK(bare.prompt ==
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>assistant\n");
  CHECK(bare.chosen == "Yes<|im_end|>");
  // Answers that continue into other turns keep the text between the turns.
  const PreferenceRow longer = parse(R"({"prompt": [)" + user + R"(], "chosen": [)" + yes + "," +
                                         user + "," + yes + R"(], "rejected": [)" + no + "]}",
                                     "zephyr");
  CHECK(shown(longer) ==
        "<|user|>\nHi</s>\n<|assistant|>\n|Yes</s>\n<|user|>\nHi</s>\n<|assistant|>\nYes</s>|"
        "No</s>");
  // Supervised: what comes before the first answer is what it is predicted from.
  const PreferenceRow whole = parse(R"({"messages": [)" + user + "," + yes + "]}", "llama3");
  CHECK(shown(whole) ==
        "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\nHi<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n|Yes<|eot_id|>|");
  CHECK_FALSE(whole.has_rejected);
  // Rows in text are left alone.
  const PreferenceRow text = parse(R"({"prompt": "a", "chosen": "b", "rejected": "c"})", "chatml");
  CHECK(shown(text) == "a|b|c");
  CHECK(text.end_of_turn.empty());
}
