// SPDX-License-Identifier: Apache-2.0
#include <fmt/format.h>

#include <array>
#include <charconv>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <optional>

#include "core/text.h"
#include "jinja/arguments.h"
#include "jinja/display.h"
#include "jinja/failure.h"
#include "jinja/filter_parts.h"
#include "jinja/format.h"
#include "jinja/json_writer.h"
#include "jinja/operators.h"
#include "jinja/text_functions.h"

namespace prefopt::jinja {
namespace {

/// markupsafe's soft_str: a text as it is, everything else as str() shows it.
Text soft_text(const Value& value) {
  const Text* text = value.as_text();
  return text != nullptr ? *text : displayed(value);
}

Text plain_text(const Value& value, std::string_view filter) {
  Text text = soft_text(value);
  if (text.is_markup()) {
    throw Failure(fmt::format("expected {} of a plain text, got one marked as safe", filter));
  }
  return text;
}

const Text& only_text(const Value& value, std::string_view filter) {
  const Text* text = value.as_text();
  if (text != nullptr) return *text;
  if (value.is_undefined()) throw Failure(value.undefined_message());
  throw Failure(
      fmt::format("expected a text for the filter '{}', got {}", filter, value.type_name()));
}

template <Text (*kChange)(const Text&)>
Value change(const Value& value, const Arguments& arguments) {
  const Bound bound("the filter", arguments, {});
  return Value(kChange(soft_text(value)));
}

Text title_of(const Text& text) { return title_of_words(text).as_markup(false); }

Value trim(const Value& value, const Arguments& arguments) {
  const Bound bound("the filter 'trim'", arguments, {"chars"});
  return Value(strip(soft_text(value), Side::kBoth, bound.text_or_none(0)));
}

Value replace_filter(const Value& value, const Arguments& arguments) {
  const Bound bound("the filter 'replace'", arguments, {"old", "new", "count"}, 2);
  const bool has_count = bound.has(2) && !bound.value(2).is_none();
  return Value(replace(displayed(value), displayed(bound.value(0)), displayed(bound.value(1)),
                       has_count ? bound.integer(2, -1) : -1));
}

Value center(const Value& value, const Arguments& arguments) {
  const Bound bound("the filter 'center'", arguments, {"width"});
  return Value(centered(plain_text(value, "the filter 'center'"), bound.integer(0, 80), " "));
}

Value indent(const Value& value, const Arguments& arguments) {
  const Bound bound("the filter 'indent'", arguments, {"width", "first", "blank"});
  Text text = only_text(value, "indent");
  if (text.is_markup()) throw Failure("expected 'indent' of a plain text, got one marked as safe");
  Text space;
  if (const Text* given = bound.value(0).as_text()) {
    space = *given;
  } else {
    space = padded_left(Text(), bound.integer(0, 4), " ");
  }
  text.append("\n");
  const std::vector<Text> lines = split_lines(text, /*keep_ends=*/false);
  const bool fills_blank = bound.flag(2, false);
  Text result;
  for (std::size_t i = 0; i < lines.size(); ++i) {
    if (i > 0) result.append("\n");
    const bool is_indented = i > 0 ? fills_blank || !lines[i].empty() : bound.flag(1, false);
    if (is_indented) result.append(space);
    result.append(lines[i]);
  }
  return Value(std::move(result));
}

Value truncate(const Value& value, const Arguments& arguments) {
  const Bound bound("the filter 'truncate'", arguments, {"length", "killwords", "end", "leeway"});
  const Text end = bound.has(2) ? bound.text(2) : Text("...");
  const bool has_leeway = bound.has(3) && !bound.value(3).is_none();
  const std::int64_t length = bound.integer(0, 255), leeway = has_leeway ? bound.integer(3, 5) : 5;
  const auto end_length = static_cast<std::int64_t>(count_characters(end.view()));
  if (length < end_length || leeway < 0) {
    throw Failure(
        fmt::format("expected a length of at least {} and a leeway of at least 0, got {} "
                    "and {}",
                    end_length, length, leeway));
  }
  if (length_of(value) <= length + leeway) return value;
  const Text& text = only_text(value, "truncate");
  const Characters characters(text.view());
  if (text.is_markup())
    throw Failure("expected 'truncate' of a plain text, got one marked as safe");
  Text kept = text.part(0, characters.offset(static_cast<std::size_t>(length - end_length)));
  if (!bound.flag(1, false)) {
    const Text space(" ");
    kept = split_from_right(kept, &space, 1).front();
  }
  kept.append(end);
  return Value(std::move(kept));
}

Value word_count(const Value& value, const Arguments& arguments) {
  const Bound bound("the filter 'wordcount'", arguments, {});
  return Value(count_words(soft_text(value)));
}

Value format_filter(const Value& value, const Arguments& arguments) {
  if (!arguments.values.empty() && !arguments.named.empty()) {
    throw Failure("expected 'format' with named arguments or others, got both");
  }
  const Text format = soft_text(value);
  if (arguments.named.empty()) return Value(formatted(format, Value::tuple(arguments.values)));
  std::vector<std::pair<Value, Value>> named;
  for (const auto& [name, argument] : arguments.named) named.emplace_back(Value(name), argument);
  return Value(formatted(format, Value::dict(std::move(named))));
}

Value string(const Value& value, const Arguments& arguments) {
  const Bound bound("the filter 'string'", arguments, {});
  return Value(soft_text(value));
}

Value safe(const Value& value, const Arguments& arguments) {
  const Bound bound("the filter 'safe'", arguments, {});
  return Value(soft_text(value).as_markup());
}

Value escape(const Value& value, const Arguments& arguments) {
  const Bound bound("the filter 'escape'", arguments, {});
  const Text text = soft_text(value);
  return Value((text.is_markup() ? text : escaped(text)).as_markup());
}

JsonStyle style_of(const Bound& bound) {
  JsonStyle style{.ensure_ascii = bound.flag(0, false), .sort_keys = bound.flag(3, false)};
  if (const Value given = bound.value(1, None{}); !given.is_none()) {
    style.item_separator = ",";
    const Text* text = given.as_text();
    style.indent =
        text != nullptr ? text->bytes() : padded_left(Text(), bound.integer(1, 0), " ").bytes();
    if (text != nullptr && text->is_marked()) {
      throw Failure("expected an indent that the template writes, got one of its variables");
    }
  }
  const Value given = bound.value(2, None{});
  if (given.is_none()) return style;
  const Sequence* separators = given.as_sequence();
  const bool are_texts = separators != nullptr && given.is_indexed() &&
                         separators->items.size() == 2 && separators->items[0].is_text() &&
                         separators->items[1].is_text();
  if (!are_texts) throw Failure("expected two texts as separators of 'tojson', got something else");
  style.item_separator = separators->items[0].as_text()->bytes();
  style.key_separator = separators->items[1].as_text()->bytes();
  return style;
}

Value to_json(const Value& value, const Arguments& arguments) {
  const Bound bound("the filter 'tojson'", arguments,
                    {"ensure_ascii", "indent", "separators", "sort_keys"});
  return Value(json_of(value, style_of(bound)));
}

// --- Numbers

/// Digits with single underscores between them are one number in Python; empty: no number.
std::string without_underscores(std::string_view text) {
  std::string result;
  for (std::size_t i = 0; i < text.size(); ++i) {
    if (text[i] != '_') {
      result += text[i];
      continue;
    }
    const bool is_between = i > 0 && i + 1 < text.size() && detail::is_digit(text[i - 1]) &&
                            detail::is_digit(text[i + 1]);
    if (!is_between) return "";
  }
  return result;
}

// Python reads the digits of all scripts.
void check_ascii(std::string_view text) {
  const auto is_ascii = [](char c) { return static_cast<unsigned char>(c) < 0x80; };
  if (std::all_of(text.begin(), text.end(), is_ascii)) return;
  throw Failure("expected a number in ASCII, got another text");
}

std::optional<std::int64_t> integer_in(const Text& text) {
  check_ascii(text.view());
  const std::string digits = without_underscores(strip(text, Side::kBoth).view());
  std::string_view view = digits;
  const bool is_negative = view.starts_with('-');
  if (is_negative || view.starts_with('+')) view.remove_prefix(1);
  if (view.empty() || view.find_first_not_of("0123456789") != std::string_view::npos) {
    return std::nullopt;
  }
  const std::string written = (is_negative ? "-" : "") + std::string(view);
  std::int64_t number = 0;
  const auto parsed = std::from_chars(written.data(), written.data() + written.size(), number);
  if (parsed.ec != std::errc()) throw Failure("expected integers of 64 bits, got a longer one");
  return number;
}

std::optional<double> float_in(const Text& text) {
  const std::string digits =
      lower(Text(without_underscores(strip(text, Side::kBoth).view()))).bytes();
  check_ascii(digits);
  const double sign = digits.starts_with('-') ? -1 : 1;
  std::string_view view = digits;
  if (view.starts_with('-') || view.starts_with('+')) view.remove_prefix(1);
  if (view.starts_with('-') || view.starts_with('+')) return std::nullopt;
  if (view == "inf" || view == "infinity") return sign * std::numeric_limits<double>::infinity();
  if (view == "nan") return std::nan("");
  if (view.empty() || view.find_first_not_of("0123456789.e+-") != std::string_view::npos) {
    return std::nullopt;
  }
  double number = 0;
  const auto parsed = std::from_chars(view.data(), view.data() + view.size(), number);
  if (parsed.ptr != view.data() + view.size() || parsed.ec == std::errc::invalid_argument) {
    return std::nullopt;
  }
  if (parsed.ec == std::errc::result_out_of_range) number = std::strtod(view.data(), nullptr);
  return sign * number;
}

std::int64_t truncated(double number) {
  if (!(std::abs(number) < 0x1p63)) {
    throw Failure("expected a number of 64 bits to make an integer of, got another one");
  }
  return static_cast<std::int64_t>(number);
}

Value to_int(const Value& value, const Arguments& arguments) {
  const Bound bound("the filter 'int'", arguments, {"default", "base"});
  if (bound.integer(1, 10) != 10) throw Failure("expected the base 10 of 'int', got another one");
  if (value.is_undefined()) throw Failure(value.undefined_message());
  const Value otherwise = bound.value(0, Value(std::int64_t{0}));
  if (const auto whole = value.integer()) return Value(*whole);
  if (const double* number = value.as_float()) {
    return std::isnan(*number) ? otherwise : Value(truncated(*number));
  }
  const Text* text = value.as_text();
  if (text == nullptr) return otherwise;
  if (const auto whole = integer_in(*text)) return Value(*whole);
  const auto number = float_in(*text);
  return number && std::isfinite(*number) ? Value(truncated(*number)) : otherwise;
}

Value to_float(const Value& value, const Arguments& arguments) {
  const Bound bound("the filter 'float'", arguments, {"default"});
  if (value.is_undefined()) throw Failure(value.undefined_message());
  if (const auto number = value.number()) return Value(*number);
  const Text* text = value.as_text();
  const auto number = text != nullptr ? float_in(*text) : std::nullopt;
  return number ? Value(*number) : bound.value(0, Value(0.0));
}

double rounded(double number, std::int64_t precision) {
  if (!std::isfinite(number)) return number;
  // The digits are exact, so that ties are those of the binary number, as in Python.
  return std::strtod(fmt::format("{:.{}f}", number, precision).c_str(), nullptr);
}

Value round(const Value& value, const Arguments& arguments) {
  const Bound bound("the filter 'round'", arguments, {"precision", "method"});
  constexpr std::int64_t kMaxPrecision = 15;
  const std::int64_t precision = bound.integer(0, 0);
  const std::string method = bound.has(1) ? bound.text(1).bytes() : "common";
  const auto number = value.number();
  if (!number) {
    if (value.is_undefined()) throw Failure(value.undefined_message());
    throw Failure(fmt::format("expected a number to round, got {}", value.type_name()));
  }
  if (precision < 0 || precision > kMaxPrecision) {
    throw Failure(fmt::format("expected a precision of 'round' in [0, {}], got {}", kMaxPrecision,
                              precision));
  }
  if (method == "common") {
    if (const auto whole = value.integer()) return Value(*whole);
    return Value(rounded(*number, precision));
  }
  if (method != "ceil" && method != "floor") {
    throw Failure(
        fmt::format("expected the method common, ceil or floor of 'round', got '{}'", method));
  }
  if (!std::isfinite(*number)) throw Failure("expected a finite number to round, got another one");
  const double scale = std::pow(10.0, static_cast<double>(precision));
  const double scaled = *number * scale;
  return Value((method == "ceil" ? std::ceil(scaled) : std::floor(scaled)) / scale);
}

Value absolute(const Value& value, const Arguments& arguments) {
  const Bound bound("the filter 'abs'", arguments, {});
  if (const auto whole = value.integer()) return *whole < 0 ? negative(value) : Value(*whole);
  if (const double* number = value.as_float()) return Value(std::abs(*number));
  if (value.is_undefined()) throw Failure(value.undefined_message());
  throw Failure(fmt::format("expected a number for 'abs', got {}", value.type_name()));
}

constexpr auto kTextFilters = std::to_array<FilterEntry>({
    {"abs", absolute},
    {"capitalize", change<capitalize>},
    {"center", center},
    {"e", escape},
    {"escape", escape},
    {"float", to_float},
    {"format", format_filter},
    {"indent", indent},
    {"int", to_int},
    {"lower", change<lower>},
    {"replace", replace_filter},
    {"round", round},
    {"safe", safe},
    {"string", string},
    {"title", change<title_of>},
    {"tojson", to_json},
    {"trim", trim},
    {"truncate", truncate},
    {"upper", change<upper>},
    {"wordcount", word_count},
});

}  // namespace

Filter find_text_filter(std::string_view name) { return find_in(kTextFilters, name); }

}  // namespace prefopt::jinja
