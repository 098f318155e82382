// SPDX-License-Identifier: Apache-2.0
#pragma once

// A small task of several steps whose answers are checked by a rule: sums that are done one number
// at a time, modulo ten.

#include <cstdint>
#include <random>
#include <string>
#include <string_view>
#include <vector>

#include "prefopt/export.h"
#include "prefopt/options.h"

namespace prefopt {

/// Prompt: digits with signs between them and a colon, such as `7+5-3+4:`. A solution has the last
/// digit of the sum so far after each number but the first, `2;9;3.`: a step ends with a semicolon,
/// the last one with a full stop. It is right where its last digit is.
///
/// Demonstrations are wrong by chance: at each step, with `error_rate`, another digit is written,
/// from which the rest is done rightly. A policy that imitates them knows how to add, and is right
/// in a share (1 − error_rate)^steps of its solutions and a few more whose errors cancel.
struct VerifiableTaskOptions {
  std::int64_t terms = 5;  ///< numbers of a prompt
  double error_rate = 0.2;
  std::int64_t seed = 0;

  PREFOPT_API void fields(FieldVisitor& v);
};

class PREFOPT_API VerifiableTask {
 public:
  static constexpr std::string_view kSeparator = ";";

  explicit VerifiableTask(VerifiableTaskOptions options = {});

  std::string sample_prompt();
  /// Returns a demonstration, with errors.
  std::string sample_solution(std::string_view prompt);
  /// Returns the right solution. Throws DataError for a text that is no prompt.
  static std::string solve(std::string_view prompt);
  /// Returns whether a solution has the form of one and ends with the right digit. Throws DataError
  /// for a text that is no prompt.
  static bool is_right(std::string_view prompt, std::string_view solution);

  /// Writes `{"prompt", "completion"}` rows of demonstrations.
  void write_sft(const std::string& path, std::int64_t rows);
  /// Writes `{"prompt"}` rows.
  void write_prompts(const std::string& path, std::int64_t rows);

 private:
  VerifiableTaskOptions options_;
  std::mt19937_64 rng_;
};

}  // namespace prefopt
