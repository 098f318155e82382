// SPDX-License-Identifier: Apache-2.0
#include "jinja/parser.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <array>
#include <charconv>
#include <cstdlib>
#include <initializer_list>

#include "core/text.h"
#include "jinja/lexer.h"

namespace prefopt::jinja {
namespace {

// Deeper nesting is no template that somebody wrote, and costs the stack.
constexpr int kMaxNesting = 100;
constexpr int kMaxDepth = 200;

// --- The levels of expressions in a node

int depth_of(const ExpressionPtr& expression) { return expression ? expression->depth : 0; }

int deepest_of(const std::vector<Expression>& list) {
  int depth = 0;
  for (const Expression& item : list) depth = std::max(depth, item.depth);
  return depth;
}

template <class Item>
int deepest_of(const std::vector<Item>& list) {
  int depth = 0;
  for (const Item& item : list) depth = std::max(depth, item.value.depth);
  return depth;
}

int depth_of(const CallArguments& arguments) {
  return std::max({deepest_of(arguments.values), deepest_of(arguments.named),
                   depth_of(arguments.more_values), depth_of(arguments.more_named)});
}

template <class... Parts>
int deepest(const Parts&... parts) {
  return std::max({0, depth_of(parts)...});
}

int levels(const Literal&) { return 0; }
int levels(const Name&) { return 0; }
int levels(const ListDisplay& list) { return deepest_of(list.items); }
int levels(const DictDisplay& dict) {
  int depth = deepest_of(dict.items);
  for (const DictItem& item : dict.items) depth = std::max(depth, item.key.depth);
  return depth;
}
int levels(const AttributeAccess& access) { return deepest(access.object); }
int levels(const ItemAccess& access) { return deepest(access.object, access.index); }
int levels(const SliceAccess& access) {
  return deepest(access.object, access.start, access.stop, access.step);
}
int levels(const Call& call) { return deepest(call.callee, call.arguments); }
int levels(const FilterCall& call) { return deepest(call.value, call.arguments); }
int levels(const TestCall& call) { return deepest(call.value, call.arguments); }
int levels(const Sign& sign) { return deepest(sign.value); }
int levels(const Not& negation) { return deepest(negation.value); }
int levels(const Logical& logical) { return deepest(logical.left, logical.right); }
int levels(const Arithmetic& arithmetic) { return deepest(arithmetic.left, arithmetic.right); }
int levels(const Comparison& comparison) {
  return std::max(deepest(comparison.first), deepest_of(comparison.rest));
}
int levels(const Concatenation& concatenation) { return deepest_of(concatenation.parts); }
int levels(const Conditional& conditional) {
  return deepest(conditional.condition, conditional.then, conditional.otherwise);
}

class Parser {
 public:
  explicit Parser(std::string_view source) : tokens_(tokenize(source)) {}

  ParsedTemplate parse() {
    result_.body = parse_body({});
    return std::move(result_);
  }

 private:
  using Names = std::vector<std::string_view>;

  // --- Tokens

  const Token& current() const { return tokens_[at_]; }
  const Token& following() const { return tokens_[std::min(at_ + 1, tokens_.size() - 1)]; }
  Token take() { return tokens_[at_ + 1 < tokens_.size() ? at_++ : at_]; }

  [[noreturn]] void fail(const std::string& what) const {
    throw SyntaxFailure(current().line, what);
  }
  [[noreturn]] void fail_expected(std::string_view expected) const {
    fail(fmt::format("expected {}, got {}", expected, shown(current())));
  }

  static bool is(const Token& token, TokenType type, std::string_view text) {
    return token.type == type && token.text == text;
  }
  bool at_name(std::string_view name) const { return is(current(), TokenType::kName, name); }
  bool at_operator(std::string_view op) const { return is(current(), TokenType::kOperator, op); }

  bool skip_name(std::string_view name) {
    const bool found = at_name(name);
    if (found) take();
    return found;
  }
  bool skip_operator(std::string_view op) {
    const bool found = at_operator(op);
    if (found) take();
    return found;
  }
  void expect_operator(std::string_view op) {
    if (!skip_operator(op)) fail_expected(fmt::format("'{}'", op));
  }
  void expect_name(std::string_view name) {
    if (!skip_name(name)) fail_expected(fmt::format("'{}'", name));
  }
  std::string expect_identifier() {
    if (current().type != TokenType::kName) fail_expected("a name");
    return take().text;
  }
  void expect(TokenType type, std::string_view shown_as) {
    if (current().type != type) fail_expected(shown_as);
    take();
  }

