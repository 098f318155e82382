// SPDX-License-Identifier: Apache-2.0
#include "data/row_layout.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <optional>
#include <set>

#include "core/json_text.h"
#include "core/text.h"
#include "data/chat_writer.h"
#include "data/line_error.h"
#include "data/row_words.h"
#include "prefopt/error.h"

namespace prefopt::detail {
namespace {

using RowJson = SortedJson;

constexpr std::array<std::string_view, 21> kColumnFields{
    "prompt",           "system",         "instruction", "input",  "question",
    "history",          "chosen",         "rejected",    "gold",   "completion",
    "messages",         "text",           "label",       "margin", "weight",
    "score_chosen",     "score_rejected", "label_prob",  "tools",  "chosen_win_rate",
    "rejected_win_rate"};

/// Fields whose column a row has to have once the mapping names it: without it, the row would be
/// read as one of another layout.
constexpr std::array<std::string_view, 8> kNeededFields{
    "prompt", "instruction", "question", "chosen", "rejected", "completion", "messages", "text"};

constexpr std::array<std::string_view, 7> kPromptFields{
    "prompt", "system", "instruction", "input", "question", "history", "tools"};

constexpr std::array<std::string_view, 8> kNumberFields{
    "label",          "margin",     "weight",          "score_chosen",
    "score_rejected", "label_prob", "chosen_win_rate", "rejected_win_rate"};

constexpr std::array<std::pair<std::string_view, std::string_view>, 4> kRoleFields{
    {{"user", "user"},
     {"assistant", "assistant"},
     {"system_role", "system"},
     {"tool_role", "tool"}}};

/// In lower case.
constexpr std::array<std::pair<std::string_view, std::string_view>, 18> kKnownRoles{
    {{"system", "system"},
     {"developer", "system"},
     {"user", "user"},
     {"human", "user"},
     {"prompter", "user"},
     {"assistant", "assistant"},
     {"gpt", "assistant"},
     {"chatgpt", "assistant"},
     {"bot", "assistant"},
     {"model", "assistant"},
     {"ai", "assistant"},
     {"chatbot", "assistant"},
     {"tool", "tool"},
     {"observation", "tool"},
     {"function_response", "tool"},
     {"function", "tool"},
     {"ipython", "tool"},
     {"tool_response", "tool"}}};

/// Columns that hold a part of what a model is asked, by their names.
constexpr std::array<std::string_view, 42> kPromptColumns{
    "prompt",      "prompts",       "system",       "system_prompt", "system_message",
    "instruction", "input",         "instructions", "inputs",        "question",
    "questions",   "query",         "problem",      "context",       "contexts",
    "history",     "passage",       "passages",     "passage_text",  "document",
    "documents",   "document_text", "article",      "articles",      "article_text",
    "post",        "body",          "dialogue",     "dialog",        "transcript",
    "tools",       "functions",     "user_message", "image",         "images",
    "video",       "videos",        "audio",        "audios",        "function_call",
    "tool_calls",  "background"};

/// Columns that hold an answer, by their names.
constexpr std::array<std::string_view, 14> kAnswerColumns{
    "output",      "outputs", "response",          "responses", "answer",   "answers", "completion",
    "completions", "target",  "rejected_response", "reply",     "solution", "chosen",  "assistant"};

/// Keys of a message that are read, or that say nothing of its text.
constexpr std::array<std::string_view, 8> kMessageKeys{
    "role", "content", "tool_calls", "tool_call_id", "name", "function_call", "weight", "id"};

/// Keys of a message with what was thought before its content was said.
constexpr std::array<std::string_view, 5> kReasoningKeys{"reasoning_content", "reasoning",
                                                         "thinking", "thought", "thoughts"};

// Where the prompt of a row may come from.
constexpr unsigned kFromPrompt = 1, kFromQuestion = 2, kFromInstruction = 4, kFromInput = 8,
                   kFromTurns = 16, kFromContext = 32, kFromPost = 64, kFromAnywhere = 127;
// The columns that may answer it.
constexpr unsigned kPairOfAnswers = 1, kPreferredOutput = 2, kResponses = 4, kHumanRefs = 8,
                   kRanked = 16, kOneCompletion = 32, kOneOutput = 64, kWholeTurns = 128,
                   kWholeText = 256, kReplacedAnswer = 512, kAnyAnswers = 1023;
constexpr unsigned kPairLayouts =
    kPairOfAnswers | kPreferredOutput | kResponses | kHumanRefs | kRanked | kReplacedAnswer;

struct Preset {
  std::string_view name;
  unsigned sources, answers;
  std::string_view columns;
};

constexpr std::array<Preset, 8> kPresets{{
    {"orca", kFromQuestion, kPairOfAnswers | kOneOutput | kOneCompletion,
     "question, and chosen and rejected or response"},
    {"alpaca", kFromInstruction, kPairOfAnswers | kOneOutput,
     "instruction or input, and output or chosen and rejected"},
    {"sharegpt", kFromTurns, kPairOfAnswers | kReplacedAnswer | kWholeTurns,
     "conversations, for pairs with chosen and rejected"},
    {"openai", kFromInput, kPreferredOutput | kWholeTurns,
     "input.messages, preferred_output and non_preferred_output, or messages"},
    {"pku", kFromPrompt, kResponses, "prompt, response_0, response_1 and better_response_id"},
    {"shp", kFromPost, kHumanRefs, "history, human_ref_A, human_ref_B and labels"},
    {"ultrafeedback", kFromPrompt, kPairOfAnswers | kWholeTurns,
     "prompt, chosen and rejected, or messages"},
    {"completions", kFromContext | kFromPrompt, kRanked, "context and completions"},
}};

std::string_view answers_text(unsigned answers) {
  switch (answers) {
    case kPairOfAnswers:
      return "'chosen' and 'rejected'";
    case kPreferredOutput:
      return "'preferred_output' and 'non_preferred_output' (openai)";
    case kResponses:
      return "'response_0', 'response_1' and 'better_response_id' (pku)";
    case kHumanRefs:
      return "'human_ref_A', 'human_ref_B' and 'labels' (shp)";
    case kRanked:
      return "'completions' with ranks (completions)";
    case kOneCompletion:
      return "'completion'";
    case kOneOutput:
      return "an instruction or question with its answer (alpaca, orca)";
    case kReplacedAnswer:
      return "'rejected_response' beside another answer (ms-swift)";
    case kWholeTurns:
      return "a whole conversation (messages, sharegpt)";
    default:
      return "'text'";
  }
}

template <class Names>
bool is_among(const Names& names, std::string_view name) {
  return std::find(std::begin(names), std::end(names), name) != std::end(names);
}

bool is_blank_text(const RowJson& value) {
  return value.is_string() && stripped(value.get_ref<const std::string&>()).empty();
}

bool is_non_finite(const RowJson& value) {
  return value.is_number_float() && !std::isfinite(value.get<double>());
}

bool holds_non_finite(const RowJson& value) {
  return is_non_finite(value) ||
         (value.is_structured() && std::any_of(value.begin(), value.end(), holds_non_finite));
}

bool holds_text(const RowJson& value) {
  if (value.is_string()) return !is_blank_text(value);
  return value.is_structured() && std::any_of(value.begin(), value.end(), holds_text);
}

std::string lower_case(std::string_view name) {
  std::string text(name);
  for (char& c : text) {
    if (c >= 'A' && c <= 'Z') c = static_cast<char>(c - 'A' + 'a');
  }
  return text;
}

void erase_nulls(RowJson& object) {
  for (auto item = object.begin(); item != object.end();) {
    item = item->is_null() ? object.erase(item) : std::next(item);
  }
}

RowJson message_of(std::string_view role, std::string_view content) {
  return {{"role", role}, {"content", content}};
}

std::string_view text_at(const RowJson& message, const char* key) {
  if (!message.is_object()) return {};
  const auto value = message.find(key);
  return value != message.end() && value->is_string()
             ? std::string_view(value->get_ref<const std::string&>())
             : std::string_view();
}

std::string_view role_at(const RowJson& list, bool last) {
  if (!list.is_array() || list.empty()) return {};
  return text_at(last ? list.back() : list.front(), "role");
}

std::string_view content_of(const RowJson& message) {
  return stripped(text_at(message, "content"));
}

bool asks_first(const RowJson& list) {
  const std::string_view role = role_at(list, /*last=*/false);
  return role == "system" || role == "user";
}

bool is_prompt_column(std::string_view key) {
  const std::string name = lower_case(key);
  return is_among(kPromptColumns, name) || name.ends_with("_prompt");
}

/// Whether `text`, a prompt that was given twice, is in the turns before the answer: as one of
/// them, as a part of one, or as all of them written out with nothing else.
bool is_repeated(std::string_view text, const RowJson& list) {
  text = stripped(text);
  std::string rest(text);
  bool holds_all = true;
  for (const RowJson& message : list) {
    const std::string_view content = content_of(message);
    const bool is_asked = text_at(message, "role") != "assistant";
    if (is_asked && content == text) return true;
    if (is_asked && 2 * text.size() >= content.size() &&
        find_apart(content, text) != std::string_view::npos) {
      return true;
    }
    const std::size_t place = find_apart(rest, content);
    if (place != std::string_view::npos) {
      rest.replace(place, content.size(), "\n");
    } else {
      holds_all &= !is_asked;
    }
  }
  return holds_all && is_of_labels(rest);
}

/// One row on its way to the canonical keys.
class RowForm {
 public:
  RowForm(const RowLayout& layout, RowJson row, std::string_view where, RowUse use, RowTrace& trace)
      : layout_(layout), row_(std::move(row)), where_(where), use_(use), trace_(trace) {
    const auto preset = std::find_if(kPresets.begin(), kPresets.end(), [&](const Preset& known) {
      return known.name == layout.preset();
    });
    if (preset != kPresets.end()) preset_ = &*preset;
  }

