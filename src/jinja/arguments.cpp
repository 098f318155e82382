// SPDX-License-Identifier: Apache-2.0
#include "jinja/arguments.h"

#include <fmt/format.h>

#include <algorithm>

#include "jinja/failure.h"
#include "jinja/operators.h"

namespace prefopt::jinja {

Bound::Bound(std::string_view callee, const Arguments& arguments,
             std::initializer_list<std::string_view> parameters, std::size_t needed)
    : callee_(callee), parameters_(parameters), values_(parameters.size()) {
  if (arguments.values.size() > parameters.size()) {
    throw Failure(fmt::format("expected at most {} arguments of {}, got {}", parameters.size(),
                              callee, arguments.values.size()));
  }
  std::copy(arguments.values.begin(), arguments.values.end(), values_.begin());
  for (const auto& [name, value] : arguments.named) {
    const auto found = std::find(parameters_.begin(), parameters_.end(), name);
    if (found == parameters_.end()) {
      throw Failure(fmt::format("expected an argument known to {}, got '{}'", callee, name));
    }
    auto& place = values_[static_cast<std::size_t>(found - parameters_.begin())];
    if (place) throw Failure(fmt::format("expected '{}' of {} once, got it twice", name, callee));
    place = value;
  }
  for (std::size_t i = 0; i < needed; ++i) {
    if (!values_[i]) {
      throw Failure(
          fmt::format("expected an argument '{}' of {}, got none", parameters_[i], callee));
    }
  }
}

void Bound::fail(std::size_t parameter, std::string_view expected) const {
  const Value& value = *values_[parameter];
  if (value.is_undefined()) throw Failure(value.undefined_message());
  throw Failure(fmt::format("expected '{}' of {} to be {}, got {}", parameters_[parameter], callee_,
                            expected, value.type_name()));
}

Value Bound::value(std::size_t parameter, Value otherwise) const {
  return values_[parameter].value_or(std::move(otherwise));
}

const Text& Bound::text(std::size_t parameter) const {
  const Text* text = values_[parameter]->as_text();
  if (text == nullptr) fail(parameter, "a text");
  return *text;
}

const Text* Bound::text_or_none(std::size_t parameter) const {
  if (!values_[parameter] || values_[parameter]->is_none()) return nullptr;
  return &text(parameter);
}

std::int64_t Bound::integer(std::size_t parameter, std::int64_t otherwise) const {
  if (!values_[parameter]) return otherwise;
  const auto whole = values_[parameter]->integer();
  if (!whole) fail(parameter, "an integer");
  return *whole;
}

bool Bound::flag(std::size_t parameter, bool otherwise) const {
  return values_[parameter] ? is_true(*values_[parameter]) : otherwise;
}

}  // namespace prefopt::jinja
