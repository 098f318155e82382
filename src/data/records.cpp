// SPDX-License-Identifier: Apache-2.0
#include "prefopt/data/records.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <limits>
#include <optional>
#include <utility>
#include <variant>

#include "core/json.h"
#include "core/json_text.h"
#include "core/utf8.h"
#include "data/arrow_module.h"
#include "data/chat_writer.h"
#include "data/conversation.h"
#include "data/line_error.h"
#include "data/ordered_values.h"
#include "data/row_words.h"
#include "prefopt/error.h"
#include "prefopt/options.h"

namespace prefopt {
namespace {

using detail::Json;
using RowJson = detail::SortedJson;  // a row may have any number of keys

constexpr std::string_view kAssistantTurn = "\n\nAssistant:";

// Returns the start of the character that holds `at`.
std::size_t character_start(std::string_view text, std::size_t at) {
  while (at > 0 && at < text.size() && (static_cast<unsigned char>(text[at]) & 0xC0) == 0x80) --at;
  return at;
}

// `{chosen, prompt}`, shortened so that a strange row does not make a strange message.
std::string keys_of(const RowJson& object) {
  constexpr std::size_t kMaxKeys = 8;
  constexpr std::size_t kMaxKeyBytes = 40;
  std::vector<std::string> names;
  for (const auto& item : object.items()) names.push_back(item.key());
  std::sort(names.begin(), names.end());
  std::string list;
  for (std::size_t i = 0; i < std::min(names.size(), kMaxKeys); ++i) {
    if (i > 0) list += ", ";
    const bool fits = names[i].size() <= kMaxKeyBytes;
    list += fits ? names[i] : names[i].substr(0, character_start(names[i], kMaxKeyBytes)) + "…";
  }
  if (names.size() > kMaxKeys) list += ", …";
  return "{" + list + "}";
}

using detail::ChatWriter;
using Messages = detail::Turns;
using Turns = std::variant<std::string, Messages>;

std::string_view kind_of(const Turns& turns) {
  return std::holds_alternative<std::string>(turns) ? "text" : "a list of messages";
}

/// Returns whether a text that begins with `prompt` repeats it, and not by chance: an answer to
/// "No" may well begin with it.
bool repeats(std::string_view text, std::string_view prompt) {
  return detail::is_telling(prompt) && detail::after_prompt(text, prompt).has_value();
}

class RowReader {
 public:
  RowReader(const RowJson& row, std::string_view line, std::string_view where,
            const ChatWriter& chat, const DataOptions& options, const detail::LineReading& reading,
            const detail::RowTrace& trace)
      : row_(row),
        line_(line),
        where_(where),
        chat_(chat),
        reading_(reading),
        trace_(trace),
        options_(options),
        removes_repeats_(options.repeated_prompt == RepeatedPrompt::kRemove) {}

  PreferenceRow read() const {
    PreferenceRow row = read_texts();
    read_columns(row.columns);
    return row;
  }

  /// Returns whether the row was written by a template.
  bool is_rendered() const { return is_rendered_; }

 private:
  PreferenceRow read_texts() const {
    check_weights_have_ids();
    if (has("prompt_ids") || has("chosen_ids") || has("rejected_ids")) return token_row();
    if (has("chosen") || has("rejected")) return preference_row();
    if (has("completion")) return completion_row();
    if (has("messages")) {
      Messages all = messages("messages");
      return with_remarks(detail::whole_conversation_row(std::move(all), rules()));
    }
    if (has("text")) return whole_row(text("text"));
    fail_missing("expected a key 'chosen', 'completion', 'messages' or 'text', got {}",
                 keys_of(row_));
  }