  RowJson canonical() && {
    erase_nulls(row_);
    find_mapped();
    find_nested();
    if (is_of_tokens()) return std::move(*this).finished(/*is_of_tokens=*/true);
    const unsigned answers = find_answers();
    read(answers);
    for (const auto& [key, value] : out_.items()) check_finite(key, value);
    return std::move(*this).finished(/*is_of_tokens=*/false);
  }

 private:
  struct Found {
    std::string path;
    const RowJson* value = nullptr;
    explicit operator bool() const { return value != nullptr; }
  };

  /// The prompt as one or several columns give it.
  struct Source {
    std::vector<std::string> paths;
    RowJson value;          ///< text, or a list of messages
    bool is_plain = false;  ///< a text that is no turn of a conversation
    bool is_talk = false;   ///< a conversation that may be there for another purpose
  };

  struct Answer {
    std::string key, path;
    RowJson value;
  };

  template <class... Args>
  [[noreturn]] void fail(LineDefect defect, fmt::format_string<Args...> format,
                         Args&&... args) const {
    throw LineError(
        defect, fmt::format("{}: {}", where_, fmt::format(format, std::forward<Args>(args)...)));
  }

  void check_finite(std::string_view name, const RowJson& value) const {
    if (!holds_non_finite(value)) return;
    fail(LineDefect::kNotANumber,
         "expected '{}' free of NaN and Infinity (not a number), got one of them", name);
  }

  // --- Columns of fields

  Found at_path(const std::string& path) const {
    if (const auto found = row_.find(path); found != row_.end()) return {path, &*found};
    const RowJson* value = &row_;
    for (std::size_t begin = 0; begin <= path.size();) {
      const std::size_t end = std::min(path.find('.', begin), path.size());
      if (!value->is_object()) return {};
      const auto found = value->find(path.substr(begin, end - begin));
      if (found == value->end() || found->is_null()) return {};
      value = &*found;
      begin = end + 1;
    }
    return {path, value};
  }

  void find_mapped() {
    const auto& mapping = layout_.mapping();
    std::string missing;
    for (std::size_t i = 0; i < mapping.size(); ++i) {
      const auto& [field, path] = mapping[i];
      const Found found = at_path(path);
      mapped_[field] = found;
      if (found) {
        trace_.found |= std::uint64_t{1} << i;
        taken_.insert(path);
        if (is_among(kPromptFields, field)) doubtful_.insert(path);
      } else if (missing.empty() && is_among(kNeededFields, field)) {
        missing = fmt::format("expected the column '{}' of data.columns.{}", path, field);
      }
    }
    if (!missing.empty() && use_ != RowUse::kPrompt) {
      fail(LineDefect::kMissingKey, "{}, got a row without it", missing);
    }
  }

  /// A pair in an object of its own, the only one of the row.
  void find_nested() {
    if (preset_ != nullptr || !layout_.mapping().empty() || row_.contains("chosen") ||
        row_.contains("rejected")) {
      return;
    }
    std::string pair;
    for (const auto& [key, value] : row_.items()) {
      if (!value.is_object() || !value.contains("chosen") || !value.contains("rejected")) continue;
      if (!pair.empty()) {
        fail(LineDefect::kMalformed,
             "expected one column with 'chosen' and 'rejected', got '{}' and '{}'; name one in "
             "data.columns",
             pair, key);
      }
      pair = key;
    }
    if (pair.empty()) return;
    for (const char* field : {"chosen", "rejected", "gold", "prompt", "question", "system"}) {
      const Found found = at_path(pair + "." + field);
      if (found && !row_.contains(field)) mapped_[field] = found;
    }
  }

  /// The column of a field: the one of the mapping, else the first of these names.
  Found find(std::string_view field, std::initializer_list<const char*> names) const {
    if (const auto mapped = mapped_.find(field); mapped != mapped_.end()) return mapped->second;
    for (const char* name : names) {
      const auto found = row_.find(name);
      if (found != row_.end() && !taken_.contains(name)) return {name, &*found};
    }
    return {};
  }
  Found find(const char* name) const { return find(name, {name}); }

  /// A column that no field names.
  Found foreign(const char* name) const {
    const auto found = row_.find(name);
    return found == row_.end() || taken_.contains(name) ? Found{} : Found{name, &*found};
  }