  /// Counts levels of nested tags and expressions.
  class Level {
   public:
    explicit Level(Parser& parser) : parser_(parser) {
      if (++parser.level_ > kMaxNesting) {
        parser.fail(fmt::format("expected at most {} levels of nesting, got more", kMaxNesting));
      }
    }
    ~Level() { --parser_.level_; }
    Level(const Level&) = delete;
    Level& operator=(const Level&) = delete;

   private:
    Parser& parser_;
  };

  // --- Statements

  bool at_end_tag(const Names& ends) const {
    return current().type == TokenType::kName && detail::contains(ends, current().text);
  }

  /// Parses up to one of the tags that end the body, whose name is the current token then.
  Body parse_body(const Names& ends) {
    const Level level(*this);
    Body body;
    while (true) {
      const int line = current().line;
      switch (current().type) {
        case TokenType::kData:
          body.push_back({.node = Output{take().text}, .line = line});
          break;
        case TokenType::kVariableBegin:
          take();
          body.push_back({.node = Output{parse_tuple()}, .line = line});
          expect(TokenType::kVariableEnd, "'}}'");
          break;
        case TokenType::kBlockBegin:
          take();
          if (at_end_tag(ends)) return body;
          parse_statement(body);
          expect(TokenType::kBlockEnd, "'%}'");
          break;
        default:
          if (!ends.empty())
            fail_expected(fmt::format("one of the tags {}", fmt::join(ends, ", ")));
          return body;
      }
    }
  }

  /// Parses the rest of a tag and the body up to `ends`.
  Body parse_block(const Names& ends) {
    skip_operator(":");
    expect(TokenType::kBlockEnd, "'%}'");
    return parse_body(ends);
  }

  Body parse_whole_block(std::string_view end) {
    Body body = parse_block({end});
    take();
    return body;
  }

  void parse_statement(Body& body) {
    const int line = current().line;
    if (current().type != TokenType::kName) fail_expected("the name of a tag");
    const std::string tag = current().text;
    if (tag == "print") return parse_print(body);
    Statement statement{.node = parse_tag(tag), .line = line};
    body.push_back(std::move(statement));
  }

  decltype(Statement::node) parse_tag(const std::string& tag) {
    if (tag == "for") return parse_for();
    if (tag == "if") return parse_if();
    if (tag == "set") return parse_set();
    if (tag == "macro") return parse_macro();
    if (tag == "call") return parse_call_block();
    if (tag == "filter") return parse_filter_block();
    if (tag == "with") return parse_with();
    if (tag == "generation") return parse_generation();
    if (tag == "break" || tag == "continue") {
      if (loops_ == 0) fail(fmt::format("expected '{}' within a loop, got it outside", tag));
      take();
      if (tag == "break") return Break{};
      return Continue{};
    }
    fail(fmt::format("expected a tag known here, got '{}'", tag));
  }

  void parse_print(Body& body) {
    do {
      take();  // the tag's name, then commas
      if (current().type == TokenType::kBlockEnd) return;
      const int line = current().line;
      body.push_back({.node = Output{parse_expression()}, .line = line});
    } while (at_operator(","));
  }

  For parse_for() {
    take();
    For loop;
    loop.target = parse_target(/*with_attributes=*/false);
    if (names_loop(loop.target)) fail("expected another name than 'loop' for items, got it");
    expect_name("in");
    loop.items = parse_tuple(/*with_conditions=*/false);
    if (skip_name("if")) loop.condition = parse_expression();
    loop.is_recursive = skip_name("recursive");
    ++loops_;
    loop.body = parse_block({"endfor", "else"});
    --loops_;
    if (take().text == "else") loop.otherwise = parse_whole_block("endfor");
    return loop;
  }

  static bool names_loop(const Target& target) {
    return target.name == "loop" ||
           std::any_of(target.parts.begin(), target.parts.end(), names_loop);
  }

  If parse_if() {
    take();
    If conditions;
    while (true) {
      Expression condition = parse_tuple(/*with_conditions=*/false);
      Body body = parse_block({"elif", "else", "endif"});
      conditions.branches.emplace_back(std::move(condition), std::move(body));
      const std::string tag = take().text;
      if (tag == "elif") continue;
      if (tag == "else") conditions.otherwise = parse_whole_block("endif");
      return conditions;
    }
  }

