// SPDX-License-Identifier: Apache-2.0
#include "run/run_loss.h"

#include <utility>

#include "prefopt/losses/registry.h"

namespace prefopt::detail {
namespace {

std::variant<Loss, TokenObjective> parse(std::string_view config_json) {
  if (is_token_objective(config_json)) return make_token_objective(config_json);
  return make_loss(config_json);
}

}  // namespace

RunLoss::RunLoss(std::string_view config_json) : loss_(parse(config_json)) {}

std::string RunLoss::name() const {
  return objective() != nullptr ? objective()->name() : std::get<Loss>(loss_).info().name;
}

std::string RunLoss::config() const {
  return std::visit([](const auto& loss) { return loss.config(); }, loss_);
}

LossRequirements RunLoss::requirements() const {
  if (objective() == nullptr) return std::get<Loss>(loss_).requirements();
  return {.inputs = InputSet(Input::chosen_logps) |
                    when(objective()->needs().ref_logps, Input::ref_chosen_logps)};
}

std::unique_ptr<Trainer> RunLoss::make_trainer(const std::shared_ptr<Policy>& policy,
                                               const std::shared_ptr<Reference>& reference,
                                               TrainerOptions options) const {
  return std::visit(
      [&](const auto& loss) {
        return std::make_unique<Trainer>(policy, reference, loss, std::move(options));
      },
      loss_);
}

}  // namespace prefopt::detail