  double number(std::string_view key, Range range) const {
    const RowJson& value = at(key);
    if (value.is_number_float() && !std::isfinite(value.get<double>())) {
      throw detail::LineError(
          detail::LineDefect::kNotANumber,
          fmt::format("{}: expected '{}' free of NaN and Infinity (not a number), got one of them",
                      where_, column(key)));
    }
    const double x = value.is_boolean()  ? static_cast<double>(value.get<bool>())
                     : value.is_number() ? value.get<double>()
                                         : std::numeric_limits<double>::quiet_NaN();
    if (!std::isfinite(x) || !range.contains(x)) {
      fail("expected '{}' to be a number{}, got {}", column(key),
           range.max == 1   ? " in [0, 1]"
           : range.min == 0 ? " of at least 0"
                            : "",
           value.is_primitive() ? detail::shown_json(value)
                                : std::string(detail::json_type_name(value)));
    }
    return x;
  }

  /// Returns whether something reads the column, so that it has to be right.
  bool is_read(Column column) const {
    const std::string_view key = kColumnKeys[static_cast<std::size_t>(column)];
    const auto& layout = reading_.layout;
    if (layout.maps(key)) return true;
    if (column == Column::kMargin &&
        (layout.maps("score_chosen") || layout.maps("score_rejected"))) {
      return true;
    }
    return reading_.needs != nullptr && reading_.needs->has(column);
  }

  /// NaN where the row has none.
  double column_value(Column column) const {
    const std::string key(kColumnKeys[static_cast<std::size_t>(column)]);
    if (!row_.contains(key)) {
      const bool has_scores = has("score_chosen") && has("score_rejected");
      return column == Column::kMargin && has_scores
                 ? number("score_chosen", Range::any()) - number("score_rejected", Range::any())
                 : std::numeric_limits<double>::quiet_NaN();
    }
    const double x = number(key, range_of(column));
    if (column == Column::kLabel && x > 0 && x < 1) {
      fail("expected '{}' to be true, false, 1 or 0, got {}", this->column(key), x);
    }
    if (column == Column::kFromReference && x != 0 && x != 1 && x != 2) {
      fail("expected '{}' to be 0, 1 (chosen) or 2 (rejected), got {}", this->column(key), x);
    }
    return x;
  }

  static Range range_of(Column column) {
    switch (column) {
      case Column::kMargin:
      case Column::kAdvantage:
      case Column::kFromReference:
        return Range::any();
      case Column::kWeight:
        return Range::at_least(0);
      default:
        return Range::between(0, 1);
    }
  }

  /// Columns that nothing reads may hold anything: what is no such number is then no value.
  void read_columns(RowColumns& columns) const {
    for (std::size_t i = 0; i < kColumnKeys.size(); ++i) {
      const auto column = static_cast<Column>(i);
      try {
        columns[column] = column_value(column);
      } catch (const detail::LineError&) {
        if (is_read(column)) throw;
      }
    }
  }

  template <class... Args>
  [[noreturn]] void fail(fmt::format_string<Args...> format, Args&&... args) const {
    throw detail::LineError(
        detail::LineDefect::kMalformed,
        fmt::format("{}: {}", where_, fmt::format(format, std::forward<Args>(args)...)));
  }

  template <class... Args>
  [[noreturn]] void fail_missing(fmt::format_string<Args...> format, Args&&... args) const {
    throw detail::LineError(
        detail::LineDefect::kMissingKey,
        fmt::format("{}: {}", where_, fmt::format(format, std::forward<Args>(args)...)));
  }

  bool has(const char* key) const { return row_.contains(key); }

  /// Returns the name that the file has for a key, for errors.
  std::string_view column(std::string_view key) const { return trace_.column_of(key); }

  /// Returns whether the key has something in it.
  static bool holds_some(const RowJson& object, const char* key) {
    const auto found = object.find(key);
    if (found == object.end() || found->is_null()) return false;
    if (!found->is_string()) return !found->empty();
    const auto& text = found->get_ref<const std::string&>();
    return text.find_first_not_of(" \t\r\n[]{}") != std::string::npos && text != "null";
  }

  const RowJson& at(std::string_view key) const {
    const auto found = row_.find(std::string(key));
    if (found == row_.end()) fail_missing("expected a key '{}', got {}", key, keys_of(row_));
    return *found;
  }

