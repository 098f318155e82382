// SPDX-License-Identifier: Apache-2.0
#pragma once

// Options are plain structs with one member function `fields(FieldVisitor&)` that lists every
// option once. JSON in, JSON out, range checks and the documentation table all come from that list.

#include <cstddef>
#include <cstdint>
#include <functional>
#include <initializer_list>
#include <limits>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "prefopt/export.h"

namespace prefopt {

/// Interval of allowed values.
struct Range {
  double min = -std::numeric_limits<double>::infinity();
  double max = std::numeric_limits<double>::infinity();
  bool min_open = false;
  bool max_open = false;
  std::string_view reason = {};  ///< why other values are rejected; ends the error message

  static constexpr Range any() { return {}; }
  static constexpr Range above(double low) { return {.min = low, .min_open = true}; }
  static constexpr Range at_least(double low) { return {.min = low}; }
  static constexpr Range between(double low, double high) { return {.min = low, .max = high}; }
  /// low <= x < high
  static constexpr Range half_open(double low, double high) {
    return {.min = low, .max = high, .max_open = true};
  }

  constexpr Range because(std::string_view why) const {
    Range range = *this;
    range.reason = why;
    return range;
  }

  constexpr bool contains(double x) const {
    return (min_open ? x > min : x >= min) && (max_open ? x < max : x <= max);
  }
};

/// Name, one line of documentation, and the names other frameworks use for the same option. An
/// alias with a dot, `group.option`, is a former place of the option, from the top.
struct Field {
  std::string_view name;
  std::string_view doc;
  std::vector<std::string_view> aliases = {};
};

/// Visitor of the options that a struct's `fields()` lists.
class PREFOPT_API FieldVisitor {
 public:
  virtual ~FieldVisitor() = default;

  /// Returns whether the visitor writes values. `fields` may then skip a later option at its old
  /// behaviour, so that the text and its hash stay the same.
  virtual bool writes() const { return false; }

  virtual void real(const Field& field, double& value, Range range) = 0;
  virtual void integer(const Field& field, std::int64_t& value, Range range) = 0;
  virtual void flag(const Field& field, bool& value) = 0;
  virtual void text(const Field& field, std::string& value) = 0;
  virtual void texts(const Field& field, std::vector<std::string>& value) = 0;
  /// `value` is an index into `names`.
  virtual void index(const Field& field, std::size_t& value,
                     const std::vector<std::string_view>& names) = 0;
  /// Visits a JSON value kept as its text, for parts that are parsed elsewhere.
  virtual void json(const Field& field, std::string& value) = 0;
  virtual void begin_group(const Field& field) = 0;
  virtual void end_group() = 0;
  /// Visits a text, or a JSON list that is kept as its text.
  virtual void text_or_list(const Field& field, std::string& value) { text(field, value); }

  /// Visits an enumeration whose enumerators are 0, 1, … in the order of `names`.
  template <class Enum>
  void choice(const Field& field, Enum& value, const std::vector<std::string_view>& names) {
    auto chosen = static_cast<std::size_t>(value);
    index(field, chosen, names);
    value = static_cast<Enum>(chosen);
  }

  /// Visits a nested options struct.
  template <class Options>
  void group(const Field& field, Options& options) {
    begin_group(field);
    options.fields(*this);
    end_group();
  }
};

template <class T>
concept OptionStruct = requires(T options, FieldVisitor& visitor) {
  options.fields(visitor);
};

using FieldList = std::function<void(FieldVisitor&)>;

/// One row of an option table. Groups are written `group.option`.
struct FieldDoc {
  std::string name, type, default_value, range, doc;
  std::vector<std::string> aliases;
};

/// Throws ConfigError, led by `where`, for an unknown key (naming its groups or the nearest one), a
/// duplicate key, a wrong type or a value out of range. Keys that are absent keep their value.
PREFOPT_API void read_fields(const FieldList& fields, std::string_view json,
                             std::string_view where);
/// Returns `json` with the values of former places at the present ones; `moves` receives a line for
/// each, "train.steps is now batch.steps". Throws ConfigError, led by `where`, for a value that
/// both places have, or a key that the former group never had.
PREFOPT_API std::string move_former_fields(const FieldList& fields, std::string_view json,
                                           std::string_view where,
                                           std::vector<std::string>* moves = nullptr);
/// Throws ConfigError if a value is out of its range.
PREFOPT_API void check_fields(const FieldList& fields, std::string_view where);
PREFOPT_API std::string write_fields(const FieldList& fields, int indent = -1);
PREFOPT_API std::vector<FieldDoc> describe_fields(const FieldList& fields);

template <OptionStruct T>
T options_from_json(std::string_view json, std::string_view where) {
  T options;
  read_fields([&](FieldVisitor& v) { options.fields(v); }, json, where);
  return options;
}

template <OptionStruct T>
std::string move_former_options(std::string_view json, std::string_view where,
                                std::vector<std::string>* moves = nullptr) {
  T options;
  return move_former_fields([&](FieldVisitor& v) { options.fields(v); }, json, where, moves);
}

template <OptionStruct T>
T checked(T options, std::string_view where) {
  check_fields([&](FieldVisitor& v) { options.fields(v); }, where);
  return options;
}

/// Returns all options with their present values, as a JSON object.
template <OptionStruct T>
std::string options_to_json(T options, int indent = -1) {
  return write_fields([&](FieldVisitor& v) { options.fields(v); }, indent);
}

template <OptionStruct T>
std::vector<FieldDoc> describe_options(T options = {}) {
  return describe_fields([&](FieldVisitor& v) { options.fields(v); });
}

}  // namespace prefopt
