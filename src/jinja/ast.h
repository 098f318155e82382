// SPDX-License-Identifier: Apache-2.0
#pragma once

// A template after parsing.

#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <variant>
#include <vector>

#include "jinja/filters.h"
#include "jinja/operators.h"
#include "jinja/value.h"

namespace prefopt::jinja {

struct Expression;
using ExpressionPtr = std::unique_ptr<Expression>;

// Defined after Expression. A std::pair would ask for a whole Expression before that.
struct DictItem;
struct NamedArgument;
struct ComparedTo;

struct Literal {
  Value value;
};

struct Name {
  std::string name;
};

struct ListDisplay {
  std::vector<Expression> items;
  bool is_tuple = false;
};

struct DictDisplay {
  std::vector<DictItem> items;
};

struct AttributeAccess {
  ExpressionPtr object;
  std::string name;
};

struct ItemAccess {
  ExpressionPtr object, index;
};

struct SliceAccess {
  ExpressionPtr object, start, stop, step;  ///< null: not given
};

struct CallArguments {
  std::vector<Expression> values;
  std::vector<NamedArgument> named;
  ExpressionPtr more_values, more_named;  ///< `*` and `**`
};

struct Call {
  ExpressionPtr callee;
  CallArguments arguments;
};

struct FilterCall {
  ExpressionPtr value;  ///< null: what the filter's block holds
  std::string name;
  Filter filter;
  CallArguments arguments;
};

struct TestCall {
  ExpressionPtr value;
  Test test;
  CallArguments arguments;
};

struct Sign {
  bool is_negative;
  ExpressionPtr value;
};

struct Not {
  ExpressionPtr value;
};

struct Logical {
  bool is_and;
  ExpressionPtr left, right;
};

struct Arithmetic {
  BinaryOperator operation;
  ExpressionPtr left, right;
};

struct Comparison {
  ExpressionPtr first;
  std::vector<ComparedTo> rest;
};

struct Concatenation {
  std::vector<Expression> parts;
};

struct Conditional {
  ExpressionPtr condition, then, otherwise;  ///< the last may be null
};

struct Expression {
  std::variant<Literal, Name, ListDisplay, DictDisplay, AttributeAccess, ItemAccess, SliceAccess,
               Call, FilterCall, TestCall, Sign, Not, Logical, Arithmetic, Comparison,
               Concatenation, Conditional>
      node;
  int line = 1;
  int depth = 1;  ///< levels of expressions
};

struct DictItem {
  Expression key, value;
};

struct NamedArgument {
  std::string name;
  Expression value;
};

struct ComparedTo {
  std::string operation;  ///< "==", "!=", "<", "<=", ">", ">=", "in" or "not in"
  Expression value;
};

struct Statement;
using Body = std::vector<Statement>;

/// A name, an attribute of a namespace, or several of them.
struct Target {
  std::string name;
  std::string attribute = {};      ///< not empty: `name.attribute`
  std::vector<Target> parts = {};  ///< not empty, or of a tuple: the names are theirs
  bool is_tuple = false;
};

struct Output {
  std::variant<std::string, Expression> content;
};

struct Set {
  Target target;
  Expression value;
};

struct SetBlock {
  Target target;
  std::optional<Expression> filter;
  Body body;
};

struct If {
  std::vector<std::pair<Expression, Body>> branches;
  Body otherwise;
};

struct For {
  Target target;
  Expression items;
  std::optional<Expression> condition;
  bool is_recursive = false;
  Body body, otherwise;
};

struct Break {};
struct Continue {};

struct Parameter {
  std::string name;
  std::optional<Expression> otherwise;
};

/// A macro, or the block that a call block hands over.
struct MacroDefinition {
  std::string name;
  std::vector<Parameter> parameters;
  Body body;
  // Names that the body asks for beyond its parameters.
  bool takes_caller = false, takes_values = false, takes_named = false;
};

struct Macro {
  MacroDefinition definition;
};

struct CallBlock {
  Expression call;
  MacroDefinition block;
};

struct FilterBlock {
  Expression filter;
  Body body;
};

struct With {
  std::vector<std::pair<Target, Expression>> variables;
  Body body;
};

struct Generation {
  Body body;
};

struct Statement {
  std::variant<Output, Set, SetBlock, If, For, Break, Continue, Macro, CallBlock, FilterBlock, With,
               Generation>
      node;
  int line = 1;
};

}  // namespace prefopt::jinja