  const RowJson& needed(const char* name) {
    const Found found = foreign(name);
    if (!found) fail(LineDefect::kMissingKey, "expected a key '{}', got a row without it", name);
    used_.insert(found.path);
    return *found.value;
  }

  bool maps_any(std::initializer_list<std::string_view> fields) const {
    return std::any_of(fields.begin(), fields.end(),
                       [&](std::string_view field) { return layout_.maps(field); });
  }

  std::string text_of(const Found& found) const {
    check_finite(found.path, *found.value);
    if (!found.value->is_string()) {
      fail(LineDefect::kMalformed, "expected '{}' to be text, got {}", found.path,
           json_type_name(*found.value));
    }
    return found.value->get<std::string>();
  }

  // --- Messages

  std::string joined_parts(const RowJson& parts, const std::string& path) const {
    std::string text;
    for (const RowJson& part : parts.is_object() ? RowJson::array({parts}) : parts) {
      if (part.is_string()) {
        text += part.get<std::string>();
        continue;
      }
      if (!part.is_object()) {
        fail(LineDefect::kMalformed,
             "expected the parts of a content in '{}' to be objects, got {}", path,
             json_type_name(part));
      }
      const std::string type = part.value("type", RowJson()).is_string()
                                   ? part["type"].get<std::string>()
                                   : std::string("text");
      const bool is_text = type == "text" || type == "input_text" || type == "output_text";
      const auto found = part.find("text");
      if (!is_text || found == part.end() || !found->is_string()) {
        fail(LineDefect::kMalformed,
             "expected the parts of a content in '{}' to be text, got one of the type '{}'", path,
             shown_text(type));
      }
      text += found->get<std::string>();
    }
    return text;
  }

  /// {"name": …, "arguments": …} as text, or a list of such, of a turn that calls functions.
  RowJson called_functions(const std::string& text, const std::string& path) const {
    RowJson calls;
    try {
      calls = parse_json_or_throw<RowJson>(text);
    } catch (const JsonDefect&) {
      calls = nullptr;
    }
    if (calls.is_object()) calls = RowJson::array({calls});
    RowJson list = RowJson::array();
    for (const RowJson& call : calls.is_array() ? calls : RowJson::array({nullptr})) {
      if (!call.is_object() || !call.contains("name")) {
        fail(LineDefect::kMalformed,
             "expected a function call in '{}' to be JSON with a 'name', got {}", path,
             shown_json(RowJson(text)));
      }
      list.push_back({{"type", "function"}, {"function", call}});
    }
    return list;
  }

  RowJson message(const RowJson& given, const std::string& path) {
    if (!given.is_object()) return given;
    RowJson message = given;
    erase_nulls(message);
    const auto take = [&](const std::vector<std::string>& keys) {
      for (const std::string& key : keys) {
        const auto found = message.find(key);
        if (found == message.end()) continue;
        RowJson value = std::move(*found);
        message.erase(found);
        return value;
      }
      return RowJson(RowJson::value_t::discarded);
    };
    RowJson role = take(layout_.role_keys());
    RowJson content = take(layout_.content_keys());
    for (const auto& [key, value] : message.items()) {
      const bool is_known = is_among(kMessageKeys, key) || is_among(kReasoningKeys, key);
      if (!is_known && holds_text(value)) note_unread(path + "[]." + key, key);
    }
    const bool is_answer =
        role.is_string() && layout_.role_of(role.get<std::string>()) == "assistant";
    const bool is_trained = trains(message, path, is_answer);
    const bool reasons =
        std::any_of(kReasoningKeys.begin(), kReasoningKeys.end(), [&](std::string_view key) {
          const auto found = message.find(std::string(key));
          return found != message.end() && holds_text(*found);
        });
    for (const std::string_view key : kReasoningKeys) message.erase(std::string(key));
    if (reasons) message["reasoning_content"] = "…";
    if (!is_trained) message["train"] = false;
    const bool calls = message.contains("tool_calls") || message.contains("function_call");
    if (role.is_string()) {
      const auto name = role.get<std::string>();
      if (lower_case(name) == "function_call" && content.is_string()) {
        message["tool_calls"] = called_functions(content.get<std::string>(), path);
        message["role"] = "assistant";
        message["content"] = "";
        return message;
      }
      message["role"] = layout_.role_of(name);
    } else if (!role.is_discarded()) {
      message["role"] = std::move(role);
    }
    if (content.is_structured()) {
      message["content"] = joined_parts(content, path);
    } else if (!content.is_discarded()) {
      message["content"] = std::move(content);
    } else if (calls) {
      message["content"] = "";
    }
    return message;
  }

  /// Whether the file wants the turn to be trained on. Takes the keys that say so out of it. Throws
  /// LineError for an answer that counts by half.
  bool trains(RowJson& message, const std::string& path, bool is_answer) const {
    bool all = true;
    for (const char* key : {"weight", "train", "training"}) {
      const auto found = message.find(key);
      if (found == message.end() || !(found->is_number() || found->is_boolean())) continue;
      const double weight =
          found->is_boolean() ? static_cast<double>(found->get<bool>()) : found->get<double>();
      if (is_answer && weight != 0 && weight != 1) {
        fail(LineDefect::kMalformed, "expected '{}' of messages in '{}' to be 0 or 1, got {}", key,
             path, shown_json(*found));
      }
      all &= weight != 0;
      message.erase(key);
    }
    return all;
  }

  /// Messages as a list, texts and everything else as they are.
  RowJson turns(const RowJson& value, const std::string& path) {
    if (value.is_object()) return RowJson::array({message(value, path)});
    if (!value.is_array()) return value;
    RowJson list = RowJson::array();
    for (const RowJson& given : value) list.push_back(message(given, path));
    return list;
  }

  Found find_turns() const {
    const Found first = conversation();
    if (!first || layout_.maps("messages")) return first;
    for (const char* name : {"conversations", "conversation"}) {
      const Found other = foreign(name);
      if (other && other.path != first.path && *other.value != *first.value) {
        fail(LineDefect::kMalformed,
             "expected one conversation, got '{}' and '{}'; name one in data.columns", first.path,
             name);
      }
    }
    return first;
  }

  // --- Recognition

  bool is_of_tokens() const {
    for (const auto& item : row_.items()) {
      const std::string_view key = item.key();
      for (const std::string_view name : {"prompt", "chosen", "rejected", "completion", "gold"}) {
        if (!key.starts_with(name)) continue;
        const std::string_view rest = key.substr(name.size());
        if (rest == "_ids" || rest == "_token_weights" || rest == "_token_mask") return true;
      }
    }
    return false;
  }

  bool has_ranks() const {
    const Found list = foreign("completions");
    return list && list.value->is_array() && !list.value->empty() &&
           std::all_of(list.value->begin(), list.value->end(), [](const RowJson& item) {
             return item.is_object() && item.contains("rank") && item.contains("completion");
           });
  }

  /// Whether a column asks what one of outputs() answers.
  bool has_question() const {
    return find("question") || find("instruction") ||
           (find("input") && find("input").value->is_string());
  }

  Found conversation() const {
    return find("messages", {"messages", "conversations", "conversation"});
  }

