// SPDX-License-Identifier: Apache-2.0
#include "prefopt/data/records.h"
#include "prefopt/error.h"
#include "support/catch.h"
#include "support/counts.h"
#include "support/errors.h"
#include "support/memory_limit.h"

using namespace prefopt;
using Ids = std::vector<std::int64_t>;

namespace {

PreferenceRow parsed(std::string_view json) { return parse_row(json, "data.jsonl:1"); }

void check_text(std::string_view json, std::string_view prompt, std::string_view chosen,
                std::string_view rejected) {
  INFO(json);
  const PreferenceRow row = parsed(json);
  CHECK(row.prompt == prompt);
  CHECK(row.chosen == chosen);
  CHECK(row.rejected == rejected);
  CHECK(row.has_rejected);
  CHECK_FALSE(row.tokenized);
}

void check_sft(std::string_view json, std::string_view prompt, std::string_view completion) {
  INFO(json);
  const PreferenceRow row = parsed(json);
  CHECK(row.prompt == prompt);
  CHECK(row.chosen == completion);
  CHECK(row.rejected.empty());
  CHECK_FALSE(row.has_rejected);
  CHECK_FALSE(row.tokenized);
}

}  // namespace

TEST_CASE("dialogues take the form of hh-rlhf", "[data]") {
  CHECK(format_dialogue({}, false) == "");
  CHECK(format_dialogue({}, true) == "\n\nAssistant:");
  CHECK(format_dialogue({{"user", "Hi"}}, true) == "\n\nHuman: Hi\n\nAssistant:");
  CHECK(format_dialogue({{"system", "Be kind."}, {"user", "Hi"}, {"assistant", "Hello"}}, false) ==
        "Be kind.\n\nHuman: Hi\n\nAssistant: Hello");
  CHECK(format_dialogue({{"user", "Hi"}, {"assistant", ""}}, false) ==
        "\n\nHuman: Hi\n\nAssistant:");

  CHECK_THROWS_TEXT(format_dialogue({{"tool", "42"}}, true), DataError,
                    "format_dialogue: expected a role 'system', 'user' or 'assistant', got 'tool'");
  CHECK_THROWS_TEXT(format_dialogue({{"user", "Hi"}, {"system", "Be kind."}}, true), DataError,
                    "format_dialogue: expected the role 'system' in the first message only, "
                    "got it in message 2");
}

TEST_CASE("rows with an explicit prompt", "[data]") {
  check_text(R"({"prompt": "The sky is", "chosen": " blue.", "rejected": " green."})", "The sky is",
             " blue.", " green.");
  // Extra columns are left alone, and a shared beginning stays in the completions.
  check_text(R"({"id": 3, "chosen": " a b", "rejected": " a c", "prompt": "p", "score": null})",
             "p", " a b", " a c");
  check_text(R"({"prompt": "", "chosen": "", "rejected": "x"})", "", "", "x");
  check_text(R"({"prompt": "caf\u00e9\u0000", "chosen": "\ud83d\ude00", "rejected": "b"})",
             std::string_view("caf\xC3\xA9\0", 6), "\xF0\x9F\x98\x80", "b");

  const std::string_view lists = R"({
    "prompt": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Sky?"}],
    "chosen": [{"role": "assistant", "content": "Blue."}],
    "rejected": [{"role": "assistant", "content": "Green.", "name": "x"}]})";
  check_text(lists, "Be brief.\n\nHuman: Sky?\n\nAssistant:", " Blue.", " Green.");
}

TEST_CASE("completions of several turns", "[data]") {
  const std::string_view lists = R"({
    "prompt": [{"role": "user", "content": "A?"}],
    "chosen": [{"role": "assistant", "content": "B"}, {"role": "user", "content": "C?"},
               {"role": "assistant", "content": "D"}],
    "rejected": [{"role": "assistant", "content": ""}]})";
  check_text(lists, "\n\nHuman: A?\n\nAssistant:", " B\n\nHuman: C?\n\nAssistant: D", "");
}

