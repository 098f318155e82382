// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <initializer_list>
#include <optional>
#include <string_view>
#include <vector>

#include "jinja/value.h"

namespace prefopt::jinja {

/// The arguments of a filter, test, method or function, by the names of its parameters.
class Bound {
 public:
  /// Throws Failure, which names `callee`, for arguments that do not fit.
  Bound(std::string_view callee, const Arguments& arguments,
        std::initializer_list<std::string_view> parameters, std::size_t needed = 0);

  bool has(std::size_t parameter) const { return values_[parameter].has_value(); }
  /// Returns the value or, where it was not given, `otherwise`.
  Value value(std::size_t parameter, Value otherwise = {}) const;
  /// Throw Failure for a value of another type.
  const Text& text(std::size_t parameter) const;
  /// Null where it was not given or is none.
  const Text* text_or_none(std::size_t parameter) const;
  std::int64_t integer(std::size_t parameter, std::int64_t otherwise) const;
  bool flag(std::size_t parameter, bool otherwise) const;

 private:
  [[noreturn]] void fail(std::size_t parameter, std::string_view expected) const;

  std::string_view callee_;
  std::vector<std::string_view> parameters_;
  std::vector<std::optional<Value>> values_;
};

}  // namespace prefopt::jinja
