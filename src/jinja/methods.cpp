// SPDX-License-Identifier: Apache-2.0
#include "jinja/methods.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <string>

#include "jinja/arguments.h"
#include "jinja/display.h"
#include "jinja/failure.h"
#include "jinja/format.h"
#include "jinja/operators.h"
#include "jinja/text_functions.h"

namespace prefopt::jinja {
namespace {

template <class Self>
using Method = Value (*)(const Self& self, std::string_view name, const Arguments& arguments);

template <class Self>
struct MethodEntry {
  std::string_view name;
  Method<Self> call;
};

/// A method with the value that it belongs to.
template <class Self>
class BoundMethod final : public Object {
 public:
  BoundMethod(Value self, const Self& object, const MethodEntry<Self>& entry)
      : self_(std::move(self)), object_(object), entry_(entry) {}

  std::string_view type_name() const override { return "a method"; }
  bool is_callable() const override { return true; }
  std::size_t depth() const override { return self_.depth() + 1; }
  Value call(const Arguments& arguments) override {
    return entry_.call(object_, entry_.name, arguments);
  }

 private:
  Value self_;  // keeps the object
  const Self& object_;
  const MethodEntry<Self>& entry_;
};

// --- Texts

Value list_of(std::vector<Text> texts) {
  std::vector<Value> items;
  items.reserve(texts.size());
  for (Text& text : texts) items.emplace_back(std::move(text));
  return Value::list(std::move(items));
}

/// The part [start, end) that searches are limited to, in bytes.
struct Window {
  std::size_t begin, end;
};

std::optional<Window> window_of(const Text& self, const Bound& bound) {
  const Characters characters(self.view());
  const auto count = static_cast<std::int64_t>(characters.count());
  const auto place = [&](std::size_t parameter, std::int64_t otherwise) {
    std::int64_t at = otherwise;
    if (bound.has(parameter) && !bound.value(parameter).is_none()) {
      at = bound.integer(parameter, otherwise);
    }
    return at < 0 ? std::max<std::int64_t>(at + count, 0) : at;
  };
  const std::int64_t start = place(1, 0), stop = std::min(place(2, count), count);
  if (start > stop) return std::nullopt;
  return Window{characters.offset(static_cast<std::size_t>(start)),
                characters.offset(static_cast<std::size_t>(stop))};
}

template <bool kAtEnd>
Value has_affix(const Text& self, std::string_view name, const Arguments& arguments) {
  const Bound bound(name, arguments, {"prefix", "start", "end"}, 1);
  const auto window = window_of(self, bound);
  const auto fits = [&](const Value& affix) {
    const Text* text = affix.as_text();
    if (text == nullptr) {
      throw Failure(
          fmt::format("expected texts to compare in {}, got {}", name, affix.type_name()));
    }
    if (!window) return false;
    const std::string_view part = self.view().substr(window->begin, window->end - window->begin);
    return kAtEnd ? part.ends_with(text->view()) : part.starts_with(text->view());
  };
  const Value affix = bound.value(0);
  if (!affix.is_a(SequenceType::kTuple)) return Value(fits(affix));
  const std::vector<Value>& items = affix.as_sequence()->items;
  return Value(std::any_of(items.begin(), items.end(), fits));
}

/// Returns the character where a part is, or -1.
template <bool kFromRight>
std::int64_t place_in(const Text& self, std::string_view name, const Arguments& arguments) {
  const Bound bound(name, arguments, {"sub", "start", "end"}, 1);
  const Text& part = bound.text(0);
  const auto window = window_of(self, bound);
  if (!window) return -1;
  const std::string_view text = self.view().substr(window->begin, window->end - window->begin);
  const std::size_t found = kFromRight ? text.rfind(part.view()) : text.find(part.view());
  if (found == std::string_view::npos) return -1;
  return static_cast<std::int64_t>(count_characters(self.view().substr(0, window->begin + found)));
}

template <bool kFromRight>
Value find(const Text& self, std::string_view name, const Arguments& arguments) {
  return Value(place_in<kFromRight>(self, name, arguments));
}

template <bool kFromRight>
Value index(const Text& self, std::string_view name, const Arguments& arguments) {
  const std::int64_t place = place_in<kFromRight>(self, name, arguments);
  if (place < 0) throw Failure(fmt::format("expected a text that {} finds, got none", name));
  return Value(place);
}

Value count(const Text& self, std::string_view name, const Arguments& arguments) {
  const Bound bound(name, arguments, {"sub", "start", "end"}, 1);
  const std::string_view part = bound.text(0).view();
  const auto window = window_of(self, bound);
  if (!window) return Value(std::int64_t{0});
  const std::string_view text = self.view().substr(window->begin, window->end - window->begin);
  if (part.empty()) return Value(static_cast<std::int64_t>(count_characters(text) + 1));
  std::int64_t found = 0;
  for (std::size_t at = text.find(part); at != std::string_view::npos;
       at = text.find(part, at + part.size())) {
    ++found;
  }
  return Value(found);
}

template <Side kSide>
Value strip_text(const Text& self, std::string_view name, const Arguments& arguments) {
  const Bound bound(name, arguments, {"chars"});
  return Value(strip(self, kSide, bound.text_or_none(0)));
}

template <bool kFromRight>
Value split_text(const Text& self, std::string_view name, const Arguments& arguments) {
  const Bound bound(name, arguments, {"sep", "maxsplit"});
  const auto split_at = kFromRight ? split_from_right : split;
  return list_of(split_at(self, bound.text_or_none(0), bound.integer(1, -1)));
}

template <bool kFromRight>
Value partition(const Text& self, std::string_view name, const Arguments& arguments) {
  const Bound bound(name, arguments, {"sep"}, 1);
  const Text& separator = bound.text(0);
  const auto split_at = kFromRight ? split_from_right : split;
  const std::vector<Text> parts = split_at(self, &separator, 1);
  if (parts.size() == 2) {
    return Value::tuple({Value(parts[0]), Value(separator), Value(parts[1])});
  }
  const Value empty(""), whole(self);
  return kFromRight ? Value::tuple({empty, empty, whole}) : Value::tuple({whole, empty, empty});
}

Value split_into_lines(const Text& self, std::string_view name, const Arguments& arguments) {
  return list_of(split_lines(self, Bound(name, arguments, {"keepends"}).flag(0, false)));
}

Value replace_text(const Text& self, std::string_view name, const Arguments& arguments) {
  const Bound bound(name, arguments, {"old", "new", "count"}, 2);
  return Value(replace(self, bound.text(0), bound.text(1), bound.integer(2, -1)));
}

Value join_texts(const Text& self, std::string_view name, const Arguments& arguments) {
  const Bound bound(name, arguments, {"iterable"}, 1);
  std::vector<Text> texts;
  for (const Value& item : items_of(bound.value(0))) {
    const Text* text = item.as_text();
    if (text == nullptr) {
      throw Failure(fmt::format("expected texts to join, got {}", item.type_name()));
    }
    texts.push_back(*text);
  }
  return Value(join(self, texts));
}

Value format_text(const Text& self, std::string_view /*name*/, const Arguments& arguments) {
  return Value(formatted_fields(self, arguments));
}

template <bool kAtEnd>
Value remove_affix(const Text& self, std::string_view name, const Arguments& arguments) {
  const Text affix = Bound(name, arguments, {"affix"}, 1).text(0);
  if (kAtEnd && !affix.empty() && self.view().ends_with(affix.view())) {
    return Value(self.part(0, self.size() - affix.size()));
  }
  if (!kAtEnd && self.view().starts_with(affix.view())) {
    return Value(self.part(affix.size(), self.size()));
  }
  return Value(self);
}

template <Text (*kPad)(const Text&, std::int64_t, std::string_view)>
Value pad(const Text& self, std::string_view name, const Arguments& arguments) {
  const Bound bound(name, arguments, {"width", "fillchar"}, 1);
  const Text fill = bound.has(1) ? bound.text(1) : Text(" ");
  if (count_characters(fill.view()) != 1) {
    throw Failure(fmt::format("expected one character to fill with in {}, got another text", name));
  }
  return Value(kPad(self, bound.integer(0, 0), fill.view()));
}

Value fill_zeros(const Text& self, std::string_view name, const Arguments& arguments) {
  const std::int64_t width = Bound(name, arguments, {"width"}, 1).integer(0, 0);
  const bool is_signed = self.view().starts_with('-') || self.view().starts_with('+');
  if (!is_signed) return Value(padded_left(self, width, "0"));
  Text result = self.part(0, 1);
  result.append(padded_left(self.part(1, self.size()), width - 1, "0"));
  return Value(std::move(result));
}

template <Text (*kChange)(const Text&)>
Value change(const Text& self, std::string_view name, const Arguments& arguments) {
  const Bound bound(name, arguments, {});
  return Value(kChange(self));
}

template <CharacterClass kKind>
Value is_all(const Text& self, std::string_view name, const Arguments& arguments) {
  const Bound bound(name, arguments, {});
  return Value(is_of(self, kKind));
}

constexpr auto kTextMethods = std::to_array<MethodEntry<Text>>({
    {"capitalize", change<capitalize>},
    {"center", pad<centered>},
    {"count", count},
    {"endswith", has_affix<true>},
    {"find", find<false>},
    {"format", format_text},
    {"index", index<false>},
    {"isalnum", is_all<CharacterClass::kAlnum>},
    {"isalpha", is_all<CharacterClass::kAlpha>},
    {"isascii", is_all<CharacterClass::kAscii>},
    {"isdigit", is_all<CharacterClass::kDigit>},
    {"islower", is_all<CharacterClass::kLower>},
    {"isspace", is_all<CharacterClass::kSpace>},
    {"istitle", is_all<CharacterClass::kTitle>},
    {"isupper", is_all<CharacterClass::kUpper>},
    {"join", join_texts},
    {"ljust", pad<padded_right>},
    {"lower", change<lower>},
    {"lstrip", strip_text<Side::kLeft>},
    {"partition", partition<false>},
    {"removeprefix", remove_affix<false>},
    {"removesuffix", remove_affix<true>},
    {"replace", replace_text},
    {"rfind", find<true>},
    {"rindex", index<true>},
    {"rjust", pad<padded_left>},
    {"rpartition", partition<true>},
    {"rsplit", split_text<true>},
    {"rstrip", strip_text<Side::kRight>},
    {"split", split_text<false>},
    {"splitlines", split_into_lines},
    {"startswith", has_affix<false>},
    {"strip", strip_text<Side::kBoth>},
    {"swapcase", change<swap_case>},
    {"title", change<title>},
    {"upper", change<upper>},
    {"zfill", fill_zeros},
});

// Python has them; here their call is refused.
constexpr std::array<std::string_view, 10> kOtherTextMethods{
    "casefold",  "encode",    "expandtabs",   "format_map", "isdecimal",
    "isnumeric", "maketrans", "isidentifier", "translate",  "isprintable"};

// --- Dicts

Value get(const Dict& self, std::string_view name, const Arguments& arguments) {
  if (!arguments.named.empty()) throw Failure("expected no named arguments of get, got some");
  const Bound bound(name, arguments, {"key", "default"}, 1);
  check_hashable(bound.value(0));
  const Value* found = self.find(bound.value(0));
  return found != nullptr ? *found : bound.value(1, None{});
}

template <SequenceType kType>
Value view(const Dict& self, std::string_view name, const Arguments& arguments) {
  const Bound bound(name, arguments, {});
  std::vector<Value> items;
  for (const auto& [key, value] : self.items()) {
    items.push_back(kType == SequenceType::kKeys     ? key
                    : kType == SequenceType::kValues ? value
                                                     : Value::tuple({key, value}));
  }
  return Value::sequence(kType, std::move(items));
}

Value copy_dict(const Dict& self, std::string_view name, const Arguments& arguments) {
  const Bound bound(name, arguments, {});
  return Value::dict(self.items());
}

constexpr auto kDictMethods = std::to_array<MethodEntry<Dict>>({
    {"copy", copy_dict},
    {"get", get},
    {"items", view<SequenceType::kItems>},
    {"keys", view<SequenceType::kKeys>},
    {"values", view<SequenceType::kValues>},
});

constexpr std::array<std::string_view, 5> kChangesOfDicts{"clear", "pop", "popitem", "setdefault",
                                                          "update"};

// --- Lists and tuples

Value count_items(const Sequence& self, std::string_view name, const Arguments& arguments) {
  const Value wanted = Bound(name, arguments, {"value"}, 1).value(0);
  return Value(static_cast<std::int64_t>(
      std::count_if(self.items.begin(), self.items.end(),
                    [&](const Value& item) { return equal(item, wanted); })));
}

Value index_of_item(const Sequence& self, std::string_view name, const Arguments& arguments) {
  const Value wanted = Bound(name, arguments, {"value"}, 1).value(0);
  const auto found = std::find_if(self.items.begin(), self.items.end(),
                                  [&](const Value& item) { return equal(item, wanted); });
  if (found == self.items.end()) throw Failure("expected a value that index finds, got none");
  return Value(static_cast<std::int64_t>(found - self.items.begin()));
}

Value copy_list(const Sequence& self, std::string_view name, const Arguments& arguments) {
  const Bound bound(name, arguments, {});
  return Value::list(self.items);
}

constexpr auto kListMethods = std::to_array<MethodEntry<Sequence>>({
    {"copy", copy_list},
    {"count", count_items},
    {"index", index_of_item},
});

constexpr std::array<std::string_view, 8> kChangesOfLists{"append", "clear",  "extend",  "insert",
                                                          "pop",    "remove", "reverse", "sort"};

constexpr std::array<std::string_view, 13> kAttributesOfNumbers{
    "as_integer_ratio", "bit_count", "bit_length", "conjugate", "denominator",
    "from_bytes",       "fromhex",   "hex",        "imag",      "is_integer",
    "numerator",        "real",      "to_bytes"};

template <class Names>
bool has(const Names& names, std::string_view name) {
  return std::find(names.begin(), names.end(), name) != names.end();
}

/// A call of it fails, and nothing else does, as of an undefined value.
Value refused_change(const Value& value, std::string_view name) {
  return Value::undefined(fmt::format("expected a template that changes no values, got '{}' of {}",
                                      name, value.type_name()));
}

template <class Self, class Methods>
std::optional<Value> find_method(const Value& value, const Self& self, const Methods& methods,
                                 std::string_view name) {
  const auto found =
      std::find_if(methods.begin(), methods.end(),
                   [&](const MethodEntry<Self>& method) { return method.name == name; });
  if (found == methods.end()) return std::nullopt;
  return Value(std::shared_ptr<Object>(std::make_shared<BoundMethod<Self>>(value, self, *found)));
}

[[noreturn]] void fail_unknown(const Value& value, std::string_view name) {
  throw Failure(
      fmt::format("expected an attribute of {} known here, got '{}'", value.type_name(), name));
}

std::optional<Value> attribute_of_sequence(const Value& value, std::string_view name) {
  const Sequence& sequence = *value.as_sequence();
  if (sequence.type == SequenceType::kGroup) {
    if (name == "grouper") return sequence.items[0];
    if (name == "list") return sequence.items[1];
  }
  if (sequence.type == SequenceType::kList && has(kChangesOfLists, name)) {
    return refused_change(value, name);
  }
  if (!value.is_indexed()) return std::nullopt;
  if (name == "copy" && sequence.type != SequenceType::kList) return std::nullopt;
  return find_method(value, sequence, kListMethods, name);
}

}  // namespace

std::optional<Value> own_attribute(const Value& value, std::string_view name) {
  if (value.is_undefined()) throw Failure(value.undefined_message());
  if (name.starts_with("__")) fail_unknown(value, name);
  if (const Text* text = value.as_text()) {
    if (has(kOtherTextMethods, name)) fail_unknown(value, name);
    auto method = find_method(value, *text, kTextMethods, name);
    if (method && text->is_markup()) fail_unknown(value, name);
    return method;
  }
  if (const Dict* dict = value.as_dict()) {
    if (has(kChangesOfDicts, name)) return refused_change(value, name);
    if (name == "fromkeys") fail_unknown(value, name);
    return find_method(value, *dict, kDictMethods, name);
  }
  if (value.as_sequence() != nullptr) return attribute_of_sequence(value, name);
  if (Object* object = value.as_object()) return object->attribute(name);
  if (value.number() && has(kAttributesOfNumbers, name)) fail_unknown(value, name);
  return std::nullopt;
}

}  // namespace prefopt::jinja