  decltype(Statement::node) parse_set() {
    take();
    Target target = parse_target(/*with_attributes=*/true);
    if (skip_operator("=")) return Set{std::move(target), parse_tuple()};
    std::optional<Expression> filter;
    while (at_operator("|")) {
      take();
      filter = parse_filter(filter ? boxed(std::move(*filter)) : nullptr);
    }
    Body body = parse_whole_block("endset");
    return SetBlock{std::move(target), std::move(filter), std::move(body)};
  }

  /// The body of a function: a loop around it cannot be left from there.
  Body parse_function_body(MacroDefinition& macro, std::string_view end) {
    const int loops = std::exchange(loops_, 0);
    const auto outer = std::exchange(names_read_, {});
    Body body = parse_whole_block(end);
    macro.takes_caller = names_read_.contains("caller");
    macro.takes_values = names_read_.contains("varargs");
    macro.takes_named = names_read_.contains("kwargs");
    names_read_.insert(outer.begin(), outer.end());
    loops_ = loops;
    return body;
  }

  Macro parse_macro() {
    take();
    Macro macro;
    macro.definition.name = expect_identifier();
    parse_signature(macro.definition);
    macro.definition.body = parse_function_body(macro.definition, "endmacro");
    return macro;
  }

  void parse_signature(MacroDefinition& macro) {
    expect_operator("(");
    while (!at_operator(")")) {
      if (!macro.parameters.empty()) expect_operator(",");
      Parameter parameter;
      parameter.name = expect_identifier();
      if (parameter.name == "caller" || parameter.name == "varargs" || parameter.name == "kwargs") {
        fail(fmt::format("expected parameters of other names, got '{}'", parameter.name));
      }
      const bool needs_default =
          !macro.parameters.empty() && macro.parameters.back().otherwise.has_value();
      if (skip_operator("=")) {
        parameter.otherwise = parse_expression();
      } else if (needs_default) {
        fail(fmt::format("expected a default of the parameter '{}', got none", parameter.name));
      }
      macro.parameters.push_back(std::move(parameter));
    }
    expect_operator(")");
  }

  CallBlock parse_call_block() {
    take();
    MacroDefinition block;
    block.name = "caller";
    if (at_operator("(")) parse_signature(block);
    Expression call = parse_expression();
    if (!std::holds_alternative<Call>(call.node))
      fail("expected a call after 'call', got another expression");
    block.body = parse_function_body(block, "endcall");
    return {std::move(call), std::move(block)};
  }

  FilterBlock parse_filter_block() {
    take();
    Expression filter = parse_filter(nullptr);
    while (at_operator("|")) {
      take();
      filter = parse_filter(boxed(std::move(filter)));
    }
    Body body = parse_whole_block("endfilter");
    return {std::move(filter), std::move(body)};
  }

  With parse_with() {
    take();
    With with;
    while (current().type != TokenType::kBlockEnd) {
      if (!with.variables.empty()) expect_operator(",");
      Target target = parse_target(/*with_attributes=*/false);
      expect_operator("=");
      with.variables.emplace_back(std::move(target), parse_expression());
    }
    with.body = parse_whole_block("endwith");
    return with;
  }

  Generation parse_generation() {
    take();
    result_.has_generation = true;
    MacroDefinition unused;
    return {parse_function_body(unused, "endgeneration")};
  }

  Target parse_single_target(bool with_attributes) {
    if (skip_operator("(")) {
      Target target = parse_target(with_attributes);
      expect_operator(")");
      return target;
    }
    static constexpr std::array<std::string_view, 6> kConstants = {"true", "false", "none",
                                                                   "True", "False", "None"};
    if (current().type != TokenType::kName || detail::contains(kConstants, current().text)) {
      fail_expected("a name to assign to");
    }
    Target target{.name = take().text};
    if (with_attributes && skip_operator(".")) {
      target.attribute = expect_identifier();
      read(target.name);
    }
    return target;
  }

  Target parse_target(bool with_attributes) {
    const Level level(*this);
    Target first = parse_single_target(with_attributes);
    if (!at_operator(",")) return first;
    Target tuple;
    tuple.is_tuple = true;
    tuple.parts.push_back(std::move(first));
    while (skip_operator(",")) {
      if (at_tuple_end()) break;
      tuple.parts.push_back(parse_single_target(with_attributes));
    }
    return tuple;
  }

  // --- Expressions

  static ExpressionPtr boxed(Expression expression) {
    return std::make_unique<Expression>(std::move(expression));
  }

