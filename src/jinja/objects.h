// SPDX-License-Identifier: Apache-2.0
#pragma once

// Objects that templates call and change: namespaces, joiners, cyclers, and the global functions.

#include <ctime>
#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "jinja/value.h"

namespace prefopt::jinja {

/// A function of C++.
class Function final : public Object {
 public:
  using Call = std::function<Value(const Arguments& arguments)>;
  explicit Function(Call call) : call_(std::move(call)) {}
  std::string_view type_name() const override { return "a function"; }
  bool is_callable() const override { return true; }
  Value call(const Arguments& arguments) override { return call_(arguments); }

 private:
  Call call_;
};

Value function(Function::Call call);

/// The object that {% set ns.name = … %} changes.
class Namespace final : public Object {
 public:
  /// Throws Failure for arguments that dict() would not take and for names with an underscore.
  explicit Namespace(const Arguments& arguments);
  std::string_view type_name() const override { return "Namespace"; }
  std::optional<Value> attribute(std::string_view name) override;
  void set(std::string_view name, Value value);
  void clear() { attributes_.clear(); }

 private:
  std::vector<std::pair<std::string, Value>> attributes_;
};

/// Returns the global functions of templates, by name. `keep` gets each namespace that is made.
std::vector<std::pair<std::string_view, Value>> global_functions(
    const std::tm& now, std::function<void(std::shared_ptr<Namespace>)> keep);

}  // namespace prefopt::jinja
