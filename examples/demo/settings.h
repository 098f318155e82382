// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <string>

#include "prefopt/decoder/decoder.h"
#include "prefopt/options.h"
#include "prefopt/run/run.h"

namespace demo {

/// All that examples/configs/smollm2.json says.
struct Settings {
  std::string chat_format = "smollm2";
  std::int64_t prompts_per_round = 8;
  std::int64_t samples_per_prompt = 6;
  double min_reward_gap = 0.05;
  std::int64_t samples_per_held_out_prompt = 2;
  prefopt::LoraOptions lora = {};
  prefopt::RunOptions run = {};

  void fields(prefopt::FieldVisitor& v) {
    using prefopt::Range;
    const Range count = Range::between(1, 1e6);
    v.text({"chat_format", "Format of the conversation that a prompt opens"}, chat_format);
    v.integer({"prompts_per_round", "Training prompts a step"}, prompts_per_round, count);
    v.integer({"samples_per_prompt", "Responses, of which the best and the worst make a pair"},
              samples_per_prompt, Range::between(2, 1e6));
    v.real({"min_reward_gap", "Smallest difference in reward that makes a pair"}, min_reward_gap,
           Range::above(0));
    v.integer({"samples_per_held_out_prompt", "Responses before and after, for the evaluation"},
              samples_per_held_out_prompt, count);
    v.group({"lora", "The adapter that is trained"}, lora);
    v.group({"run", "Loss, steps, optimizer and sampling, as in a config of `prefopt train`"}, run);
  }
};

}  // namespace demo
