// SPDX-License-Identifier: Apache-2.0
#include "jinja/value.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "core/json.h"
#include "jinja/failure.h"
#include "jinja/operators.h"

namespace prefopt::jinja {
namespace {

// Below, a search is as fast as a table.
constexpr std::size_t kManyKeys = 16;

std::size_t checked_depth(std::size_t of_items) {
  if (of_items >= kMaxValueDepth) {
    throw Failure(
        fmt::format("expected values of at most {} levels, got deeper ones", kMaxValueDepth));
  }
  return of_items + 1;
}

}  // namespace

Sequence::Sequence(SequenceType type_given, std::vector<Value> items_given)
    : type(type_given), items(std::move(items_given)) {
  std::size_t deepest = 0;
  for (const Value& item : items) deepest = std::max(deepest, item.depth());
  depth = checked_depth(deepest);
}

Dict::Dict(std::vector<std::pair<Value, Value>> items) {
  const bool has_many = items.size() > kManyKeys;
  std::size_t deepest = 0;
  items_.reserve(items.size());  // the table refers to texts of the keys, which stay in place
  for (auto& [key, value] : items) {
    check_hashable(key);
    deepest = std::max({deepest, key.depth(), value.depth()});
    if (const auto known = place(key)) {
      items_[*known].second = std::move(value);
      continue;
    }
    items_.emplace_back(std::move(key), std::move(value));
    if (const Text* text = items_.back().first.as_text(); has_many && text != nullptr) {
      by_text_.emplace(text->view(), items_.size() - 1);
    }
  }
  depth_ = checked_depth(deepest);
}

std::optional<std::size_t> Dict::place(const Value& key) const {
  if (const Text* text = key.as_text(); text != nullptr && !by_text_.empty()) {
    const auto found = by_text_.find(text->view());
    if (found == by_text_.end()) return std::nullopt;
    return found->second;
  }
  for (std::size_t i = 0; i < items_.size(); ++i) {
    if (equal(items_[i].first, key)) return i;
  }
  return std::nullopt;
}

const Value* Dict::find(const Value& key) const {
  const auto known = place(key);
  return known ? &items_[*known].second : nullptr;
}

std::optional<Value> Object::attribute(std::string_view /*name*/) { return std::nullopt; }

Value Object::call(const Arguments& /*arguments*/) {
  throw Failure(fmt::format("expected something to call, got {}", type_name()));
}

Value Value::undefined(std::string message) {
  Value value;
  value.data_ = Undefined{std::make_shared<const std::string>(std::move(message))};
  return value;
}

Value Value::sequence(SequenceType type, std::vector<Value> items) {
  return Value(std::make_shared<Sequence>(type, std::move(items)));
}

std::optional<std::int64_t> Value::integer() const {
  if (const auto* number = as_int()) return *number;
  if (const auto* flag = as_bool()) return *flag ? 1 : 0;
  return std::nullopt;
}

std::optional<double> Value::number() const {
  if (const auto* number = as_float()) return *number;
  if (const auto whole = integer()) return static_cast<double>(*whole);
  return std::nullopt;
}

bool Value::is_a(SequenceType type) const {
  const Sequence* sequence = as_sequence();
  return sequence != nullptr && sequence->type == type;
}

bool Value::is_indexed() const {
  return is_a(SequenceType::kList) || is_a(SequenceType::kTuple) || is_a(SequenceType::kRange) ||
         is_a(SequenceType::kGroup);
}

std::string Value::undefined_message() const {
  const auto& message = std::get<Undefined>(data_).message;
  return message ? *message : "expected a value, got an undefined one";
}

std::size_t Value::depth() const {
  if (const Sequence* sequence = as_sequence()) return sequence->depth;
  if (const Dict* dict = as_dict()) return dict->depth();
  if (const Object* object = as_object()) return object->depth();
  return 0;
}

std::string_view Value::type_name() const {
  if (is_undefined()) return "Undefined";
  if (is_none()) return "NoneType";
  if (is_bool()) return "bool";
  if (as_int() != nullptr) return "int";
  if (as_float() != nullptr) return "float";
  if (const Text* text = as_text()) return text->is_markup() ? "Markup" : "str";
  if (as_dict() != nullptr) return "dict";
  if (const Object* object = as_object()) return object->type_name();
  switch (as_sequence()->type) {
    case SequenceType::kList:
      return "list";
    case SequenceType::kTuple:
    case SequenceType::kGroup:
      return "tuple";
    case SequenceType::kRange:
      return "range";
    case SequenceType::kGenerator:
      return "generator";
    case SequenceType::kKeys:
      return "dict_keys";
    case SequenceType::kValues:
      return "dict_values";
    case SequenceType::kItems:
      return "dict_items";
  }
  return "";
}

bool Value::is_same_as(const Value& other) const {
  if (as_text() != nullptr) return as_text() == other.as_text();
  if (as_sequence() != nullptr) return as_sequence() == other.as_sequence();
  if (as_dict() != nullptr) return as_dict() == other.as_dict();
  if (as_object() != nullptr) return as_object() == other.as_object();
  return data_.index() == other.data_.index() && equal(*this, other);
}

Value value_of(const detail::Json& json, Origin origin) {
  switch (json.type()) {
    case detail::Json::value_t::boolean:
      return Value(json.get<bool>());
    case detail::Json::value_t::number_integer:
      return Value(json.get<std::int64_t>());
    case detail::Json::value_t::number_unsigned: {
      const auto number = json.get<std::uint64_t>();
      if (number > static_cast<std::uint64_t>(std::numeric_limits<std::int64_t>::max())) {
        throw Failure(fmt::format("expected integers of 64 bits, got {}", number));
      }
      return Value(static_cast<std::int64_t>(number));
    }
    case detail::Json::value_t::number_float: {
      // The parser makes a float of an integer that is too long.
      const auto number = json.get<double>();
      if (std::abs(number) >= 0x1p63) {
        throw Failure(fmt::format("expected numbers below 2**63, got {}", number));
      }
      return Value(number);
    }
    case detail::Json::value_t::string:
      return Value(Text(json.get<std::string>(), origin));
    case detail::Json::value_t::array: {
      std::vector<Value> items;
      items.reserve(json.size());
      for (const detail::Json& item : json) items.push_back(value_of(item, origin));
      return Value::list(std::move(items));
    }
    case detail::Json::value_t::object: {
      std::vector<std::pair<Value, Value>> items;
      items.reserve(json.size());
      for (const auto& [key, value] : json.items()) {
        items.emplace_back(Value(Text(key, origin)), value_of(value, origin));
      }
      return Value::dict(std::move(items));
    }
    default:
      return None{};
  }
}

}  // namespace prefopt::jinja
