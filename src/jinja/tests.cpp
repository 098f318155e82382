// SPDX-License-Identifier: Apache-2.0
#include <fmt/format.h>

#include <array>

#include "jinja/arguments.h"
#include "jinja/display.h"
#include "jinja/failure.h"
#include "jinja/filters.h"
#include "jinja/operators.h"
#include "jinja/text_functions.h"

namespace prefopt::jinja {
namespace {

struct TestEntry {
  std::string_view name;
  Test call;
};

/// A test without arguments.
template <bool (*kHolds)(const Value&)>
bool plain(const Value& value, const Arguments& arguments) {
  const Bound bound("the test", arguments, {});
  return kHolds(value);
}

Value argument_of(const Arguments& arguments) {
  return Bound("the test", arguments, {"other"}, 1).value(0);
}

bool is_defined(const Value& value) { return !value.is_undefined(); }
bool is_undefined(const Value& value) { return value.is_undefined(); }
bool is_none(const Value& value) { return value.is_none(); }
bool is_boolean(const Value& value) { return value.is_bool(); }
bool is_text(const Value& value) { return value.is_text(); }
bool is_mapping(const Value& value) { return value.as_dict() != nullptr; }
bool is_number(const Value& value) { return value.number().has_value(); }
bool is_integer(const Value& value) { return value.as_int() != nullptr; }
bool is_float(const Value& value) { return value.as_float() != nullptr; }
bool is_exactly_true(const Value& value) { return value.is_bool() && is_true(value); }
bool is_exactly_false(const Value& value) { return value.is_bool() && !is_true(value); }
bool is_escaped(const Value& value) { return value.is_text() && value.as_text()->is_markup(); }

bool is_sequence(const Value& value) {
  return value.is_undefined() || value.is_text() || is_mapping(value) || value.is_indexed();
}

bool is_callable(const Value& value) {
  const Object* object = value.as_object();
  return value.is_undefined() || (object != nullptr && object->is_callable());
}

bool is_lower_text(const Value& value) { return is_of(displayed(value), CharacterClass::kLower); }
bool is_upper_text(const Value& value) { return is_of(displayed(value), CharacterClass::kUpper); }

bool leaves(const Value& value, const Value& divisor, std::int64_t rest) {
  return equal(apply(BinaryOperator::kModulo, value, divisor), Value(rest));
}

bool is_odd(const Value& value) { return leaves(value, Value(std::int64_t{2}), 1); }
bool is_even(const Value& value) { return leaves(value, Value(std::int64_t{2}), 0); }

bool is_divisible(const Value& value, const Arguments& arguments) {
  return leaves(value, Bound("the test", arguments, {"num"}, 1).value(0), 0);
}

bool is_equal(const Value& value, const Arguments& arguments) {
  return equal(value, argument_of(arguments));
}

bool is_unequal(const Value& value, const Arguments& arguments) {
  return !equal(value, argument_of(arguments));
}

bool is_less(const Value& value, const Arguments& arguments) {
  return ordered(value, "<", argument_of(arguments));
}

bool is_at_most(const Value& value, const Arguments& arguments) {
  return ordered(value, "<=", argument_of(arguments));
}

bool is_greater(const Value& value, const Arguments& arguments) {
  return ordered(value, ">", argument_of(arguments));
}

bool is_at_least(const Value& value, const Arguments& arguments) {
  return ordered(value, ">=", argument_of(arguments));
}

bool is_in(const Value& value, const Arguments& arguments) {
  return contains(Bound("the test", arguments, {"seq"}, 1).value(0), value);
}

bool is_same(const Value& value, const Arguments& arguments) {
  const Value other = argument_of(arguments);
  // Which equal numbers and texts are one object is Python's own affair.
  const bool is_known = value.is_bool() || value.is_none() || other.is_bool() || other.is_none();
  if (!is_known && value.as_object() == nullptr && value.as_dict() == nullptr &&
      value.as_sequence() == nullptr) {
    throw Failure(fmt::format("expected 'sameas' of true, false, none or an object, got {}",
                              value.type_name()));
  }
  return value.is_same_as(other);
}

bool names_filter(const Value& value, const Arguments& arguments) {
  const Bound bound("the test 'filter'", arguments, {});
  const Text* text = value.as_text();
  return text != nullptr && is_filter_of_jinja(text->view());
}

bool names_test(const Value& value, const Arguments& arguments) {
  const Bound bound("the test 'test'", arguments, {});
  const Text* text = value.as_text();
  return text != nullptr && find_test(text->view()) != nullptr;
}

constexpr auto kTests = std::to_array<TestEntry>({
    {"odd", plain<is_odd>},
    {"even", plain<is_even>},
    {"divisibleby", is_divisible},
    {"defined", plain<is_defined>},
    {"undefined", plain<is_undefined>},
    {"filter", names_filter},
    {"test", names_test},
    {"none", plain<is_none>},
    {"boolean", plain<is_boolean>},
    {"false", plain<is_exactly_false>},
    {"true", plain<is_exactly_true>},
    {"integer", plain<is_integer>},
    {"float", plain<is_float>},
    {"lower", plain<is_lower_text>},
    {"upper", plain<is_upper_text>},
    {"string", plain<is_text>},
    {"mapping", plain<is_mapping>},
    {"number", plain<is_number>},
    {"sequence", plain<is_sequence>},
    {"iterable", plain<is_iterable>},
    {"callable", plain<is_callable>},
    {"sameas", is_same},
    {"escaped", plain<is_escaped>},
    {"in", is_in},
    {"==", is_equal},
    {"eq", is_equal},
    {"equalto", is_equal},
    {"!=", is_unequal},
    {"ne", is_unequal},
    {">", is_greater},
    {"gt", is_greater},
    {"greaterthan", is_greater},
    {"ge", is_at_least},
    {">=", is_at_least},
    {"<", is_less},
    {"lt", is_less},
    {"lessthan", is_less},
    {"<=", is_at_most},
    {"le", is_at_most},
});

}  // namespace

Test find_test(std::string_view name) {
  for (const TestEntry& entry : kTests) {
    if (entry.name == name) return entry.call;
  }
  return nullptr;
}

}  // namespace prefopt::jinja