TEST_CASE("hh-rlhf dialogues are split after the last assistant turn they share", "[data]") {
  const std::string_view text = R"({
    "chosen": "\n\nHuman: How do I boil an egg?\n\nAssistant: Soft or hard?\n\nHuman: Soft.\n\nAssistant: Six minutes.",
    "rejected": "\n\nHuman: How do I boil an egg?\n\nAssistant: Soft or hard?\n\nHuman: Soft.\n\nAssistant: Six hours."})";
  const std::string prompt =
      "\n\nHuman: How do I boil an egg?\n\nAssistant: Soft or hard?\n\nHuman: Soft.\n\nAssistant:";
  // Both answers begin with " Six ", which belongs to the completions.
  check_text(text, prompt, " Six minutes.", " Six hours.");

  SECTION("the same dialogue as lists gives the same strings") {
    const std::string_view shared = R"({"role": "user", "content": "How do I boil an egg?"},
      {"role": "assistant", "content": "Soft or hard?"}, {"role": "user", "content": "Soft."})";
    const std::string chosen = R"({"role": "assistant", "content": "Six minutes."})";
    const std::string rejected = R"({"role": "assistant", "content": "Six hours."})";
    const std::string all(shared);
    check_text(R"({"chosen": [)" + all + "," + chosen + R"(], "rejected": [)" + all + "," +
                   rejected + "]}",
               prompt, " Six minutes.", " Six hours.");
    check_text(R"({"prompt": [)" + all + R"(], "chosen": [)" + chosen + R"(], "rejected": [)" +
                   rejected + "]}",
               prompt, " Six minutes.", " Six hours.");
  }
  SECTION("an empty answer is an empty completion") {
    check_text(
        R"({"chosen": "\n\nHuman: a\n\nAssistant:", "rejected": "\n\nHuman: a\n\nAssistant: b"})",
        "\n\nHuman: a\n\nAssistant:", "", " b");
  }
  SECTION("dialogues that part before their last turns share their common text") {
    check_text(
        R"({"chosen": "\n\nHuman: a b\n\nAssistant: c", "rejected": "\n\nHuman: a dd\n\nAssistant: e"})",
        "\n\nHuman: a", " b\n\nAssistant: c", " dd\n\nAssistant: e");
    // Last turns at one place, after different questions of one length.
    check_text(
        R"({"chosen": "\n\nHuman: x\n\nAssistant: c", "rejected": "\n\nHuman: y\n\nAssistant: e"})",
        "\n\nHuman:", " x\n\nAssistant: c", " y\n\nAssistant: e");
  }
}

