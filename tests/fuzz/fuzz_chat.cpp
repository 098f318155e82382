// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "data/row_words.h"
#include "fuzz/targets.h"
#include "fuzz/verdict.h"
#include "prefopt/data/chat.h"
#include "prefopt/data/records.h"

namespace prefopt::fuzz {
namespace {

using nlohmann::json;

constexpr std::string_view kRowPlace = "rows:1";

// A line is a message, and its first byte the role.
std::vector<Message> messages_of(std::string_view bytes) {
  std::vector<Message> messages;
  while (!bytes.empty()) {
    const std::string_view line = bytes.substr(0, bytes.find('\n'));
    bytes.remove_prefix(std::min(line.size() + 1, bytes.size()));
    const char role = line.empty() ? 'u' : line.front();
    messages.push_back({.role = role == 's'   ? "system"
                                : role == 'a' ? "assistant"
                                : role == '?' ? std::string(line)
                                              : "user",
                        .content = std::string(line.substr(line.empty() ? 0 : 1))});
  }
  return messages;
}

json to_json(const std::vector<Message>& messages) {
  json list = json::array();
  for (const Message& message : messages) {
    list.push_back({{"role", message.role}, {"content", message.content}});
  }
  return list;
}

// The conversation of a row: an answer after an answer continues it, or repeats its beginning.
std::vector<Message> conversation_of(std::vector<Message> messages) {
  const Message last = messages.back();
  Message& before = messages[messages.size() - 2];
  if (before.role != "assistant" || last.role != "assistant") return messages;
  const bool repeats = !before.content.empty() && last.content.starts_with(before.content);
  before.content = repeats ? last.content : before.content + last.content;
  messages.pop_back();
  return messages;
}

// A row is cut from the text that the format makes of the whole conversation.
void check_row(std::string_view format, const std::vector<Message>& messages) {
  const json last = to_json({messages.back()});
  const json row = {{"prompt", to_json({messages.begin(), messages.end() - 1})},
                    {"chosen", last},
                    {"rejected", last}};
  const std::string text = row.dump(-1, ' ', /*ensure_ascii=*/false, json::error_handler_t::ignore);
  accepts(kRowPlace, [&] {
    const PreferenceRow read = parse_row(text, kRowPlace, format);
    expect(read.chosen == read.rejected, "equal messages that became different texts");
    const std::string whole = format_chat(format, conversation_of(messages), false);
    // A blank answer leaves its prompt the white space that a format trims off the whole turn.
    const bool is_blank = detail::stripped(messages.back().content).empty();
    expect(whole.starts_with(read.prompt + read.chosen) ||
               (is_blank &&
                whole.starts_with(std::string(detail::stripped_after(read.prompt)) + read.chosen)),
           "a row that is not the text of its conversation");
  });
}

bool is_utf8(const std::vector<Message>& messages) {
  try {
    static_cast<void>(to_json(messages).dump());
    return true;
  } catch (const json::exception&) {
    return false;
  }
}

}  // namespace

void read_chat(std::string_view bytes) {
  const std::vector<Message> messages = messages_of(bytes);
  for (const std::string_view format : chat_format_names()) {
    accepts("format_chat", [&] {
      const std::string text = format_chat(format, messages, false);
      expect(format_chat(format, messages, true).starts_with(text),
             "an opened turn that changed those before it");
    });
    accepts(kRowPlace, [&] { parse_row(bytes, kRowPlace, format); });
    if (messages.size() > 1 && is_utf8(messages)) check_row(format, messages);
  }
  accepts("template", [&] { recognize_chat_format(bytes, "template"); });
}

}  // namespace prefopt::fuzz
