// SPDX-License-Identifier: Apache-2.0
#include "jinja/format.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <limits>
#include <optional>
#include <string>

#include "core/text.h"
#include "jinja/display.h"
#include "jinja/failure.h"
#include "jinja/operators.h"
#include "jinja/text_functions.h"

namespace prefopt::jinja {
namespace {

using detail::is_digit;

constexpr std::int64_t kMaxWidth = 100'000;

/// A specification as printf has it: %-05.2f.
struct Conversion {
  std::string flags;
  std::int64_t width = -1, precision = -1;
  char type = 's';
};

Text with_width(const Text& text, const Conversion& conversion) {
  const bool is_left = conversion.flags.find('-') != std::string::npos;
  return is_left ? padded_right(text, conversion.width, " ")
                 : padded_left(text, conversion.width, " ");
}

Text cut_to(const Text& text, std::int64_t precision) {
  if (precision < 0) return text;
  const Characters characters(text.view());
  const std::size_t count = std::min(static_cast<std::size_t>(precision), characters.count());
  return text.part(0, characters.offset(count));
}

template <class Number>
Text printed(const Conversion& conversion, const char* length, Number number) {
  std::string format = "%" + conversion.flags;
  if (conversion.width >= 0) format += std::to_string(conversion.width);
  if (conversion.precision >= 0) format += "." + std::to_string(conversion.precision);
  format += length;
  format += conversion.type;
  const int size = std::snprintf(nullptr, 0, format.c_str(), number);
  std::string result(static_cast<std::size_t>(size) + 1, '\0');
  std::snprintf(result.data(), result.size(), format.c_str(), number);
  result.pop_back();
  return Text(std::move(result));
}

std::int64_t whole_number(const Value& value, bool takes_floats) {
  if (const auto whole = value.integer()) return *whole;
  if (const double* real = value.as_float(); real != nullptr && takes_floats) {
    if (!(std::abs(*real) < 0x1p63)) {
      throw Failure("expected a number of 64 bits to format, got another one");
    }
    return static_cast<std::int64_t>(*real);
  }
  if (value.is_undefined()) throw Failure(value.undefined_message());
  throw Failure(fmt::format("expected an integer to format, got {}", value.type_name()));
}

double real_number(const Value& value) {
  if (const auto number = value.number()) return *number;
  if (value.is_undefined()) throw Failure(value.undefined_message());
  throw Failure(fmt::format("expected a number to format, got {}", value.type_name()));
}

Text hexadecimal(Conversion conversion, std::int64_t number) {
  if (number < 0)
    throw Failure("expected a number of at least 0 for %x and %o, got a negative one");
  return printed(conversion, "ll", static_cast<long long>(number));
}

Text converted(Conversion conversion, const Value& value) {
  switch (conversion.type) {
    case 's':
      return with_width(cut_to(displayed(value), conversion.precision), conversion);
    case 'r':
      return with_width(cut_to(represented(value), conversion.precision), conversion);
    case 'd':
    case 'i':
    case 'u':
      conversion.type = 'd';
      return printed(conversion, "ll",
                     static_cast<long long>(whole_number(value, /*takes_floats=*/true)));
    case 'o':
    case 'x':
    case 'X':
      return hexadecimal(conversion, whole_number(value, /*takes_floats=*/false));
    case 'e':
    case 'E':
    case 'f':
    case 'F':
    case 'g':
    case 'G':
      return printed(conversion, "", real_number(value));
    default:
      throw Failure(
          fmt::format("expected a conversion known here after '%', got '{}'", conversion.type));
  }
}

class PercentFormat {
 public:
  PercentFormat(const Text& format, const Value& values)
      : format_(format), bytes_(format.bytes()), values_(values) {}

  Text write() {
    while (at_ < bytes_.size()) {
      const std::size_t percent = std::min(bytes_.find('%', at_), bytes_.size());
      result_.append_part(format_, at_, percent);
      at_ = percent;
      if (at_ < bytes_.size()) write_conversion();
    }
    check_all_used();
    return std::move(result_);
  }

 private:
  char next() {
    if (at_ == bytes_.size()) throw Failure("expected a whole conversion after '%', got its start");
    return bytes_[at_++];
  }

  void write_conversion() {
    const std::size_t begin = at_++;
    std::optional<Value> named;
    if (at_ < bytes_.size() && bytes_[at_] == '(') named = take_key();
    Conversion conversion;
    while (at_ < bytes_.size() &&
           std::string_view("-+ 0").find(bytes_[at_]) != std::string_view::npos) {
      conversion.flags += bytes_[at_++];
    }
    conversion.width = take_number();
    if (at_ < bytes_.size() && bytes_[at_] == '.') {
      ++at_;
      conversion.precision = std::max<std::int64_t>(take_number(), 0);
    }
    conversion.type = next();
    if (conversion.type == '%') {
      if (at_ - begin != 2) throw Failure("expected '%%' without more, got flags in it");
      result_.append_part(format_, begin, begin + 1);
      return;
    }
    result_.append(converted(conversion, named ? *named : take_value()));
  }