  std::string text(std::string_view key) const {
    const RowJson& value = at(key);
    if (!value.is_string()) {
      fail("expected '{}' to be text, got {}", column(key), detail::json_type_name(value));
    }
    return value.get<std::string>();
  }

  std::string message_field(const RowJson& message, const char* field, std::string_view key) const {
    const auto found = message.find(field);
    if (found == message.end()) {
      fail_missing("expected a key '{}' in each message of '{}', got {}", field, column(key),
                   keys_of(message));
    }
    if (!found->is_string()) {
      fail("expected '{}' in each message of '{}' to be text, got {}", field, column(key),
           detail::json_type_name(*found));
    }
    return found->get<std::string>();
  }

  /// Tool calls need no text next to them.
  std::string content_of(const RowJson& message, std::string_view key) const {
    if (!holds_some(message, "tool_calls") && !holds_some(message, "function_call")) {
      return message_field(message, "content", key);
    }
    calls_tools_ = true;
    const auto found = message.find("content");
    return found == message.end() || found->is_null() ? std::string()
                                                      : message_field(message, "content", key);
  }

  static detail::Turn::ContentKind content_kind_of(const RowJson& message) {
    using Kind = detail::Turn::ContentKind;
    const auto found = message.find("content");
    if (found == message.end()) return Kind::kNone;
    return found->is_null() ? Kind::kNull : Kind::kText;
  }

  /// Returns whether the file leaves the message out of training, as RowLayout::canonical says it.
  static bool is_left_out(const RowJson& message) {
    const auto found = message.find("train");
    return found != message.end() && *found == false;
  }

  Messages messages(std::string_view key) const {
    const RowJson& list = at(key);
    if (!list.is_array()) {
      fail("expected '{}' to be a list of messages, got {}", column(key),
           detail::json_type_name(list));
    }
    if (list.empty()) fail("expected '{}' to hold at least one message, got none", column(key));
    Messages result;
    for (const RowJson& message : list) {
      if (!message.is_object()) {
        fail("expected each message of '{}' to be an object, got {}", column(key),
             detail::json_type_name(message));
      }
      std::string its_role = message_field(message, "role", key);
      result.emplace_back(std::move(its_role), content_of(message, key), !is_left_out(message));
      result.back().content_kind = content_kind_of(message);
      if (reading_.chat_template != nullptr) result.back().fields = fields_of(message);
      reasons_ |= holds_some(message, "reasoning_content");
      const std::string& role = result.back().role;
      if (ChatWriter::is_tool_role(role)) {
        calls_tools_ = true;
        if (reading_.chat_template == nullptr && !chat_.writes_any_role()) {
          throw detail::LineError(
              detail::LineDefect::kToolTurn,
              fmt::format("{}: expected a role that the chat format '{}' has a turn for, got '{}' "
                          "in '{}'",
                          where_, chat_.name(), role, column(key)));
        }
      } else if (!ChatWriter::knows_role(role)) {
        fail("expected a role 'system', 'user' or 'assistant' in '{}', got '{}'", column(key),
             detail::shown_text(result.back().role));
      }
    }
    return result;
  }

  /// Returns what a template may read of a message besides role and content.
  Json fields_of(const RowJson& message) const {
    Json fields = Json::object();
    for (const auto& [key, value] : message.items()) {
      if (key != "role" && key != "content" && key != "train") fields[key] = ordered(value);
    }
    return fields;
  }

  Json ordered(const RowJson& value) const {
    if (value.is_primitive()) return Json(value);
    try {
      if (!ordered_) ordered_.emplace(line_);
      return ordered_->ordered(value);
    } catch (const detail::JsonDefect& defect) {
      fail("expected values that a template can write, got {}", defect.what());
    }
  }