TEST_CASE("an implicit prompt in text is the common beginning", "[data]") {
  struct Case {
    const char *chosen, *rejected, *prompt, *chosen_rest, *rejected_rest;
  };
  const Case cases[] = {
      // A completion keeps its leading space; only one is given back, as TRL does.
      {"The sky is blue.", "The sky is green.", "The sky is", " blue.", " green."},
      {"is  blue", "is  green", "is ", " blue", " green"},
      {"abcd", "abxy", "ab", "cd", "xy"},
      {"abc", "xyz", "", "abc", "xyz"},
      {" abc", " xyz", "", " abc", " xyz"},
      // U+00E9 and U+00E8 share their first byte, which must not end up in the prompt.
      {"caf\xC3\xA9", "caf\xC3\xA8", "caf", "\xC3\xA9", "\xC3\xA8"},
      // U+1F600 and U+1F601 share three bytes.
      {"a \xF0\x9F\x98\x80", "a \xF0\x9F\x98\x81", "a", " \xF0\x9F\x98\x80", " \xF0\x9F\x98\x81"},
      // One begins the other: a last character is left, so that no completion is empty.
      {"abc", "abcdef", "ab", "c", "cdef"},
      {"ab\xC3\xA9 x", "ab\xC3\xA9", "ab", "\xC3\xA9 x", "\xC3\xA9"},
      {"same", "same", "sam", "e", "e"},
      {"", "abc", "", "", "abc"},
      {"", "", "", "", ""},
  };
  for (const auto& c : cases) {
    check_text(
        std::string(R"({"chosen": ")") + c.chosen + R"(", "rejected": ")" + c.rejected + R"("})",
        c.prompt, c.chosen_rest, c.rejected_rest);
  }
}

TEST_CASE("an implicit prompt in lists is their common messages", "[data]") {
  const auto list = [](std::vector<std::pair<const char*, const char*>> messages) {
    std::string text;
    for (const auto& [role, content] : messages) {
      text += std::string(text.empty() ? "" : ", ") + R"({"role": ")" + role +
              R"(", "content": ")" + content + R"("})";
    }
    return "[" + text + "]";
  };
  const auto row = [&](const std::string& chosen, const std::string& rejected) {
    return R"({"chosen": )" + chosen + R"(, "rejected": )" + rejected + "}";
  };

  SECTION("a prompt in text next to lists repeats their beginning") {
    const std::string lists =
        row(list({{"user", "Q"}, {"assistant", "A"}}), list({{"user", "Q"}, {"assistant", "B"}}));
    check_text(R"({"prompt": "Q", )" + lists.substr(1), "\n\nHuman: Q\n\nAssistant:", " A", " B");
  }
  SECTION("a prompt in text before lists that begin with the answer") {
    const std::string lists = row(list({{"assistant", "A"}}), list({{"assistant", "B"}}));
    check_text(R"({"prompt": "Q", )" + lists.substr(1), "\n\nHuman: Q\n\nAssistant:", " A", " B");
  }
  SECTION("nothing shared") {
    check_text(row(list({{"assistant", "A"}}), list({{"assistant", "B"}})), "\n\nAssistant:", " A",
               " B");
  }
  SECTION("equal lists leave their last message") {
    const std::string same = list({{"user", "Q"}, {"assistant", "A"}});
    check_text(row(same, same), "\n\nHuman: Q\n\nAssistant:", " A", " A");
  }
  SECTION("parted at the person's turn: the turns belong to the completions") {
    check_text(row(list({{"system", "S"}, {"user", "Q"}, {"assistant", "A"}}),
                   list({{"system", "S"}, {"user", "R"}, {"assistant", "B"}})),
               "S", "\n\nHuman: Q\n\nAssistant: A", "\n\nHuman: R\n\nAssistant: B");
  }
  SECTION("the same content from another role is not shared") {
    check_text(row(list({{"user", "Q"}, {"assistant", "A"}}),
                   list({{"assistant", "Q"}, {"assistant", "A"}})),
               "", "\n\nHuman: Q\n\nAssistant: A", "\n\nAssistant: Q\n\nAssistant: A");
  }
}

TEST_CASE("rows of token ids are taken as they are", "[data]") {
  const PreferenceRow row = parsed(
      R"({"prompt_ids": [5, 0], "chosen_ids": [9223372036854775807], "rejected_ids": [], "text": "x"})");
  CHECK(row.tokenized);
  CHECK(row.has_rejected);
  CHECK(row.prompt_ids == Ids{5, 0});
  CHECK(row.chosen_ids == Ids{INT64_MAX});
  CHECK(row.rejected_ids.empty());
}

TEST_CASE("rows with one completion", "[data]") {
  check_sft(R"({"prompt": "The sky is", "completion": " blue."})", "The sky is", " blue.");
  check_sft(R"({"prompt": [{"role": "user", "content": "Q"}],
                "completion": [{"role": "assistant", "content": "A"}]})",
            "\n\nHuman: Q\n\nAssistant:", " A");
  check_sft(R"({"text": "The sky is blue."})", "", "The sky is blue.");
  check_sft(R"({"messages": [{"role": "user", "content": "Q"},
                             {"role": "assistant", "content": "A"}]})",
            "\n\nHuman: Q\n\nAssistant:", " A");
}

