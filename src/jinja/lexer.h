// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <stdexcept>
#include <string>
#include <string_view>
#include <vector>

namespace prefopt::jinja {

enum class TokenType {
  kData,
  kBlockBegin,
  kBlockEnd,
  kVariableBegin,
  kVariableEnd,
  kName,
  kText,
  kInteger,
  kFloat,
  kOperator,
  kEnd
};

struct Token {
  TokenType type = TokenType::kEnd;
  std::string text = {};  ///< of a text, without quotes and escapes
  int line = 1;
};

/// A template that is no template, at a line.
struct SyntaxFailure : std::runtime_error {
  SyntaxFailure(int line_given, const std::string& what)
      : std::runtime_error(what), line(line_given) {}
  int line;
};

/// Returns the tokens of a template, white space taken away as its tags say and as trim_blocks and
/// lstrip_blocks do, the line end at its end too. The last one is kEnd. Throws SyntaxFailure.
std::vector<Token> tokenize(std::string_view source);

/// As errors name a token.
std::string shown(const Token& token);

}  // namespace prefopt::jinja
