// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "prefopt/data/tokenizer.h"
#include "prefopt/export.h"
#include "prefopt/options.h"
#include "prefopt/policy/policy.h"
#include "prefopt/policy/sampling.h"

namespace prefopt {

/// Returns Q = β Σ_t (log π − log π_ref) of a step's tokens, in nats: the value of the step by a
/// policy that was trained with DPO on pairs of steps (2409.09345; the equation's number is not
/// confirmed). The authors' code has exp(mean_t log softmax(z_π − z_ref)[y_t]) at inference in
/// place of the paper's Q, which this is. Throws ShapeError for lists of different lengths.
PREFOPT_API double step_q(std::span<const double> logps, std::span<const double> ref_logps,
                          double beta);

struct StepChoiceOptions {
  std::string step_end = "\n";  ///< ends a step; empty: step_tokens alone does
  std::int64_t step_tokens = 64;
  std::int64_t candidates = 5;  ///< steps to choose from; the paper's 5
  double beta = 0.1;            ///< of the DPO loss; it scales Q and changes no choice

  PREFOPT_API void fields(FieldVisitor& v);
};

/// A completion made of chosen steps.
struct ChosenSteps {
  std::vector<std::int64_t> completion = {};
  std::vector<std::int64_t> step_ends = {};  ///< place after the last token of each step
  std::vector<double> qs = {};               ///< of the steps
};

/// Completes each prompt step by step: `sampler` draws candidates, and the one of the largest Q
/// under `policy` and `reference` is taken, of equal ones the first. The three models have one
/// vocabulary, ConfigError otherwise; they may be the same object. Draws depend on
/// (sampling.seed, first_index + place of the prompt, step, candidate).
///
/// `sampling` needs the tokenizer for a step_end. `sampling.max_new_tokens` limits a whole
/// completion; its stop strings end one. Throws ConfigError for min_new_tokens, a step_end that is
/// also a stop string, and what `sample` throws.
PREFOPT_API std::vector<ChosenSteps> choose_steps(
    Policy& sampler, Policy& policy, Policy& reference,
    const std::vector<std::vector<std::int64_t>>& prompts, const StepChoiceOptions& options,
    SamplingOptions sampling);

}  // namespace prefopt
