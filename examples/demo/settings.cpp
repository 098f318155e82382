// SPDX-License-Identifier: Apache-2.0
#include "settings.h"

namespace demo {

using prefopt::Range;

void Settings::fields(prefopt::FieldVisitor& v) {
  v.text({"chat_format", "Format of the conversation that a prompt opens"}, chat_format);
  v.integer({"rounds", "Times that responses are sampled and trained on"}, rounds,
            Range::between(1, 1e6));
  v.integer({"prompts_per_round", "Training prompts a round"}, prompts_per_round,
            Range::between(1, 1e6));
  v.integer({"samples_per_prompt", "Responses, of which the best and the worst make a pair"},
            samples_per_prompt, Range::between(2, 1e6));
  v.integer({"pairs_per_step", "Pairs an optimizer step"}, pairs_per_step, Range::between(1, 1e6));
  v.real({"min_reward_gap", "Smallest difference in reward that makes a pair"}, min_reward_gap,
         Range::above(0));
  v.integer({"samples_per_held_out_prompt", "Responses before and after, for the evaluation"},
            samples_per_held_out_prompt, Range::between(1, 1e6));
  v.integer({"seed", "Of the adapter and of all samples"}, seed, Range::at_least(0));
  v.json({"loss", "The loss with its options"}, loss);
  v.group({"lora", "The adapter that is trained"}, lora);
  v.group({"optimizer", "AdamW and its learning rate"}, optimizer);
  v.group({"sampling", "How responses are drawn"}, sampling);
  v.integer({"micro_batch_tokens", "Tokens at a time, without effect on results"},
            micro_batch_tokens, Range::at_least(0));
}

}  // namespace demo