  std::int64_t take_number() {
    std::int64_t number = -1;
    while (at_ < bytes_.size() && is_digit(bytes_[at_])) {
      number = std::max<std::int64_t>(number, 0) * 10 + (bytes_[at_++] - '0');
      if (number > kMaxWidth) {
        throw Failure(fmt::format("expected widths of at most {}, got a larger one", kMaxWidth));
      }
    }
    return number;
  }

  Value take_key() {
    const std::size_t end = bytes_.find(')', at_);
    const Dict* dict = values_.as_dict();
    if (dict == nullptr || end == std::string::npos) {
      throw Failure("expected a mapping for '%(name)s', got something else");
    }
    const std::string key = bytes_.substr(at_ + 1, end - at_ - 1);
    at_ = end + 1;
    const Value* found = dict->find(Value(std::string_view(key)));
    if (found == nullptr)
      throw Failure(fmt::format("expected a key '{}' to format, got none", key));
    return *found;
  }

  Value take_value() {
    if (!values_.is_a(SequenceType::kTuple) && !values_.is_a(SequenceType::kGroup)) {
      if (used_++ == 0) return values_;
    } else if (const auto& items = values_.as_sequence()->items; used_ < items.size()) {
      return items[used_++];
    }
    throw Failure("expected a value for each conversion, got fewer");
  }

  void check_all_used() const {
    const bool is_tuple = values_.is_a(SequenceType::kTuple) || values_.is_a(SequenceType::kGroup);
    const std::size_t count = is_tuple ? values_.as_sequence()->items.size() : 1;
    const bool is_container = values_.is_undefined() || values_.as_dict() != nullptr ||
                              (values_.as_sequence() != nullptr && !is_tuple);
    if (used_ < count && !is_container) {
      throw Failure("expected a conversion for each value, got fewer");
    }
  }

  const Text& format_;
  const std::string& bytes_;
  const Value& values_;
  std::size_t at_ = 0, used_ = 0;
  Text result_;
};

/// A specification as str.format has it: *^10.3f.
struct FieldFormat {
  std::string fill = " ";
  char align = 0, sign = 0, type = 0;
  bool zeros = false;
  std::int64_t width = -1, precision = -1;
};

FieldFormat parsed_format(std::string_view text) {
  FieldFormat format;
  const std::string_view whole = text;
  const auto is_align = [](char c) { return c == '<' || c == '>' || c == '^'; };
  const auto is_sign = [](char c) { return c == '+' || c == '-' || c == ' '; };
  const auto take = [&](char& to) {
    to = text.front();
    text.remove_prefix(1);
  };
  const auto take_number = [&] {
    std::int64_t number = -1;
    while (!text.empty() && is_digit(text.front()) && number <= kMaxWidth) {
      number = std::max<std::int64_t>(number, 0) * 10 + (text.front() - '0');
      text.remove_prefix(1);
    }
    if (number > kMaxWidth) {
      throw Failure(fmt::format("expected widths of at most {}, got a larger one", kMaxWidth));
    }
    return number;
  };
  if (const Characters characters(text);
      characters.count() > 1 && is_align(text[characters.offset(1)])) {
    format.fill = text.substr(0, characters.offset(1));
    text.remove_prefix(characters.offset(1));
  }
  if (!text.empty() && is_align(text.front())) take(format.align);
  if (!text.empty() && is_sign(text.front())) take(format.sign);
  if (!text.empty() && text.front() == '0') {
    format.zeros = true;
    text.remove_prefix(1);
  }
  format.width = take_number();
  if (!text.empty() && text.front() == '.') {
    text.remove_prefix(1);
    format.precision = take_number();
    if (format.precision < 0) text = "?";
  }
  if (text.size() == 1) take(format.type);
  if (!text.empty()) {
    throw Failure(fmt::format("expected a format known here, got '{}'", whole));
  }
  return format;
}

Text aligned(const Text& text, const FieldFormat& format, char usual) {
  switch (format.align != 0 ? format.align : usual) {
    case '<':
      return padded_right(text, format.width, format.fill);
    case '^':
      return centered(text, format.width, format.fill);
    default:
      return padded_left(text, format.width, format.fill);
  }
}

Text formatted_number(const Value& value, const FieldFormat& format, std::string_view written) {
  const bool is_whole = value.as_int() != nullptr;
  const std::string_view types = is_whole ? "doxXeEfFgG" : "eEfFgG";
  const char type = format.type == 0 && is_whole ? 'd' : format.type;
  const bool is_integer_type = std::string_view("doxX").find(type) != std::string_view::npos;
  if (type == 0 || types.find(type) == std::string_view::npos ||
      (is_integer_type && format.precision >= 0) || (format.zeros && format.align != 0)) {
    throw Failure(
        fmt::format("expected a format for {} known here, got '{}'", value.type_name(), written));
  }
  Conversion conversion{.flags = {}, .precision = format.precision, .type = type};
  if (format.sign == '+' || format.sign == ' ') conversion.flags = std::string(1, format.sign);
  if (format.zeros) {
    conversion.flags += '0';
    conversion.width = format.width;
  }
  return aligned(converted(conversion, value), format, '>');
}

Text formatted_value(const Value& value, std::string_view written) {
  if (written.empty()) return displayed(value);
  const FieldFormat format = parsed_format(written);
  if (value.as_int() != nullptr || value.as_float() != nullptr) {
    return formatted_number(value, format, written);
  }
  const Text* text = value.as_text();
  const bool fits = text != nullptr && format.sign == 0 && !format.zeros &&
                    (format.type == 0 || format.type == 's');
  if (!fits) {
    throw Failure(
        fmt::format("expected a format for {} known here, got '{}'", value.type_name(), written));
  }
  return aligned(cut_to(*text, format.precision), format, '<');
}

class FieldsFormat {
 public:
  FieldsFormat(const Text& format, const Arguments& arguments)
      : format_(format), bytes_(format.bytes()), arguments_(arguments) {}

