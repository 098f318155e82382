// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "jinja/ast.h"
#include "jinja/budget.h"
#include "jinja/loop.h"
#include "jinja/objects.h"
#include "jinja/template.h"

namespace prefopt::jinja {

/// The variables of a block, which ends with it, above those of the blocks around it.
class Scope {
 public:
  explicit Scope(std::shared_ptr<Scope> outer) : outer_(std::move(outer)) {}
  /// Null where there is no such variable.
  const Value* find(std::string_view name) const;
  /// `name` has to outlive the scope.
  void set(std::string_view name, Value value);
  void clear() { variables_.clear(); }

 private:
  std::shared_ptr<Scope> outer_;
  std::vector<std::pair<std::string_view, Value>> variables_;
};
using ScopePtr = std::shared_ptr<Scope>;

/// One render of a template: evaluates expressions and writes what statements say.
class Renderer {
 public:
  /// `variables` have to outlive it.
  Renderer(const Variables& variables, const RenderOptions& options);
  ~Renderer();
  Renderer(const Renderer&) = delete;
  Renderer& operator=(const Renderer&) = delete;

  /// Throws Failure.
  Text render(const Body& body);
  /// Returns the line that was worked on last.
  int line() const { return line_; }

 private:
  friend class MacroObject;

  /// How a body ended.
  enum class Flow { kOn, kBreak, kContinue };

  Flow run(const Body& body, const ScopePtr& scope, Text& out);
  Flow run(const Statement& statement, const ScopePtr& scope, Text& out);
  Flow execute(const Output& output, const ScopePtr& scope, Text& out);
  Flow execute(const Set& set, const ScopePtr& scope, Text& out);
  Flow execute(const SetBlock& set, const ScopePtr& scope, Text& out);
  Flow execute(const If& conditions, const ScopePtr& scope, Text& out);
  Flow execute(const For& loop, const ScopePtr& scope, Text& out);
  Flow execute(const Break& tag, const ScopePtr& scope, Text& out);
  Flow execute(const Continue& tag, const ScopePtr& scope, Text& out);
  Flow execute(const Macro& macro, const ScopePtr& scope, Text& out);
  Flow execute(const CallBlock& block, const ScopePtr& scope, Text& out);
  Flow execute(const FilterBlock& block, const ScopePtr& scope, Text& out);
  Flow execute(const With& with, const ScopePtr& scope, Text& out);
  Flow execute(const Generation& generation, const ScopePtr& scope, Text& out);

  /// Runs the loop over `items`, which is recursive where `depth0` is above 0.
  Flow loop_over(const For& loop, const Value& items, std::size_t depth0, const ScopePtr& scope,
                 Text& out);
  void assign(const Target& target, Value value, const ScopePtr& scope);

  Value evaluate(const Expression& expression, const ScopePtr& scope);
  Value value(const Literal& literal, const ScopePtr& scope);
  Value value(const Name& name, const ScopePtr& scope);
  Value value(const ListDisplay& list, const ScopePtr& scope);
  Value value(const DictDisplay& dict, const ScopePtr& scope);
  Value value(const AttributeAccess& access, const ScopePtr& scope);
  Value value(const ItemAccess& access, const ScopePtr& scope);
  Value value(const SliceAccess& access, const ScopePtr& scope);
  Value value(const Call& call, const ScopePtr& scope);
  Value value(const FilterCall& call, const ScopePtr& scope);
  Value value(const TestCall& call, const ScopePtr& scope);
  Value value(const Sign& sign, const ScopePtr& scope);
  Value value(const Not& negation, const ScopePtr& scope);
  Value value(const Logical& logical, const ScopePtr& scope);
  Value value(const Arithmetic& arithmetic, const ScopePtr& scope);
  Value value(const Comparison& comparison, const ScopePtr& scope);
  Value value(const Concatenation& concatenation, const ScopePtr& scope);
  Value value(const Conditional& conditional, const ScopePtr& scope);

  Arguments arguments_of(const CallArguments& arguments, const ScopePtr& scope);
  /// Applies the filter of a block, and those within it, to the block's text.
  Value filtered(const Expression& filter, Value text, const ScopePtr& scope);
  Value call_macro(const MacroDefinition& macro, const ScopePtr& defined_in,
                   const Arguments& arguments);
  Value macro_object(const MacroDefinition& macro, const ScopePtr& scope);
  Value call(const Value& callee, const Arguments& arguments);

  Budget budget_;
  ScopePtr globals_;
  int line_ = 1;
  std::size_t calls_ = 0;              ///< that are going on
  const Value* block_text_ = nullptr;  ///< of the filter block that is evaluated
  std::vector<std::shared_ptr<Namespace>> namespaces_;
  std::vector<ScopePtr> scopes_of_macros_;
};

}  // namespace prefopt::jinja