TEST_CASE("rows of another shape are refused by name", "[data]") {
  struct Case {
    const char *json, *text;
  };
  const Case cases[] = {
      {R"({"prompt": "a", "chosen": "b"})", "expected a key 'rejected', got {chosen, prompt}"},
      {R"({"rejected": "b", "prompt": "a"})", "expected a key 'chosen', got {prompt, rejected}"},
      {R"({"completion": "b"})", "expected a key 'prompt', got {completion}"},
      {R"({"prompt_ids": [1], "chosen_ids": [2]})",
       "expected a key 'rejected_ids', got {chosen_ids, prompt_ids}"},
      {R"({"prompt": "a"})",
       "expected a key 'chosen', 'completion', 'messages' or 'text', got {prompt}"},
      {"{}", "expected a key 'chosen', 'completion', 'messages' or 'text', got {}"},
      {R"({"i": 0, "h": 0, "g": 0, "f": 0, "e": 0, "d": 0, "c": 0, "b": 0, "a": 0})",
       "expected a key 'chosen', 'completion', 'messages' or 'text', "
       "got {a, b, c, d, e, f, g, h, …}"},
      // A long key is cut before the character that would cross its 40th byte.
      {R"({"aaaaaaaaaabbbbbbbbbbccccccccccddddddddd€": 0})",
       "expected a key 'chosen', 'completion', 'messages' or 'text', "
       "got {aaaaaaaaaabbbbbbbbbbccccccccccddddddddd…}"},

      {R"({"chosen": 3, "rejected": "b"})",
       "expected 'chosen' to be text or a list of messages, got number"},
      {R"({"chosen": "a", "rejected": null})", "expected a key 'rejected', got {chosen}"},
      {R"({"prompt": {}, "chosen": "a", "rejected": "b"})",
       "expected a key 'role' in each message of 'prompt', got {}"},
      {R"({"prompt": true, "completion": "a"})",
       "expected 'prompt' to be text or a list of messages, got true or false"},
      {R"({"text": ["a"]})", "expected 'text' to be text, got list"},
      {R"({"messages": "a"})", "expected 'messages' to be a list of messages, got text"},

      {R"({"chosen": "a", "rejected": [{"role": "user", "content": "b"}]})",
       "expected 'chosen' and 'rejected' of one kind, got text and a list of messages"},

      {R"({"messages": []})", "expected 'messages' to hold at least one message, got none"},
      {R"({"messages": ["a"]})", "expected each message of 'messages' to be an object, got text"},
      {R"({"messages": [{"content": "a"}]})",
       "expected a key 'role' in each message of 'messages', got {content}"},
      {R"({"messages": [{"role": "user"}]})",
       "expected a key 'content' in each message of 'messages', got {role}"},
      {R"({"messages": [{"role": "user", "content": null}]})",
       "expected a key 'content' in each message of 'messages', got {role}"},
      {R"({"messages": [{"role": "user", "content": 3}]})",
       "expected 'content' in each message of 'messages' to be text, got number"},
      {R"({"messages": [{"role": "tool", "content": "a"}]})",
       "expected a role that the chat format 'dialogue' has a turn for, got 'tool' in 'messages'"},
      {R"({"messages": [{"role": "judge", "content": "a"}]})",
       "expected a role 'system', 'user' or 'assistant' in 'messages', got 'judge'"},
      {R"({"prompt": [{"role": "user", "content": "a"}],
           "completion": [{"role": "system", "content": "b"}]})",
       "expected completions that follow their prompt, got one that begins with a system turn"},
      {R"({"chosen": [{"role": "user", "content": "a"}], "rejected": [{"role": "user", "content": "b"}]})",
       "expected a turn of the assistant in each completion, got one without"},
      {R"({"messages": [{"role": "user", "content": "a"}, {"role": "system", "content": "b"},
                        {"role": "assistant", "content": "c"}]})",
       "expected the role 'system' in the first message only, got it in message 2"},

      {R"({"prompt_ids": "1", "chosen_ids": [2], "rejected_ids": [3]})",
       "expected 'prompt_ids' to be a list of non-negative integers, got text"},
      {R"({"prompt_ids": [1], "chosen_ids": [2, -3], "rejected_ids": [3]})",
       "expected 'chosen_ids' to be a list of non-negative integers, got -3 in it"},
      {R"({"prompt_ids": [1], "chosen_ids": [2.5], "rejected_ids": [3]})",
       "expected 'chosen_ids' to be a list of non-negative integers, got 2.5 in it"},
      {R"({"prompt_ids": [1], "chosen_ids": [2], "rejected_ids": [9223372036854775808]})",
       "expected 'rejected_ids' to be a list of non-negative integers, "
       "got 9223372036854775808 in it"},
      {R"({"prompt_ids": [[1]], "chosen_ids": [2], "rejected_ids": [3]})",
       "expected 'prompt_ids' to be a list of non-negative integers, got list in it"},

      {R"(["chosen", "rejected"])", "expected an object, got list"},
      {"3", "expected an object, got number"},
  };
  for (const auto& c : cases) {
    INFO(c.json);
    const testing_support::MemoryLimit limit;
    CHECK_THROWS_TEXT(parse_row(c.json, "data.jsonl:12"), DataError,
                      std::string("data.jsonl:12: ") + c.text);
  }
  testing_support::report_count("bad rows refused", std::size(cases));
}

