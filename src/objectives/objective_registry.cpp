// SPDX-License-Identifier: Apache-2.0
#include <fmt/format.h>

#include <algorithm>
#include <string>
#include <string_view>
#include <vector>

#include "core/json.h"
#include "core/text.h"
#include "objectives/peer_names.h"
#include "objectives/trl_objectives.h"
#include "prefopt/error.h"
#include "prefopt/losses/registry.h"
#include "prefopt/objectives/token_objective.h"

namespace prefopt {
namespace {

using detail::Json;

constexpr std::string_view kWholeForm = "policy_gradient";

const ObjectivePreset* find_preset(std::string_view name) {
  const auto& presets = objective_presets();
  const auto found =
      std::find_if(presets.begin(), presets.end(),
                   [&](const ObjectivePreset& preset) { return preset.name == name; });
  return found == presets.end() ? nullptr : &*found;
}

/// Replaces the options of `base` by those of `given`; those of a piece one by one, unless it is of
/// another kind.
void replace_options(Json& base, const Json& given) {
  for (const auto& [key, value] : given.items()) {
    Json& place = base[key];
    const bool is_other_kind = value.is_object() && value.contains("kind") && place.is_object() &&
                               place.contains("kind") && value["kind"] != place["kind"];
    if (value.is_object() && place.is_object() && !is_other_kind) {
      place.update(value);
    } else {
      place = value;
    }
  }
}

/// Throws ConfigError for the name of a loss on pairs.
void refuse_pair_loss(const std::string& name) {
  const std::vector<std::string> losses = registered_losses();
  if (std::find(losses.begin(), losses.end(), name) == losses.end()) return;
  throw ConfigError(fmt::format(
      "loss: expected an objective on tokens, which takes rollouts, got '{}', a loss on rows",
      name));
}

void check_kl(const TokenObjective& objective) {
  const KlOptions& kl = objective.options().kl;
  const bool does_nothing =
      kl.is_in_loss() && kl.estimator == KlEstimator::kK1 && kl.weight == KlWeight::kNone;
  if (!does_nothing) return;
  throw ConfigError(fmt::format(
      "{}: expected a KL that regularizes, got kl.estimator 'k1' in the loss: its gradient is 0 in "
      "expectation, so that it does nothing; use k2 or k3 there, weight 'ratio', or place 'reward'",
      objective.name()));
}

}  // namespace

const std::vector<ObjectivePreset>& objective_presets() {
  static const std::vector<ObjectivePreset> presets = {
      {.name = "reinforce",
       .options = R"({"advantage": {"kind": "none"}, "rule": {"kind": "none"},
                      "aggregation": "sequence_sum"})",
       .source = "Williams 1992",
       .when_to_use = "The plain estimator, for comparison: unbiased, of large variance."},
      {.name = "remax",
       .options = R"({"advantage": {"kind": "greedy", "clip": 5}, "rule": {"kind": "none"},
                      "aggregation": "sequence_sum",
                      "kl": {"estimator": "k1", "place": "advantage", "coefficient": 0.1}})",
       .source = "arXiv:2310.10505",
       .when_to_use = "One sample a prompt; the greedy completion's reward is the baseline.",
       .recipe = "k 1, temperature 1, top_p 0.9, one update a round"},
      {.name = "rloo",
       .options = R"({"advantage": {"kind": "leave_one_out"},
                      "rule": {"kind": "ppo", "low": 0.2, "high": 0.2}, "level": "sequence_sum",
                      "aggregation": "sequence_sum",
                      "kl": {"estimator": "k1", "place": "reward", "coefficient": 0.05}})",
       .source = "arXiv:2402.14740",
       .when_to_use = "Several samples a prompt, no value model: unbiased, of small variance."},
      {.name = "loop",
       .options = R"({"advantage": {"kind": "leave_one_out", "keep_above": 0.01},
                      "rule": {"kind": "ppo", "low": 0.1, "high": 0.1},
                      "aggregation": "sequence_token_mean"})",
       .source = "arXiv:2502.01600 eq. 3, 5",
       .when_to_use = "Agents in environments: tokens that the environment wrote do not count.",
       .recipe = "k 6, 40 tasks a round, 2 epochs, adapter, learning rate 5e-5, gradient norm 0.1"},
      {.name = "grpo",
       .options = R"({"advantage": {"kind": "group_std"},
                      "rule": {"kind": "ppo", "low": 0.2, "high": 0.2},
                      "aggregation": "sequence_token_mean",
                      "kl": {"estimator": "k3", "place": "loss", "coefficient": 0.04}})",
       .source = "arXiv:2402.03300 eq. 3, 4",
       .when_to_use = "Verifiable rewards; the loss that others are compared with.",
       .recipe = "k 64, learning rate 1e-6"},
      {.name = "dr_grpo",
       .options = R"({"advantage": {"kind": "group_mean"},
                      "rule": {"kind": "ppo", "low": 0.2, "high": 0.2}, "aggregation": "fixed",
                      "max_completion_length": 3000})",
       .source = "arXiv:2503.20783",
       .when_to_use = "GRPO without its biases towards long wrong answers and easy prompts.",
       .recipe = "k 8; max_completion_length is the sampler's limit"},
      {.name = "dapo",
       .options = R"({"advantage": {"kind": "group_std"},
                      "rule": {"kind": "ppo", "low": 0.2, "high": 0.28},
                      "aggregation": "token_mean", "unfinished": "mask"})",
       .source = "arXiv:2503.14476",
       .when_to_use = "Long chains of thought: every token weighs the same, rare ones may grow.",
       .recipe = "k 16, online.rollouts.dynamic_sampling, online.reward.overlong_buffer"},
      {.name = "gspo",
       .options = R"({"advantage": {"kind": "group_std"},
                      "rule": {"kind": "ppo", "low": 3e-4, "high": 4e-4}, "level": "sequence_mean",
                      "aggregation": "sequence_token_mean"})",
       .source = "arXiv:2507.18071",
       .when_to_use = "Several updates a rollout: one ratio a completion, of mixtures of experts."},
      {.name = "cispo",
       .options = R"({"advantage": {"kind": "group_std"}, "rule": {"kind": "cispo", "max": 5},
                      "aggregation": "token_mean"})",
       .source = "arXiv:2506.13585",
       .when_to_use =
           "Several updates a rollout: limits weights and never takes a token's gradient."},
      {.name = "sapo",
       .options = R"({"advantage": {"kind": "group_std"}, "rule": {"kind": "sapo"},
                      "aggregation": "sequence_token_mean"})",
       .source = "arXiv:2511.20347",
       .when_to_use = "Several updates a rollout with a soft limit in place of a clip."},
      {.name = "reinforce_pp",
       .options = R"({"advantage": {"kind": "to_go", "whiten": true},
                      "rule": {"kind": "ppo", "low": 0.2, "high": 0.2}, "aggregation": "token_mean",
                      "kl": {"estimator": "k1", "place": "reward", "coefficient": 0.01}})",
       .source = "arXiv:2501.03262",
       .when_to_use = "One sample a prompt without a value model; the batch is the baseline."},
      {.name = "opo",
       .options = R"({"advantage": {"kind": "length_mean"}, "rule": {"kind": "none"},
                      "aggregation": "token_mean"})",
       .source = "arXiv:2505.23585",
       .when_to_use = "Exactly on-policy updates with the baseline of nearly least variance."},
      {.name = "kimi",
       .options = R"({"advantage": {"kind": "group_mean"}, "rule": {"kind": "regress", "tau": 0.1},
                      "level": "sequence_sum", "aggregation": "sequence_sum"})",
       .source = "arXiv:2501.12599 eq. 3",
       .when_to_use = "Mirror descent: a squared loss that is right on older samples too.",
       .recipe =
           "online.rounds.restart_optimizer, online.reward.length, online.rollouts.priorities; "
           "tau is not published"},
      {.name = "ppo",
       .options = R"({"advantage": {"kind": "gae", "gamma": 1, "lambda": 0.95, "whiten": true},
                      "rule": {"kind": "ppo", "low": 0.2, "high": 0.2}, "aggregation": "token_mean",
                      "kl": {"estimator": "k1", "place": "reward", "coefficient": 0.05},
                      "value_loss": {"coefficient": 1, "clip": 0.2}})",
       .source = "arXiv:1707.06347, arXiv:2307.04964 eq. 9, 15, 16",
       .when_to_use = "A value model, for rewards of tokens or one sample a prompt."},
      {.name = "ppo_max",
       .options = R"({"advantage": {"kind": "gae", "gamma": 1, "lambda": 0.95},
                      "rule": {"kind": "ppo", "low": 0.2, "high": 0.2}, "aggregation": "token_mean",
                      "kl": {"estimator": "k1", "place": "reward", "coefficient": 0.05},
                      "value_loss": {"coefficient": 1, "clip": 0.2}})",
       .source = "arXiv:2307.04964 section 5.4",
       .when_to_use = "PPO with the tricks that the paper keeps.",
       .recipe =
           "online.reward.normalize and clip 0.8, value.pretrain_steps, learning rates 5e-7 "
           "and 1.65e-6, temperature 0.8; top_p 0.9 and repetition_penalty 1.1 there, left out "
           "here: ratios need the policy's own distribution"},
      {.name = "rto",
       .options = R"({"advantage": {"kind": "gae", "gamma": 1, "lambda": 0.95, "whiten": true},
                      "rule": {"kind": "ppo", "low": 0.2, "high": 0.2}, "aggregation": "token_mean",
                      "kl": {"estimator": "k1", "place": "reward", "coefficient": 0.01},
                      "dpo_reward": {"coefficient": 0.05, "clip": 0.05},
                      "value_loss": {"coefficient": 1, "clip": 0.2}})",
       .source = "arXiv:2404.18922",
       .when_to_use = "PPO with token rewards from a model that DPO trained."},
  };
  return presets;
}

