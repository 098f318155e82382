// SPDX-License-Identifier: Apache-2.0
#include "data/chat_template.h"

#include <fmt/format.h>

#include <algorithm>
#include <ctime>
#include <utility>

#include "data/begin_token.h"
#include "data/line_error.h"
#include "data/row_columns.h"
#include "data/row_json.h"
#include "data/tokenizer_config.h"
#include "jinja/failure.h"
#include "prefopt/data/chat.h"
#include "prefopt/error.h"

namespace prefopt::detail {
namespace {

using jinja::Origin;
using Part = RenderedChat::Part;

// Each turn has an origin for each of its parts, after those of the row.
constexpr Origin kOfTools = 1, kOfVariables = 2, kFirstTurn = 3, kParts = 3;
constexpr std::size_t kMaxTurns = (jinja::kMaxOrigin - kFirstTurn) / kParts - 1;

Origin origin_of(std::size_t turn, Part part) {
  return static_cast<Origin>(kFirstTurn + turn * kParts + static_cast<std::size_t>(part));
}

// One for the process, so that a run that goes past midnight writes one day.
std::tm time_of_day() {
  static const std::tm now = [] {
    const std::time_t seconds = std::time(nullptr);
    std::tm result{};
    localtime_r(&seconds, &result);
    return result;
  }();
  return now;
}

jinja::Value text_value(std::string_view text, Origin origin = jinja::kOfTemplate) {
  return jinja::Value(jinja::Text(std::string(text), origin));
}

jinja::Value content_value(const Turn& turn, std::size_t place, std::size_t turns) {
  if (turn.content_kind == Turn::ContentKind::kNull) return jinja::Value(jinja::None{});
  if (turn.begun == Turn::kNotBegun) {
    return text_value(turn.content, origin_of(place, Part::kContent));
  }
  jinja::Text text(turn.content.substr(0, turn.begun), origin_of(place, Part::kContent));
  text.append(std::string_view(turn.content).substr(turn.begun), origin_of(turns, Part::kContent));
  return jinja::Value(std::move(text));
}

/// Returns the message as transformers hands it over.
jinja::Value value_of_turn(const Turn& turn, std::size_t place, std::size_t turns) {
  constexpr const char* kContent = "content";
  Json message{{"role", turn.role}};
  if (turn.content_kind != Turn::ContentKind::kNone) message[kContent] = nullptr;  // its place
  message.update(turn.fields);
  const Json named = with_reasoning_names(message);
  const auto value_of = [&](const std::string& key, const Json& value) {
    if (key == kContent) return content_value(turn, place, turns);
    if (key == "role") return text_value(turn.role);
    const Part part = is_among(kTemplateReasoningKeys, key) ? Part::kReasoning : Part::kFields;
    return jinja::value_of(value, origin_of(place, part));
  };
  std::vector<std::pair<jinja::Value, jinja::Value>> items;
  for (const auto& [key, value] : named.items()) {
    items.emplace_back(text_value(key), value_of(key, value));
  }
  return jinja::Value::dict(std::move(items));
}

}  // namespace

Json with_reasoning_names(const Json& message) {
  for (const std::string_view name : kTemplateReasoningKeys) {
    const auto found = message.find(std::string(name));
    if (found == message.end() || found->is_null()) continue;
    Json result{{"thinking", *found}};
    result.update(message);
    result["reasoning_content"] = *found;
    return result;
  }
  return message;
}

RenderedChat::RenderedChat(jinja::Text text) : text_(std::move(text)) {
  for (std::size_t i = 0; text_.is_marked() && i < text_.size();) {
    const Origin writer = jinja::writer_of(text_.origin(i));
    const std::size_t begin = i;
    while (i < text_.size() && jinja::writer_of(text_.origin(i)) == writer) ++i;
    if (writer == jinja::kOfTemplate) continue;
    spans_.try_emplace(writer, Span{begin, i}).first->second.end = i;
  }
}

bool RenderedChat::is_given(std::size_t byte) const {
  return jinja::writer_of(text_.origin(byte)) != jinja::kOfTemplate;
}

std::optional<std::size_t> RenderedChat::turn_of(std::size_t byte) const {
  const Origin writer = jinja::writer_of(text_.origin(byte));
  if (writer < kFirstTurn) return std::nullopt;
  return static_cast<std::size_t>((writer - kFirstTurn) / kParts);
}

bool RenderedChat::is_generated(std::size_t byte) const {
  return (text_.origin(byte) & jinja::kGenerated) != 0;
}

std::optional<std::size_t> RenderedChat::begin_of(std::size_t turn) const {
  std::optional<std::size_t> begin;
  for (const Part part : {Part::kContent, Part::kFields, Part::kReasoning}) {
    const auto span = spans_.find(origin_of(turn, part));
    if (span == spans_.end()) continue;
    begin = std::min(begin.value_or(span->second.begin), span->second.begin);
  }
  return begin;
}

std::optional<std::size_t> RenderedChat::end_of(std::size_t turn) const {
  std::optional<std::size_t> end;
  for (const Part part : {Part::kContent, Part::kFields, Part::kReasoning}) {
    const auto span = spans_.find(origin_of(turn, part));
    if (span != spans_.end()) end = std::max(end.value_or(0), span->second.end);
  }
  return end;
}

bool RenderedChat::holds(std::size_t turn, Part part) const {
  return spans_.contains(origin_of(turn, part));
}

bool RenderedChat::holds_tools() const { return spans_.contains(kOfTools); }

ChatTemplate::ChatTemplate(const Tokenizer& tokenizer, Json variables)
    : tokenizer_(tokenizer), variables_(std::move(variables)), now_(time_of_day()) {
  const std::string where = fmt::format("the chat template of '{}'", tokenizer.name());
  try {
    template_.emplace(tokenizer.chat_template(), where);
    for (const char* name : kTokensNotInRows) {
      if (template_->reads(name)) {
        throw ConfigError(fmt::format(
            "{}: expected variables known here, got '{}'; set chat_format to a format's name",
            where, name));
      }
    }
    end_of_turn_ = find_end_of_turn();
  } catch (const ConfigError&) {
    template_.reset();
    defect_ = std::current_exception();
  }
}

const jinja::Template& ChatTemplate::parsed() const {
  if (!template_) std::rethrow_exception(defect_);
  return *template_;
}

bool ChatTemplate::has_generation() const { return parsed().has_generation(); }

jinja::Variables ChatTemplate::variables_of(const Turns& turns, const TemplateRow& row,
                                            bool opens_answer) const {
  if (turns.size() > kMaxTurns) {
    throw jinja::Failure(
        fmt::format("expected at most {} messages, got {}", kMaxTurns, turns.size()));
  }
  std::vector<jinja::Value> messages;
  for (std::size_t i = 0; i < turns.size(); ++i) {
    messages.push_back(value_of_turn(turns[i], i, turns.size()));
  }
  jinja::Variables variables{{"messages", jinja::Value::list(std::move(messages))},
                             {"tools", jinja::value_of(row.tools, kOfTools)},
                             {"documents", jinja::None{}},
                             {"add_generation_prompt", jinja::Value(opens_answer)}};
  const auto add_token = [&](const char* name, std::int64_t id) {
    if (id >= 0) variables.emplace_back(name, text_value(tokenizer_.spelling(id)));
  };
  add_token("bos_token", begin_id_of(tokenizer_));
  add_token("eos_token", tokenizer_.eos_id());
  add_token("pad_token", tokenizer_.pad_id());
  Json given = variables_;
  given.update(row.variables);
  for (const auto& [name, value] : given.items()) {
    variables.emplace_back(name, jinja::value_of(value, kOfVariables));
  }
  return variables;
}

RenderedChat ChatTemplate::render(const Turns& turns, const TemplateRow& row, bool opens_answer,
                                  std::string_view where) const {
  const jinja::Template& chat = parsed();
  std::size_t bytes = 0;
  for (const Turn& turn : turns) bytes += turn.content.size();
  try {
    return RenderedChat(chat.render(variables_of(turns, row, opens_answer), where,
                                    {.now = now_, .work = 20'000'000 + bytes}));
  } catch (const LineError&) {
    throw;
  } catch (const DataError& error) {
    throw LineError(LineDefect::kMalformed, error.what());
  } catch (const jinja::Failure& failure) {
    throw LineError(LineDefect::kMalformed, fmt::format("{}: {}", where, failure.what()));
  }
}

std::string ChatTemplate::find_end_of_turn() const {
  constexpr std::string_view kAnswer = "answer";
  const Turns talk{{"user", "question"}, {"assistant", std::string(kAnswer)}};
  try {
    const RenderedChat chat = render(talk, {}, false, "");
    const std::size_t place = chat.text().rfind(kAnswer);
    if (place == std::string::npos) return "";
    const std::string_view rest = std::string_view(chat.text()).substr(place + kAnswer.size());
    const std::int64_t token = tokenizer_.find_control(rest);
    return token < 0 ? "" : tokenizer_.spelling(token);
  } catch (const DataError&) {  // one that takes other conversations only
    return "";
  }
}

ChatTemplate::End ChatTemplate::end_in(std::string_view text) const {
  if (!end_of_turn_.empty()) {
    if (const std::size_t place = text.find(end_of_turn_); place != std::string_view::npos) {
      return {place + end_of_turn_.size(), end_of_turn_};
    }
  }
  // An answer of another kind, such as a call, may have another end: the last token.
  End end{text.size(), ""};
  std::size_t done = 0;
  for (std::int64_t token = tokenizer_.find_control(text); token >= 0;
       token = tokenizer_.find_control(text.substr(done))) {
    const std::string spelled = tokenizer_.spelling(token);
    const std::size_t place = text.find(spelled, done);
    if (spelled.empty() || place == std::string_view::npos) break;
    done = place + spelled.size();
    end = {done, spelled};
  }
  return end;
}

bool is_given_by_rows(std::string_view variable) {
  return variable == "messages" || variable == "tools" || variable == "add_generation_prompt";
}

namespace {

constexpr const char* kOption = "chat_template_kwargs";

Json variables_of(const DataOptions& options) {
  Json variables = parse_json<ConfigError>(options.chat_template_kwargs, kOption);
  if (!variables.is_object()) {
    throw ConfigError(fmt::format("{}: expected an object of variables, got {}", kOption,
                                  json_type_name(variables)));
  }
  return variables;
}

bool has_template(const std::string& chat_format, const Tokenizer& tokenizer) {
  const std::string text = tokenizer.chat_template();
  if (text.find_first_not_of(" \t\r\n") == std::string::npos) return false;
  if (chat_format == "auto") return true;
  try {
    return recognize_chat_format(text, "") == chat_format;
  } catch (const ConfigError&) {
    return false;
  }
}

// Not read, they would change nothing unseen.
void check_read(const Json& variables, const ChatTemplate* chat) {
  for (const auto& [name, value] : variables.items()) {
    if (chat == nullptr) {
      throw ConfigError(fmt::format(
          "{}: expected a chat template of the model that reads '{}', got rows in a format of "
          "another origin",
          kOption, shown_text(name)));
    }
    if (is_given_by_rows(name) || !chat->reads(name)) {
      throw ConfigError(fmt::format("{}: expected variables that {}, got '{}'", kOption,
                                    is_given_by_rows(name) ? "rows do not give themselves"
                                                           : "the model's chat template reads",
                                    shown_text(name)));
    }
  }
}

}  // namespace

std::unique_ptr<const ChatTemplate> chat_template_for_rows(const DataOptions& options,
                                                           const Tokenizer& tokenizer) {
  const Json variables = variables_of(options);
  std::unique_ptr<const ChatTemplate> chat;
  if (has_template(options.chat_format, tokenizer)) {
    chat = std::make_unique<const ChatTemplate>(tokenizer, variables);
  }
  check_read(variables, chat.get());
  return chat;
}

}  // namespace prefopt::detail
