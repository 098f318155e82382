// SPDX-License-Identifier: Apache-2.0
#include "data/row_parts.h"

#include <algorithm>
#include <cstdint>

#include "core/json_text.h"
#include "data/row_json.h"
#include "data/row_remarks.h"

namespace prefopt::detail {

RowParts::RowParts(const RowLayout& layout, SortedJson row, std::string_view where, RowUse use,
                   RowTrace& trace)
    : layout_(layout), row_(std::move(row)), where_(where), use_(use), trace_(trace) {
  const auto preset = std::find_if(kPresets.begin(), kPresets.end(), [&](const Preset& known) {
    return known.name == layout.preset();
  });
  if (preset != kPresets.end()) preset_ = &*preset;
}

void RowParts::check_finite(std::string_view name, const SortedJson& value) const {
  if (!holds_non_finite(value)) return;
  fail(LineDefect::kNotANumber,
       "expected '{}' free of NaN and Infinity (not a number), got one of them", name);
}

FoundColumn RowParts::at_path(const std::string& path) const {
  if (const auto found = row_.find(path); found != row_.end()) return {path, &*found};
  const SortedJson* value = &row_;
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

void RowParts::find_mapped() {
  const auto& mapping = layout_.mapping();
  std::string missing;
  for (std::size_t i = 0; i < mapping.size(); ++i) {
    const auto& [field, path] = mapping[i];
    const FoundColumn found = at_path(path);
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

void RowParts::find_nested() {
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
    const FoundColumn found = at_path(pair + "." + field);
    if (found && !row_.contains(field)) mapped_[field] = found;
  }
}

FoundColumn RowParts::find(std::string_view field, std::initializer_list<const char*> names) const {
  if (const auto mapped = mapped_.find(field); mapped != mapped_.end()) return mapped->second;
  for (const char* name : names) {
    const auto found = row_.find(name);
    if (found != row_.end() && !taken_.contains(name)) return {name, &*found};
  }
  return {};
}

FoundColumn RowParts::foreign(const char* name) const {
  const auto found = row_.find(name);
  return found == row_.end() || taken_.contains(name) ? FoundColumn{} : FoundColumn{name, &*found};
}

const SortedJson& RowParts::needed(const char* name) {
  const FoundColumn found = foreign(name);
  if (!found) fail(LineDefect::kMissingKey, "expected a key '{}', got a row without it", name);
  used_.insert(found.path);
  return *found.value;
}

bool RowParts::maps_any(std::initializer_list<std::string_view> fields) const {
  return std::any_of(fields.begin(), fields.end(),
                     [&](std::string_view field) { return layout_.maps(field); });
}

std::string RowParts::text_of(const FoundColumn& found) const {
  check_finite(found.path, *found.value);
  if (!found.value->is_string()) {
    fail(LineDefect::kMalformed, "expected '{}' to be text, got {}", found.path,
         json_type_name(*found.value));
  }
  return found.value->get<std::string>();
}

std::string RowParts::joined_parts(const SortedJson& parts, const std::string& path) const {
  std::string text;
  for (const SortedJson& part : parts.is_object() ? SortedJson::array({parts}) : parts) {
    if (part.is_string()) {
      text += part.get<std::string>();
      continue;
    }
    if (!part.is_object()) {
      fail(LineDefect::kMalformed, "expected the parts of a content in '{}' to be objects, got {}",
           path, json_type_name(part));
    }
    const std::string type = part.value("type", SortedJson()).is_string()
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

SortedJson RowParts::called_functions(const std::string& text, const std::string& path) const {
  SortedJson calls;
  try {
    calls = parse_json_or_throw<SortedJson>(text);
  } catch (const JsonDefect&) {
    calls = nullptr;
  }
  if (calls.is_object()) calls = SortedJson::array({calls});
  SortedJson list = SortedJson::array();
  for (const SortedJson& call : calls.is_array() ? calls : SortedJson::array({nullptr})) {
    if (!call.is_object() || !call.contains("name")) {
      fail(LineDefect::kMalformed,
           "expected a function call in '{}' to be JSON with a 'name', got {}", path,
           shown_json(SortedJson(text)));
    }
    list.push_back({{"type", "function"}, {"function", call}});
  }
  return list;
}

bool RowParts::has_null_content(const SortedJson& message) const {
  const auto& keys = layout_.content_keys();
  return std::any_of(keys.begin(), keys.end(), [&](const std::string& key) {
    const auto found = message.find(key);
    return found != message.end() && found->is_null();
  });
}

SortedJson RowParts::message(const SortedJson& given, const std::string& path) {
  if (!given.is_object()) return given;
  SortedJson message = given;
  erase_nulls(message);
  const auto take = [&](const std::vector<std::string>& keys) {
    for (const std::string& key : keys) {
      const auto found = message.find(key);
      if (found == message.end()) continue;
      SortedJson value = std::move(*found);
      message.erase(found);
      return value;
    }
    return SortedJson(SortedJson::value_t::discarded);
  };
  SortedJson role = take(layout_.role_keys());
  SortedJson content = take(layout_.content_keys());
  for (const auto& [key, value] : message.items()) {
    const bool is_known = is_among(kMessageKeys, key) || is_among(kReasoningKeys, key);
    if (!is_known && holds_text(value)) note_unread(path + "[]." + key, key);
  }
  const bool is_answer =
      role.is_string() && layout_.role_of(role.get<std::string>()) == "assistant";
  const bool is_trained = trains(message, path, is_answer);
  SortedJson reasoning;
  for (const std::string_view name : kReasoningKeys) {
    const auto found = message.find(std::string(name));
    if (found == message.end()) continue;
    if (reasoning.is_null() && holds_text(*found)) reasoning = *found;
    if (!is_among(kTemplateReasoningKeys, name)) message.erase(found);
  }
  if (!reasoning.is_null()) message["reasoning_content"] = std::move(reasoning);
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
  } else if (calls && has_null_content(given)) {
    message["content"] = nullptr;  // which a template may tell from none at all
  }
  return message;
}

bool RowParts::trains(SortedJson& message, const std::string& path, bool is_answer) const {
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

SortedJson RowParts::turns(const SortedJson& value, const std::string& path) {
  const bool is_message = value.is_object() && json_type_name(value) == "object";
  if (is_message) return SortedJson::array({message(value, path)});
  if (!value.is_array()) return value;
  SortedJson list = SortedJson::array();
  for (const SortedJson& given : value) list.push_back(message(given, path));
  return list;
}

void RowParts::note_unread(const std::string& name, std::string_view key) {
  note_unread_column(name, key, doubtful_, trace_);
}

}  // namespace prefopt::detail
