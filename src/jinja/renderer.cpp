// SPDX-License-Identifier: Apache-2.0
#include "jinja/renderer.h"

#include <fmt/format.h>

#include <algorithm>
#include <set>

#include "jinja/display.h"
#include "jinja/failure.h"
#include "jinja/operators.h"

namespace prefopt::jinja {
namespace {

// Macros and loops that call each other: deeper than any template, shallow enough for a thread.
constexpr std::size_t kMaxCalls = 100;

}  // namespace

const Value* Scope::find(std::string_view name) const {
  for (const Scope* scope = this; scope != nullptr; scope = scope->outer_.get()) {
    for (const auto& [known, value] : scope->variables_) {
      if (known == name) return &value;
    }
  }
  return nullptr;
}

void Scope::set(std::string_view name, Value value) {
  for (auto& [known, held] : variables_) {
    if (known != name) continue;
    held = std::move(value);
    return;
  }
  variables_.emplace_back(name, std::move(value));
}

/// A macro where it was defined.
class MacroObject final : public Object {
 public:
  MacroObject(Renderer& renderer, const MacroDefinition& definition, ScopePtr scope)
      : renderer_(renderer), definition_(definition), scope_(std::move(scope)) {}

  std::string_view type_name() const override { return "Macro"; }
  bool is_callable() const override { return true; }
  Value call(const Arguments& arguments) override {
    return renderer_.call_macro(definition_, scope_, arguments);
  }
  std::optional<Value> attribute(std::string_view name) override {
    if (name == "name") return Value(std::string_view(definition_.name));
    if (name != "arguments" && name != "catch_kwargs" && name != "catch_varargs" &&
        name != "caller" && name != "explicit_caller") {
      return std::nullopt;
    }
    throw Failure(fmt::format("expected an attribute of a macro known here, got '{}'", name));
  }