  std::vector<std::string> outputs() const {
    const Found talk = conversation();
    const bool is_asked = has_question() || (talk && talk.value->is_structured());
    std::vector<std::string> names;
    for (const char* name : {"output", "response", "answer"}) {
      if (is_asked && foreign(name)) names.emplace_back(name);
    }
    return names;
  }

  unsigned allowed_answers() const {
    if (preset_ != nullptr) return preset_->answers;
    if (maps_any({"chosen", "rejected"})) return kPairOfAnswers;
    if (layout_.maps("completion")) return kOneCompletion;
    if (layout_.maps("text")) return kWholeText;
    if (layout_.maps("messages")) return kPairLayouts | kWholeTurns;
    return kAnyAnswers;
  }

  unsigned allowed_sources(unsigned answers) const {
    unsigned allowed = preset_ != nullptr ? preset_->sources : kFromAnywhere;
    unsigned mapped = 0;
    if (layout_.maps("prompt")) mapped |= kFromPrompt;
    if (layout_.maps("question")) mapped |= kFromQuestion;
    if (maps_any({"instruction", "input"})) mapped |= kFromInstruction;
    if (layout_.maps("messages")) mapped |= kFromTurns;
    if (mapped != 0) allowed &= mapped;
    if (answers != kRanked) allowed &= ~kFromContext;
    if (answers != kHumanRefs) allowed &= ~kFromPost;
    return allowed;
  }

  [[noreturn]] void fail_ambiguous(unsigned first, unsigned second) const {
    fail(LineDefect::kMalformed,
         "expected the columns of one layout, got {} and {}; name one in data.columns",
         answers_text(first), answers_text(second));
  }

  /// One of the bits, or 0.
  unsigned find_answers() const {
    unsigned found = 0;
    if (find("chosen") || find("rejected")) found |= kPairOfAnswers;
    if (foreign("preferred_output") || foreign("non_preferred_output")) found |= kPreferredOutput;
    if (foreign("response_0") && foreign("response_1") && foreign("better_response_id")) {
      found |= kResponses;
    }
    if (foreign("human_ref_A") && foreign("human_ref_B") && foreign("labels")) found |= kHumanRefs;
    if (has_ranks()) found |= kRanked;
    if (find("completion")) found |= kOneCompletion;
    if (!outputs().empty()) found |= kOneOutput;
    const Found talk = conversation();
    const bool is_answered = talk && !last_answer(*talk.value).is_discarded();
    if (foreign("rejected_response") && (is_answered || !outputs().empty())) {
      found |= kReplacedAnswer;
    }
    if (talk) found |= kWholeTurns;
    if (find("text")) found |= kWholeText;
    found &= allowed_answers();
    if (const unsigned pairs = found & kPairLayouts; pairs != 0) {
      const unsigned first = pairs & (~pairs + 1);
      if (pairs != first) fail_ambiguous(first, std::bit_floor(pairs));
      return first;
    }
    if ((found & kOneOutput) != 0 && !layout_.maps("completion")) {
      if ((found & kOneCompletion) != 0 && outputs().front() == "output") {
        fail_ambiguous(kOneCompletion, kOneOutput);
      }
      if ((found & kWholeTurns) != 0 && is_answered) {
        if (!says_again(outputs().front(), talk)) {
          if (has_question()) fail_ambiguous(kOneOutput, kWholeTurns);
          fail_two_answers(fmt::format("that of '{}'", talk.path), outputs().front());
        }
        found &= ~kOneOutput;
      }
    }
    for (const unsigned answers : {kOneCompletion, kOneOutput, kWholeTurns, kWholeText}) {
      if ((found & answers) != 0) return answers;
    }
    return 0;
  }

  /// The content of the assistant's turn at the end of a conversation, discarded where another's
  /// turn is there.
  RowJson last_answer(const RowJson& list) const {
    RowJson none(RowJson::value_t::discarded);
    if (!list.is_array() || list.empty() || !list.back().is_object()) return none;
    const auto of_first = [&](const std::vector<std::string>& keys) {
      for (const std::string& key : keys) {
        const auto found = list.back().find(key);
        if (found != list.back().end() && !found->is_null()) return *found;
      }
      return none;
    };
    const RowJson role = of_first(layout_.role_keys());
    if (!role.is_string() || layout_.role_of(role.get<std::string>()) != "assistant") return none;
    const RowJson content = of_first(layout_.content_keys());
    return content.is_discarded() ? RowJson() : content;
  }

  /// Whether a column has the text that the conversation ends with.
  bool says_again(const std::string& name, const Found& talk) const {
    const RowJson answer = last_answer(*talk.value);
    const Found column = foreign(name.c_str());
    return answer.is_string() && column && column.value->is_string() &&
           stripped(answer.get_ref<const std::string&>()) ==
               stripped(column.value->get_ref<const std::string&>());
  }

  [[noreturn]] void fail_two_answers(const std::string& first, const std::string& second) const {
    fail(LineDefect::kMalformed, "expected one answer, got {} and '{}'; name one in data.columns",
         first, second);
  }

  // --- Prompts

  /// `instruction` and `input`, which follows on a line of its own, as LLaMA-Factory has it.
  std::optional<Source> instruction_source() const {
    Source source;
    std::string text;
    for (const char* name : {"instruction", "input"}) {
      const Found found = find(name);
      if (!found || (found.value->is_structured() && !layout_.maps(name))) continue;
      source.paths.push_back(found.path);
      if (!found.value->is_string()) {
        source.value = *found.value;
        return source;
      }
      if (is_blank_text(*found.value)) continue;
      text += (text.empty() ? "" : "\n") + found.value->get<std::string>();
    }
    if (source.paths.empty()) return std::nullopt;
    source.value = std::move(text);
    return source;
  }

  std::optional<Source> prompt_source() {
    const Found prompt = find("prompt");
    if (!prompt) return std::nullopt;
    return Source{{prompt.path},
                  turns(*prompt.value, prompt.path),
                  /*is_plain=*/!prompt.value->is_structured()};
  }

  static std::optional<Source> text_source(const Found& found) {
    if (!found) return std::nullopt;
    return Source{{found.path}, *found.value};
  }

  std::optional<Source> list_source(const Found& found) {
    if (!found) return std::nullopt;
    if (found.value->is_string()) return Source{{found.path}, *found.value};
    return Source{{found.path}, turns(*found.value, found.path)};
  }

  std::optional<Source> input_source() {
    const Found input = foreign("input");
    if (!input || !input.value->is_object()) return std::nullopt;
    return list_source(at_path("input.messages"));
  }

  /// A conversation that waits for an answer. Where it ends with one of `answers`, that is left
  /// out.
  std::optional<Source> turns_source(const std::vector<Answer>& answers) {
    const Found found = find_turns();
    if (!found || !found.value->is_structured()) return std::nullopt;
    Source source{.paths = {found.path}, .value = turns(*found.value, found.path), .is_talk = true};
    if (role_at(source.value, /*last=*/true) != "assistant") return source;
    const std::string_view last = content_of(source.value.back());
    const bool is_answer = std::any_of(answers.begin(), answers.end(), [&](const Answer& answer) {
      return (answer.value.is_string() ? stripped(answer.value.get_ref<const std::string&>())
              : answer.value.is_array() && !answer.value.empty() ? content_of(answer.value.back())
                                                                 : std::string_view()) == last;
    });
    if (!is_answer && !is_left_out(answers)) {
      unread_turns_ = std::move(source);
      unread_turns_->value.erase(unread_turns_->value.size() - 1);
      return std::nullopt;
    }
    source.value.erase(source.value.size() - 1);
    return source;
  }

