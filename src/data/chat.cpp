// SPDX-License-Identifier: Apache-2.0
#include "prefopt/data/chat.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <array>

#include "core/hash.h"
#include "core/text.h"
#include "data/chat_template.h"
#include "data/chat_writer.h"
#include "data/defect_line.h"
#include "data/row_words.h"
#include "data/template_text.h"
#include "prefopt/error.h"

namespace prefopt {

/// The text that opens a turn of each role, the one that ends all of them, and special rules.
struct detail::ChatDefinition {
  std::string_view name;
  std::string_view system, user, assistant;
  std::string_view end_of_turn = "";
  std::string_view between_turns = "";
  std::string_view begin = "";           ///< of the whole text
  std::string_view default_system = "";  ///< where a conversation begins with no system message
  std::string_view before_content = "";  ///< where the content is not empty
  bool trimmed = false;                  ///< white space around the content is left out
  bool system_first_only = false;
  bool has_system_turn = true;
  std::string_view before_role = "";  ///< not empty: any role's turn opens so, with its name
  std::string_view after_role = "";
};

namespace {

using detail::ChatDefinition;
using detail::ChatWriter;

constexpr ChatDefinition kChatMl{.name = "chatml",
                                 .system = "<|im_start|>system\n",
                                 .user = "<|im_start|>user\n",
                                 .assistant = "<|im_start|>assistant\n",
                                 .end_of_turn = "<|im_end|>",
                                 .between_turns = "\n",
                                 .before_role = "<|im_start|>",
                                 .after_role = "\n"};

// Its template has texts for tools, which are not written here.
constexpr ChatDefinition without_other_roles(ChatDefinition definition) {
  definition.before_role = "";
  return definition;
}

constexpr ChatDefinition chat_ml(std::string_view name, std::string_view default_system) {
  ChatDefinition definition = kChatMl;
  definition.name = name;
  definition.default_system = default_system;
  return definition;
}

constexpr std::array<ChatDefinition, 9> kDefinitions{
    kChatMl,
    chat_ml("smollm2", "You are a helpful AI assistant named SmolLM, trained by Hugging Face"),
    chat_ml("qwen2", "You are a helpful assistant."),
    without_other_roles(
        chat_ml("qwen2.5", "You are Qwen, created by Alibaba Cloud. You are a helpful assistant.")),
    ChatDefinition{.name = "llama3",
                   .system = "<|start_header_id|>system<|end_header_id|>\n\n",
                   .user = "<|start_header_id|>user<|end_header_id|>\n\n",
                   .assistant = "<|start_header_id|>assistant<|end_header_id|>\n\n",
                   .end_of_turn = "<|eot_id|>",
                   .begin = "<|begin_of_text|>",
                   .trimmed = true,
                   .before_role = "<|start_header_id|>",
                   .after_role = "<|end_header_id|>\n\n"},
    ChatDefinition{.name = "zephyr",
                   .system = "<|system|>\n",
                   .user = "<|user|>\n",
                   .assistant = "<|assistant|>\n",
                   .end_of_turn = "</s>",
                   .between_turns = "\n"},
    ChatDefinition{.name = "alpaca",
                   .system = "",
                   .user = "### Instruction:\n",
                   .assistant = "### Response:",
                   .between_turns = "\n\n",
                   .default_system = "Below is an instruction that describes a task. Write a "
                                     "response that appropriately completes the request."},
    ChatDefinition{
        .name = "plain", .system = "", .user = "", .assistant = "", .between_turns = "\n\n"},
    // An empty answer stays an empty completion, not one blank.
    ChatDefinition{.name = "dialogue",
                   .system = "",
                   .user = "\n\nHuman:",
                   .assistant = "\n\nAssistant:",
                   .before_content = " ",
                   .system_first_only = true,
                   .has_system_turn = false},
};

struct KnownTemplate {
  std::string_view hash;  ///< ContentHash of canonical_template
  std::string_view format;
};

constexpr std::array<KnownTemplate, 6> kTemplates{{
    {"02fabba22d006f97b232972e8c091ac217ac7d82", "chatml"},
    {"fa7c3726649634ac28d40b990f63586f738f56f8", "smollm2"},
    {"96ffbd637d045b102d0bad8dcb78cc078a5ab4e1", "qwen2"},
    {"05fd1fac7ce665515685f035dc912ad26c77b94b", "qwen2.5"},
    {"70d8edb1abea0aaa76a9d19683ec4e6a939d9d04", "llama3"},
    {"37c46b5e2ed2364657137e69ec370cb0db9ec997", "zephyr"},
}};

constexpr std::string_view kAutomatic = "auto";
// hh-rlhf's, for a tokenizer that has no template.
constexpr std::string_view kWithoutTemplate = "dialogue";

bool is_blank(std::string_view text) {
  return text.find_last_not_of(" \t\r\n") == std::string_view::npos;
}

bool contains_text(std::string_view text, std::string_view part) {
  return text.find(part) != std::string_view::npos;
}

const ChatDefinition& definition_of(std::string_view format, std::string_view where) {
  for (const ChatDefinition& definition : kDefinitions) {
    if (definition.name == format) return definition;
  }
  const auto names = chat_format_names();
  throw ConfigError(fmt::format("{}: expected a chat format among {}, got '{}'{}", where,
                                fmt::join(names, ", "), format,
                                detail::did_you_mean(format, names)));
}

}  // namespace

namespace detail {

ChatWriter::ChatWriter(std::string_view format, std::string_view where)
    : definition_(format == kAutomatic ? nullptr : &definition_of(format, where)), where_(where) {}

const ChatDefinition& ChatWriter::definition() const {
  if (definition_ != nullptr) return *definition_;
  throw ConfigError(fmt::format(
      "{}: expected a chat format for messages, got 'auto' and a chat template that is not one of "
      "those known here; set chat_format to one of {}",
      where_, fmt::join(chat_format_names(), ", ")));
}

bool ChatWriter::knows_role(std::string_view role) {
  return role == "system" || role == "user" || role == "assistant";
}

bool ChatWriter::is_tool_role(std::string_view role) {
  return role == "tool" || role == "function" || role == "ipython";
}

std::string_view ChatWriter::name() const { return definition().name; }
bool ChatWriter::writes_any_role() const { return !definition().before_role.empty(); }
bool ChatWriter::has_system_turn() const { return definition().has_system_turn; }

std::string ChatWriter::opening(const Message& first) const {
  std::string text(definition().begin);
  if (first.role != "system" && !definition().default_system.empty()) {
    const Message system{.role = "system", .content = std::string(definition().default_system)};
    text += opening_of(system.role) + body(system);
  }
  return text;
}

std::string ChatWriter::opening_of(std::string_view role) const {
  if (!knows_role(role)) {
    return std::string(definition().before_role).append(role).append(definition().after_role);
  }
  return std::string(role == "system" ? definition().system
                     : role == "user" ? definition().user
                                      : definition().assistant);
}

std::string_view ChatWriter::content(const Message& message) const {
  return definition().trimmed ? stripped(message.content) : std::string_view(message.content);
}

std::string_view ChatWriter::begun_content(const Message& message) const {
  const bool trims = definition().trimmed;
  return trims ? stripped_before(message.content) : std::string_view(message.content);
}

std::string_view ChatWriter::continued_content(const Message& begun, const Message& message) const {
  if (begun_content(begun).empty()) return content(message);
  const bool trims = definition().trimmed;
  return trims ? stripped_after(message.content) : std::string_view(message.content);
}

std::string_view ChatWriter::before_content(const Message& message) const {
  const bool has_one = message.role != "system" && !content(message).empty();
  return has_one ? definition().before_content : std::string_view();
}

std::string ChatWriter::body(const Message& message) const {
  return std::string(before_content(message))
      .append(content(message))
      .append(definition().end_of_turn)
      .append(definition().between_turns);
}

std::string_view ChatWriter::between_turns() const { return definition().between_turns; }
std::string_view ChatWriter::end_of_turn() const { return definition().end_of_turn; }

void ChatWriter::check_later_system(std::size_t place, std::string_view where) const {
  if (!definition().system_first_only) return;
  throw DataError(
      fmt::format("{}: expected the role 'system' in the first message only, got it in message {}",
                  where, place + 1));
}

std::string ChatWriter::text(const std::vector<Message>& messages, bool open_assistant_turn,
                             std::string_view where) const {
  for (const Message& message : messages) {
    if (!knows_role(message.role)) {
      throw DataError(fmt::format("{}: expected a role 'system', 'user' or 'assistant', got '{}'",
                                  where, message.role));
    }
  }
  check_system(messages, where);
  std::string text = messages.empty() ? "" : opening(messages.front());
  for (const Message& message : messages) text += opening_of(message.role) + body(message);
  if (open_assistant_turn) text += opening_of("assistant");
  return text;
}

bool is_dialogue(std::string_view text) {
  return std::any_of(kDefinitions.begin(), kDefinitions.end(), [&](const ChatDefinition& known) {
    return !known.user.empty() && contains_text(text, stripped(known.user)) &&
           contains_text(text, stripped(known.assistant));
  });
}

bool part_in_question(std::string_view a, std::string_view b) {
  const auto apart = std::mismatch(a.begin(), a.end(), b.begin(), b.end());
  const std::string_view shared = a.substr(0, static_cast<std::size_t>(apart.first - a.begin()));
  for (const ChatDefinition& definition : kDefinitions) {
    const std::string_view answer = stripped(definition.assistant);
    if (answer.empty() || !contains_text(a, answer) || !contains_text(b, answer)) continue;
    const std::size_t answered = shared.rfind(answer);
    const std::size_t asked = shared.rfind(stripped(definition.user));
    return answered == std::string_view::npos ||
           (asked != std::string_view::npos && asked > answered);
  }
  return false;
}

std::vector<std::string_view> ends_of_turns() {
  std::vector<std::string_view> ends;
  for (const ChatDefinition& definition : kDefinitions) {
    const std::string_view end = definition.end_of_turn;
    if (!end.empty() && std::find(ends.begin(), ends.end(), end) == ends.end()) ends.push_back(end);
  }
  return ends;
}

}  // namespace detail

std::vector<std::string_view> chat_format_names() {
  std::vector<std::string_view> names;
  for (const ChatDefinition& definition : kDefinitions) names.push_back(definition.name);
  return names;
}

std::string format_chat(std::string_view format, const std::vector<Message>& messages,
                        bool open_assistant_turn) {
  return ChatWriter(format, "format_chat").text(messages, open_assistant_turn, "format_chat");
}

std::string chat_end_of_turn(std::string_view format) {
  return std::string(ChatWriter(format, "chat_end_of_turn").end_of_turn());
}

std::string recognize_chat_format(std::string_view chat_template, std::string_view where) {
  const std::size_t end = chat_template.find_last_not_of(" \t\r\n");
  if (is_blank(chat_template)) {
    throw ConfigError(fmt::format(
        "{}: expected a chat template to tell the chat format by, got none; name one of {}", where,
        fmt::join(chat_format_names(), ", ")));
  }
  const auto hash_of_text = [](std::string_view text) {
    detail::ContentHash hash;
    hash.update(text);
    return hash.hex();
  };
  const std::string canonical = hash_of_text(detail::canonical_template(chat_template));
  for (const KnownTemplate& known : kTemplates) {
    if (known.hash == canonical) return std::string(known.format);
  }
  const std::string text = hash_of_text(chat_template.substr(0, end + 1));
  throw ConfigError(
      fmt::format("{}: expected the chat template of a known format, got another one (SHA-1 {}); "
                  "name one of {}",
                  where, text, fmt::join(chat_format_names(), ", ")));
}

std::string resolve_chat_format(std::string_view format, const Tokenizer& tokenizer) {
  if (format != kAutomatic) return std::string(definition_of(format, "chat_format").name);
  const std::string where = fmt::format("chat_format 'auto' of '{}'", tokenizer.name());
  if (const std::string remembered = tokenizer.chat_format(); !remembered.empty()) {
    return std::string(definition_of(remembered, where).name);
  }
  const std::string chat_template = tokenizer.chat_template();
  if (is_blank(chat_template)) return std::string(kWithoutTemplate);
  return recognize_chat_format(chat_template, where);
}

std::vector<std::int64_t> chat_end_ids(std::string_view format, const Tokenizer& tokenizer) {
  const std::string known = detail::chat_format_for_rows(format, tokenizer);
  try {
    const std::string end = known == kAutomatic ? detail::ChatTemplate(tokenizer).end_of_turn()
                                                : chat_end_of_turn(known);
    if (end.empty()) return {};
    std::vector<std::int64_t> ids = tokenizer.encode(end);
    // A text of several tokens ends nothing; rows of messages are refused then.
    if (ids.size() == 1) return ids;
  } catch (const ConfigError&) {  // a model of ids without a tokenizer
  }
  return {};
}

std::string detail::chat_format_for_rows(std::string_view format, const Tokenizer& tokenizer) {
  const bool asks_template = format == kAutomatic && tokenizer.chat_format().empty();
  try {
    return resolve_chat_format(format, tokenizer);
  } catch (const ConfigError&) {
    if (asks_template) return std::string(kAutomatic);
    throw;
  }
}

std::string detail::chat_format_note(std::string_view asked, const Tokenizer& tokenizer,
                                     std::int64_t rows) {
  const bool named = asked != kAutomatic || !tokenizer.chat_format().empty() ||
                     !is_blank(tokenizer.chat_template());
  if (rows == 0 || named) return "";
  return fmt::format(
      "{} of messages in the chat format '{}', as the tokenizer '{}' has no chat template; "
      "chat_format names another",
      counted(rows, "row"), kWithoutTemplate, tokenizer.name());
}

}  // namespace prefopt