TEST_CASE("lines that are no JSON are refused by name", "[data]") {
  for (const char* line :
       {"", "chosen", R"({"chosen": "a", "rejected": "b")", R"({"chosen": nan, "rejected": "b"})",
        R"({"prompt_ids": [+Infinity]})", R"({"text": "a"} {"text": "b"})", R"({"text": "a)",
        "\x01", R"({"text": "\ud80"})"}) {
    INFO(line);
    std::string text;
    try {
      parse_row(line, "data.jsonl:12");
    } catch (const DataError& error) {
      text = error.what();
    }
    CHECK(text.starts_with("data.jsonl:12: expected JSON, got "));
  }
  CHECK_THROWS_TEXT(parse_row(R"({"text": "a", "text": "b"})", "data.jsonl:12"), DataError,
                    "data.jsonl:12: expected JSON, got the key 'text' twice");
  CHECK_THROWS_TEXT(parse_row(std::string(100000, '['), "data.jsonl:12"), DataError,
                    "data.jsonl:12: expected JSON, got nesting deeper than 64 levels");
}

TEST_CASE("a row may have any number of keys", "[data]") {
  std::string row = R"({"text": "a")";
  for (int i = 0; i < 20'000; ++i) row += ", \"" + std::to_string(i) + "\": 0";
  CHECK(parse_row(row + "}", "data.jsonl:12").chosen == "a");
}

TEST_CASE("text that is no UTF-8 is refused at its first bad byte", "[data]") {
  const auto row = [](std::string_view text) {
    return R"({"text": ")" + std::string(text) + "\"}";
  };
  struct Case {
    const char* bytes;
    const char* at;  // offset 10 is the first byte of the text
  };
  const Case bad[] = {
      {"\xFF", "0xff at offset 10"},
      {"ab\x80", "0x80 at offset 12"},            // a continuation without a lead
      {"\xC3", "0xc3 at offset 10"},              // cut off by the quote
      {"\xC0\xAF", "0xc0 at offset 10"},          // overlong '/'
      {"\xE0\x80\xAF", "0xe0 at offset 10"},      // overlong, three bytes
      {"\xF0\x8F\xBF\xBF", "0xf0 at offset 10"},  // overlong, four bytes
      {"\xED\xA0\x80", "0xed at offset 10"},      // a surrogate
      {"\xF4\x90\x80\x80", "0xf4 at offset 10"},  // beyond U+10FFFF
      {"\xF5\x80\x80\x80", "0xf5 at offset 10"},
      {"\xE2\x82", "0xe2 at offset 10"},
      {"\xE2\x82\x41", "0xe2 at offset 10"},
  };
  for (const auto& c : bad) {
    CHECK_THROWS_TEXT(parse_row(row(c.bytes), "data.jsonl:12"), DataError,
                      std::string("data.jsonl:12: expected UTF-8 text, got the byte ") + c.at);
  }
  for (const char* good : {"\x7F", "\xC2\x80", "\xDF\xBF", "\xE0\xA0\x80", "\xED\x9F\xBF",
                           "\xEE\x80\x80", "\xF0\x90\x80\x80", "\xF4\x8F\xBF\xBF"}) {
    CHECK(parse_row(row(good), "data.jsonl:12").chosen == good);
  }
  // Cut off by the end of the line.
  CHECK_THROWS_TEXT(parse_row("\xF0\x9F\x98", "data.jsonl:12"), DataError,
                    "data.jsonl:12: expected UTF-8 text, got the byte 0xf0 at offset 0");
}