  /// Whether there is a prompt alone, with an answer that stands for any.
  bool is_left_out(const std::vector<Answer>& answers) const {
    return use_ == RowUse::kPrompt && answers.size() == 1 && answers.front().path.empty();
  }

  std::vector<Source> sources(unsigned allowed, const std::vector<Answer>& answers) {
    std::vector<Source> list;
    const auto add = [&](unsigned bit, auto&& make) {
      if ((allowed & bit) == 0) return;
      if (std::optional<Source> source = make()) list.push_back(std::move(*source));
    };
    add(kFromInput, [&] { return input_source(); });
    add(kFromContext, [&] { return list_source(foreign("context")); });
    add(kFromTurns, [&] { return turns_source(answers); });
    add(kFromPrompt, [&] { return prompt_source(); });
    add(kFromQuestion, [&] { return text_source(find("question")); });
    add(kFromInstruction, [&] { return instruction_source(); });
    add(kFromPost, [&] { return text_source(find("history")); });
    // A blank prompt next to another is no prompt.
    const auto is_blank = [](const Source& source) { return is_blank_text(source.value); };
    if (!std::all_of(list.begin(), list.end(), is_blank)) std::erase_if(list, is_blank);
    return list;
  }

  void use_paths(const Source& source) { used_.insert(source.paths.begin(), source.paths.end()); }

  /// Settles the sources that are not read: those whose text is in the one that is need no remark.
  void settle_rest(const std::vector<Source>& sources, std::size_t read, const RowJson& list) {
    for (std::size_t i = 0; i < sources.size(); ++i) {
      if (i == read) continue;
      const RowJson& value = sources[i].value;
      const bool is_known = value.is_string()
                                ? is_repeated(value.get_ref<const std::string&>(), list)
                                : is_beginning(value, list);
      if (is_known) {
        use_paths(sources[i]);
      } else {
        doubtful_.insert(sources[i].paths.begin(), sources[i].paths.end());
      }
    }
  }

  static bool is_beginning(const RowJson& turns, const RowJson& list) {
    return turns.is_array() && list.is_array() && turns.size() <= list.size() &&
           std::equal(turns.begin(), turns.end(), list.begin());
  }

  /// The turns before the question: messages, or [question, answer] pairs.
  RowJson earlier_turns() {
    const Found history = find("history");
    RowJson list = RowJson::array();
    if (!history || !history.value->is_array() || history.value->empty()) return list;
    used_.insert(history.path);
    if (history.value->front().is_object()) return turns(*history.value, history.path);
    for (const RowJson& pair : *history.value) {
      if (!pair.is_array() || pair.size() != 2 || !pair[0].is_string() || !pair[1].is_string()) {
        fail(LineDefect::kMalformed,
             "expected '{}' to be a list of [question, answer] pairs of text, got {} in it",
             history.path, shown_json(pair));
      }
      list.push_back(message_of("user", pair[0].get<std::string>()));
      list.push_back(message_of("assistant", pair[1].get<std::string>()));
    }
    return list;
  }

  // --- System texts and tools

  /// Puts the system text before the turns, unless they have it.
  void put_system(RowJson& list) {
    const Found system = find("system", {"system", "system_prompt"});
    if (!system || is_blank_text(*system.value)) return;
    const std::string text = text_of(system);
    if (role_at(list, /*last=*/false) == "system") {
      if (content_of(list.front()) != stripped(text)) return;
    } else {
      list.insert(list.begin(), message_of("system", text));
    }
    used_.insert(system.path);
  }

  bool has_system() const {
    const Found system = find("system", {"system", "system_prompt"});
    return system && !is_blank_text(*system.value);
  }

  /// `functions`, the old name, is left to the reader of rows, who refuses it.
  void put_tools() {
    if (const Found functions = foreign("functions")) used_.insert(functions.path);
    Found tools = find("tools");
    if (!tools && foreign("input") && foreign("input").value->is_object()) {
      tools = at_path("input.tools");
    }
    if (!tools) return;
    RowJson value = *tools.value;
    if (value.is_string() && !is_blank_text(value)) {
      try {
        value = parse_json_or_throw<RowJson>(value.get_ref<const std::string&>());
      } catch (const JsonDefect&) {
        value = *tools.value;
      }
    }
    used_.insert(tools.path);
    if (!value.empty() && !is_blank_text(value)) out_["tools"] = std::move(value);
  }

  // --- Answers

  void read(unsigned answers) {
    const unsigned allowed = allowed_sources(answers);
    switch (answers) {
      case kPairOfAnswers:
        return read_answers({given("chosen"), given("rejected"), given("gold")}, allowed, false);
      case kPreferredOutput:
        return read_answers({taken("chosen", "preferred_output"),
                             taken("rejected", "non_preferred_output"), given("gold")},
                            allowed, true);
      case kResponses:
        return read_better("response_0", "response_1", "better_response_id", 0, allowed);
      case kHumanRefs:
        return read_better("human_ref_A", "human_ref_B", "labels", 1, allowed);
      case kRanked:
        return read_ranked(allowed);
      case kOneCompletion:
        return read_answers({given("completion"), given("gold")}, allowed, false);
      case kOneOutput:
        return read_output(allowed);
      case kReplacedAnswer:
        return read_replaced(allowed);
      case kWholeTurns:
        return read_turns(allowed);
      case kWholeText:
        return read_text(allowed);
      default:
        return read_none(allowed);
    }
  }

  /// An answer under a key that records.cpp knows; without a value where the row has none.
  Answer given(const char* key) {
    const Found found = find(key);
    if (!found) return {key, key, RowJson(RowJson::value_t::discarded)};
    used_.insert(found.path);
    return {key, found.path, turns(*found.value, found.path)};
  }

  Answer taken(const char* key, const char* name) { return {key, name, turns(needed(name), name)}; }

  void read_better(const char* first, const char* second, const char* which, int chosen_is_first,
                   unsigned allowed) {
    const RowJson& better = needed(which);
    check_finite(which, better);
    if (better != 0 && better != 1) {
      fail(LineDefect::kMalformed, "expected '{}' to be 0 or 1, got {}", which,
           better.is_primitive() ? shown_json(better) : std::string(json_type_name(better)));
    }
    const bool is_first = better == chosen_is_first;
    read_answers({taken("chosen", is_first ? first : second),
                  taken("rejected", is_first ? second : first), given("gold")},
                 allowed, true);
  }