TokenObjective make_token_objective(std::string_view config_json) {
  const Json config = detail::parse_json<ConfigError>(config_json, "loss");
  if (!config.is_object()) {
    throw ConfigError(fmt::format("loss: expected an object with a key 'type', got {}",
                                  detail::shown_json(config)));
  }
  const auto build = [](const Json& options, const std::string& name) {
    TokenObjective objective(
        options_from_json<TokenObjectiveOptions>(detail::dump_json(options), name), name);
    check_kl(objective);
    return objective;
  };
  if (detail::is_trl_objective(config)) {
    return build(detail::options_of_trl(config), std::string(kWholeForm));
  }
  const auto type = config.find("type");
  if (type == config.end() || !type->is_string()) {
    throw ConfigError(fmt::format("loss: expected a key 'type' that names an objective, got {}",
                                  detail::shown_json(config)));
  }
  const auto name = type->get<std::string>();
  Json given = config;
  given.erase("type");
  if (name == kWholeForm) {
    detail::replace_peer_names(given, name);
    return build(given, name);
  }
  const ObjectivePreset* preset = find_preset(name);
  if (preset == nullptr) {
    refuse_pair_loss(name);
    std::vector<std::string_view> names{kWholeForm};
    for (const ObjectivePreset& other : objective_presets()) names.push_back(other.name);
    throw ConfigError(fmt::format("loss: expected an objective on tokens, got '{}'{}", name,
                                  detail::did_you_mean(name, names)));
  }
  detail::replace_peer_names(given, name);
  Json options = detail::parse_json<ConfigError>(preset->options, name);
  replace_options(options, given);
  return build(options, name);
}

bool is_token_objective(std::string_view config_json) {
  const Json config = detail::parse_json<ConfigError>(config_json, "loss");
  if (!config.is_object()) return false;
  if (detail::is_trl_objective(config)) return true;
  const auto type = config.find("type");
  if (type == config.end() || !type->is_string()) return false;
  if (find_preset(type->get<std::string>()) != nullptr) return true;
  if (*type != kWholeForm) return false;
  if (detail::has_peer_name(config)) return true;
  // The loss on pairs of that name has none of these options.
  TokenObjectiveOptions options;
  const auto fields = describe_options(options);
  return std::any_of(fields.begin(), fields.end(), [&](const FieldDoc& field) {
    return config.contains(field.name.substr(0, field.name.find('.')));
  });
}

}  // namespace prefopt
