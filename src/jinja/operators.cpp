// SPDX-License-Identifier: Apache-2.0
#include "jinja/operators.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <optional>

#include "core/utf8.h"
#include "jinja/budget.h"
#include "jinja/display.h"
#include "jinja/failure.h"
#include "jinja/format.h"
#include "jinja/methods.h"
#include "jinja/text_functions.h"

namespace prefopt::jinja {
namespace {

[[noreturn]] void fail_operands(std::string_view operation, const Value& a, const Value& b) {
  for (const Value* value : {&a, &b}) {
    if (value->is_undefined()) throw Failure(value->undefined_message());
  }
  throw Failure(fmt::format("expected values that '{}' takes, got {} and {}", operation,
                            a.type_name(), b.type_name()));
}

[[noreturn]] void fail_overflow() {
  throw Failure("expected integers of 64 bits, got a larger result");
}

[[noreturn]] void fail_zero() { throw Failure("expected a divisor other than 0, got 0"); }

bool both_lists(const Value& a, const Value& b) {
  const auto is_tuple = [](const Value& value) {
    return value.is_a(SequenceType::kTuple) || value.is_a(SequenceType::kGroup);
  };
  const auto is_list = [](const Value& value) { return value.is_a(SequenceType::kList); };
  return (is_tuple(a) && is_tuple(b)) || (is_list(a) && is_list(b));
}

bool equal_items(const std::vector<Value>& a, const std::vector<Value>& b) {
  return std::equal(a.begin(), a.end(), b.begin(), b.end(), equal);
}

bool equal_dicts(const Dict& a, const Dict& b) {
  return a.items().size() == b.items().size() &&
         std::all_of(a.items().begin(), a.items().end(), [&](const auto& item) {
           const Value* other = b.find(item.first);
           return other != nullptr && equal(item.second, *other);
         });
}

// Exact also for integers that no float holds.
std::partial_ordering order_of(std::int64_t a, double b) {
  if (std::isnan(b)) return std::partial_ordering::unordered;
  if (b >= 0x1p63) return std::partial_ordering::less;
  if (b < -0x1p63) return std::partial_ordering::greater;
  const auto whole = static_cast<std::int64_t>(b);
  if (a != whole) return a <=> whole;
  return 0.0 <=> (b - static_cast<double>(whole));
}

std::optional<std::partial_ordering> order_of_numbers(const Value& a, const Value& b) {
  const auto whole_a = a.integer(), whole_b = b.integer();
  if (whole_a && whole_b) return *whole_a <=> *whole_b;
  const double *real_a = a.as_float(), *real_b = b.as_float();
  if (whole_a && real_b != nullptr) return order_of(*whole_a, *real_b);
  if (real_a != nullptr && whole_b) return 0 <=> order_of(*whole_b, *real_a);
  if (real_a != nullptr && real_b != nullptr) return *real_a <=> *real_b;
  return std::nullopt;
}

std::int64_t checked_add(std::int64_t a, std::int64_t b) {
  std::int64_t result = 0;
  if (__builtin_add_overflow(a, b, &result)) fail_overflow();
  return result;
}

std::int64_t checked_multiply(std::int64_t a, std::int64_t b) {
  std::int64_t result = 0;
  if (__builtin_mul_overflow(a, b, &result)) fail_overflow();
  return result;
}

std::int64_t floor_divide(std::int64_t a, std::int64_t b) {
  if (b == 0) fail_zero();
  if (a == std::numeric_limits<std::int64_t>::min() && b == -1) fail_overflow();
  const std::int64_t quotient = a / b;
  return a % b != 0 && (a < 0) != (b < 0) ? quotient - 1 : quotient;
}

std::int64_t modulo(std::int64_t a, std::int64_t b) {
  if (b == 0) fail_zero();
  if (b == -1) return 0;
  const std::int64_t rest = a % b;
  return rest != 0 && (rest < 0) != (b < 0) ? rest + b : rest;
}

double modulo(double a, double b) {
  if (b == 0) fail_zero();
  const double rest = std::fmod(a, b);
  if (rest == 0) return std::copysign(0.0, b);
  return (rest < 0) != (b < 0) ? rest + b : rest;
}

double floor_divide(double a, double b) {
  const double rest = modulo(a, b);
  const double quotient = (a - rest) / b;
  if (quotient == 0) return std::copysign(0.0, a / b);
  const double floor = std::floor(quotient);
  return quotient - floor > 0.5 ? floor + 1 : floor;
}

Value power(std::int64_t base, std::int64_t exponent) {
  if (exponent < 0) {
    if (base == 0) fail_zero();
    return Value(std::pow(static_cast<double>(base), static_cast<double>(exponent)));
  }
  std::int64_t result = 1;
  while (exponent > 0) {
    if ((exponent & 1) != 0) result = checked_multiply(result, base);
    exponent >>= 1;
    if (exponent > 0) {
      if (base == 0 || base == 1 || base == -1) {
        if (base == -1) base = 1;
        continue;
      }
      base = checked_multiply(base, base);
    }
  }
  return Value(result);
}

Value power(double base, double exponent) {
  if (base == 0 && exponent < 0) fail_zero();
  if (base < 0 && std::isfinite(base) && std::isfinite(exponent) &&
      exponent != std::floor(exponent)) {
    throw Failure("expected a power that is a real number, got a complex one");
  }
  const double result = std::pow(base, exponent);
  if (std::isinf(result) && std::isfinite(base) && std::isfinite(exponent)) {
    throw Failure("expected a power that is a finite number, got a larger one");
  }
  return Value(result);
}

Value apply_integers(BinaryOperator operation, std::int64_t a, std::int64_t b) {
  switch (operation) {
    case BinaryOperator::kAdd:
      return Value(checked_add(a, b));
    case BinaryOperator::kSubtract: {
      std::int64_t result = 0;
      if (__builtin_sub_overflow(a, b, &result)) fail_overflow();
      return Value(result);
    }
    case BinaryOperator::kMultiply:
      return Value(checked_multiply(a, b));
    case BinaryOperator::kDivide:
      if (b == 0) fail_zero();
      return Value(static_cast<double>(static_cast<long double>(a) / static_cast<long double>(b)));
    case BinaryOperator::kFloorDivide:
      return Value(floor_divide(a, b));
    case BinaryOperator::kModulo:
      return Value(modulo(a, b));
    case BinaryOperator::kPower:
      return power(a, b);
  }
  return {};
}

Value apply_floats(BinaryOperator operation, double a, double b) {
  switch (operation) {
    case BinaryOperator::kAdd:
      return Value(a + b);
    case BinaryOperator::kSubtract:
      return Value(a - b);
    case BinaryOperator::kMultiply:
      return Value(a * b);
    case BinaryOperator::kDivide:
      if (b == 0) fail_zero();
      return Value(a / b);
    case BinaryOperator::kFloorDivide:
      return Value(floor_divide(a, b));
    case BinaryOperator::kModulo:
      return Value(modulo(a, b));
    case BinaryOperator::kPower:
      return power(a, b);
  }
  return {};
}

std::string_view name_of(BinaryOperator operation) {
  constexpr std::string_view kNames[] = {"+", "-", "*", "/", "//", "%", "**"};
  return kNames[static_cast<std::size_t>(operation)];
}

/// a + b of texts. Markup escapes what is put to it.
Value joined(const Text& a, const Text& b) {
  const bool is_markup = a.is_markup() || b.is_markup();
  Text result = is_markup && !a.is_markup() ? escaped(a) : a.as_markup(false);
  result.append(is_markup && !b.is_markup() ? escaped(b) : b);
  return Value(is_markup ? result.as_markup() : std::move(result));
}

Value repeated(const Value& value, std::int64_t count) {
  constexpr std::size_t kMaxItems = 1'000'000;
  const std::size_t times = count > 0 ? static_cast<std::size_t>(count) : 0;
  if (const Text* text = value.as_text()) {
    if (text->empty()) return value;
    if (times > kMaxTextBytes) {
      throw Failure("expected texts of at most 64 MiB, got a longer one");
    }
    Text result;
    for (std::size_t i = 0; i < times; ++i) result.append(*text);
    return Value(text->is_markup() ? result.as_markup() : std::move(result));
  }
  const std::vector<Value>& items = value.as_sequence()->items;
  if (!items.empty() && times > kMaxItems / items.size()) {
    throw Failure("expected lists of at most a million items, got a longer one");
  }
  std::vector<Value> result;
  if (!items.empty()) {
    for (std::size_t i = 0; i < times; ++i) result.insert(result.end(), items.begin(), items.end());
  }
  return Value::sequence(
      value.is_a(SequenceType::kList) ? SequenceType::kList : SequenceType::kTuple,
      std::move(result));
}

bool can_repeat(const Value& value) {
  return value.is_text() || value.is_a(SequenceType::kList) || value.is_a(SequenceType::kTuple) ||
         value.is_a(SequenceType::kGroup);
}

/// Returns the place of a Python index, or none where it is out of range.
std::optional<std::size_t> place_of(std::int64_t index, std::size_t size) {
  const auto count = static_cast<std::int64_t>(size);
  if (index < 0) index += count;
  if (index < 0 || index >= count) return std::nullopt;
  return static_cast<std::size_t>(index);
}

std::string_view shown_kind(const Value& value) { return value.type_name(); }

Value missing(const Value& value, const Value& index) {
  return Value::undefined(
      fmt::format("expected {} in {}, got none", represented(index).bytes(), shown_kind(value)));
}

/// Returns `value[index]` where it has one.
std::optional<Value> subscript(const Value& value, const Value& index) {
  if (value.is_undefined()) throw Failure(value.undefined_message());
  if (const Dict* dict = value.as_dict()) {
    if (!is_hashable(index)) return std::nullopt;
    const Value* found = dict->find(index);
    return found == nullptr ? std::nullopt : std::optional<Value>(*found);
  }
  const auto whole = index.integer();
  if (!whole) return std::nullopt;
  if (const Text* text = value.as_text()) {
    const Characters characters(text->view());
    const auto place = place_of(*whole, characters.count());
    if (!place) return std::nullopt;
    return Value(text->part(characters.offset(*place), characters.offset(*place + 1))
                     .as_markup(text->is_markup()));
  }
  if (!value.is_indexed()) return std::nullopt;
  const std::vector<Value>& items = value.as_sequence()->items;
  const auto place = place_of(*whole, items.size());
  return place ? std::optional<Value>(items[*place]) : std::nullopt;
}

struct SliceRange {
  std::int64_t start, stop, step;
};

std::optional<std::int64_t> slice_part(const Value& value) {
  if (value.is_none()) return std::nullopt;
  if (const auto whole = value.integer()) return whole;
  if (value.is_undefined()) throw Failure(value.undefined_message());
  throw Failure(fmt::format("expected integers in a slice, got {}", value.type_name()));
}

SliceRange range_of(const Value& start, const Value& stop, const Value& step, std::size_t size) {
  const auto count = static_cast<std::int64_t>(size);
  SliceRange range{};
  range.step = slice_part(step).value_or(1);
  if (range.step == 0) throw Failure("expected a step of a slice other than 0, got 0");
  range.step = std::clamp<std::int64_t>(range.step, -count - 1, count + 1);
  const bool is_backward = range.step < 0;
  const std::int64_t least = is_backward ? -1 : 0, most = is_backward ? count - 1 : count;
  const auto bound = [&](const Value& value, std::int64_t otherwise) {
    const auto given = slice_part(value);
    if (!given) return otherwise;
    if (*given >= 0) return std::min(*given, most);
    return *given < -count ? least : std::max(*given + count, least);
  };
  range.start = bound(start, is_backward ? most : least);
  range.stop = bound(stop, is_backward ? least : most);
  return range;
}

template <class Take>
void walk(const SliceRange& range, const Take& take) {
  for (std::int64_t i = range.start; range.step > 0 ? i < range.stop : i > range.stop;
       i += range.step) {
    take(static_cast<std::size_t>(i));
  }
}

}  // namespace

bool is_true(const Value& value) {
  if (value.is_undefined() || value.is_none()) return false;
  if (const auto number = value.number()) return *number != 0;
  if (const Text* text = value.as_text()) return !text->empty();
  if (const Dict* dict = value.as_dict()) return !dict->items().empty();
  if (const Sequence* sequence = value.as_sequence()) {
    return sequence->type == SequenceType::kGenerator || !sequence->items.empty();
  }
  return true;
}

bool equal(const Value& a, const Value& b) {
  spend(1);
  if (const auto order = order_of_numbers(a, b)) return *order == std::partial_ordering::equivalent;
  if (a.is_undefined() || b.is_undefined()) return a.is_undefined() && b.is_undefined();
  if (a.is_none() || b.is_none()) return a.is_none() && b.is_none();
  if (a.as_text() != nullptr && b.as_text() != nullptr) {
    return a.as_text()->bytes() == b.as_text()->bytes();
  }
  if (a.as_dict() != nullptr && b.as_dict() != nullptr) {
    return equal_dicts(*a.as_dict(), *b.as_dict());
  }
  if (a.is_same_as(b)) return a.as_sequence() != nullptr || a.as_object() != nullptr;
  if (const Sequence* x = a.as_sequence(), *y = b.as_sequence(); x != nullptr && y != nullptr) {
    const bool alike = both_lists(a, b) ||
                       (x->type == y->type && x->type == SequenceType::kRange) ||
                       (x->type == y->type && x->type == SequenceType::kKeys);
    return alike && equal_items(x->items, y->items);
  }
  return false;
}

bool less(const Value& a, const Value& b) { return ordered(a, "<", b); }

bool ordered(const Value& a, std::string_view operation, const Value& b) {
  const auto holds = [&](std::partial_ordering order) {
    if (operation == "<") return order < 0;
    if (operation == "<=") return order <= 0;
    return operation == ">" ? order > 0 : order >= 0;
  };
  if (const auto order = order_of_numbers(a, b)) return holds(*order);
  if (a.as_text() != nullptr && b.as_text() != nullptr) {
    return holds(a.as_text()->bytes().compare(b.as_text()->bytes()) <=> 0);
  }
  if (!both_lists(a, b)) fail_operands(operation, a, b);
  const std::vector<Value>&x = a.as_sequence()->items, &y = b.as_sequence()->items;
  const auto apart = std::mismatch(x.begin(), x.end(), y.begin(), y.end(), equal);
  if (apart.first == x.end() || apart.second == y.end()) return holds(x.size() <=> y.size());
  return ordered(*apart.first, operation, *apart.second);
}

bool contains(const Value& container, const Value& value) {
  if (const Text* text = container.as_text()) {
    const Text* part = value.as_text();
    if (part == nullptr) {
      throw Failure(
          fmt::format("expected a text to look for in a text, got {}", value.type_name()));
    }
    return text->bytes().find(part->bytes()) != std::string::npos;
  }
  if (const Dict* dict = container.as_dict()) {
    check_hashable(value);
    return dict->find(value) != nullptr;
  }
  const std::vector<Value> items = items_of(container);
  return std::any_of(items.begin(), items.end(),
                     [&](const Value& item) { return equal(item, value); });
}

bool is_hashable(const Value& key) {
  if (key.as_dict() != nullptr || key.is_a(SequenceType::kList)) return false;
  if (!key.is_a(SequenceType::kTuple) && !key.is_a(SequenceType::kGroup)) return true;
  const std::vector<Value>& items = key.as_sequence()->items;
  return std::all_of(items.begin(), items.end(), is_hashable);
}

void check_hashable(const Value& key) {
  if (!is_hashable(key)) {
    throw Failure(fmt::format("expected keys that Python can hash, got {}", key.type_name()));
  }
}

Value apply(BinaryOperator operation, const Value& a, const Value& b) {
  if (a.is_undefined() || b.is_undefined()) {
    // A format takes any value, this one as an empty text.
    if (operation != BinaryOperator::kModulo || !a.is_text())
      fail_operands(name_of(operation), a, b);
  }
  if (operation == BinaryOperator::kModulo && a.is_text()) return Value(formatted(*a.as_text(), b));
  const auto whole_a = a.integer(), whole_b = b.integer();
  if (whole_a && whole_b) return apply_integers(operation, *whole_a, *whole_b);
  const auto number_a = a.number(), number_b = b.number();
  if (number_a && number_b) return apply_floats(operation, *number_a, *number_b);
  if (operation == BinaryOperator::kAdd && a.is_text() && b.is_text()) {
    return joined(*a.as_text(), *b.as_text());
  }
  if (operation == BinaryOperator::kAdd && both_lists(a, b)) {
    std::vector<Value> items = a.as_sequence()->items;
    const std::vector<Value>& more = b.as_sequence()->items;
    spend(items.size() + more.size());
    items.insert(items.end(), more.begin(), more.end());
    return Value::sequence(a.is_a(SequenceType::kList) ? SequenceType::kList : SequenceType::kTuple,
                           std::move(items));
  }
  if (operation == BinaryOperator::kMultiply && can_repeat(a) && whole_b) {
    return repeated(a, *whole_b);
  }
  if (operation == BinaryOperator::kMultiply && can_repeat(b) && whole_a) {
    return repeated(b, *whole_a);
  }
  fail_operands(name_of(operation), a, b);
}

Value negative(const Value& value) {
  if (const auto whole = value.integer()) {
    if (*whole == std::numeric_limits<std::int64_t>::min()) fail_overflow();
    return Value(-*whole);
  }
  if (const auto number = value.number()) return Value(-*number);
  if (value.is_undefined()) throw Failure(value.undefined_message());
  throw Failure(fmt::format("expected a number after '-', got {}", value.type_name()));
}

Value positive(const Value& value) {
  if (const auto whole = value.integer()) return Value(*whole);
  if (value.as_float() != nullptr) return value;
  if (value.is_undefined()) throw Failure(value.undefined_message());
  throw Failure(fmt::format("expected a number after '+', got {}", value.type_name()));
}

bool is_iterable(const Value& value) {
  return value.is_undefined() || value.is_text() || value.as_sequence() != nullptr ||
         value.as_dict() != nullptr;
}

std::vector<Value> items_of(const Value& value) {
  if (value.is_undefined()) return {};
  if (is_iterable(value) && !value.is_a(SequenceType::kGenerator)) {
    spend(static_cast<std::size_t>(length_of(value)));
  }
  if (Sequence* sequence = value.as_sequence()) {
    if (sequence->type != SequenceType::kGenerator) return sequence->items;
    if (sequence->used_up) return {};
    sequence->used_up = true;
    return std::move(sequence->items);
  }
  std::vector<Value> items;
  if (const Dict* dict = value.as_dict()) {
    for (const auto& item : dict->items()) items.push_back(item.first);
    return items;
  }
  if (const Text* text = value.as_text()) {
    const Characters characters(text->view());
    for (std::size_t i = 0; i < characters.count(); ++i) {
      items.emplace_back(text->part(characters.offset(i), characters.offset(i + 1)));
    }
    return items;
  }
  throw Failure(fmt::format("expected something to iterate over, got {}", value.type_name()));
}

std::int64_t length_of(const Value& value) {
  if (value.is_undefined()) return 0;
  if (const Text* text = value.as_text()) {
    return static_cast<std::int64_t>(count_characters(text->view()));
  }
  if (const Dict* dict = value.as_dict()) return std::ssize(dict->items());
  const Sequence* sequence = value.as_sequence();
  if (sequence == nullptr || sequence->type == SequenceType::kGenerator) {
    throw Failure(fmt::format("expected a value that has a length, got {}", value.type_name()));
  }
  return std::ssize(sequence->items);
}

Value item_of(const Value& value, const Value& index) {
  if (auto found = subscript(value, index)) return std::move(*found);
  if (const Text* name = index.as_text()) {
    if (auto found = own_attribute(value, name->view())) return std::move(*found);
  }
  return missing(value, index);
}

Value attribute_of(const Value& value, std::string_view name) {
  if (value.is_undefined()) throw Failure(value.undefined_message());
  if (auto found = own_attribute(value, name)) return std::move(*found);
  const Value index(name);
  if (auto found = subscript(value, index)) return std::move(*found);
  return missing(value, index);
}

Value slice_of(const Value& value, const Value& start, const Value& stop, const Value& step) {
  if (const Text* text = value.as_text()) {
    const Characters characters(text->view());
    const SliceRange range = range_of(start, stop, step, characters.count());
    Text result;
    if (range.step == 1 && range.start < range.stop) {
      result = text->part(characters.offset(static_cast<std::size_t>(range.start)),
                          characters.offset(static_cast<std::size_t>(range.stop)));
    } else {
      walk(range, [&](std::size_t i) {
        result.append_part(*text, characters.offset(i), characters.offset(i + 1));
      });
    }
    return Value(text->is_markup() ? result.as_markup() : std::move(result));
  }
  if (value.is_undefined()) throw Failure(value.undefined_message());
  if (!value.is_indexed()) {
    throw Failure(fmt::format("expected a text or a list to slice, got {}", value.type_name()));
  }
  const Sequence& sequence = *value.as_sequence();
  std::vector<Value> items;
  walk(range_of(start, stop, step, sequence.items.size()),
       [&](std::size_t i) { items.push_back(sequence.items[i]); });
  return Value::sequence(
      sequence.type == SequenceType::kGroup ? SequenceType::kTuple : sequence.type,
      std::move(items));
}

}  // namespace prefopt::jinja
