// SPDX-License-Identifier: Apache-2.0
#pragma once

// The values of templates: those of Python that chat templates use. All but namespaces, loops,
// joiners, cyclers and used-up generators never change, so that copies share them.

#include <cstddef>
#include <cstdint>
#include <memory>
#include <nlohmann/json_fwd.hpp>
#include <optional>
#include <string>
#include <string_view>
#include <unordered_map>
#include <utility>
#include <variant>
#include <vector>

#include "jinja/text.h"

namespace prefopt::jinja {

class Value;
struct Arguments;

/// Levels of lists and objects in a value; deeper ones are refused.
inline constexpr std::size_t kMaxValueDepth = 100;

struct None {
  bool operator==(const None&) const = default;
};

/// The value of what is not there. `message` completes "expected …" where it is used nevertheless.
struct Undefined {
  std::shared_ptr<const std::string> message;
};

enum class SequenceType { kList, kTuple, kRange, kGenerator, kKeys, kValues, kItems, kGroup };

struct Sequence {
  Sequence(SequenceType type, std::vector<Value> items);
  SequenceType type;
  std::vector<Value> items;
  std::size_t depth;
  bool used_up = false;  ///< a generator, which gives its items once
};

/// A dict: keys in the order of the file or of the template.
class Dict {
 public:
  /// The last of equal keys gives the value, the first one the place. Throws Failure for a key
  /// that Python cannot hash.
  explicit Dict(std::vector<std::pair<Value, Value>> items);
  const std::vector<std::pair<Value, Value>>& items() const { return items_; }
  /// Null without one.
  const Value* find(const Value& key) const;
  std::size_t depth() const { return depth_; }

 private:
  std::optional<std::size_t> place(const Value& key) const;

  std::vector<std::pair<Value, Value>> items_;
  std::unordered_map<std::string_view, std::size_t> by_text_;  ///< of many text keys
  std::size_t depth_ = 1;
};

/// A value with behaviour: a function, a macro, a loop, a namespace, …
class Object {
 public:
  virtual ~Object() = default;
  /// For errors.
  virtual std::string_view type_name() const = 0;
  virtual std::optional<Value> attribute(std::string_view name);
  virtual bool is_callable() const { return false; }
  /// Throws Failure where it cannot be called.
  virtual Value call(const Arguments& arguments);
  virtual std::size_t depth() const { return 1; }
};

class Value {
 public:
  Value() : data_(Undefined{}) {}
  Value(None none) : data_(none) {}  // NOLINT(google-explicit-constructor)
  explicit Value(bool flag) : data_(flag) {}
  explicit Value(std::int64_t number) : data_(number) {}
  explicit Value(double number) : data_(number) {}
  explicit Value(Text text) : data_(std::make_shared<const Text>(std::move(text))) {}
  explicit Value(std::string_view text) : Value(Text(std::string(text))) {}
  explicit Value(const char* text) : Value(std::string_view(text)) {}
  explicit Value(std::shared_ptr<const Dict> dict) : data_(std::move(dict)) {}
  explicit Value(std::shared_ptr<Object> object) : data_(std::move(object)) {}

  /// `message` says what was expected and found.
  static Value undefined(std::string message);
  static Value sequence(SequenceType type, std::vector<Value> items);
  static Value list(std::vector<Value> items) {
    return sequence(SequenceType::kList, std::move(items));
  }
  static Value tuple(std::vector<Value> items) {
    return sequence(SequenceType::kTuple, std::move(items));
  }
  static Value dict(std::vector<std::pair<Value, Value>> items) {
    return Value(std::make_shared<const Dict>(std::move(items)));
  }

  bool is_undefined() const { return std::holds_alternative<Undefined>(data_); }
  bool is_none() const { return std::holds_alternative<None>(data_); }
  bool is_bool() const { return std::holds_alternative<bool>(data_); }
  bool is_text() const { return as_text() != nullptr; }

  // Null where it is of another kind.
  const bool* as_bool() const { return std::get_if<bool>(&data_); }
  const std::int64_t* as_int() const { return std::get_if<std::int64_t>(&data_); }
  const double* as_float() const { return std::get_if<double>(&data_); }
  const Text* as_text() const { return pointed_at<const Text>(); }
  Sequence* as_sequence() const { return pointed_at<Sequence>(); }
  const Dict* as_dict() const { return pointed_at<const Dict>(); }
  Object* as_object() const { return pointed_at<Object>(); }

  /// The value of an int or a bool, which Python counts among them.
  std::optional<std::int64_t> integer() const;
  /// The value of an int, a bool or a float.
  std::optional<double> number() const;
  /// Returns whether it is a sequence of this type.
  bool is_a(SequenceType type) const;
  /// A list, tuple, range or group: what can be indexed.
  bool is_indexed() const;

  /// Returns the text of a sentence that begins with "expected"; only of undefined values.
  std::string undefined_message() const;
  std::size_t depth() const;
  /// Python's name of the type.
  std::string_view type_name() const;
  /// Returns whether both are one object of Python's.
  bool is_same_as(const Value& other) const;

 private:
  using Shared = std::shared_ptr<Sequence>;
  explicit Value(Shared sequence) : data_(std::move(sequence)) {}

  template <class T>
  T* pointed_at() const {
    const auto* pointer = std::get_if<std::shared_ptr<T>>(&data_);
    return pointer == nullptr ? nullptr : pointer->get();
  }

  std::variant<Undefined, None, bool, std::int64_t, double, std::shared_ptr<const Text>, Shared,
               std::shared_ptr<const Dict>, std::shared_ptr<Object>>
      data_;
};

/// The arguments of a call.
struct Arguments {
  std::vector<Value> values = {};
  std::vector<std::pair<std::string, Value>> named = {};
};

/// Returns a JSON value; its texts, keys too, have this origin. Throws Failure for a number beyond
/// 64 bits.
Value value_of(const nlohmann::ordered_json& json, Origin origin = kOfTemplate);

}  // namespace prefopt::jinja
