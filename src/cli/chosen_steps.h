// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <iosfwd>
#include <vector>

#include "cli/commands.h"
#include "prefopt/data/tokenizer.h"
#include "prefopt/decoder/decoder.h"
#include "prefopt/policy/sampling.h"

namespace prefopt::cli {

/// Throws ConfigError for options of chosen steps that lack their model or do not go together.
void check_step_choice(const GenerateArguments& arguments);

/// Prints completions whose steps are chosen among those that `sampler` draws, by their Q.
void print_chosen_steps(const GenerateArguments& arguments, Decoder& sampler,
                        const Tokenizer& tokenizer,
                        const std::vector<std::vector<std::int64_t>>& prompts,
                        const SamplingOptions& sampling, std::ostream& out, std::ostream& err);

}  // namespace prefopt::cli
