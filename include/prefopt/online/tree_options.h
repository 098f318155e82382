// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <string>

#include "prefopt/export.h"
#include "prefopt/online/step_tree.h"
#include "prefopt/options.h"

namespace prefopt {

/// A question by which a policy judges its own steps.
struct SelfEvaluationOptions {
  std::string question = {};  ///< empty: ends alone are rated
  std::string yes = " Yes", no = " No";

  PREFOPT_API void fields(FieldVisitor& v);
};

/// The budget of a search and the form of its steps.
struct TreeSearchOptions {
  std::string step_end = "\n";  ///< ends a step; empty: step_tokens alone does
  std::int64_t step_tokens = 64;
  std::int64_t breadth = 2;       ///< steps that are drawn after a state
  std::int64_t root_breadth = 0;  ///< after the prompt; 0: breadth
  std::int64_t max_depth = 3;     ///< the step at this depth is the rest of the completion
  std::int64_t iterations = 64;
  std::int64_t token_budget = 0;  ///< no iteration begins after as many drawn tokens; 0: none
  StepTreeOptions tree = {};
  SelfEvaluationOptions self_evaluation = {};

  PREFOPT_API void fields(FieldVisitor& v);
  /// Returns the steps drawn after a state at `depth`.
  std::int64_t breadth_at(std::int64_t depth) const {
    return depth == 0 && root_breadth > 0 ? root_breadth : breadth;
  }
  /// Returns the most states that a search lets steps follow.
  PREFOPT_API std::int64_t most_decision_points() const;
};

}  // namespace prefopt
