// SPDX-License-Identifier: Apache-2.0
#include "judge.h"

#include <ATen/TensorOperators.h>
#include <ATen/core/grad_mode.h>

#include <cmath>

#include "prefopt/data/tokenizer.h"
#include "prefopt/policy/sampling.h"
#include "prefopt/policy/sequence_logps.h"

namespace demo {

using namespace prefopt;

Judgement judge(Policy& policy, Policy& reference, const ControlledTask& task,
                const std::vector<std::string>& prompts, std::int64_t seed) {
  const at::NoGradGuard no_grad;
  const ByteTokenizer tokenizer;
  std::vector<std::vector<std::int64_t>> ids;
  for (const std::string& prompt : prompts) {
    ids.push_back(tokenizer.encode(prompt));
    ids.back().insert(ids.back().begin(), tokenizer.bos_id());
  }
  const auto samples =
      sample(policy, ids, {.max_new_tokens = 16, .eos_id = tokenizer.eos_id(), .seed = seed});

  Judgement result;
  std::vector<TokenSequence> sequences;
  double sum = 0, sum_of_squares = 0;
  for (std::size_t i = 0; i < prompts.size(); ++i) {
    const std::string response = tokenizer.decode(samples[i]);
    const double reward = task.reward(prompts[i], response);
    sum += reward;
    sum_of_squares += reward * reward;
    sequences.push_back({ids[i], samples[i]});
    if (i < 3) result.examples.push_back(prompts[i] + " " + response);
  }
  const auto n = static_cast<double>(prompts.size());
  result.reward = sum / n;
  result.reward_error = std::sqrt((sum_of_squares / n - result.reward * result.reward) / n);
  const TokenBatch batch = make_batch(sequences);
  result.kl = (sequence_logps(policy, batch).logps - sequence_logps(reference, batch).logps)
                  .mean()
                  .item<double>();
  return result;
}

}  // namespace demo
