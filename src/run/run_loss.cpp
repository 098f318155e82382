// SPDX-License-Identifier: Apache-2.0
#include "run/run_loss.h"

#include <fmt/format.h>

#include <algorithm>
#include <string_view>
#include <utility>
#include <vector>

#include "core/json.h"
#include "core/text.h"
#include "prefopt/error.h"
#include "prefopt/losses/registry.h"

namespace prefopt::detail {
namespace {

std::variant<Loss, TokenObjective> parse(std::string_view config_json) {
  if (is_token_objective(config_json)) return make_token_objective(config_json);
  try {
    return make_loss(config_json);
  } catch (const ConfigError&) {
    const Json config = parse_json<ConfigError>(config_json, "loss");
    const auto type = config.is_object() ? config.find("type") : config.end();
    if (type == config.end() || !type->is_string()) throw;
    std::vector<std::string_view> names;
    for (const ObjectivePreset& preset : objective_presets()) names.push_back(preset.name);
    const auto losses = registered_losses();
    const auto name = type->get<std::string>();
    const std::string hint = did_you_mean(name, names);
    const bool is_loss = std::find(losses.begin(), losses.end(), name) != losses.end();
    if (is_loss || hint.empty() || !did_you_mean(name, {losses.begin(), losses.end()}).empty())
      throw;
    throw ConfigError(fmt::format("loss: expected a loss or an objective, got '{}'{}", name, hint));
  }
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
  // Values that are not trained serve the advantages alone.
  if (objective() != nullptr && objective()->options().value_loss.coefficient == 0) {
    options.value_model = nullptr;
  }
  return std::visit(
      [&](const auto& loss) {
        return std::make_unique<Trainer>(policy, reference, loss, std::move(options));
      },
      loss_);
}

}  // namespace prefopt::detail
