// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <fstream>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <utility>
#include <vector>

#include "data/chat_template.h"
#include "data/chat_writer.h"
#include "data/line_error.h"
#include "data/row_layout.h"
#include "data/row_preparation.h"
#include "jinja/template.h"
#include "prefopt/data/chat.h"
#include "prefopt/data/dataset.h"
#include "prefopt/data/records.h"
#include "prefopt/data/tokenizer.h"
#include "prefopt/error.h"
#include "support/catch.h"
#include "support/errors.h"

namespace prefopt::rendered_rows_test {
namespace {

using nlohmann::json;

constexpr const char* kTurns =
    "{{ bos_token }}{% for m in messages %}<|start|>{{ m.role }}\n{{ m.content | trim }}<|end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|start|>assistant\n{% endif %}";

constexpr const char* kThink =
    "{%- for m in messages -%}<|start|>{{ m.role }}\n"
    "{%- if m.role == 'assistant' and loop.last -%}\n"
    "{{- '\n<think>' ~ (m.reasoning_content or '') ~ '</think>' -}}{%- endif -%}\n"
    "{{- '\n' ~ m.content.split('</think>')[-1] -}}<|end|>\n{% endfor %}"
    "{%- if add_generation_prompt -%}{{- '<|start|>assistant\n<think>' -}}{%- endif -%}";

constexpr const char* kCalls =
    "{% if tools %}T{{ tools | tojson }}\n{% endif %}"
    "{% for m in messages %}<|start|>{{ m.role }}\n{{ m.content }}"
    "{% for call in m.tool_calls or [] %}[{{ call.function.name }}({{ call.function.arguments | "
    "tojson }})]{% endfor %}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|start|>assistant\n{% endif %}"
    "{% if style is defined %}{{ style }}{% endif %}";

constexpr const char* kMarked =
    "{% for m in messages %}<|start|>{{ m.role }}\n{% if m.role == 'assistant' %}"
    "{% generation %}{{ m.content }}<|end|>{% endgeneration %}\n{% else %}"
    "{{ m.content }}<|end|>\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|start|>assistant\n{% endif %}";

/// Bytes, and the two tokens of the templates above.
std::shared_ptr<const Tokenizer> tokenizer_with(const std::string& chat_template,
                                                bool adds_begin = false) {
  BpeVocabulary vocabulary;
  // GPT-2's alphabet: printable bytes are themselves, the others follow from U+0100 on.
  int next = 0;
  for (int byte = 0; byte < 256; ++byte) {
    const bool prints = (byte >= '!' && byte <= '~') || (byte >= 0xa1 && byte <= 0xac) ||
                        (byte >= 0xae && byte <= 0xff);
    const int code = prints ? byte : 256 + next++;
    vocabulary.tokens.push_back(code < 0x80 ? std::string(1, static_cast<char>(code))
                                            : std::string{static_cast<char>(0xc0 | (code >> 6)),
                                                          static_cast<char>(0x80 | (code & 0x3f))});
  }
  for (const char* token : {"<|start|>", "<|end|>", "<s>", "</s>"}) {
    vocabulary.added.push_back(
        {.content = token, .id = std::ssize(vocabulary.tokens), .special = true});
    vocabulary.tokens.emplace_back(token);
  }
  vocabulary.splits = {{}};
  vocabulary.begin_id = 258;
  vocabulary.bos_id = adds_begin ? 258 : -1;
  vocabulary.eos_id = 259;
  vocabulary.chat_template = chat_template;
  return make_bpe_tokenizer(std::move(vocabulary), "small");
}

struct Read {
  PreferenceRow row;
  std::vector<detail::UnreadColumn> unread;
};

Read read(const json& row, const std::string& chat_template, DataOptions options = {},
          bool prompt_alone = false) {
  const auto tokenizer = tokenizer_with(chat_template);
  options.chat_format = detail::chat_format_for_rows(options.chat_format, *tokenizer);
  const auto own = detail::chat_template_for_rows(options, *tokenizer);
  const detail::RowLayout layout;
  detail::RowTrace trace;
  PreferenceRow result = detail::parse_line(
      row.dump(), "f:1", options,
      {.layout = layout, .prompt_alone = prompt_alone, .chat_template = own.get()}, trace);
  return {std::move(result), std::move(trace.unread)};
}

json said(const std::string& role, const std::string& content) {
  return {{"role", role}, {"content", content}};
}

json pair(json prompt, json chosen, json rejected) {
  return {{"prompt", std::move(prompt)},
          {"chosen", std::move(chosen)},
          {"rejected", std::move(rejected)}};
}

std::vector<std::string> parts_of(const std::string& text, const std::vector<TextRange>& ranges) {
  std::vector<std::string> parts;
  for (const TextRange& range : ranges) {
    parts.push_back(text.substr(range.begin, range.end - range.begin));
  }
  return parts;
}

using Strings = std::vector<std::string>;

TEST_CASE("a row is cut from what the model's own template renders", "[data]") {
  const PreferenceRow row = read(pair({said("system", " S "), said("user", "Q")},
                                      {said("assistant", "yes")}, {said("assistant", " no ")}),
                                 kTurns)
                                .row;
  CHECK(row.prompt ==
        "<s><|start|>system\nS<|end|>\n<|start|>user\nQ<|end|>\n<|start|>assistant\n");
  CHECK(row.chosen == "yes<|end|>");
  CHECK(row.rejected == "no<|end|>");
  CHECK(row.end_of_turn == "<|end|>");
  CHECK(row.from_messages);
  CHECK(parts_of(row.prompt, row.prompt_parts.contents) == Strings{"S", "Q"});
  CHECK(row.prompt_parts.answers.empty());
  CHECK(parts_of(row.chosen, row.chosen_parts.answers) == Strings{"yes"});
  CHECK(row.chosen_parts.counted.empty());
}

TEST_CASE("a generation prompt that begins the answer belongs to the prompt", "[data]") {
  json answer = said("assistant", "b");
  answer["reasoning_content"] = "hm";
  const json row = pair({said("user", "a")}, {answer}, {said("assistant", "c")});
  const PreferenceRow cut = read(row, kThink).row;
  CHECK(cut.prompt == "<|start|>user\na<|end|>\n<|start|>assistant\n<think>");
  CHECK(cut.chosen == "hm</think>\nb<|end|>");
  CHECK(cut.rejected == "</think>\nc<|end|>");
  CHECK(cut.remarks.empty());
}

TEST_CASE("a template under which the prompt begins no answer is refused with the place",
          "[data]") {
  const std::string other =
      "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}"
      "{% if add_generation_prompt %}<bot>{% endif %}";
  CHECK_THROWS_TEXT(
      read(pair({said("user", "a")}, {said("assistant", "b")}, {said("assistant", "c")}), other),
      detail::LineError,
      "f:1: expected a template under which the text of the prompt begins that of the whole "
      "conversation, got '[user]a<bot>' and '[user]a[assistant]b' at byte 7");
}

TEST_CASE("of several turns each of the assistant's counts up to its end", "[data]") {
  const json row = {
      {"messages",
       {said("user", "a"), said("assistant", "b"), said("user", "c"), said("assistant", "d")}}};
  const PreferenceRow all = read(row, kTurns).row;
  CHECK(all.prompt == "<s><|start|>user\na<|end|>\n<|start|>assistant\n");
  CHECK(all.chosen == "b<|end|>\n<|start|>user\nc<|end|>\n<|start|>assistant\nd<|end|>");
  CHECK(parts_of(all.chosen, all.chosen_parts.counted) == Strings{"b<|end|>", "d<|end|>"});

  const PreferenceRow last = read(row, kTurns, {.loss_on = LossOn::kLast}).row;
  CHECK(last.chosen == "d<|end|>");
  CHECK(last.chosen_parts.counted.empty());

  const PreferenceRow everything = read(row, kTurns, {.loss_on = LossOn::kAll}).row;
  CHECK(everything.prompt == "<s><|start|>user\n");
  CHECK(everything.chosen.starts_with("a<|end|>\n<|start|>assistant\nb<|end|>"));
  CHECK(everything.chosen_parts.counted.empty());
}

TEST_CASE("generation blocks say what counts", "[data]") {
  const json row = {
      {"messages",
       {said("user", "a"), said("assistant", "b"), said("user", "c"), said("assistant", "d")}}};
  const PreferenceRow all = read(row, kMarked).row;
  CHECK(parts_of(all.chosen, all.chosen_parts.counted) == Strings{"b<|end|>", "d<|end|>"});
  json marked = row;
  marked["messages"][1]["weight"] = 0;
  const PreferenceRow rest = read(marked, kMarked).row;
  CHECK(rest.chosen == "d<|end|>");
}

TEST_CASE("completions continue a turn where the template writes it", "[data]") {
  const PreferenceRow row = read(pair({said("user", "Q"), said("assistant", "One, ")},
                                      {said("assistant", "two.")}, {said("assistant", "three.")}),
                                 kTurns)
                                .row;
  CHECK(row.prompt == "<s><|start|>user\nQ<|end|>\n<|start|>assistant\nOne, ");
  CHECK(row.chosen == "two.<|end|>");
  CHECK(row.rejected == "three.<|end|>");
}

TEST_CASE("generation blocks of a continued turn count as that turn", "[data]") {
  const json rejected = {said("assistant", "no")};
  json begun = said("assistant", "two.");
  const auto counted = [&](LossOn loss_on) {
    const json row = pair({said("user", "Q"), said("assistant", "One, ")},
                          {begun, said("user", "more"), said("assistant", "end")}, rejected);
    const PreferenceRow cut = read(row, kMarked, {.loss_on = loss_on}).row;
    CHECK(cut.chosen.starts_with("two.<|end|>"));
    return parts_of(cut.chosen, cut.chosen_parts.counted);
  };
  CHECK(counted(LossOn::kAssistant) == Strings{"two.<|end|>", "end<|end|>"});
  CHECK(counted(LossOn::kLast) == Strings{"end<|end|>"});
  begun["train"] = false;
  CHECK(counted(LossOn::kAssistant) == Strings{"end<|end|>"});
}

TEST_CASE("variables of all rows reach the template, and a row's win", "[data]") {
  const std::string thinking =
      "{% for m in messages %}<|start|>{{ m.role }}{{ m.content }}<|end|>{% endfor %}"
      "{% if add_generation_prompt %}<|start|>assistant{% endif %}";
  const std::string styled = "{{ style | default('plain') }}" + thinking;
  json row = pair({said("user", "Q")}, {said("assistant", "a")}, {said("assistant", "b")});
  DataOptions options;
  CHECK(read(row, styled, options).row.prompt == "plain<|start|>userQ<|end|><|start|>assistant");
  options.chat_template_kwargs = R"({"style": "odd"})";
  CHECK(read(row, styled, options).row.prompt == "odd<|start|>userQ<|end|><|start|>assistant");
  row["chat_template_kwargs"] = {{"style", "own"}};
  CHECK(read(row, styled, options).row.prompt == "own<|start|>userQ<|end|><|start|>assistant");

  const auto refuse = [&](const std::string& kwargs, const std::string& text,
                          const std::string& format = "auto") {
    DataOptions bad;
    bad.chat_template_kwargs = kwargs;
    bad.chat_format = format;
    CHECK_THROWS_TEXT(detail::chat_template_for_rows(bad, *tokenizer_with(styled)), ConfigError,
                      "chat_template_kwargs: expected " + text);
  };
  refuse(R"({"tone": 1})", "variables that the model's chat template reads, got 'tone'");
  refuse(R"({"messages": []})", "variables that rows do not give themselves, got 'messages'");
  refuse("[1]", "an object of variables, got list");
  refuse(R"({"style": 1})",
         "a chat template of the model that reads 'style', got rows in a format of another origin",
         "chatml");
}

TEST_CASE("tools, calls and variables of the row reach the template in their order", "[data]") {
  const std::string line =
      R"({"tools": [{"z": 1, "a": {"y": 2, "b": 3}}], "chat_template_kwargs": {"style": "!"},)"
      R"( "prompt": [{"role": "user", "content": "Q"}],)"
      R"( "chosen": [{"role": "assistant", "content": "", "tool_calls":)"
      R"( [{"function": {"name": "f", "arguments": {"z": 1, "a": 2}}}]}],)"
      R"( "rejected": [{"role": "assistant", "content": "no"}]})";
  const auto tokenizer = tokenizer_with(kCalls);
  const auto own = detail::chat_template_for_rows({}, *tokenizer);
  const detail::RowLayout layout;
  detail::RowTrace trace;
  DataOptions options;
  const auto parse = [&](const std::string& text) {
    return detail::parse_line(text, "f:1", options, {.layout = layout, .chat_template = own.get()},
                              trace);
  };
  // The variable is written after all, so that neither text begins the other.
  CHECK_THROWS_AS(parse(line), DataError);
  std::string plain = line;
  plain.replace(plain.find("\"style\": \"!\""), 12, "\"other\": \"!\"");
  const PreferenceRow row = parse(plain);
  CHECK(
      row.prompt ==
      "T[{\"z\": 1, \"a\": {\"y\": 2, \"b\": 3}}]\n<|start|>user\nQ<|end|>\n<|start|>assistant\n");
  CHECK(row.chosen == "[f({\"z\": 1, \"a\": 2})]<|end|>");
  CHECK(row.remarks.empty());
  CHECK(trace.unread.empty());
  // A template that writes none of it: the row lost what it is about.
  CHECK((read(json::parse(plain), kTurns).row.remarks == std::vector{RowRemark::kToolCalls}));
  CHECK_THROWS_TEXT(
      parse(R"({"chat_template_kwargs": {"messages": []}, "prompt": [{"role": "user",)"
            R"( "content": "Q"}], "completion": [{"role": "assistant", "content": "a"}]})"),
      detail::LineError,
      "f:1: expected 'chat_template_kwargs' without 'messages', which the row itself gives, got "
      "it");
}

TEST_CASE("a content that is null or not there reaches the template as it is", "[data]") {
  const std::string shows =
      "{% for m in messages %}<|start|>{{ m.role }}({{ m.content is defined }}|{{ m.content }})"
      "{% for call in m.tool_calls or [] %}[{{ call.function.name }}]{% endfor %}<|end|>{% endfor "
      "%}"
      "{% if add_generation_prompt %}<|start|>assistant{% endif %}";
  json null = said("assistant", "");
  null["tool_calls"] = json::parse(R"([{"function": {"name": "f"}}])");
  json none = null;
  null["content"] = nullptr;
  none.erase("content");
  const PreferenceRow row = read(pair({said("user", "Q")}, {null}, {none}), shows).row;
  CHECK(row.prompt == "<|start|>user(True|Q)<|end|><|start|>assistant");
  CHECK(row.chosen == "(True|None)[f]<|end|>");
  CHECK(row.rejected == "(False|)[f]<|end|>");
  // A begun turn has the content of what continues it.
  const std::string calls_first =
      "{% for m in messages %}<|start|>{{ m.role }}{% for call in m.tool_calls or [] %}"
      "[{{ call.function.name }}]{% endfor %}({{ m.content }})<|end|>{% endfor %}";
  const PreferenceRow continued =
      read(pair({said("user", "Q"), null}, {said("assistant", "b")}, {said("assistant", "c")}),
           calls_first)
          .row;
  CHECK(continued.prompt == "<|start|>user(Q)<|end|><|start|>assistant[f](");
  CHECK(continued.chosen == "b)<|end|>");
}

TEST_CASE("reasoning has its own name and transformers' others, in transformers' order", "[data]") {
  const std::string shows =
      "{% for m in messages %}<|start|>{{ m.role }} {{ m.keys() | list | join(',') }} "
      "{{ m.reasoning_content }}{{ m.thinking }}{{ m.reasoning }} {{ m.content }}<|end|>{% endfor "
      "%}"
      "{% if add_generation_prompt %}<|start|>assistant {% endif %}";
  const auto chosen = [&](const char* key) {
    json answer = said("assistant", "b");
    answer[key] = "h";
    return read(pair({said("user", "a")}, {answer}, {said("assistant", "c")}), shows).row.chosen;
  };
  CHECK(chosen("reasoning") == "thinking,role,content,reasoning,reasoning_content hhh b<|end|>");
  CHECK(chosen("thinking") == "thinking,role,content,reasoning_content hh b<|end|>");
  CHECK(chosen("reasoning_content") == "thinking,role,content,reasoning_content hh b<|end|>");
  CHECK(chosen("thought") == "thinking,role,content,reasoning_content hh b<|end|>");
}

TEST_CASE("a message or reasoning that a template leaves out is not lost in silence", "[data]") {
  json answer = said("assistant", "b");
  answer["reasoning"] = "hm";
  const json row = pair({said("user", "a")}, {answer}, {said("assistant", "c")});
  CHECK((read(row, kTurns).row.remarks == std::vector{RowRemark::kReasoning}));
  const std::string no_system =
      "{% for m in messages if m.role != 'system' %}[{{ m.role }}]{{ m.content }}{% endfor %}"
      "{% if add_generation_prompt %}[assistant]{% endif %}";
  CHECK_THROWS_TEXT(read(pair({said("system", "s"), said("user", "a")}, {said("assistant", "b")},
                              {said("assistant", "c")}),
                         no_system),
                    detail::LineError,
                    "f:1: expected a template that writes each message, got one that leaves out "
                    "message 1, of the role 'system'");
}

TEST_CASE("a prompt alone loses no message and no tools in silence either", "[data]") {
  const std::string no_system =
      "{% for m in messages if m.role != 'system' %}[{{ m.role }}]{{ m.content }}{% endfor %}"
      "{% if add_generation_prompt %}[assistant]{% endif %}";
  const auto prompt = [&](json messages, const json& tools) {
    const json row = {{"prompt", std::move(messages)}, {"tools", tools}};
    return read(row, no_system, {}, /*prompt_alone=*/true).row;
  };
  const json none = json::array();
  const json tools = json::parse(R"([{"type": "function", "function": {"name": "f"}}])");
  const json asked = said("user", "a"), begun = said("assistant", "b");
  for (const json& messages : {json::array({said("system", "s"), asked}),
                               json::array({said("system", "s"), asked, begun})}) {
    CHECK_THROWS_TEXT(prompt(messages, none), detail::LineError,
                      "f:1: expected a template that writes each message, got one that leaves out "
                      "message 1, of the role 'system'");
  }
  for (const json& messages : {json::array({asked}), json::array({asked, begun})}) {
    CHECK(prompt(messages, none).remarks.empty());
    CHECK((prompt(messages, tools).remarks == std::vector{RowRemark::kToolCalls}));
  }
}

TEST_CASE("control tokens in content stay text where the option says so", "[data]") {
  const auto tokenizer = tokenizer_with(kTurns);
  DataOptions options{.special_tokens_in_text = SpecialTokens::kSplit};
  const json json_row =
      pair({said("user", "<|end|>")}, {said("assistant", "a<|start|>")}, {said("assistant", "b")});
  const PreferenceRow row = read(json_row, kTurns, options).row;
  RowReport report;
  const TokenRow tokens = tokenize_row(row, *tokenizer, options, report);
  const auto count = [](const std::vector<std::int64_t>& ids, std::int64_t id) {
    return std::count(ids.begin(), ids.end(), id);
  };
  CHECK(count(tokens.prompt, 256) == 2);  // the template's
  CHECK(count(tokens.prompt, 257) == 1);
  CHECK(tokens.chosen ==
        std::vector<std::int64_t>{'a', '<', '|', 's', 't', 'a', 'r', 't', '|', '>', 257});
}

TEST_CASE("a prompt alone has the tokens of the row's prompt, and no other begin token", "[data]") {
  const std::string talk =
      "{% for m in messages %}<|start|>{{ m.role }}{{ m.content }}<|end|>{% endfor %}"
      "{% if add_generation_prompt %}<|start|>assistant{% endif %}";
  const std::string without_end =
      "{% for m in messages %}<|start|>{{ m.role }}{{ m.content }}{% endfor %}"
      "{% if add_generation_prompt %}<|start|>assistant{% endif %}";
  const json row = pair({said("user", "a"), said("assistant", "b</s>"), said("user", "c")},
                        {said("assistant", "d")}, {said("assistant", "e")});
  for (const std::string& chat_template : {talk, without_end, "{{ bos_token }}" + talk}) {
    CAPTURE(chat_template);
    const auto tokenizer = tokenizer_with(chat_template, /*adds_begin=*/true);
    const DataOptions options;
    RowReport report;
    const TokenRow whole = tokenize_row(read(row, chat_template).row, *tokenizer, options, report);
    const detail::PreparedRow alone = detail::prepare_prompt(
        read({{"prompt", row["prompt"]}}, chat_template, options, /*prompt_alone=*/true).row,
        *tokenizer, options);
    CHECK(alone.pair.prompt == whole.prompt);
    CHECK(std::count(whole.prompt.begin(), whole.prompt.end(), 258) ==
          (chat_template.starts_with("{{ bos_token }}") ? 1 : 0));
    CHECK(std::count(alone.defects.begin(), alone.defects.end(), detail::RowDefect::kGivenBegin) ==
          0);
  }
}

TEST_CASE("each completion ends in the token that the template ends it with", "[data]") {
  const std::string ends_calls =
      "{% for m in messages %}<|start|>{{ m.role }}{{ m.content }}"
      "{% for call in m.tool_calls or [] %}[{{ call.function.name }}]{% endfor %}"
      "{% if m.tool_calls %}<|end|>{% endif %}{% endfor %}"
      "{% if add_generation_prompt %}<|start|>assistant{% endif %}";
  json call = said("assistant", "");
  call["tool_calls"] = json::parse(R"([{"function": {"name": "f"}}])");
  const json plain = said("assistant", "no");
  const auto tokenizer = tokenizer_with(ends_calls, /*adds_begin=*/true);
  const std::vector<std::int64_t> of_call{'[', 'f', ']', 257}, of_plain{'n', 'o', 259};
  const DataOptions options;
  const auto prepare = [&](const json& chosen, const json& rejected, const DataOptions& given) {
    const PreferenceRow row = read(pair({said("user", "Q")}, {chosen}, {rejected}), ends_calls).row;
    return detail::prepare_row(row, *tokenizer, given, nullptr, 0);
  };
  const detail::PreparedRow called = prepare(call, plain, options);
  CHECK(called.pair.chosen == of_call);
  CHECK(called.pair.rejected == of_plain);
  CHECK(called.ended_before == 2);
  const detail::PreparedRow other = prepare(plain, call, options);
  CHECK(other.pair.chosen == of_plain);
  CHECK(other.pair.rejected == of_call);
  CHECK(other.ended_before == 2);
  CHECK(other.pair.prompt == called.pair.prompt);

  const detail::PreparedRow cut =
      prepare(call, plain, {.max_completion_length = 2, .end_of_cut = EndOfCut::kKeep});
  CHECK(cut.pair.chosen == std::vector<std::int64_t>{'[', 257});
  CHECK(cut.pair.rejected == std::vector<std::int64_t>{'n', 259});
}

TEST_CASE("a recognized template renders the text of its format", "[data]") {
  std::ifstream file(PREFOPT_TEST_DATA_DIR "/chat.json");
  int compared = 0;
  for (const auto& format : nlohmann::ordered_json::parse(file)) {
    if (format["template"].is_null()) continue;
    const jinja::Template chat(format["template"].get<std::string>(), "template");
    for (const auto& recorded : format["cases"]) {
      CAPTURE(format["format"].get<std::string>(), recorded.dump());
      const jinja::Variables variables{
          {"messages", jinja::value_of(recorded["messages"])},
          {"tools", jinja::None{}},
          {"add_generation_prompt", jinja::Value(recorded["open"].get<bool>())},
          {"bos_token", jinja::Value("<|begin_of_text|>")},
          {"eos_token", jinja::Value("</s>")}};
      CHECK(chat.render(variables, "row").bytes() == recorded["text"].get<std::string>());
      ++compared;
    }
  }
  CHECK(compared > 20);
}

TEST_CASE("the end of a turn is found by rendering", "[data]") {
  CHECK(chat_end_ids("auto", *tokenizer_with(kTurns)) == std::vector<std::int64_t>{257});
  CHECK(chat_end_ids("auto", *tokenizer_with("{% for m in messages %}{{ m.content }}{{ eos_token "
                                             "}}{% endfor %}")) == std::vector<std::int64_t>{259});
  CHECK(chat_end_ids("auto", *tokenizer_with("{{ messages }}")).empty());
  CHECK(chat_end_ids("auto", *tokenizer_with("{% nope %}")).empty());
}

}  // namespace
}  // namespace prefopt::rendered_rows_test