  /// The answers of the best and of the worst rank; the best has the lowest number.
  void read_ranked(unsigned allowed) {
    const RowJson& list = needed("completions");
    const RowJson* best = nullptr;
    const RowJson* worst = nullptr;
    for (const RowJson& item : list) {
      const RowJson& rank = item["rank"];
      check_finite("completions", rank);
      if (!rank.is_number()) {
        fail(LineDefect::kMalformed, "expected each 'rank' of 'completions' to be a number, got {}",
             json_type_name(rank));
      }
      if (best == nullptr || rank < (*best)["rank"]) best = &item;
      if (worst == nullptr || rank > (*worst)["rank"]) worst = &item;
    }
    if ((*best)["rank"] == (*worst)["rank"]) {
      fail(LineDefect::kMalformed, "expected 'completions' of two ranks at least, got one");
    }
    const std::string path = "completions[].completion";
    read_answers({{"chosen", path, turns((*best)["completion"], path)},
                  {"rejected", path, turns((*worst)["completion"], path)}},
                 allowed, true);
  }

  std::string only_output() const {
    const auto names = outputs();
    if (names.size() > 1) fail_two_answers(fmt::format("'{}'", names[0]), names[1]);
    return names.front();
  }

  void read_output(unsigned allowed) {
    read_answers({taken("completion", only_output().c_str())}, allowed, true);
  }

  /// The rejected answer takes the place of another one, which may be the conversation's last turn.
  void read_replaced(unsigned allowed) {
    const Found talk = find_turns();
    const bool is_answered = talk && !last_answer(*talk.value).is_discarded();
    Answer rejected = taken("rejected", "rejected_response");
    if (!is_answered) {
      return read_answers({taken("chosen", only_output().c_str()), std::move(rejected)}, allowed,
                          true);
    }
    settle_outputs(talk);
    const RowJson list = turns(*talk.value, talk.path);
    read_answers({{"chosen", talk.path, RowJson::array({list.back()})}, std::move(rejected)},
                 allowed, true);
  }

  /// Answers next to a conversation that has one: no other text is lost.
  void settle_outputs(const Found& talk) {
    for (const std::string& name : outputs()) {
      if (!says_again(name, talk)) fail_two_answers(fmt::format("that of '{}'", talk.path), name);
      used_.insert(name);
    }
  }

  /// A prompt and what answers it. `is_chat`: plain texts are turns of a conversation.
  void read_answers(std::vector<Answer> answers, unsigned allowed, bool is_chat) {
    std::erase_if(answers, [](const Answer& answer) { return answer.value.is_discarded(); });
    const bool has_list = std::any_of(answers.begin(), answers.end(),
                                      [](const Answer& a) { return a.value.is_array(); });
    const bool has_text = std::any_of(answers.begin(), answers.end(),
                                      [](const Answer& a) { return a.value.is_string(); });
    // Pairs may bring their prompt along.
    const auto own = std::find_if(answers.begin(), answers.end(), [](const Answer& answer) {
      return answer.key != "completion" && asks_first(answer.value);
    });
    std::vector<Source> candidates = sources(allowed, answers);
    std::optional<Source> source;
    const bool is_said_again =
        own != answers.end() &&
        std::all_of(candidates.begin(), candidates.end(), [&](const Source& candidate) {
          return candidate.is_talk ? is_beginning(candidate.value, own->value)
                                   : !candidate.value.is_array();
        });
    if (is_said_again) {
      settle_rest(candidates, kNoSource, own->value);
      settle_unread_turns(own->value);
    } else if (!candidates.empty()) {
      check_source(candidates.front());
      settle_rest(candidates, 0, as_list(candidates.front()));
      settle_unread_turns(as_list(candidates.front()));
      use_paths(candidates.front());
      source = std::move(candidates.front());
    } else if (own == answers.end()) {
      if (is_chat || preset_ != nullptr) fail_without_prompt(answers.front().path);
      lacks_prompt_ = !is_of_dialogues(answers);
      settle_unread_turns(RowJson::array());
    }
    if (source && source->value.is_array()) is_chat = true;
    if (source && source->value.is_string()) {
      // Lists that begin with the answer, or a system text, make the prompt a turn.
      const bool of_one_kind = has_list != has_text;
      is_chat |= !source->is_plain || (of_one_kind && (has_list || has_system()));
      const RowJson earlier = earlier_turns();
      if (!earlier.empty() || is_chat) {
        is_chat = true;
        if (is_blank_text(source->value)) fail_blank(source->paths.front());
        RowJson list = earlier;
        list.push_back(message_of("user", source->value.get<std::string>()));
        source->value = std::move(list);
      }
    }
    if (is_chat) {
      for (Answer& answer : answers) {
        if (!answer.value.is_string()) continue;
        answer.value = RowJson::array({message_of("assistant", answer.value.get<std::string>())});
      }
    }
    if (source && source->value.is_array()) {
      put_system(source->value);
    } else if (!source && has_list && !has_text) {
      RowJson list = RowJson::array();
      if (own == answers.end()) put_system(list);
      if (!list.empty()) source = Source{{}, std::move(list)};
      for (Answer& answer : answers) {
        if (asks_first(answer.value)) put_system(answer.value);
      }
    }
    if (source) out_["prompt"] = std::move(source->value);
    for (Answer& answer : answers) out_[answer.key] = std::move(answer.value);
    if (is_chat || (has_list && !has_text)) put_tools();
  }

  /// A turn has to say something, while a plain prompt is judged when it is tokens.
  void check_source(const Source& source) const {
    if (source.is_plain || source.value.is_array()) return;
    const std::string& path = source.paths.back();
    check_finite(path, source.value);
    if (!source.value.is_string()) {
      fail(LineDefect::kMalformed, "expected '{}' to be text, got {}", path,
           json_type_name(source.value));
    }
    if (is_blank_text(source.value)) fail_blank(source.paths.front());
  }

  [[noreturn]] void fail_blank(const std::string& path) const {
    fail(LineDefect::kMalformed, "expected '{}' to have a text, got none", path);
  }

  /// Text that holds turns of a known form, and so its question.
  static bool is_of_dialogues(const std::vector<Answer>& answers) {
    return std::all_of(answers.begin(), answers.end(), [](const Answer& answer) {
      return answer.value.is_string() && is_dialogue(answer.value.get_ref<const std::string&>());
    });
  }

  /// A conversation with another answer than the row's: its turns may be the prompt that is meant.
  void settle_unread_turns(const RowJson& prompt) {
    if (!unread_turns_ ||
        (!unread_turns_->value.empty() && is_beginning(unread_turns_->value, prompt))) {
      return;
    }
    doubtful_.insert(unread_turns_->paths.begin(), unread_turns_->paths.end());
  }

  [[noreturn]] void fail_without_prompt(const std::string& answer) const {
    if (preset_ != nullptr) {
      fail(LineDefect::kMissingKey, "expected the columns of the layout '{}' ({}), got no prompt",
           preset_->name, preset_->columns);
    }
    fail(LineDefect::kMissingKey, "expected a column with the prompt of '{}', got none", answer);
  }

  static RowJson as_list(const Source& source) {
    if (source.value.is_array()) return source.value;
    return RowJson::array({{{"role", "user"}, {"content", source.value}}});
  }

