// SPDX-License-Identifier: Apache-2.0
#include "responses.h"

#include <utility>

namespace demo {

using namespace prefopt;

std::vector<std::vector<std::int64_t>> ids_of(const std::vector<Prompt>& prompts) {
  std::vector<std::vector<std::int64_t>> ids;
  for (const Prompt& prompt : prompts) ids.push_back(prompt.ids);
  return ids;
}

Responses respond(Policy& policy, const Tokenizer& tokenizer, const std::vector<Prompt>& prompts,
                  const RolloutOptions& options) {
  Responses responses(prompts.size());
  for (Rollout& rollout : draw_rollouts(policy, ids_of(prompts), options)) {
    const auto prompt = static_cast<std::size_t>(rollout.group);
    std::string text = tokenizer.decode(rollout.completion);
    const RewardTerms terms = reward_terms(prompts[prompt].question, text, rollout.ended);
    responses[prompt].push_back({.text = std::move(text),
                                 .ids = std::move(rollout.completion),
                                 .ended = rollout.ended,
                                 .terms = terms});
  }
  return responses;
}

}  // namespace demo
