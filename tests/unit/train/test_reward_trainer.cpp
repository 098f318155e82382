// SPDX-License-Identifier: Apache-2.0

// A reward model in place of a policy: its rewards are the scores of the loss.

#include <ATen/Context.h>

#include <cmath>
#include <map>
#include <string>
#include <vector>

#include "prefopt/decoder/reward_model.h"
#include "prefopt/error.h"
#include "prefopt/losses/registry.h"
#include "prefopt/train/trainer.h"
#include "support/bigram_policy.h"
#include "support/catch.h"
#include "support/errors.h"
#include "support/pairs.h"
#include "support/reward_models.h"
#include "train/metrics.h"

namespace prefopt {
namespace {

using namespace testing_support;

const char* const kCentred =
    R"({"type": "reward_bt", "margin_scale": 1, "center_rewards_coefficient": 0.05})";

std::map<std::string, at::Tensor> gradients_of(const RewardPolicy& model) {
  std::map<std::string, at::Tensor> gradients;
  for (const auto& [name, value] : model.named_parameters()) gradients[name] = value.grad();
  return gradients;
}

TEST_CASE("reward trainer: the loss and the gradient that TRL's RewardTrainer has", "[train]") {
  const std::string family = GENERATE("llama", "qwen3");
  const std::int64_t micro = GENERATE(0, 1, 2, 4);
  CAPTURE(family, micro);
  const auto& golden = reward_goldens()[family];
  const auto model = RewardModel::load(kRewardModels + family, "float64");
  TrainerOptions options;
  options.optimizer.schedule = Schedule::kConstant;
  options.micro_batch_size = micro;
  Trainer trainer(model, nullptr, make_loss(kCentred), options);
  const auto rows = reward_rows();
  const Metrics metrics = trainer.accumulate_gradients(rows);
  CHECK(metric(metrics, "loss") == Approx(golden["loss"].get<double>()).epsilon(2e-6));
  double right = 0, chosen = 0;
  const auto count = static_cast<double>(rows.size());
  for (std::size_t i = 0; i < rows.size(); ++i) {
    const double w = golden["chosen"][i], l = golden["rejected"][i];
    right += (w > l ? 1 : 0) / count;
    chosen += w / count;
  }
  CHECK(metric(metrics, "rewards/accuracies") == Approx(right));
  CHECK(metric(metrics, "rewards/chosen") == Approx(chosen).epsilon(1e-5));
  CHECK_FALSE(detail::find_metric(metrics, "logps/chosen").has_value());
  CHECK_FALSE(detail::find_metric(metrics, "entropy").has_value());
  for (const auto& [name, gradient] : gradients_of(*model)) {
    CAPTURE(name);
    CHECK(gradient.norm().item<double>() ==
          Approx(golden["grad_norms"][name].get<double>()).epsilon(2e-5));
  }
}

TEST_CASE("reward trainer: soft labels are the mean of both orders", "[train]") {
  auto rows = reward_rows();
  for (TokenRow& row : rows) row.columns[Column::kLabelProb] = 0.3;
  auto swapped = rows;
  for (TokenRow& row : swapped) std::swap(row.chosen, row.rejected);
  const auto model = RewardModel::load(kRewardModels + "llama", "float64");
  const auto loss_of = [&](const char* config, const std::vector<TokenRow>& of) {
    return metric(Trainer(model, nullptr, make_loss(config), {}).evaluate(of), "loss");
  };
  const char* const plain = R"({"type": "reward_bt"})";
  CHECK(loss_of(R"({"type": "reward_bt", "use_label_probs": true})", rows) ==
        Approx(0.3 * loss_of(plain, rows) + 0.7 * loss_of(plain, swapped)).epsilon(1e-12));
  CHECK(loss_of(R"({"type": "log_exp"})", rows) == loss_of(plain, rows));
}

TEST_CASE("reward trainer: steps separate chosen from rejected", "[train]") {
  const auto model = RewardModel::load(kRewardModels + "qwen3");
  TrainerOptions options;
  options.optimizer = {.learning_rate = 0.02, .schedule = Schedule::kConstant};
  Trainer trainer(model, nullptr, make_loss(R"({"type": "reward_bt"})"), options);
  const double before = metric(trainer.evaluate(reward_rows()), "loss");
  for (int i = 0; i < 30; ++i) trainer.step(reward_rows());
  const Metrics after = trainer.evaluate(reward_rows());
  CHECK(metric(after, "loss") < 0.2 * before);
  CHECK(metric(after, "rewards/accuracies") == 1);
}

TEST_CASE("reward trainer: the loss and the model have to fit", "[train]") {
  const auto model = RewardModel::load(kRewardModels + "llama");
  const auto policy = std::make_shared<BigramPolicy>(9);
  CHECK_THROWS_TEXT(Trainer(policy, nullptr, make_loss(R"({"type": "reward_bt"})"), {}),
                    ConfigError,
                    "reward_bt: expected a reward model (RewardPolicy), got a policy with "
                    "log-probs");
  CHECK_THROWS_TEXT(Trainer(model, nullptr, make_loss(R"({"type": "simpo"})"), {}), ConfigError,
                    "simpo: expected a policy with log-probs, got a reward model; the loss "
                    "reward_bt trains one");
  CHECK_THROWS_TEXT(
      make_loss(
          R"({"type": "mix", "terms": [{"loss": {"type": "reward_bt"}}, {"loss": {"type": "sft"}}]})"),
      ConfigError,
      "mix: expected terms for one kind of model, got one for a reward model and one for a "
      "policy's log-probs");
}

}  // namespace
}  // namespace prefopt