 private:
  Renderer& renderer_;
  const MacroDefinition& definition_;
  ScopePtr scope_;
};

Renderer::Renderer(const Variables& variables, const RenderOptions& options)
    : budget_(options.work), globals_(std::make_shared<Scope>(nullptr)) {
  for (auto& [name, function] : global_functions(
           options.now,
           [this](std::shared_ptr<Namespace> made) { namespaces_.push_back(std::move(made)); })) {
    globals_->set(name, std::move(function));
  }
  for (const auto& [name, value] : variables) globals_->set(name, value);
}

Renderer::~Renderer() {
  // They may hold each other.
  for (const auto& made : namespaces_) made->clear();
  for (const ScopePtr& scope : scopes_of_macros_) scope->clear();
}

Text Renderer::render(const Body& body) {
  Text out;
  run(body, std::make_shared<Scope>(globals_), out);
  return out;
}

// --- Statements

Renderer::Flow Renderer::run(const Body& body, const ScopePtr& scope, Text& out) {
  for (const Statement& statement : body) {
    if (const Flow flow = run(statement, scope, out); flow != Flow::kOn) return flow;
  }
  return Flow::kOn;
}

Renderer::Flow Renderer::run(const Statement& statement, const ScopePtr& scope, Text& out) {
  spend(1);
  line_ = statement.line;
  return std::visit([&](const auto& node) { return execute(node, scope, out); }, statement.node);
}

Renderer::Flow Renderer::execute(const Output& output, const ScopePtr& scope, Text& out) {
  if (const auto* text = std::get_if<std::string>(&output.content)) {
    out.append(*text);
    return Flow::kOn;
  }
  const Value shown = evaluate(std::get<Expression>(output.content), scope);
  if (const Text* text = shown.as_text()) {
    out.append(*text);
  } else {
    out.append(displayed(shown));
  }
  return Flow::kOn;
}

Renderer::Flow Renderer::execute(const Set& set, const ScopePtr& scope, Text& /*out*/) {
  assign(set.target, evaluate(set.value, scope), scope);
  return Flow::kOn;
}

Renderer::Flow Renderer::execute(const SetBlock& set, const ScopePtr& scope, Text& /*out*/) {
  Text text;
  const Flow flow = run(set.body, std::make_shared<Scope>(scope), text);
  if (flow != Flow::kOn) return flow;
  Value value(std::move(text));
  if (set.filter) value = filtered(*set.filter, std::move(value), scope);
  assign(set.target, std::move(value), scope);
  return Flow::kOn;
}

Renderer::Flow Renderer::execute(const If& conditions, const ScopePtr& scope, Text& out) {
  for (const auto& [condition, body] : conditions.branches) {
    if (is_true(evaluate(condition, scope))) return run(body, scope, out);
  }
  return run(conditions.otherwise, scope, out);
}

Renderer::Flow Renderer::execute(const For& loop, const ScopePtr& scope, Text& out) {
  return loop_over(loop, evaluate(loop.items, scope), 0, scope, out);
}

Renderer::Flow Renderer::loop_over(const For& loop, const Value& items, std::size_t depth0,
                                   const ScopePtr& scope, Text& out) {
  Loop::Condition condition;
  if (loop.condition) {
    condition = [&](const Value& item) {
      const auto inner = std::make_shared<Scope>(scope);
      assign(loop.target, item, inner);
      return is_true(evaluate(*loop.condition, inner));
    };
  }
  Loop::Recurse recurse;
  if (loop.is_recursive) {
    recurse = [&, depth0](const Value& inner_items) {
      if (++calls_ > kMaxCalls) {
        throw Failure(fmt::format("expected at most {} calls within calls, got more", kMaxCalls));
      }
      Text inner;
      loop_over(loop, inner_items, depth0 + 1, scope, inner);
      --calls_;
      return Value(std::move(inner));
    };
  }
  const auto context =
      std::make_shared<Loop>(items, depth0, std::move(condition), std::move(recurse));
  const Value loop_value{std::shared_ptr<Object>(context)};
  bool is_empty = true;
  while (context->advance()) {
    is_empty = false;
    const auto inner = std::make_shared<Scope>(scope);
    inner->set("loop", loop_value);
    assign(loop.target, context->item(), inner);
    if (run(loop.body, inner, out) == Flow::kBreak) break;
  }
  context->finish();
  return is_empty ? run(loop.otherwise, std::make_shared<Scope>(scope), out) : Flow::kOn;
}

Renderer::Flow Renderer::execute(const Break& /*tag*/, const ScopePtr& /*scope*/, Text& /*out*/) {
  return Flow::kBreak;
}

Renderer::Flow Renderer::execute(const Continue& /*tag*/, const ScopePtr& /*scope*/,
                                 Text& /*out*/) {
  return Flow::kContinue;
}

Renderer::Flow Renderer::execute(const Macro& macro, const ScopePtr& scope, Text& /*out*/) {
  scope->set(macro.definition.name, macro_object(macro.definition, scope));
  return Flow::kOn;
}

Renderer::Flow Renderer::execute(const CallBlock& block, const ScopePtr& scope, Text& out) {
  const auto& call_node = std::get<Call>(block.call.node);
  const Value callee = evaluate(*call_node.callee, scope);
  Arguments arguments = arguments_of(call_node.arguments, scope);
  arguments.named.emplace_back("caller", macro_object(block.block, scope));
  out.append(displayed(call(callee, arguments)));
  return Flow::kOn;
}

Renderer::Flow Renderer::execute(const FilterBlock& block, const ScopePtr& scope, Text& out) {
  Text text;
  const Flow flow = run(block.body, std::make_shared<Scope>(scope), text);
  if (flow != Flow::kOn) return flow;
  out.append(displayed(filtered(block.filter, Value(std::move(text)), scope)));
  return Flow::kOn;
}

Renderer::Flow Renderer::execute(const With& with, const ScopePtr& scope, Text& out) {
  const auto inner = std::make_shared<Scope>(scope);
  for (const auto& [target, expression] : with.variables) {
    assign(target, evaluate(expression, scope), inner);
  }
  return run(with.body, inner, out);
}

Renderer::Flow Renderer::execute(const Generation& generation, const ScopePtr& scope, Text& out) {
  Text text;
  run(generation.body, std::make_shared<Scope>(scope), text);
  text.mark_generated();
  out.append(text);
  return Flow::kOn;
}

void Renderer::assign(const Target& target, Value value, const ScopePtr& scope) {
  if (target.is_tuple) {
    const std::vector<Value> parts = items_of(value);
    if (parts.size() != target.parts.size()) {
      throw Failure(
          fmt::format("expected {} values to assign, got {}", target.parts.size(), parts.size()));
    }
    for (std::size_t i = 0; i < parts.size(); ++i) assign(target.parts[i], parts[i], scope);
    return;
  }
  if (target.attribute.empty()) return scope->set(target.name, std::move(value));
  const Value* held = scope->find(target.name);
  auto* space = held == nullptr ? nullptr : dynamic_cast<Namespace*>(held->as_object());
  if (space == nullptr) {
    throw Failure(
        fmt::format("expected a namespace to set an attribute of, got '{}'", target.name));
  }
  space->set(target.attribute, std::move(value));
}

// --- Expressions

Value Renderer::evaluate(const Expression& expression, const ScopePtr& scope) {
  spend(1);
  line_ = expression.line;
  return std::visit([&](const auto& node) { return value(node, scope); }, expression.node);
}

Value Renderer::value(const Literal& literal, const ScopePtr& /*scope*/) { return literal.value; }

Value Renderer::value(const Name& name, const ScopePtr& scope) {
  const Value* found = scope->find(name.name);
  if (found != nullptr) return *found;
  return Value::undefined(
      fmt::format("expected '{}' to be defined, got no such variable", name.name));
}

Value Renderer::value(const ListDisplay& list, const ScopePtr& scope) {
  std::vector<Value> items;
  items.reserve(list.items.size());
  for (const Expression& item : list.items) items.push_back(evaluate(item, scope));
  return list.is_tuple ? Value::tuple(std::move(items)) : Value::list(std::move(items));
}

Value Renderer::value(const DictDisplay& dict, const ScopePtr& scope) {
  std::vector<std::pair<Value, Value>> items;
  for (const auto& [key, item] : dict.items) {
    Value key_value = evaluate(key, scope);
    items.emplace_back(std::move(key_value), evaluate(item, scope));
  }
  return Value::dict(std::move(items));
}

Value Renderer::value(const AttributeAccess& access, const ScopePtr& scope) {
  return attribute_of(evaluate(*access.object, scope), access.name);
}

Value Renderer::value(const ItemAccess& access, const ScopePtr& scope) {
  const Value object = evaluate(*access.object, scope);
  return item_of(object, evaluate(*access.index, scope));
}

Value Renderer::value(const SliceAccess& access, const ScopePtr& scope) {
  const auto part = [&](const ExpressionPtr& given) {
    return given ? evaluate(*given, scope) : Value(None{});
  };
  const Value object = evaluate(*access.object, scope);
  const Value start = part(access.start), stop = part(access.stop);
  return slice_of(object, start, stop, part(access.step));
}

Value Renderer::value(const Call& call_node, const ScopePtr& scope) {
  const Value callee = evaluate(*call_node.callee, scope);
  return call(callee, arguments_of(call_node.arguments, scope));
}

Value Renderer::call(const Value& callee, const Arguments& arguments) {
  if (callee.is_undefined()) throw Failure(callee.undefined_message());
  Object* object = callee.as_object();
  if (object == nullptr) {
    throw Failure(fmt::format("expected something to call, got {}", callee.type_name()));
  }
  return object->call(arguments);
}

Value Renderer::value(const FilterCall& call_node, const ScopePtr& scope) {
  const Value input = call_node.value ? evaluate(*call_node.value, scope) : *block_text_;
  return call_node.filter(input, arguments_of(call_node.arguments, scope));
}

Value Renderer::value(const TestCall& call_node, const ScopePtr& scope) {
  const Value input = evaluate(*call_node.value, scope);
  return Value(call_node.test(input, arguments_of(call_node.arguments, scope)));
}

Value Renderer::value(const Sign& sign, const ScopePtr& scope) {
  const Value operand = evaluate(*sign.value, scope);
  return sign.is_negative ? negative(operand) : positive(operand);
}

Value Renderer::value(const Not& negation, const ScopePtr& scope) {
  return Value(!is_true(evaluate(*negation.value, scope)));
}

Value Renderer::value(const Logical& logical, const ScopePtr& scope) {
  Value left = evaluate(*logical.left, scope);
  return is_true(left) == logical.is_and ? evaluate(*logical.right, scope) : left;
}

Value Renderer::value(const Arithmetic& arithmetic, const ScopePtr& scope) {
  const Value left = evaluate(*arithmetic.left, scope);
  return apply(arithmetic.operation, left, evaluate(*arithmetic.right, scope));
}

Value Renderer::value(const Comparison& comparison, const ScopePtr& scope) {
  Value left = evaluate(*comparison.first, scope);
  for (const auto& [operation, expression] : comparison.rest) {
    Value right = evaluate(expression, scope);
    const bool holds = operation == "=="       ? equal(left, right)
                       : operation == "!="     ? !equal(left, right)
                       : operation == "in"     ? contains(right, left)
                       : operation == "not in" ? !contains(right, left)
                                               : ordered(left, operation, right);
    if (!holds) return Value(false);
    left = std::move(right);
  }
  return Value(true);
}

Value Renderer::value(const Concatenation& concatenation, const ScopePtr& scope) {
  Text text;
  std::vector<Value> parts;
  for (const Expression& part : concatenation.parts) parts.push_back(evaluate(part, scope));
  for (const Value& part : parts) text.append(displayed(part));
  return Value(std::move(text));
}

Value Renderer::value(const Conditional& conditional, const ScopePtr& scope) {
  if (is_true(evaluate(*conditional.condition, scope))) return evaluate(*conditional.then, scope);
  if (conditional.otherwise) return evaluate(*conditional.otherwise, scope);
  return Value::undefined("expected an 'else' of the condition that was false, got none");
}

Arguments Renderer::arguments_of(const CallArguments& given, const ScopePtr& scope) {
  Arguments arguments;
  for (const Expression& expression : given.values) {
    arguments.values.push_back(evaluate(expression, scope));
  }
  for (const auto& [name, expression] : given.named) {
    arguments.named.emplace_back(name, evaluate(expression, scope));
  }
  if (given.more_values) {
    for (Value& item : items_of(evaluate(*given.more_values, scope))) {
      arguments.values.push_back(std::move(item));
    }
  }
  if (!given.more_named) return arguments;
  const Value named = evaluate(*given.more_named, scope);
  const Dict* dict = named.as_dict();
  if (dict == nullptr) {
    throw Failure(fmt::format("expected a mapping after '**', got {}", named.type_name()));
  }
  for (const auto& [key, item] : dict->items()) {
    const Text* name = key.as_text();
    if (name == nullptr) throw Failure("expected texts as names of arguments, got another key");
    arguments.named.emplace_back(name->bytes(), item);
  }
  return arguments;
}

Value Renderer::filtered(const Expression& filter, Value text, const ScopePtr& scope) {
  const Value* outer = std::exchange(block_text_, &text);
  Value result = evaluate(filter, scope);
  block_text_ = outer;
  return result;
}

// --- Macros

Value Renderer::macro_object(const MacroDefinition& macro, const ScopePtr& scope) {
  scopes_of_macros_.push_back(scope);
  return Value(std::shared_ptr<Object>(std::make_shared<MacroObject>(*this, macro, scope)));
}

Value Renderer::call_macro(const MacroDefinition& macro, const ScopePtr& defined_in,
                           const Arguments& arguments) {
  if (++calls_ > kMaxCalls) {
    throw Failure(fmt::format("expected at most {} calls within calls, got more", kMaxCalls));
  }
  const auto scope = std::make_shared<Scope>(defined_in);
  std::vector<std::pair<std::string, Value>> named = arguments.named;
  const auto take_named = [&](std::string_view name) -> std::optional<Value> {
    const auto found = std::find_if(named.begin(), named.end(),
                                    [&](const auto& argument) { return argument.first == name; });
    if (found == named.end()) return std::nullopt;
    Value value = std::move(found->second);
    named.erase(found);
    return value;
  };
  const std::size_t given = std::min(arguments.values.size(), macro.parameters.size());
  std::vector<std::optional<Value>> values(
      arguments.values.begin(), arguments.values.begin() + static_cast<std::ptrdiff_t>(given));
  for (std::size_t i = given; i < macro.parameters.size(); ++i) {
    values.push_back(take_named(macro.parameters[i].name));
  }
  if (macro.takes_caller) {
    scope->set("caller", take_named("caller").value_or(
                             Value::undefined("expected a caller of the macro, got none")));
  }
  if (macro.takes_named) {
    std::vector<std::pair<Value, Value>> items;
    for (auto& [name, value] : named)
      items.emplace_back(Value(std::string_view(name)), std::move(value));
    scope->set("kwargs", Value::dict(std::move(items)));
  } else if (!named.empty()) {
    throw Failure(fmt::format("expected an argument known to the macro '{}', got '{}'", macro.name,
                              named.front().first));
  }
  if (macro.takes_values) {
    scope->set("varargs",
               Value::tuple({arguments.values.begin() + static_cast<std::ptrdiff_t>(given),
                             arguments.values.end()}));
  } else if (given < arguments.values.size()) {
    throw Failure(fmt::format("expected at most {} arguments of the macro '{}', got {}",
                              macro.parameters.size(), macro.name, arguments.values.size()));
  }
  for (std::size_t i = 0; i < values.size(); ++i) {
    const Parameter& parameter = macro.parameters[i];
    if (values[i]) {
      scope->set(parameter.name, std::move(*values[i]));
    } else if (parameter.otherwise) {
      scope->set(parameter.name, evaluate(*parameter.otherwise, scope));
    } else {
      scope->set(parameter.name, Value::undefined(fmt::format(
                                     "expected an argument '{}' of the macro '{}', got none",
                                     parameter.name, macro.name)));
    }
  }
  Text text;
  run(macro.body, scope, text);
  --calls_;
  return Value(std::move(text));
}

}  // namespace prefopt::jinja