  void read_turns(unsigned allowed) {
    const Found found = find_turns();
    if (use_ == RowUse::kPrompt) {
      return read_answers({{"completion", "", RowJson("")}}, kFromTurns, true);
    }
    used_.insert(found.path);
    RowJson list = turns(*found.value, found.path);
    settle_rest(sources(allowed & ~kFromTurns, {}), kNoSource, list);
    if (list.is_array()) {
      put_system(list);
      put_tools();
    }
    note_answers_beside(found, list);
    const Found label = find("label", {"label", "kto_tag"});
    const std::size_t answer = list.is_array() ? last_answer_place(list) : 0;
    const bool assumes_label =
        use_ == RowUse::kAny && answer > 0 && label && is_label(*label.value);
    trace_.assumes_label = assumes_label;
    if (!list.is_array() || (use_ != RowUse::kLabelled && !assumes_label)) {
      out_["messages"] = std::move(list);
      return;
    }
    if (answer == 0 || text_at(list[answer - 1], "role") == "assistant") {
      fail(LineDefect::kMalformed,
           "expected '{}' to end with the assistant's answer to another turn, got {}", found.path,
           list.size() < 2 ? "fewer turns"
           : answer == 0   ? "another role at its end"
                           : "two of its turns");
    }
    // What follows the answer is the reader's to leave out, and to name.
    const auto place = list.begin() + static_cast<std::ptrdiff_t>(answer);
    out_["completion"] = RowJson(RowJson::array_t(place, list.end()));
    list.erase(place, list.end());
    out_["prompt"] = std::move(list);
  }

  /// 0 where no turn of the assistant follows another one.
  static std::size_t last_answer_place(const RowJson& list) {
    std::size_t place = list.size();
    while (place > 1 && text_at(list[place - 1], "role") != "assistant") --place;
    return place > 1 ? place - 1 : 0;
  }

  /// An answer that the conversation has already is no loss. Where it waits for one, a column that
  /// nothing reads may be that.
  void note_answers_beside(const Found& talk, const RowJson& list) {
    const bool waits = role_at(list, /*last=*/true) != "assistant";
    for (const std::string_view name : kAnswerColumns) {
      const std::string column(name);
      if (!foreign(column.c_str())) continue;
      if (says_again(column, talk)) used_.insert(column);
      if (waits) doubtful_.insert(column);
    }
  }

  static bool is_label(const RowJson& value) {
    return value.is_boolean() || value == 0 || value == 1;
  }

  void read_text(unsigned allowed) {
    const Found found = find("text");
    used_.insert(found.path);
    out_["text"] = *found.value;
    if (!found.value->is_string()) return;
    const std::string_view text = found.value->get_ref<const std::string&>();
    for (const Source& source : sources(allowed & ~kFromTurns, {})) {
      const bool is_known =
          source.value.is_string() &&
          text.find(stripped(source.value.get_ref<const std::string&>())) != std::string_view::npos;
      if (is_known) use_paths(source);
    }
    const Found system = find("system", {"system", "system_prompt"});
    if (system && system.value->is_string() &&
        text.find(stripped(system.value->get_ref<const std::string&>())) !=
            std::string_view::npos) {
      used_.insert(system.path);
    }
  }

  /// Nothing answers: a row of a prompt alone, if that is all that is wanted.
  void read_none(unsigned allowed) {
    if (preset_ != nullptr && use_ != RowUse::kPrompt) {
      fail(LineDefect::kMissingKey, "expected the columns of the layout '{}' ({}), got others",
           preset_->name, preset_->columns);
    }
    if (use_ == RowUse::kPrompt && !sources(allowed, {}).empty()) {
      return read_answers({{"completion", "", RowJson("")}}, allowed, false);
    }
    is_unknown_ = true;
  }

  // --- The end

  void note_unread(const std::string& name, std::string_view key) {
    const bool is_known =
        std::any_of(trace_.unread.begin(), trace_.unread.end(),
                    [&](const UnreadColumn& column) { return column.name == name; });
    if (is_known) return;
    trace_.unread.push_back({name, doubtful_.contains(name) || is_prompt_column(key)});
  }

  /// The texts that hold what the model is asked; of pairs without a prompt, both of the answers.
  std::vector<const RowJson*> asking_texts() const {
    for (const char* key : {"prompt", "messages", "text"}) {
      if (const auto found = out_.find(key); found != out_.end()) return {&*found};
    }
    std::vector<const RowJson*> texts;
    for (const char* key : {"chosen", "rejected"}) {
      if (const auto found = out_.find(key); found != out_.end()) texts.push_back(&*found);
    }
    return texts;
  }

  /// Whether a text is in what the model is asked, so that it is not lost.
  bool is_asked_again(std::string_view text) const {
    text = stripped(text);
    const auto holds = [&](std::string_view other) {
      return stripped(other) == text ||
             (is_telling(text) && find_apart(other, text) != std::string_view::npos);
    };
    const auto texts = asking_texts();
    return !texts.empty() && std::all_of(texts.begin(), texts.end(), [&](const RowJson* value) {
      if (value->is_string()) return holds(value->get_ref<const std::string&>());
      return value->is_array() &&
             std::any_of(value->begin(), value->end(), [&](const RowJson& message) {
               return text_at(message, "role") != "assistant" && holds(content_of(message));
             });
    });
  }

  /// Whether a text could be the prompt that the row seems to lack.
  bool could_be_prompt(const RowJson& value) const {
    if (!lacks_prompt_ || !value.is_string()) return false;
    const auto texts = asking_texts();
    const bool has_words = count_words(value.get_ref<const std::string&>()) >= 3;
    if (has_words || texts.size() < 2 || !texts[0]->is_string() || !texts[1]->is_string()) {
      return true;
    }
    const auto& a = texts[0]->get_ref<const std::string&>();
    const auto& b = texts[1]->get_ref<const std::string&>();
    const auto shared = std::mismatch(a.begin(), a.end(), b.begin(), b.end());
    return !is_telling(
        std::string_view(a).substr(0, static_cast<std::size_t>(shared.first - a.begin())));
  }

  void note_unread_of(const RowJson& object, const std::string& prefix) {
    for (const auto& [key, value] : object.items()) {
      const std::string path = prefix + key;
      if (used_.contains(path)) continue;
      const auto inner = used_.lower_bound(path + ".");
      if (value.is_object() && inner != used_.end() && inner->starts_with(path + ".")) {
        note_unread_of(value, path + ".");
      } else if (holds_text(value)) {
        const bool is_doubtful = doubtful_.contains(path) || could_be_prompt(value);
        if (is_doubtful) doubtful_.insert(path);
        const bool is_lost = !value.is_string() || !(is_doubtful || is_prompt_column(key)) ||
                             !is_asked_again(value.get_ref<const std::string&>());
        if (is_lost) note_unread(path, key);
      }
    }
  }