  Text write() {
    for (std::size_t at = 0; at < bytes_.size();) {
      const char c = bytes_[at];
      if (c != '{' && c != '}') {
        const std::size_t end = std::min(bytes_.find_first_of("{}", at), bytes_.size());
        result_.append_part(format_, at, end);
        at = end;
      } else if (at + 1 < bytes_.size() && bytes_[at + 1] == c) {
        result_.append_part(format_, at, at + 1);
        at += 2;
      } else {
        const std::size_t end = bytes_.find('}', at);
        if (c == '}' || end == std::string::npos) {
          throw Failure("expected braces in pairs in a format, got a single one");
        }
        write_field(std::string_view(bytes_).substr(at + 1, end - at - 1));
        at = end + 1;
      }
    }
    return std::move(result_);
  }

 private:
  void write_field(std::string_view field) {
    if (field.find('{') != std::string_view::npos) {
      throw Failure("expected fields of a format without fields in them, got such");
    }
    const std::size_t colon = std::min(field.find(':'), field.size());
    std::string_view name = field.substr(0, colon);
    const std::string_view written = field.substr(std::min(colon + 1, field.size()));
    char conversion = 0;
    if (const std::size_t mark = name.find('!'); mark != std::string_view::npos) {
      if (name.size() != mark + 2 || (name[mark + 1] != 's' && name[mark + 1] != 'r')) {
        throw Failure("expected the conversion !s or !r, got another one");
      }
      conversion = name[mark + 1];
      name = name.substr(0, mark);
    }
    Value value = value_at(name);
    if (conversion == 's') value = Value(displayed(value));
    if (conversion == 'r') value = Value(represented(value));
    result_.append(formatted_value(value, written));
  }

  Value value_at(std::string_view path) {
    const std::size_t end = std::min(path.find_first_of(".["), path.size());
    Value value = first_value(path.substr(0, end));
    path.remove_prefix(end);
    while (!path.empty()) {
      const bool is_item = path.front() == '[';
      path.remove_prefix(1);
      const std::size_t stop = std::min(path.find_first_of(is_item ? "]" : ".["), path.size());
      const std::string_view key = path.substr(0, stop);
      if (key.empty() || (is_item && stop == path.size())) {
        throw Failure("expected the name of a field in a format, got none");
      }
      value = is_item ? item_of(value, index_of(key)) : attribute_of(value, key);
      path.remove_prefix(is_item ? stop + 1 : stop);
    }
    return value;
  }

  static Value index_of(std::string_view key) {
    if (!std::all_of(key.begin(), key.end(), is_digit)) return Value(key);
    return Value(number_of(key));
  }

  static std::int64_t number_of(std::string_view digits) {
    if (digits.size() > 9) throw Failure("expected the number of an argument, got a longer one");
    std::int64_t number = 0;
    for (const char c : digits) number = number * 10 + (c - '0');
    return number;
  }

  Value first_value(std::string_view name) {
    const bool is_number = std::all_of(name.begin(), name.end(), is_digit);
    if (!is_number) {
      for (const auto& [key, value] : arguments_.named) {
        if (key == name) return value;
      }
      throw Failure(fmt::format("expected an argument '{}' to format, got none", name));
    }
    if (name.empty() ? counts_ == Counting::kNamed : counts_ == Counting::kAutomatic) {
      throw Failure("expected the fields of a format with numbers or without, got both");
    }
    counts_ = name.empty() ? Counting::kAutomatic : Counting::kNamed;
    const auto place = static_cast<std::size_t>(name.empty() ? next_++ : number_of(name));
    if (place >= arguments_.values.size()) {
      throw Failure("expected an argument for each field of a format, got fewer");
    }
    return arguments_.values[place];
  }

  enum class Counting { kUnknown, kNamed, kAutomatic };

  const Text& format_;
  const std::string& bytes_;
  const Arguments& arguments_;
  Counting counts_ = Counting::kUnknown;
  std::int64_t next_ = 0;
  Text result_;
};

}  // namespace

Text formatted(const Text& format, const Value& values) {
  if (format.is_markup()) throw Failure("expected '%' after a plain text, got one marked as safe");
  return PercentFormat(format, values).write();
}

Text formatted_fields(const Text& format, const Arguments& arguments) {
  return FieldsFormat(format, arguments).write();
}

}  // namespace prefopt::jinja
