// SPDX-License-Identifier: Apache-2.0
#include "jinja/json_writer.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "core/utf8.h"
#include "jinja/display.h"
#include "jinja/failure.h"
#include "jinja/operators.h"

namespace prefopt::jinja {
namespace {

std::string json_escape(char32_t code) {
  switch (code) {
    case '"':
      return "\\\"";
    case '\\':
      return "\\\\";
    case '\n':
      return "\\n";
    case '\r':
      return "\\r";
    case '\t':
      return "\\t";
    case '\f':
      return "\\f";
    case '\b':
      return "\\b";
    default:
      break;
  }
  auto number = static_cast<std::uint32_t>(code);
  if (number < 0x10000) return fmt::format("\\u{:04x}", number);
  number -= 0x10000;
  return fmt::format("\\u{:04x}\\u{:04x}", 0xd800 + (number >> 10), 0xdc00 + (number & 0x3ff));
}

class JsonWriter {
 public:
  explicit JsonWriter(const JsonStyle& style) : style_(style) {}

  Text write(const Value& value) {
    write_value(value);
    return std::move(out_);
  }

 private:
  void write_value(const Value& value) {
    if (value.is_none()) {
      out_.append("null");
    } else if (const bool* flag = value.as_bool()) {
      out_.append(*flag ? "true" : "false");
    } else if (const auto* number = value.as_int()) {
      out_.append(std::to_string(*number));
    } else if (const double* real = value.as_float()) {
      out_.append(number_text(*real));
    } else if (const Text* text = value.as_text()) {
      write_text(*text);
    } else if (const Dict* dict = value.as_dict()) {
      write_dict(*dict);
    } else if (value.is_a(SequenceType::kList) || value.is_a(SequenceType::kTuple) ||
               value.is_a(SequenceType::kGroup)) {
      write_list(value.as_sequence()->items);
    } else {
      if (value.is_undefined()) throw Failure(value.undefined_message());
      throw Failure(fmt::format("expected a value that JSON can hold, got {}", value.type_name()));
    }
  }

  static std::string number_text(double number) {
    if (std::isnan(number)) return "NaN";
    if (std::isinf(number)) return number > 0 ? "Infinity" : "-Infinity";
    return float_text(number);
  }

  void write_text(const Text& text) {
    out_.append("\"");
    std::size_t done = 0;
    for (std::size_t at = 0; at < text.size();) {
      const detail::Utf8Character character = detail::utf8_character(text.view(), at);
      const char32_t code = character.code;
      const bool escapes =
          code < 0x20 || code == '"' || code == '\\' || (style_.ensure_ascii && code >= 0x7f);
      if (escapes) {
        out_.append_part(text, done, at);
        out_.append(json_escape(code), text.origin(at));
        done = at + character.length;
      }
      at += character.length;
    }
    out_.append_part(text, done, text.size());
    out_.append("\"");
  }

  void write_break() {
    if (!style_.indent) return;
    out_.append("\n");
    for (std::size_t i = 0; i < level_; ++i) out_.append(*style_.indent);
  }

  /// Writes the items between brackets by `write_item(i)`.
  template <class WriteItem>
  void write_items(std::size_t count, std::string_view open, std::string_view close,
                   const WriteItem& write_item) {
    out_.append(open);
    ++level_;
    for (std::size_t i = 0; i < count; ++i) {
      if (i > 0) out_.append(style_.item_separator);
      write_break();
      write_item(i);
    }
    --level_;
    if (count > 0) write_break();
    out_.append(close);
  }

  void write_list(const std::vector<Value>& items) {
    write_items(items.size(), "[", "]", [&](std::size_t i) { write_value(items[i]); });
  }

  void write_dict(const Dict& dict) {
    std::vector<std::pair<Value, Value>> items = dict.items();
    if (style_.sort_keys) {
      std::stable_sort(items.begin(), items.end(),
                       [](const auto& a, const auto& b) { return less(a.first, b.first); });
    }
    write_items(items.size(), "{", "}", [&](std::size_t i) {
      write_key(items[i].first);
      out_.append(style_.key_separator);
      write_value(items[i].second);
    });
  }

  void write_key(const Value& key) {
    if (const Text* text = key.as_text()) return write_text(*text);
    if (!key.is_none() && !key.number()) {
      throw Failure(fmt::format("expected keys that JSON can hold, got {}", key.type_name()));
    }
    out_.append("\"");
    write_value(key);
    out_.append("\"");
  }

  const JsonStyle& style_;
  Text out_;
  std::size_t level_ = 0;
};

}  // namespace

Text json_of(const Value& value, const JsonStyle& style) { return JsonWriter(style).write(value); }

}  // namespace prefopt::jinja