  /// The variables of the row's own for the template; empty where it has none.
  Json template_variables() const {
    if (!has(kTemplateVariables)) return Json::object();
    const RowJson& given = at(kTemplateVariables);
    if (!given.is_object()) {
      fail("expected '{}' to be an object, got {}", kTemplateVariables,
           detail::json_type_name(given));
    }
    for (const auto& [name, value] : given.items()) {
      if (detail::is_given_by_rows(name)) {
        fail("expected '{}' without '{}', which the row itself gives, got it", kTemplateVariables,
             name);
      }
    }
    return ordered(given);
  }

  /// Returns how the messages that were read become text. A named format that is the template's
  /// writes what it can; the template writes the rest.
  detail::ConversationRules rules() const {
    detail::ConversationRules rules{.chat = chat_,
                                    .where = where_,
                                    .loss_on = options_.loss_on,
                                    .removes_repeats = removes_repeats_};
    const bool has_more = calls_tools_ || reasons_ || holds_some(row_, "tools") ||
                          holds_some(row_, kTemplateVariables);
    is_rendered_ =
        reading_.chat_template != nullptr &&
        (options_.chat_format == "auto" || has_more || reading_.chat_template->has_variables());
    if (!is_rendered_) return rules;
    if (holds_some(row_, "tools")) template_row_.tools = ordered(at("tools"));
    template_row_.variables = template_variables();
    rules.chat_template = reading_.chat_template;
    rules.template_row = &template_row_;
    rules.prompt_alone = reading_.prompt_alone;
    return rules;
  }

  Turns turns(std::string_view key) const {
    const RowJson& value = at(key);
    if (value.is_string()) return value.get<std::string>();
    if (value.is_array()) return messages(key);
    fail("expected '{}' to be text or a list of messages, got {}", column(key),
         detail::json_type_name(value));
  }

  std::vector<std::int64_t> ids(std::string_view key) const {
    const RowJson& list = at(key);
    if (!list.is_array()) {
      fail("expected '{}' to be a list of non-negative integers, got {}", key,
           detail::json_type_name(list));
    }
    std::vector<std::int64_t> result;
    result.reserve(list.size());
    for (const RowJson& id : list) {
      // The parser stores a non-negative integer as unsigned, and as a float beyond 64 bits.
      if (!id.is_number_unsigned() || id.get<std::uint64_t>() > INT64_MAX) {
        fail("expected '{}' to be a list of non-negative integers, got {} in it", key,
             id.is_number() ? detail::shown_json(id) : std::string(detail::json_type_name(id)));
      }
      result.push_back(id.get<std::int64_t>());
    }
    return result;
  }

  /// `NAME_token_weights`; empty where the row has none.
  TokenWeights weights(std::string_view name, const std::vector<std::int64_t>& ids) const {
    const std::string key = fmt::format("{}_token_weights", name);
    if (!row_.contains(key)) return {};
    const RowJson& list = at(key);
    const auto is_weight = [](const RowJson& x) { return x.is_number() && x.get<double>() >= 0; };
    if (!list.is_array() || list.size() != ids.size() ||
        !std::all_of(list.begin(), list.end(), is_weight)) {
      fail("expected '{}' to be {} numbers of at least 0, one a token, got {}", key, ids.size(),
           list.is_array() ? detail::shown_json(list) : std::string(detail::json_type_name(list)));
    }
    return list.get<TokenWeights>();
  }

  /// `NAME_token_mask`; empty where the row has none.
  TokenMask mask(std::string_view name, const std::vector<std::int64_t>& ids) const {
    const std::string key = fmt::format("{}_token_mask", name);
    if (!row_.contains(key)) return {};
    const RowJson& list = at(key);
    const auto is_flag = [](const RowJson& x) {
      return x.is_boolean() || (x.is_number() && (x == 0 || x == 1));
    };
    if (!list.is_array() || list.size() != ids.size() ||
        !std::all_of(list.begin(), list.end(), is_flag)) {
      fail("expected '{}' to be {} of 1 or 0, one a token, got {}", key, ids.size(),
           list.is_array() ? detail::shown_json(list) : std::string(detail::json_type_name(list)));
    }
    TokenMask mask;
    for (const RowJson& x : list) mask.push_back(x == 1 || x == true ? 1 : 0);
    return mask;
  }