  RowJson finished(bool is_of_tokens) && {
    if (is_unknown_) return std::move(row_);
    if (is_of_tokens) {
      for (const auto& [key, value] : row_.items()) {
        if (key.ends_with("_ids") || key.ends_with("_token_weights")) check_finite(key, value);
      }
    }
    note_unread_of(row_, "");
    trace_.read.assign(used_.begin(), used_.end());
    if (is_of_tokens) {
      // Texts stand there for people: the ids are the row.
      for (UnreadColumn& column : trace_.unread) column.is_prompt = false;
    }
    put_numbers();
    if (is_of_tokens && use_ == RowUse::kPrompt && !row_.contains("completion_ids") &&
        !row_.contains("chosen_ids") && !row_.contains("rejected_ids")) {
      row_["completion_ids"] = RowJson::array();
    }
    if (!is_of_tokens) {
      for (const char* key :
           {"prompt", "chosen", "rejected", "gold", "completion", "messages", "text", "tools"}) {
        row_.erase(key);
      }
      for (auto& [key, value] : out_.items()) row_[key] = std::move(value);
    }
    return std::move(row_);
  }

  void put_numbers() {
    RowJson numbers = RowJson::object();
    for (const std::string_view field : kNumberFields) {
      const auto mapped = mapped_.find(field);
      if (mapped == mapped_.end()) continue;
      const std::string key(field);
      numbers[key] = mapped->second ? *mapped->second.value : RowJson();
    }
    if (!layout_.maps("label") && !row_.contains("label")) {
      if (const Found tag = foreign("kto_tag")) numbers["label"] = *tag.value;
    }
    for (auto& [key, value] : numbers.items()) row_[key] = std::move(value);
    erase_nulls(row_);
  }

  static constexpr std::size_t kNoSource = static_cast<std::size_t>(-1);

  const RowLayout& layout_;
  RowJson row_;
  const std::string_view where_;
  const RowUse use_;
  RowTrace& trace_;
  const Preset* preset_ = nullptr;
  std::map<std::string, Found, std::less<>> mapped_;
  std::set<std::string, std::less<>> taken_;  // columns of the mapping
  std::set<std::string> used_;                // columns that the row is made of
  std::set<std::string> doubtful_;            // columns that could be the prompt, and are not read
  std::optional<Source> unread_turns_;        // before an answer of their own
  bool lacks_prompt_ = false;                 // but for what the answers begin with alike
  RowJson out_ = RowJson::object();
  bool is_unknown_ = false;
};

std::vector<std::string_view> preset_names() {
  std::vector<std::string_view> names;
  for (const Preset& preset : kPresets) names.push_back(preset.name);
  return names;
}

std::vector<std::string> names_in(const Json& value, std::string_view where,
                                  std::string_view field) {
  const auto is_name = [](const Json& item) {
    return item.is_string() && !item.get_ref<const std::string&>().empty();
  };
  if (is_name(value)) return {value.get<std::string>()};
  if (!value.is_array() || value.empty() || !std::all_of(value.begin(), value.end(), is_name)) {
    throw ConfigError(fmt::format("{}: expected {} to be a name or a list of names, got {}", where,
                                  field, shown_json(value)));
  }
  return value.get<std::vector<std::string>>();
}

}  // namespace

RowLayout::RowLayout(std::string_view columns, std::string_view where)
    : role_keys_{"role", "from"}, content_keys_{"content", "value"} {
  const Json given = parse_json<ConfigError>(columns, where);
  if (given.is_string()) {
    preset_ = given.get<std::string>();
    const auto names = preset_names();
    if (!is_among(names, preset_)) {
      throw ConfigError(fmt::format("{}: expected the columns of fields or one of {}, got '{}'{}",
                                    where, fmt::join(names, ", "), shown_text(preset_),
                                    did_you_mean(preset_, names)));
    }
    return;
  }
  if (!given.is_object()) {
    throw ConfigError(fmt::format("{}: expected a preset's name or the columns of fields, got {}",
                                  where, shown_json(given)));
  }
  std::vector<std::string_view> fields(kColumnFields.begin(), kColumnFields.end());
  fields.insert(fields.end(), {"role_key", "content_key"});
  for (const auto& role : kRoleFields) fields.push_back(role.first);
  for (const auto& [field, value] : given.items()) {
    if (is_among(kColumnFields, field)) {
      if (!value.is_string() || value.get_ref<const std::string&>().empty()) {
        throw ConfigError(fmt::format("{}: expected {} to be the name of a column, got {}", where,
                                      field, shown_json(value)));
      }
      mapping_.emplace_back(field, value.get<std::string>());
      continue;
    }
    const auto role = std::find_if(kRoleFields.begin(), kRoleFields.end(),
                                   [&](const auto& known) { return known.first == field; });
    if (role == kRoleFields.end() && field != "role_key" && field != "content_key") {
      throw ConfigError(fmt::format("{}: expected a known field, got '{}'{}", where,
                                    shown_text(field), did_you_mean(field, fields)));
    }
    for (const std::string& name : names_in(value, where, field)) {
      if (role == kRoleFields.end()) {
        auto& keys = field == "role_key" ? role_keys_ : content_keys_;
        keys.insert(keys.begin(), name);
      } else if (!roles_.emplace(name, role->second).second) {
        throw ConfigError(
            fmt::format("{}: expected each role once, got '{}' twice", where, shown_text(name)));
      }
    }
  }
}

bool RowLayout::maps(std::string_view field) const {
  return std::any_of(mapping_.begin(), mapping_.end(),
                     [&](const auto& mapped) { return mapped.first == field; });
}

std::string RowLayout::role_of(std::string_view name) const {
  if (const auto own = roles_.find(name); own != roles_.end()) return own->second;
  const std::string lower = lower_case(name);
  const auto known = std::find_if(kKnownRoles.begin(), kKnownRoles.end(),
                                  [&](const auto& role) { return role.first == lower; });
  return std::string(known == kKnownRoles.end() ? name : known->second);
}

SortedJson RowLayout::canonical(SortedJson row, std::string_view where, RowUse use,
                                RowTrace& trace) const {
  return RowForm(*this, std::move(row), where, use, trace).canonical();
}

SortedJson parse_line_json(std::string_view json, std::string_view where) {
  constexpr std::string_view kMark = R"(\u0000prefopt: )";
  constexpr std::string_view kParsedMark("\0prefopt: ", 10);
  const auto has = [&](std::string_view part) { return json.find(part) != std::string_view::npos; };
  // Few lines hold these words at all.
  const bool mends = (has("NaN") || has("Infinity")) && !has(kMark);
  SortedJson row;
  try {
    row = parse_json_or_throw<SortedJson>(mends ? quote_non_finite(json, kMark) : json);
  } catch (const JsonDefect& defect) {
    throw LineError(LineDefect::kMalformed,
                    fmt::format("{}: expected JSON, got {}", where, defect.what()));
  }
  if (!row.is_object()) {
    throw LineError(LineDefect::kMalformed,
                    fmt::format("{}: expected an object, got {}", where, json_type_name(row)));
  }
  if (!mends) return row;
  const auto mend = [&](auto&& self, SortedJson& value) -> void {
    if (value.is_structured()) {
      for (SortedJson& inner : value) self(self, inner);
    } else if (value.is_string() && value.get_ref<const std::string&>().starts_with(kParsedMark)) {
      value = std::nan("");
    }
  };
  mend(mend, row);
  return row;
}

}  // namespace prefopt::detail
