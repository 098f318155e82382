// SPDX-License-Identifier: Apache-2.0
#include "prefopt/data/records.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <utility>
#include <variant>

#include "core/json.h"
#include "prefopt/error.h"

namespace prefopt {
namespace {

using detail::Json;

constexpr std::string_view kHumanTurn = "\n\nHuman:";
constexpr std::string_view kAssistantTurn = "\n\nAssistant:";

// Offset of the first byte that is no UTF-8, or npos.
std::size_t find_invalid_utf8(std::string_view text) {
  const auto byte = [&](std::size_t at) -> unsigned {
    return at < text.size() ? static_cast<unsigned char>(text[at]) : 0U;
  };
  std::size_t at = 0;
  while (at < text.size()) {
    const unsigned lead = byte(at);
    std::size_t length = 1;
    // Bounds of the second byte: they keep out overlong forms, surrogates and what lies over
    // U+10FFFF.
    unsigned low = 0x80;
    unsigned high = 0xBF;
    if (lead >= 0xC2 && lead <= 0xDF) {
      length = 2;
    } else if (lead >= 0xE0 && lead <= 0xEF) {
      length = 3;
      if (lead == 0xE0) low = 0xA0;
      if (lead == 0xED) high = 0x9F;
    } else if (lead >= 0xF0 && lead <= 0xF4) {
      length = 4;
      if (lead == 0xF0) low = 0x90;
      if (lead == 0xF4) high = 0x8F;
    } else if (lead >= 0x80) {
      return at;
    }
    if (length > 1 && (byte(at + 1) < low || byte(at + 1) > high)) return at;
    for (std::size_t i = 2; i < length; ++i) {
      if ((byte(at + i) & 0xC0) != 0x80) return at;
    }
    at += length;
  }
  return std::string_view::npos;
}

// The start of the character that holds `at`.
std::size_t character_start(std::string_view text, std::size_t at) {
  while (at > 0 && at < text.size() && (static_cast<unsigned char>(text[at]) & 0xC0) == 0x80) --at;
  return at;
}

// What opens a turn; empty for a system message, which stands as plain text. Nothing for a role
// that has no form here.
std::optional<std::string_view> turn_marker(std::string_view role) {
  if (role == "user") return kHumanTurn;
  if (role == "assistant") return kAssistantTurn;
  if (role == "system") return std::string_view();
  return std::nullopt;
}

// Each message adds its own text, so the text of a list's beginning begins the list's text.
std::string dialogue_text(const std::vector<Message>& messages, std::string_view where) {
  std::string text;
  for (std::size_t i = 0; i < messages.size(); ++i) {
    const auto& [role, content] = messages[i];
    const auto marker = turn_marker(role);
    if (!marker) {
      throw DataError(fmt::format("{}: expected a role 'system', 'user' or 'assistant', got '{}'",
                                  where, role));
    }
    if (marker->empty() && i > 0) {
      throw DataError(fmt::format(
          "{}: expected the role 'system' in the first message only, got it in message {}", where,
          i + 1));
    }
    text += *marker;
    // An empty answer stays an empty completion, not one blank.
    if (!marker->empty() && !content.empty()) text += ' ';
    text += content;
  }
  return text;
}

// `{chosen, prompt}`, shortened so that a strange row does not make a strange message.
std::string keys_of(const Json& object) {
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

using Messages = std::vector<Message>;
using Turns = std::variant<std::string, Messages>;

std::string_view kind_of(const Turns& turns) {
  return std::holds_alternative<std::string>(turns) ? "text" : "a list of messages";
}

class RowReader {
 public:
  RowReader(const Json& row, std::string_view where) : row_(row), where_(where) {}

  PreferenceRow read() const {
    if (has("prompt_ids") || has("chosen_ids") || has("rejected_ids")) return token_row();
    if (has("chosen") || has("rejected")) return preference_row();
    if (has("completion")) return completion_row();
    if (has("messages")) return whole_row(dialogue_text(messages("messages"), where_));
    if (has("text")) return whole_row(text("text"));
    fail("expected a key 'chosen', 'completion', 'messages' or 'text', got {}", keys_of(row_));
  }

 private:
  template <class... Args>
  [[noreturn]] void fail(fmt::format_string<Args...> format, Args&&... args) const {
    throw DataError(
        fmt::format("{}: {}", where_, fmt::format(format, std::forward<Args>(args)...)));
  }

  bool has(const char* key) const { return row_.contains(key); }

  const Json& at(std::string_view key) const {
    const auto found = row_.find(std::string(key));
    if (found == row_.end()) fail("expected a key '{}', got {}", key, keys_of(row_));
    return *found;
  }

  std::string text(std::string_view key) const {
    const Json& value = at(key);
    if (!value.is_string()) {
      fail("expected '{}' to be text, got {}", key, detail::json_type_name(value));
    }
    return value.get<std::string>();
  }

  std::string message_field(const Json& message, const char* field, std::string_view key) const {
    const auto found = message.find(field);
    if (found == message.end()) {
      fail("expected a key '{}' in each message of '{}', got {}", field, key, keys_of(message));
    }
    if (!found->is_string()) {
      fail("expected '{}' in each message of '{}' to be text, got {}", field, key,
           detail::json_type_name(*found));
    }
    return found->get<std::string>();
  }

  Messages messages(std::string_view key) const {
    const Json& list = at(key);
    if (!list.is_array()) {
      fail("expected '{}' to be a list of messages, got {}", key, detail::json_type_name(list));
    }
    if (list.empty()) fail("expected '{}' to hold at least one message, got none", key);
    Messages result;
    for (const Json& message : list) {
      if (!message.is_object()) {
        fail("expected each message of '{}' to be an object, got {}", key,
             detail::json_type_name(message));
      }
      result.push_back(
          {message_field(message, "role", key), message_field(message, "content", key)});
      if (!turn_marker(result.back().role)) {
        fail("expected a role 'system', 'user' or 'assistant' in '{}', got '{}'", key,
             result.back().role);
      }
    }
    return result;
  }

  Turns turns(std::string_view key) const {
    const Json& value = at(key);
    if (value.is_string()) return value.get<std::string>();
    if (value.is_array()) return messages(key);
    fail("expected '{}' to be text or a list of messages, got {}", key,
         detail::json_type_name(value));
  }

  std::vector<std::int64_t> ids(std::string_view key) const {
    const Json& list = at(key);
    if (!list.is_array()) {
      fail("expected '{}' to be a list of non-negative integers, got {}", key,
           detail::json_type_name(list));
    }
    std::vector<std::int64_t> result;
    result.reserve(list.size());
    for (const Json& id : list) {
      // The parser stores a non-negative integer as unsigned, and as a float beyond 64 bits.
      if (!id.is_number_unsigned() || id.get<std::uint64_t>() > INT64_MAX) {
        fail("expected '{}' to be a list of non-negative integers, got {} in it", key,
             id.is_number() ? detail::dump_json(id) : std::string(detail::json_type_name(id)));
      }
      result.push_back(id.get<std::int64_t>());
    }
    return result;
  }

  PreferenceRow token_row() const {
    PreferenceRow row;
    row.prompt_ids = ids("prompt_ids");
    row.has_rejected = !has("completion_ids");
    row.chosen_ids = ids(row.has_rejected ? "chosen_ids" : "completion_ids");
    if (row.has_rejected) row.rejected_ids = ids("rejected_ids");
    row.tokenized = true;
    return row;
  }

  PreferenceRow preference_row() const {
    const Turns chosen = turns("chosen");
    const Turns rejected = turns("rejected");
    if (chosen.index() != rejected.index()) {
      fail("expected 'chosen' and 'rejected' of one kind, got {} and {}", kind_of(chosen),
           kind_of(rejected));
    }
    std::optional<Turns> prompt;
    if (has("prompt")) prompt = turns("prompt");

    if (const auto* chosen_text = std::get_if<std::string>(&chosen)) {
      const auto& rejected_text = std::get<std::string>(rejected);
      if (!prompt) return implicit_text(*chosen_text, rejected_text);
      if (!std::holds_alternative<std::string>(*prompt)) {
        fail("expected 'prompt' to be text where 'chosen' is, got {}", kind_of(*prompt));
      }
      PreferenceRow row;
      row.prompt = std::get<std::string>(*prompt);
      row.chosen = *chosen_text;
      row.rejected = rejected_text;
      return row;
    }
    auto chosen_list = std::get<Messages>(chosen);
    auto rejected_list = std::get<Messages>(rejected);
    if (prompt && std::holds_alternative<Messages>(*prompt)) {
      return conversation(std::get<Messages>(*prompt), chosen_list, rejected_list);
    }
    // A prompt in text beside lists repeats what the lists begin with, in TRL's data as well; lists
    // that begin with the answer need it.
    if (prompt && chosen_list.front().role == "assistant") {
      return conversation({{"user", std::get<std::string>(*prompt)}}, chosen_list, rejected_list);
    }
    return implicit_conversation(std::move(chosen_list), std::move(rejected_list));
  }

  PreferenceRow completion_row() const {
    const Turns prompt = turns("prompt");
    const Turns completion = turns("completion");
    if (prompt.index() != completion.index()) {
      fail("expected 'prompt' and 'completion' of one kind, got {} and {}", kind_of(prompt),
           kind_of(completion));
    }
    PreferenceRow row;
    if (const auto* list = std::get_if<Messages>(&completion)) {
      row = conversation(std::get<Messages>(prompt), *list, *list);
      row.rejected.clear();
    } else {
      row.prompt = std::get<std::string>(prompt);
      row.chosen = std::get<std::string>(completion);
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

  static PreferenceRow implicit_text(std::string_view chosen, std::string_view rejected) {
    const std::size_t end = shared_prompt_end(chosen, rejected);
    PreferenceRow row;
    row.prompt = chosen.substr(0, end);
    row.chosen = chosen.substr(end);
    row.rejected = rejected.substr(end);
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

  PreferenceRow implicit_conversation(Messages chosen, Messages rejected) const {
    const auto same = [](const Message& a, const Message& b) {
      return a.role == b.role && a.content == b.content;
    };
    // One message at least is left to complete with.
    const auto limit = static_cast<std::ptrdiff_t>(std::min(chosen.size(), rejected.size())) - 1;
    const auto apart =
        std::mismatch(chosen.begin(), chosen.begin() + limit, rejected.begin(), same);
    const Messages prompt(chosen.begin(), apart.first);
    chosen.erase(chosen.begin(), apart.first);
    rejected.erase(rejected.begin(), apart.second);
    return conversation(prompt, chosen, rejected);
  }

  PreferenceRow conversation(const Messages& prompt, const Messages& chosen,
                             const Messages& rejected) const {
    const auto whole_text = [&](const Messages& completion) {
      Messages all = prompt;
      all.insert(all.end(), completion.begin(), completion.end());
      return dialogue_text(all, where_);
    };
    PreferenceRow row;
    row.prompt = dialogue_text(prompt, where_);
    // Completions that go on with the person's turn differ from there on.
    if (chosen.front().role == "assistant" && rejected.front().role == "assistant") {
      row.prompt += kAssistantTurn;
    }
    row.chosen = whole_text(chosen).substr(row.prompt.size());
    row.rejected = whole_text(rejected).substr(row.prompt.size());
    return row;
  }

  const Json& row_;
  std::string_view where_;
};

}  // namespace

std::string format_dialogue(const std::vector<Message>& messages, bool open_assistant_turn) {
  std::string text = dialogue_text(messages, "format_dialogue");
  if (open_assistant_turn) text += kAssistantTurn;
  return text;
}

PreferenceRow parse_row(std::string_view json, std::string_view where) {
  if (const std::size_t at = find_invalid_utf8(json); at != std::string_view::npos) {
    throw DataError(fmt::format("{}: expected UTF-8 text, got the byte 0x{:02x} at offset {}",
                                where, static_cast<unsigned char>(json[at]), at));
  }
  const Json row = detail::parse_json<DataError>(json, where);
  if (!row.is_object()) {
    throw DataError(
        fmt::format("{}: expected an object, got {}", where, detail::json_type_name(row)));
  }
  return RowReader(row, where).read();
}

}  // namespace prefopt