  template <class Node>
  Expression made(int line, Node node) const {
    const int depth = levels(node) + 1;
    if (depth > kMaxDepth) {
      fail(fmt::format("expected expressions of at most {} levels, got deeper ones", kMaxDepth));
    }
    return {.node = std::move(node), .line = line, .depth = depth};
  }

  void read(const std::string& name) {
    result_.names.insert(name);
    names_read_.insert(name);
  }

  bool at_tuple_end() const {
    return current().type == TokenType::kVariableEnd || current().type == TokenType::kBlockEnd ||
           at_operator(")");
  }

  /// An expression, or several with commas.
  Expression parse_tuple(bool with_conditions = true, bool is_in_parentheses = false) {
    const int line = current().line;
    std::vector<Expression> items;
    bool is_tuple = false;
    while (!at_tuple_end()) {
      items.push_back(with_conditions ? parse_expression() : parse_or());
      if (!skip_operator(",")) break;
      is_tuple = true;
    }
    if (!is_tuple && items.size() == 1) return std::move(items.front());
    if (items.empty() && !is_in_parentheses) fail_expected("an expression");
    return made(line, ListDisplay{.items = std::move(items), .is_tuple = true});
  }

  Expression parse_expression() {
    const Level level(*this);
    const int line = current().line;
    Expression value = parse_or();
    while (skip_name("if")) {
      Conditional conditional;
      conditional.then = boxed(std::move(value));
      conditional.condition = boxed(parse_or());
      if (skip_name("else")) conditional.otherwise = boxed(parse_expression());
      value = made(line, std::move(conditional));
    }
    return value;
  }

  Expression parse_or() {
    const int line = current().line;
    Expression left = parse_and();
    while (skip_name("or")) {
      ExpressionPtr right = boxed(parse_and());
      left = made(line, Logical{false, boxed(std::move(left)), std::move(right)});
    }
    return left;
  }

  Expression parse_and() {
    const int line = current().line;
    Expression left = parse_not();
    while (skip_name("and")) {
      ExpressionPtr right = boxed(parse_not());
      left = made(line, Logical{true, boxed(std::move(left)), std::move(right)});
    }
    return left;
  }

  Expression parse_not() {
    const Level level(*this);
    const int line = current().line;
    if (skip_name("not")) return made(line, Not{boxed(parse_not())});
    return parse_comparison();
  }

  std::string comparison_operator() {
    for (const std::string_view op : {"==", "!=", "<=", ">=", "<", ">"}) {
      if (skip_operator(op)) return std::string(op);
    }
    if (skip_name("in")) return "in";
    if (!at_name("not") || !is(following(), TokenType::kName, "in")) return "";
    take();
    take();
    return "not in";
  }

  Expression parse_comparison() {
    const int line = current().line;
    Expression first = parse_sum();
    Comparison comparison;
    for (std::string op = comparison_operator(); !op.empty(); op = comparison_operator()) {
      comparison.rest.push_back({op, parse_sum()});
    }
    if (comparison.rest.empty()) return first;
    comparison.first = boxed(std::move(first));
    return made(line, std::move(comparison));
  }

  using Operators = std::initializer_list<std::pair<std::string_view, BinaryOperator>>;

  /// Operators of one precedence, from the left.
  template <class ParseOperand>
  Expression parse_arithmetic(Operators operators, const ParseOperand& parse_operand) {
    const int line = current().line;
    Expression left = parse_operand();
    while (true) {
      const auto found = std::find_if(operators.begin(), operators.end(),
                                      [&](const auto& known) { return at_operator(known.first); });
      if (found == operators.end()) return left;
      take();
      ExpressionPtr right = boxed(parse_operand());
      left = made(line, Arithmetic{found->second, boxed(std::move(left)), std::move(right)});
    }
  }

  Expression parse_sum() {
    return parse_arithmetic({{"+", BinaryOperator::kAdd}, {"-", BinaryOperator::kSubtract}},
                            [&] { return parse_concatenation(); });
  }

  Expression parse_concatenation() {
    const int line = current().line;
    Expression first = parse_product();
    if (!at_operator("~")) return first;
    Concatenation concatenation;
    concatenation.parts.push_back(std::move(first));
    while (skip_operator("~")) concatenation.parts.push_back(parse_product());
    return made(line, std::move(concatenation));
  }

