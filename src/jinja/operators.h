// SPDX-License-Identifier: Apache-2.0
#pragma once

// Python's operators on values. All throw Failure where Python raises.

#include <compare>
#include <string_view>
#include <vector>

#include "jinja/value.h"

namespace prefopt::jinja {

enum class BinaryOperator { kAdd, kSubtract, kMultiply, kDivide, kFloorDivide, kModulo, kPower };

bool is_true(const Value& value);
bool equal(const Value& a, const Value& b);
/// Orders numbers, texts, and lists or tuples of such.
bool less(const Value& a, const Value& b);
/// `operation`: <, <=, > or >=.
bool ordered(const Value& a, std::string_view operation, const Value& b);
bool contains(const Value& container, const Value& value);
bool is_hashable(const Value& key);
void check_hashable(const Value& key);

Value apply(BinaryOperator operation, const Value& a, const Value& b);
Value negative(const Value& value);
Value positive(const Value& value);

/// Returns what a loop over the value sees. A generator is used up by it.
std::vector<Value> items_of(const Value& value);
bool is_iterable(const Value& value);
/// Returns Python's len().
std::int64_t length_of(const Value& value);

/// Returns `value[index]`, or the attribute of that name, or undefined.
Value item_of(const Value& value, const Value& index);
/// Returns `value.name`, or the item of that name, or undefined.
Value attribute_of(const Value& value, std::string_view name);
/// Returns `value[start:stop:step]`, each a number or none.
Value slice_of(const Value& value, const Value& start, const Value& stop, const Value& step);

}  // namespace prefopt::jinja
