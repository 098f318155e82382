// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "prefopt/policy/policy.h"

// Wrong steps of solutions of VerifiableTask, in tokens of ByteTokenizer, and models that have to
// find them.
namespace prefopt::lab {

/// Returns the number, from 0, of the first step that does not follow from the one before; the
/// number of steps where all do.
std::size_t first_wrong_step(const std::string& prompt, const std::string& solution);

struct WrongAnswers {
  std::vector<std::vector<std::int64_t>> prompts = {}, answers = {};
  std::vector<std::size_t> first_wrong = {};  ///< step of each
};

/// Returns those that have the form of a solution and a wrong end.
WrongAnswers wrong_answers(const std::vector<std::string>& prompts,
                           const std::vector<std::vector<std::int64_t>>& answers);

/// Returns the share of wrong answers whose step of least log π / π_ref is the first wrong one.
double found_by_rewards(const WrongAnswers& wrong, Policy& model, Policy& reference);

/// The same by log π alone.
double found_by_logps(const WrongAnswers& wrong, Policy& model);

}  // namespace prefopt::lab