  /// Only ids say which token a weight or a place in a mask is of.
  void check_weights_have_ids() const {
    for (const char* name : {"chosen", "rejected", "completion", "gold"}) {
      const std::string ids = fmt::format("{}_ids", name);
      for (const char* of_tokens : {"weights", "mask"}) {
        const std::string key = fmt::format("{}_token_{}", name, of_tokens);
        if (row_.contains(key) && !row_.contains(ids)) {
          fail("expected '{}' next to '{}', got {}", key, ids, keys_of(row_));
        }
      }
    }
  }

  PreferenceRow token_row() const {
    PreferenceRow row;
    row.prompt_ids = ids("prompt_ids");
    row.has_rejected = !has("completion_ids");
    row.chosen_ids = ids(row.has_rejected ? "chosen_ids" : "completion_ids");
    if (row.has_rejected) row.rejected_ids = ids("rejected_ids");
    if (has("gold_ids")) row.gold_ids = ids("gold_ids");
    row.chosen_weights = weights(row.has_rejected ? "chosen" : "completion", row.chosen_ids);
    row.rejected_weights = weights("rejected", row.rejected_ids);
    row.gold_weights = weights("gold", row.gold_ids);
    row.chosen_mask = mask(row.has_rejected ? "chosen" : "completion", row.chosen_ids);
    row.rejected_mask = mask("rejected", row.rejected_ids);
    row.gold_mask = mask("gold", row.gold_ids);
    row.tokenized = true;
    return row;
  }

  PreferenceRow preference_row() const {
    const Turns chosen = turns("chosen");
    const Turns rejected = turns("rejected");
    if (chosen.index() != rejected.index()) {
      fail("expected '{}' and '{}' of one kind, got {} and {}", column("chosen"),
           column("rejected"), kind_of(chosen), kind_of(rejected));
    }
    std::optional<Turns> prompt;
    if (has("prompt")) prompt = turns("prompt");
    std::optional<Turns> gold;
    if (has("gold")) gold = turns("gold");
    if (gold && !prompt) {
      fail_missing("expected a key 'prompt' next to 'gold', got {}", keys_of(row_));
    }
    if (gold && gold->index() != chosen.index()) {
      fail("expected '{}' and '{}' of one kind, got {} and {}", column("chosen"), column("gold"),
           kind_of(chosen), kind_of(*gold));
    }

    if (const auto* chosen_text = std::get_if<std::string>(&chosen)) {
      const auto& rejected_text = std::get<std::string>(rejected);
      if (!prompt) return implicit_text(*chosen_text, rejected_text);
      if (!std::holds_alternative<std::string>(*prompt)) {
        fail("expected '{}' to be text where '{}' is, got {}", column("prompt"), column("chosen"),
             kind_of(*prompt));
      }
      PreferenceRow row;
      row.prompt = std::get<std::string>(*prompt);
      row.chosen = *chosen_text;
      row.rejected = rejected_text;
      if (gold) row.gold = std::get<std::string>(*gold);
      // A rejected answer that alone repeats the prompt may be rejected for that.
      if (repeats(row.chosen, row.prompt)) {
        take_once(row, {&row.chosen, &row.rejected, &row.gold});
      }
      return row;
    }
    detail::Conversation talk{.prompt = {},
                              .chosen = std::get<Messages>(chosen),
                              .rejected = std::get<Messages>(rejected)};
    if (prompt && std::holds_alternative<Messages>(*prompt)) {
      talk.prompt = std::get<Messages>(*prompt);
      if (gold) talk.gold = std::get<Messages>(*gold);
    }
    return with_remarks(detail::conversation_row(std::move(talk), rules()));
  }