  Expression parse_product() {
    return parse_arithmetic({{"*", BinaryOperator::kMultiply},
                             {"//", BinaryOperator::kFloorDivide},
                             {"/", BinaryOperator::kDivide},
                             {"%", BinaryOperator::kModulo}},
                            [&] { return parse_power(); });
  }

  Expression parse_power() {
    return parse_arithmetic({{"**", BinaryOperator::kPower}}, [&] { return parse_unary(true); });
  }

  Expression parse_unary(bool with_filters) {
    const Level level(*this);
    const int line = current().line;
    const bool is_negative = at_operator("-");
    Expression value = [&] {
      if (!is_negative && !at_operator("+")) return parse_primary();
      take();
      return made(line, Sign{is_negative, boxed(parse_unary(false))});
    }();
    value = parse_postfix(std::move(value));
    return with_filters ? parse_filters(std::move(value)) : std::move(value);
  }

  Expression parse_primary() {
    const int line = current().line;
    switch (current().type) {
      case TokenType::kName:
        return parse_name();
      case TokenType::kText: {
        std::string text = take().text;
        while (current().type == TokenType::kText) text += take().text;
        return made(line, Literal{Value(std::string_view(text))});
      }
      case TokenType::kInteger:
        return made(line, Literal{Value(integer_of(take().text))});
      case TokenType::kFloat:
        return made(line, Literal{Value(std::strtod(take().text.c_str(), nullptr))});
      default:
        break;
    }
    if (skip_operator("(")) {
      Expression value = parse_tuple(true, /*is_in_parentheses=*/true);
      expect_operator(")");
      return value;
    }
    if (at_operator("[")) return parse_list();
    if (at_operator("{")) return parse_dict();
    fail_expected("an expression");
  }

  Expression parse_name() {
    const int line = current().line;
    const std::string name = take().text;
    if (name == "true" || name == "True") return made(line, Literal{Value(true)});
    if (name == "false" || name == "False") return made(line, Literal{Value(false)});
    if (name == "none" || name == "None") return made(line, Literal{None{}});
    read(name);
    return made(line, Name{name});
  }

  std::int64_t integer_of(std::string text) const {
    int base = 10;
    if (text.size() > 2 && text[0] == '0' && !(text[1] >= '0' && text[1] <= '9')) {
      base = text[1] == 'x' || text[1] == 'X' ? 16 : text[1] == 'o' || text[1] == 'O' ? 8 : 2;
      text.erase(0, 2);
    }
    std::int64_t number = 0;
    const auto parsed = std::from_chars(text.data(), text.data() + text.size(), number, base);
    if (parsed.ec != std::errc()) fail("expected integers of 64 bits, got a longer one");
    return number;
  }

  Expression parse_list() {
    const int line = current().line;
    ListDisplay list;
    take();
    while (!at_operator("]")) {
      if (!list.items.empty()) expect_operator(",");
      if (at_operator("]")) break;
      list.items.push_back(parse_expression());
    }
    take();
    return made(line, std::move(list));
  }

  Expression parse_dict() {
    const int line = current().line;
    DictDisplay dict;
    take();
    while (!at_operator("}")) {
      if (!dict.items.empty()) expect_operator(",");
      if (at_operator("}")) break;
      Expression key = parse_expression();
      expect_operator(":");
      Expression value = parse_expression();
      dict.items.push_back({std::move(key), std::move(value)});
    }
    take();
    return made(line, std::move(dict));
  }

  Expression parse_postfix(Expression value) {
    while (true) {
      if (at_operator(".") || at_operator("[")) {
        value = parse_subscript(std::move(value));
      } else if (at_operator("(")) {
        value = parse_call(std::move(value));
      } else {
        return value;
      }
    }
  }

  Expression parse_filters(Expression value) {
    while (true) {
      if (skip_operator("|")) {
        value = parse_filter(boxed(std::move(value)));
      } else if (at_name("is")) {
        value = parse_test(std::move(value));
      } else if (at_operator("(")) {
        value = parse_call(std::move(value));
      } else {
        return value;
      }
    }
  }

