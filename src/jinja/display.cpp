// SPDX-License-Identifier: Apache-2.0
#include "jinja/display.h"

#include <fmt/format.h>
#include <utf8proc.h>

#include <algorithm>
#include <array>
#include <charconv>
#include <cmath>

#include "core/utf8.h"
#include "jinja/failure.h"

namespace prefopt::jinja {
namespace {

bool is_printable(char32_t code) {
  switch (utf8proc_category(static_cast<utf8proc_int32_t>(code))) {
    case UTF8PROC_CATEGORY_CC:
    case UTF8PROC_CATEGORY_CF:
    case UTF8PROC_CATEGORY_CS:
    case UTF8PROC_CATEGORY_CO:
    case UTF8PROC_CATEGORY_CN:
    case UTF8PROC_CATEGORY_ZL:
    case UTF8PROC_CATEGORY_ZP:
      return false;
    case UTF8PROC_CATEGORY_ZS:
      return code == ' ';
    default:
      return true;
  }
}

std::string python_escape(char32_t code) {
  const auto number = static_cast<std::uint32_t>(code);
  if (code == '\n') return "\\n";
  if (code == '\r') return "\\r";
  if (code == '\t') return "\\t";
  if (number < 0x100) return fmt::format("\\x{:02x}", number);
  return number < 0x10000 ? fmt::format("\\u{:04x}", number) : fmt::format("\\U{:08x}", number);
}

Text represented(const Text& text) {
  const std::string& bytes = text.bytes();
  const bool has_single = bytes.find('\'') != std::string::npos;
  const char quote = has_single && bytes.find('"') == std::string::npos ? '"' : '\'';
  Text result;
  result.append(std::string_view(&quote, 1));
  for (std::size_t at = 0; at < bytes.size();) {
    const detail::Utf8Character character = detail::utf8_character(bytes, at);
    const Origin origin = text.origin(at);
    if (character.code == static_cast<char32_t>(quote) || character.code == '\\') {
      result.append("\\", origin);
      result.append(std::string_view(bytes).substr(at, 1), origin);
    } else if (is_printable(character.code)) {
      result.append_part(text, at, at + character.length);
    } else {
      result.append(python_escape(character.code), origin);
    }
    at += character.length;
  }
  result.append(std::string_view(&quote, 1));
  if (!text.is_markup()) return result;
  Text markup("Markup(");
  markup.append(result);
  markup.append(")");
  return markup;
}

Text listed(const std::vector<Value>& items, std::string_view open, std::string_view close) {
  Text result{std::string(open)};
  for (std::size_t i = 0; i < items.size(); ++i) {
    if (i > 0) result.append(", ");
    result.append(represented(items[i]));
  }
  result.append(close);
  return result;
}

Text shown(const Sequence& sequence) {
  const std::vector<Value>& items = sequence.items;
  switch (sequence.type) {
    case SequenceType::kList:
      return listed(items, "[", "]");
    case SequenceType::kTuple:
    case SequenceType::kGroup:
      return listed(items, "(", items.size() == 1 ? ",)" : ")");
    case SequenceType::kKeys:
      return listed(items, "dict_keys([", "])");
    case SequenceType::kValues:
      return listed(items, "dict_values([", "])");
    case SequenceType::kItems:
      return listed(items, "dict_items([", "])");
    default:
      throw Failure(
          "expected a value with a text, got a range or generator; the filter 'list' "
          "makes a list of it");
  }
}

Text shown(const Dict& dict) {
  Text result("{");
  bool is_first = true;
  for (const auto& [key, value] : dict.items()) {
    if (!std::exchange(is_first, false)) result.append(", ");
    result.append(represented(key));
    result.append(": ");
    result.append(represented(value));
  }
  result.append("}");
  return result;
}

}  // namespace

std::string float_text(double number) {
  if (std::isnan(number)) return "nan";
  if (std::isinf(number)) return number > 0 ? "inf" : "-inf";
  std::array<char, 32> buffer{};
  const auto end = std::to_chars(buffer.data(), buffer.data() + buffer.size(), number,
                                 std::chars_format::scientific);
  const std::string_view text(buffer.data(), static_cast<std::size_t>(end.ptr - buffer.data()));
  const std::string sign = text.starts_with('-') ? "-" : "";
  const std::size_t e = text.find('e');
  std::string digits;
  for (const char c : text.substr(0, e)) {
    if (c >= '0' && c <= '9') digits += c;
  }
  int exponent = 0;
  const std::string_view written = text.substr(e + (text[e + 1] == '+' ? 2 : 1));
  std::from_chars(written.data(), written.data() + written.size(), exponent);
  if (exponent < -4 || exponent >= 16) {
    std::string mantissa = digits.substr(0, 1);
    if (digits.size() > 1) mantissa += "." + digits.substr(1);
    return fmt::format("{}{}e{}{:02}", sign, mantissa, exponent < 0 ? '-' : '+',
                       std::abs(exponent));
  }
  if (exponent < 0) {
    return sign + "0." + std::string(static_cast<std::size_t>(-exponent - 1), '0') + digits;
  }
  const auto whole = static_cast<std::size_t>(exponent) + 1;
  if (digits.size() <= whole) return sign + digits + std::string(whole - digits.size(), '0') + ".0";
  return sign + digits.substr(0, whole) + "." + digits.substr(whole);
}

Text displayed(const Value& value) {
  if (value.is_undefined()) return {};
  if (const Text* text = value.as_text()) return text->as_markup(false);
  return represented(value);
}

Text represented(const Value& value) {
  if (value.is_undefined()) return Text("Undefined");
  if (value.is_none()) return Text("None");
  if (const bool* flag = value.as_bool()) return Text(*flag ? "True" : "False");
  if (const auto* number = value.as_int()) return Text(std::to_string(*number));
  if (const double* number = value.as_float()) return Text(float_text(*number));
  if (const Text* text = value.as_text()) return represented(*text);
  if (const Dict* dict = value.as_dict()) return shown(*dict);
  if (const Sequence* sequence = value.as_sequence()) return shown(*sequence);
  throw Failure(fmt::format("expected a value with a text, got {}", value.type_name()));
}

}  // namespace prefopt::jinja
