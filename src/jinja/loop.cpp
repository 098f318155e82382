// SPDX-License-Identifier: Apache-2.0
#include "jinja/loop.h"

#include <algorithm>
#include <utility>

#include "jinja/arguments.h"
#include "jinja/budget.h"
#include "jinja/failure.h"
#include "jinja/objects.h"
#include "jinja/operators.h"

namespace prefopt::jinja {

Loop::Loop(Value items, std::size_t depth0, Condition condition, Recurse recurse)
    : items_(std::move(items)),
      list_(items_of(items_)),
      depth0_(depth0),
      condition_(std::move(condition)),
      recurse_(std::move(recurse)) {}

std::optional<Value> Loop::find_next() {
  std::optional<Value> found;
  is_searching_ = true;
  while (!found && at_ < list_.size()) {
    spend(1);
    const Value item = list_[at_++];
    if (!condition_ || condition_(item)) found = item;
  }
  is_searching_ = false;
  return found;
}

const std::optional<Value>& Loop::peek() {
  // As in jinja2, whose generator is then running.
  if (is_searching_) {
    throw Failure("expected a condition that does not ask for its loop's next items, got one");
  }
  if (!std::exchange(has_peeked_, true)) next_ = find_next();
  return next_;
}

bool Loop::advance() {
  std::optional<Value> item = peek();
  has_peeked_ = false;
  if (!item) return false;
  ++index0_;
  before_ = std::exchange(current_, std::move(*item));
  return true;
}

void Loop::finish() {
  condition_ = nullptr;
  recurse_ = nullptr;
}

std::int64_t Loop::length() {
  if (length_) return *length_;
  if (!condition_) {
    length_ = std::ssize(list_);
    return *length_;
  }
  // All that are left are chosen now.
  std::vector<Value> rest;
  const std::optional<Value> next = peek();
  while (auto item = find_next()) rest.push_back(std::move(*item));
  length_ = index0_ + 1 + (next ? 1 : 0) + std::ssize(rest);
  list_ = std::move(rest);
  at_ = 0;
  condition_ = nullptr;
  return *length_;
}

Value Loop::cycle(const Arguments& arguments) const {
  if (arguments.values.empty()) throw Failure("expected values for loop.cycle, got none");
  const auto count = static_cast<std::int64_t>(arguments.values.size());
  return arguments.values[static_cast<std::size_t>(index0_ % count)];
}

Value Loop::changed(const Arguments& arguments) {
  Value values = Value::tuple(arguments.values);
  if (last_changed_ && equal(*last_changed_, values)) return Value(false);
  last_changed_ = std::move(values);
  return Value(true);
}

std::optional<Value> Loop::attribute(std::string_view name) {
  if (name == "index") return Value(index0_ + 1);
  if (name == "index0") return Value(index0_);
  if (name == "first") return Value(index0_ == 0);
  if (name == "last") return Value(!peek().has_value());
  if (name == "length") return Value(length());
  if (name == "revindex") return Value(length() - index0_);
  if (name == "revindex0") return Value(length() - index0_ - 1);
  if (name == "depth") return Value(static_cast<std::int64_t>(depth0_) + 1);
  if (name == "depth0") return Value(static_cast<std::int64_t>(depth0_));
  if (name == "previtem") {
    return index0_ == 0 ? Value::undefined("expected a previous item, got none") : before_;
  }
  if (name == "nextitem") {
    return peek() ? *peek() : Value::undefined("expected a next item, got none");
  }
  if (name == "cycle") {
    return function(
        [self = shared_from_this()](const Arguments& arguments) { return self->cycle(arguments); });
  }
  if (name == "changed") {
    return function([self = shared_from_this()](const Arguments& arguments) {
      return self->changed(arguments);
    });
  }
  return std::nullopt;
}

Value Loop::call(const Arguments& arguments) {
  const Value items = Bound("loop", arguments, {"iterable"}, 1).value(0);
  if (!recurse_) throw Failure("expected a loop marked 'recursive' to call, got another one");
  return recurse_(items);
}

}  // namespace prefopt::jinja
