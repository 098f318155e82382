// SPDX-License-Identifier: Apache-2.0
#pragma once

// The layout that a row has, by its columns.

#include <string>
#include <vector>

#include "data/row_parts.h"

namespace prefopt::detail {

class RowRecognition : protected RowParts {
 protected:
  using RowParts::RowParts;
  ~RowRecognition() = default;

  bool is_of_tokens() const;
  bool has_ranks() const;
  /// Returns whether a column asks what one of outputs() answers.
  bool has_question() const;
  FoundColumn conversation() const;
  std::vector<std::string> outputs() const;
  unsigned allowed_answers() const;
  unsigned allowed_sources(unsigned answers) const;
  [[noreturn]] void fail_ambiguous(unsigned first, unsigned second) const;
  /// Returns one of the bits, or 0.
  unsigned find_answers() const;
  /// Returns the content of the assistant's turn at the end of a conversation, discarded where
  /// another's turn is there.
  SortedJson last_answer(const SortedJson& list) const;
  /// Returns whether a column has the text that the conversation ends with.
  bool says_again(const std::string& name, const FoundColumn& talk) const;
  [[noreturn]] void fail_two_answers(const std::string& first, const std::string& second) const;
  FoundColumn find_turns() const;
};

}  // namespace prefopt::detail
