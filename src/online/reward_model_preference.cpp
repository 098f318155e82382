// SPDX-License-Identifier: Apache-2.0
#include "prefopt/online/reward_model_preference.h"

#include <ATen/core/Tensor.h>
#include <ATen/core/grad_mode.h>
#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <string>
#include <utility>
#include <vector>

#include "core/json.h"
#include "prefopt/error.h"

namespace prefopt {
namespace {

class RewardModelPreference final : public RewardPreference {
 public:
  RewardModelPreference(std::shared_ptr<RewardPolicy> model, double temperature,
                        std::int64_t at_once, std::string name)
      : RewardPreference(temperature),
        model_(std::move(model)),
        at_once_(static_cast<std::size_t>(at_once)),
        name_(std::move(name)) {}

  std::vector<double> rewards(const std::vector<const Rollout*>& rollouts) override {
    const at::NoGradGuard no_grad;
    std::vector<double> all;
    for (std::size_t first = 0; first < rollouts.size(); first += at_once_) {
      std::vector<TokenSequence> sequences;
      for (std::size_t i = first; i < std::min(first + at_once_, rollouts.size()); ++i) {
        sequences.push_back({.prompt = rollouts[i]->prompt, .completion = rollouts[i]->completion});
      }
      const at::Tensor part = model_->rewards(sequences).cpu().contiguous();
      const auto* values = part.const_data_ptr<double>();
      all.insert(all.end(), values, values + part.numel());
    }
    for (std::size_t i = 0; i < all.size(); ++i) check_finite(all[i], *rollouts[i]);
    return all;
  }

 private:
  void check_finite(double reward, const Rollout& rollout) const {
    if (std::isfinite(reward)) return;
    throw NonFiniteError(
        fmt::format("reward model{}: expected a finite reward, got {} for the completion '{}' of "
                    "the prompt '{}'",
                    name_.empty() ? "" : fmt::format(" '{}'", name_), reward,
                    detail::shown_text(rollout.text), detail::shown_text(rollout.prompt_text)));
  }

  std::shared_ptr<RewardPolicy> model_;
  std::size_t at_once_;
  std::string name_;
};

}  // namespace

std::unique_ptr<Preference> make_reward_model_preference(std::shared_ptr<RewardPolicy> model,
                                                         double temperature, std::int64_t at_once,
                                                         std::string name) {
  if (!model) throw ConfigError("reward model: expected a model, got null");
  if (!(temperature >= 0)) {
    throw ConfigError(
        fmt::format("reward model: expected a temperature of at least 0, got {}", temperature));
  }
  if (at_once < 1) {
    throw ConfigError(
        fmt::format("reward model: expected at least one text at once, got {}", at_once));
  }
  return std::make_unique<RewardModelPreference>(std::move(model), temperature, at_once,
                                                 std::move(name));
}

}  // namespace prefopt