  /// Removes the prompt from the completions that begin with it, if the options say so.
  void take_once(PreferenceRow& row, std::initializer_list<std::string*> completions) const {
    detail::add_remark(row, RowRemark::kRepeatedPrompt);
    if (!removes_repeats_) return;
    for (std::string* text : completions) {
      if (const auto rest = detail::after_prompt(*text, row.prompt)) *text = std::string(*rest);
    }
  }

  PreferenceRow completion_row() const {
    const Turns prompt = turns("prompt");
    const Turns completion = turns("completion");
    if (prompt.index() != completion.index()) {
      fail("expected '{}' and '{}' of one kind, got {} and {}", column("prompt"),
           column("completion"), kind_of(prompt), kind_of(completion));
    }
    PreferenceRow row;
    if (const auto* list = std::get_if<Messages>(&completion)) {
      row = with_remarks(detail::conversation_row(
          {.prompt = std::get<Messages>(prompt), .chosen = *list}, rules()));
    } else {
      row.prompt = std::get<std::string>(prompt);
      row.chosen = std::get<std::string>(completion);
      if (repeats(row.chosen, row.prompt)) take_once(row, {&row.chosen});
    }
    row.has_rejected = false;
    return row;
  }

  // Language modeling: all of the text is trained on.
  static PreferenceRow whole_row(std::string text) {
    PreferenceRow row;
    row.chosen = std::move(text);
    row.has_rejected = false;
    return row;
  }

  /// Of a template, the text itself tells what it leaves out.
  PreferenceRow with_remarks(PreferenceRow row) const {
    if (is_rendered_) return row;
    if (calls_tools_ || holds_some(row_, "tools")) {
      detail::add_remark(row, RowRemark::kToolCalls);
    }
    if (reasons_) detail::add_remark(row, RowRemark::kReasoning);
    return row;
  }

  static PreferenceRow implicit_text(std::string_view chosen, std::string_view rejected) {
    const std::size_t end = shared_prompt_end(chosen, rejected);
    PreferenceRow row;
    row.prompt = chosen.substr(0, end);
    row.chosen = chosen.substr(end);
    row.rejected = rejected.substr(end);
    if (detail::part_in_question(chosen, rejected)) {
      detail::add_remark(row, RowRemark::kDifferentPrompts);
    }
    return row;
  }

  static std::size_t shared_prompt_end(std::string_view chosen, std::string_view rejected) {
    const std::size_t turn = chosen.rfind(kAssistantTurn);
    if (turn != std::string_view::npos && turn == rejected.rfind(kAssistantTurn)) {
      const std::size_t end = turn + kAssistantTurn.size();
      if (chosen.substr(0, end) == rejected.substr(0, end)) return end;
    }
    const auto apart =
        std::mismatch(chosen.begin(), chosen.end(), rejected.begin(), rejected.end());
    auto end = static_cast<std::size_t>(apart.first - chosen.begin());
    // Where one text begins the other, its last character stays out of the prompt, so that no
    // completion is empty (TRL does the same).
    const std::string_view shorter = chosen.size() <= rejected.size() ? chosen : rejected;
    if (end == shorter.size() && end > 0) --end;
    end = character_start(shorter, end);
    if (end > 0 && chosen[end - 1] == ' ') --end;
    return end;
  }

  static constexpr const char* kTemplateVariables = "chat_template_kwargs";

