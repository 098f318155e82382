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

std::variant<Loss, TokenObjective, TokenLoss> parse(std::string_view config_json) {
  if (is_token_loss(config_json)) return make_token_loss(config_json);
  if (is_token_objective(config_json)) return make_token_objective(config_json);
  try {
    return make_loss(config_json);
  } catch (const ConfigError&) {
    const Json config = parse_json<ConfigError>(config_json, "loss");
    const auto type = config.is_object() ? config.find("type") : config.end();
    if (type == config.end() || !type->is_string()) throw;
    std::vector<std::string_view> names;
    for (const ObjectivePreset& preset : objective_presets()) names.push_back(preset.name);
    for (const TokenLossEntry& entry : token_losses()) names.push_back(entry.info.kind);
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
  if (objective() != nullptr) return objective()->name();
  if (token_loss() != nullptr) return token_loss()->name();
  return std::get<Loss>(loss_).info().name;
}

std::string RunLoss::config() const {
  return std::visit([](const auto& loss) { return loss.config(); }, loss_);
}

bool RunLoss::has_values() const {
  if (token_loss() != nullptr) return token_loss()->needs().values;
  return objective() != nullptr && objective()->needs().values;
}

LossRequirements RunLoss::requirements() const {
  if (token_loss() != nullptr) {
    const TokenLossNeeds needs = token_loss()->needs();
    const bool draws = needs.own_samples > 0;
    return {.inputs = InputSet(Input::chosen_logps) | when(needs.rewards, Input::labels) |
                      when(needs.ref_logps, Input::ref_chosen_logps),
            .sample_source = draws ? SampleSource::kPolicy : SampleSource::kNone,
            .samples_per_prompt = draws ? 1 : 0};
  }
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
