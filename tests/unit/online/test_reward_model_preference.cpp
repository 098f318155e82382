// SPDX-License-Identifier: Apache-2.0
#include <ATen/ops/tensor.h>

#include <cmath>
#include <limits>
#include <memory>
#include <vector>

#include "prefopt/error.h"
#include "prefopt/online/reward_model_preference.h"
#include "support/catch.h"
#include "support/errors.h"

namespace prefopt {
namespace {

/// The reward of a text is the last token of its completion; of token 9 it is infinite.
class LastToken final : public RewardPolicy {
 public:
  at::Tensor rewards(const std::vector<TokenSequence>& sequences) override {
    most_at_once = std::max(most_at_once, sequences.size());
    std::vector<double> values;
    for (const TokenSequence& sequence : sequences) {
      const std::int64_t last = sequence.completion.back();
      values.push_back(last == 9 ? std::numeric_limits<double>::infinity()
                                 : static_cast<double>(last));
    }
    return at::tensor(values, at::kDouble);
  }
  std::int64_t vocab_size() const override { return 10; }
  std::vector<NamedParameter> named_parameters() const override { return {}; }

  std::size_t most_at_once = 0;
};

Rollout ending_in(std::int64_t token) { return {.prompt = {1}, .completion = {2, token}}; }

TEST_CASE("reward model preference: rewards and what follows from them", "[online]") {
  const auto model = std::make_shared<LastToken>();
  const std::vector<Rollout> rollouts{ending_in(3), ending_in(5), ending_in(5), ending_in(7)};
  std::vector<const Rollout*> all;
  for (const Rollout& rollout : rollouts) all.push_back(&rollout);
  const auto preference = make_reward_model_preference(model, 2, 3);
  CHECK(preference->has_rewards());
  const auto rewards = preference->rewards(all);
  CHECK(rewards[0] == 3);
  CHECK(rewards[1] == 5);
  CHECK(rewards[3] == 7);
  CHECK(model->most_at_once == 3);
  const std::vector<Comparison> pairs{{all[1], all[0]}, {all[0], all[1]}, {all[1], all[2]}};
  const auto beats = preference->beats(pairs);
  CHECK(beats[0] == Approx(1 / (1 + std::exp(-1.0))));
  CHECK(beats[0] + beats[1] == Approx(1));
  CHECK(beats[2] == 0.5);
  // A rater makes the same of its rewards.
  Rater rater(*preference, rollouts);
  CHECK(rater.beats(1, 0) == beats[0]);
  const auto steps = make_reward_model_preference(model, 0)->beats(pairs);
  CHECK(steps[0] == 1);
  CHECK(steps[1] == 0);
  CHECK(steps[2] == 0.5);
  CHECK_THROWS_TEXT(make_reward_model_preference(nullptr), ConfigError,
                    "reward model: expected a model, got null");
  CHECK_THROWS_TEXT(make_reward_model_preference(model, -1), ConfigError,
                    "reward model: expected a temperature of at least 0, got -1");
  CHECK_THROWS_TEXT(make_reward_model_preference(model, 1, 0), ConfigError,
                    "reward model: expected at least one text at once, got 0");
}

TEST_CASE("reward model preference: a reward that is not finite names model and prompt",
          "[online]") {
  std::vector<Rollout> rollouts{ending_in(3), ending_in(9)};
  rollouts[1].prompt_text = "Why?";
  rollouts[1].text = "Because.";
  const auto preference =
      make_reward_model_preference(std::make_shared<LastToken>(), 1, 16, "models/rm");
  CHECK_THROWS_TEXT(preference->rewards({&rollouts[0], &rollouts[1]}), NonFiniteError,
                    "reward model 'models/rm': expected a finite reward, got inf for the "
                    "completion 'Because.' of the prompt 'Why?'");
  CHECK(preference->rewards({&rollouts[0]})[0] == 3);
}

}  // namespace
}  // namespace prefopt