  Expression parse_subscript(Expression value) {
    const int line = current().line;
    if (skip_operator(".")) {
      if (current().type == TokenType::kInteger) {
        ExpressionPtr index = boxed(made(line, Literal{Value(integer_of(take().text))}));
        return made(line, ItemAccess{boxed(std::move(value)), std::move(index)});
      }
      return made(line, AttributeAccess{boxed(std::move(value)), expect_identifier()});
    }
    take();
    SliceAccess slice;
    std::optional<Expression> index;
    if (!at_operator(":")) {
      index = parse_expression();
      if (at_operator(",")) {
        ListDisplay tuple{.items = {}, .is_tuple = true};
        tuple.items.push_back(std::move(*index));
        while (skip_operator(",")) {
          if (at_operator(":")) fail("expected a slice alone in brackets, got several");
          tuple.items.push_back(parse_expression());
        }
        index = made(line, std::move(tuple));
      }
    }
    if (skip_operator("]")) {
      if (!index) fail_expected("an index");
      return made(line, ItemAccess{boxed(std::move(value)), boxed(std::move(*index))});
    }
    if (index) slice.start = boxed(std::move(*index));
    slice.object = boxed(std::move(value));
    expect_operator(":");
    if (!at_operator(":") && !at_operator("]")) slice.stop = boxed(parse_expression());
    if (skip_operator(":") && !at_operator("]")) slice.step = boxed(parse_expression());
    expect_operator("]");
    return made(line, std::move(slice));
  }

  CallArguments parse_arguments() {
    CallArguments arguments;
    expect_operator("(");
    bool needs_comma = false;
    while (!at_operator(")")) {
      if (needs_comma) {
        expect_operator(",");
        if (at_operator(")")) break;
      }
      needs_comma = true;
      const bool is_named =
          current().type == TokenType::kName && is(following(), TokenType::kOperator, "=");
      const bool is_late = arguments.more_named != nullptr;
      if (skip_operator("**")) {
        if (is_late) fail("expected '**' once in a call, got it twice");
        arguments.more_named = boxed(parse_expression());
      } else if (skip_operator("*")) {
        if (is_late || arguments.more_values)
          fail("expected '*' once and before '**', got it later");
        arguments.more_values = boxed(parse_expression());
      } else if (is_named) {
        if (is_late) fail("expected '**' at the end of a call, got more");
        std::string name = take().text;
        take();
        arguments.named.push_back({std::move(name), parse_expression()});
      } else {
        if (is_late || arguments.more_values || !arguments.named.empty()) {
          fail("expected arguments without a name first, got one later");
        }
        arguments.values.push_back(parse_expression());
      }
    }
    take();
    return arguments;
  }

  Expression parse_call(Expression callee) {
    const int line = current().line;
    CallArguments arguments = parse_arguments();
    return made(line, Call{boxed(std::move(callee)), std::move(arguments)});
  }

  std::string parse_dotted_name() {
    std::string name = expect_identifier();
    while (skip_operator(".")) name += "." + expect_identifier();
    return name;
  }

  /// From the filter's name on.
  Expression parse_filter(ExpressionPtr value) {
    const int line = current().line;
    const std::string name = parse_dotted_name();
    const Filter filter = find_filter(name);
    if (filter == nullptr) fail(fmt::format("expected a filter known here, got '{}'", name));
    FilterCall call{.value = std::move(value), .name = name, .filter = filter, .arguments = {}};
    if (at_operator("(")) call.arguments = parse_arguments();
    return made(line, std::move(call));
  }

  Expression parse_test(Expression value) {
    const int line = current().line;
    take();
    const bool is_negated = skip_name("not");
    const std::string name = parse_dotted_name();
    const Test test = find_test(name);
    if (test == nullptr) fail(fmt::format("expected a test known here, got '{}'", name));
    TestCall call{.value = boxed(std::move(value)), .test = test, .arguments = {}};
    const bool has_operand =
        current().type == TokenType::kName || current().type == TokenType::kText ||
        current().type == TokenType::kInteger || current().type == TokenType::kFloat ||
        at_operator("[") || at_operator("{");
    if (at_operator("(")) {
      call.arguments = parse_arguments();
    } else if (has_operand && !at_name("else") && !at_name("or") && !at_name("and")) {
      if (at_name("is")) fail("expected one test after a value, got two");
      call.arguments.values.push_back(parse_postfix(parse_primary()));
    }
    Expression result = made(line, std::move(call));
    return is_negated ? made(line, Not{boxed(std::move(result))}) : std::move(result);
  }

  std::vector<Token> tokens_;
  std::size_t at_ = 0;
  int level_ = 0, loops_ = 0;
  std::set<std::string, std::less<>> names_read_;  ///< in the macro that is being parsed
  ParsedTemplate result_;
};

}  // namespace

ParsedTemplate parse_template(std::string_view source) { return Parser(source).parse(); }

}  // namespace prefopt::jinja