  const RowJson& row_;
  std::string_view line_;
  std::string_view where_;
  const ChatWriter& chat_;
  const detail::LineReading& reading_;
  const detail::RowTrace& trace_;
  const DataOptions& options_;
  bool removes_repeats_;
  mutable std::optional<detail::OrderedValues> ordered_;
  mutable detail::TemplateRow template_row_;
  mutable bool is_rendered_ = false;
  // Of the messages that were read:
  mutable bool calls_tools_ = false;  ///< one calls tools or is from one
  mutable bool reasons_ = false;      ///< one has reasoning next to its content
};

/// Throws ConfigError where the row lacks something because the type of its column has no JSON: the
/// file is then at fault, not the row.
void check_types(std::string_view json, const detail::LineError& error) {
  constexpr std::string_view kMark = detail::kArrowTypeMark;
  constexpr std::string_view kEnd = "\":null}";
  for (auto at = json.find(kMark); at != std::string_view::npos; at = json.find(kMark, at + 1)) {
    const std::string_view type = json.substr(at + kMark.size());
    const std::size_t end = type.find('"');
    if (!type.substr(std::min(end, type.size())).starts_with(kEnd)) continue;
    if (!std::string_view(error.what()).ends_with(fmt::format(", got {}", type.substr(0, end)))) {
      continue;
    }
    throw ConfigError(fmt::format(
        "{}, a type that is not read; write the column as text or numbers, or name another one in "
        "data.columns",
        error.what()));
  }
}

}  // namespace

std::string format_dialogue(const std::vector<Message>& messages, bool open_assistant_turn) {
  constexpr std::string_view kWhere = "format_dialogue";
  return ChatWriter("dialogue", kWhere).text(messages, open_assistant_turn, kWhere);
}

PreferenceRow detail::parse_line(std::string_view json, std::string_view where,
                                 const DataOptions& options, const LineReading& reading,
                                 RowTrace& trace) {
  if (const std::size_t at = find_invalid_utf8(json); at != std::string_view::npos) {
    throw LineError(LineDefect::kInvalidUtf8,
                    fmt::format("{}: expected UTF-8 text, got the byte 0x{:02x} at offset {}",
                                where, static_cast<unsigned char>(json[at]), at));
  }
  if (const std::size_t at = find_lone_surrogate(json); at != std::string_view::npos) {
    throw LineError(LineDefect::kInvalidUtf8,
                    fmt::format("{}: expected UTF-8 text, got half of a surrogate pair, {}, at "
                                "offset {}",
                                where, json.substr(at, 6), at));
  }
  const ChatWriter chat(options.chat_format, where);
  const RowUse use = reading.prompt_alone        ? RowUse::kPrompt
                     : reading.needs == nullptr  ? RowUse::kAny
                     : reading.needs->unpaired() ? RowUse::kLabelled
                                                 : RowUse::kWhole;
  try {
    const SortedJson row =
        reading.layout.canonical(parse_line_json(json, where), where, use, trace);
    const RowReader reader(row, json, where, chat, options, reading, trace);
    PreferenceRow result = reader.read();
    if (reader.is_rendered()) {
      std::erase_if(trace.unread, [](const UnreadColumn& column) {
        return column.name == "chat_template_kwargs" ||
               column.name.starts_with("chat_template_kwargs.");
      });
    }
    return result;
  } catch (const LineError& error) {
    check_types(json, error);
    throw;
  } catch (const DataError& error) {
    throw LineError(LineDefect::kMalformed, error.what());
  }
}

void detail::check_unread(const std::vector<UnreadColumn>& unread, const DataOptions& options,
                          std::string_view where) {
  if (options.unused == UnusedColumns::kNote) return;
  for (const UnreadColumn& column : unread) {
    if (!column.is_prompt) continue;
    throw DataError(fmt::format(
        "{}: expected every column of a prompt to be read, got '{}', which nothing reads; name "
        "what it is in data.columns, or leave it out with data.unused = 'note'",
        where, shown_text(column.name)));
  }
}

PreferenceRow parse_row(std::string_view json, std::string_view where,
                        std::string_view chat_format) {
  DataOptions options;
  options.chat_format = chat_format;
  const detail::RowLayout layout(options.columns);
  detail::RowTrace trace;
  try {
    PreferenceRow row = detail::parse_line(json, where, options, {.layout = layout}, trace);
    detail::check_unread(trace.unread, options, where);
    return row;
  } catch (const detail::LineError& error) {
    throw DataError(error.what());
  }
}

}  // namespace prefopt
