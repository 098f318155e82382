// SPDX-License-Identifier: Apache-2.0
#include "objectives/trl_objectives.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <string>
#include <string_view>
#include <vector>

#include "core/text.h"
#include "prefopt/error.h"

namespace prefopt::detail {
namespace {

constexpr std::string_view kGrpo = "GRPOTrainer";
constexpr std::string_view kRloo = "RLOOTrainer";

/// A `loss_type` of GRPOTrainer, and our rule and aggregation.
struct TrlLossType {
  std::string_view name, rule, aggregation;
};

constexpr std::array kLossTypes = {
    TrlLossType{"grpo", "ppo", "sequence_token_mean"},
    TrlLossType{"dapo", "ppo", "token_mean"},
    TrlLossType{"dr_grpo", "ppo", "fixed"},
    TrlLossType{"luspo", "ppo", "sequence_sum"},
    TrlLossType{"cispo", "cispo", "token_mean"},
    TrlLossType{"sapo", "sapo", "sequence_token_mean"},
    TrlLossType{"vespo", "vespo", "token_mean"},
};

/// Keys of the trainers with their defaults, as JSON.
struct TrlDefault {
  std::string_view key, value;
};

constexpr std::array kGrpoDefaults = {
    TrlDefault{"loss_type", R"("dapo")"},
    TrlDefault{"beta", "0.0"},
    TrlDefault{"epsilon", "0.2"},
    TrlDefault{"epsilon_high", "null"},
    TrlDefault{"delta", "null"},
    TrlDefault{"importance_sampling_level", R"("token")"},
    TrlDefault{"scale_rewards", R"("group")"},
    TrlDefault{"max_completion_length", "512"},
    TrlDefault{"mask_truncated_completions", "false"},
    TrlDefault{"sapo_temperature_pos", "1.0"},
    TrlDefault{"sapo_temperature_neg", "1.05"},
    TrlDefault{"vespo_k_pos", "2.0"},
    TrlDefault{"vespo_lambda_pos", "3.0"},
    TrlDefault{"vespo_k_neg", "3.0"},
    TrlDefault{"vespo_lambda_neg", "2.0"},
    TrlDefault{"off_policy_mask_threshold", "null"},
    TrlDefault{"use_bias_correction_kl", "true"},
    TrlDefault{"entropy_coef", "0.0"},
    TrlDefault{"use_vllm", "false"},
    TrlDefault{"vllm_importance_sampling_correction", "true"},
    TrlDefault{"vllm_importance_sampling_mode", R"("sequence_mask")"},
    TrlDefault{"vllm_importance_sampling_clip_max", "3.0"},
    TrlDefault{"vllm_importance_sampling_clip_min", "null"},
    TrlDefault{"top_entropy_quantile", "1.0"},
    TrlDefault{"use_adaptive_entropy", "false"},
    TrlDefault{"multi_objective_aggregation", R"("sum_then_normalize")"},
};

constexpr std::array kRlooDefaults = {
    TrlDefault{"beta", "0.05"},
    TrlDefault{"epsilon", "0.2"},
    TrlDefault{"epsilon_high", "null"},
    TrlDefault{"max_completion_length", "512"},
    TrlDefault{"mask_truncated_completions", "false"},
    TrlDefault{"normalize_advantages", "false"},
    TrlDefault{"reward_clip_range", "null"},
};

/// Keys of TRL's whose place is elsewhere in a run.
struct PlaceElsewhere {
  std::string_view key, place;
};

constexpr std::array kElsewhere = {
    PlaceElsewhere{"num_generations", "online.sources, n"},
    PlaceElsewhere{"num_iterations", "online.rounds.epochs"},
    PlaceElsewhere{"steps_per_generation", "online.rounds.steps"},
    PlaceElsewhere{"temperature", "sampling.temperature"},
    PlaceElsewhere{"top_p", "sampling.top_p"},
    PlaceElsewhere{"top_k", "sampling.top_k"},
    PlaceElsewhere{"repetition_penalty", "sampling.repetition_penalty"},
    PlaceElsewhere{"reward_weights", "online.feedback"},
    PlaceElsewhere{"learning_rate", "optimizer.learning_rate"},
    PlaceElsewhere{"sync_ref_model", "reference.moving"},
};

/// The values of a config, TRL's defaults where it has none.
class TrlConfig {
 public:
  template <class Defaults>
  TrlConfig(const Json& config, std::string_view trainer, const Defaults& defaults)
      : trainer_(trainer) {
    for (const TrlDefault& entry : defaults) {
      values_[std::string(entry.key)] = Json::parse(entry.value);
    }
    for (const auto& [key, value] : config.items()) {
      if (key == "trainer") continue;
      if (!values_.contains(key)) refuse_unknown(key);
      values_[key] = value;
    }
  }

  double number(const std::string& key) const {
    check(key, values_.at(key).is_number(), "a number");
    return values_.at(key).get<double>();
  }
  double number_or(const std::string& key, double fallback) const {
    return values_.at(key).is_null() ? fallback : number(key);
  }
  bool flag(const std::string& key) const {
    check(key, values_.at(key).is_boolean(), "true or false");
    return values_.at(key).get<bool>();
  }
  std::string text(const std::string& key) const {
    check(key, values_.at(key).is_string(), "text");
    return values_.at(key).get<std::string>();
  }
  /// Throws ConfigError for a value that no option of an objective follows.
  void refuse_unless(const std::string& key, const Json& value, std::string_view why) const {
    const Json& given = values_.at(key);
    const bool is_equal = given.is_number() && value.is_number()
                              ? given.get<double>() == value.get<double>()
                              : given == value;
    if (is_equal) return;
    throw ConfigError(fmt::format("{}: expected {} {}, as {}, got {}", trainer_, key,
                                  shown_json(value), why, shown_json(given)));
  }
  [[noreturn]] void refuse(const std::string& key, std::string_view expected) const {
    throw ConfigError(fmt::format("{}: expected {} {}, got {}", trainer_, key, expected,
                                  shown_json(values_.at(key))));
  }

 private:
  [[noreturn]] void refuse_unknown(const std::string& key) const {
    for (const PlaceElsewhere& other : kElsewhere) {
      if (other.key != key) continue;
      throw ConfigError(
          fmt::format("{}: expected keys of the objective, got '{}', which is {} of a "
                      "run",
                      trainer_, key, other.place));
    }
    std::vector<std::string> names;
    for (const auto& [name, value] : values_.items()) names.push_back(name);
    throw ConfigError(
        fmt::format("{}: expected a known key, got '{}'{}", trainer_, key,
                    did_you_mean(key, std::vector<std::string_view>(names.begin(), names.end()))));
  }
  void check(const std::string& key, bool holds, std::string_view expected) const {
    if (!holds) refuse(key, expected);
  }

  std::string_view trainer_;
  Json values_ = Json::object();
};

const TrlLossType* find_loss_type(std::string_view name) {
  const auto found = std::find_if(kLossTypes.begin(), kLossTypes.end(),
                                  [&](const TrlLossType& type) { return type.name == name; });
  return found == kLossTypes.end() ? nullptr : &*found;
}

const TrlLossType& loss_type_of(const TrlConfig& config) {
  const std::string name = config.text("loss_type");
  if (const TrlLossType* type = find_loss_type(name)) return *type;
  if (name == "bnpo") {
    throw ConfigError(
        "GRPOTrainer: expected a loss_type that does not depend on how a step is cut, got 'bnpo', "
        "which divides by the tokens of each micro-batch; 'dapo' divides by those of the step");
  }
  std::vector<std::string_view> names;
  for (const TrlLossType& type : kLossTypes) names.push_back(type.name);
  throw ConfigError(fmt::format("GRPOTrainer: expected a known loss_type, got '{}'{}", name,
                                did_you_mean(name, names)));
}

Json rule_of(const TrlLossType& type, const TrlConfig& of) {
  Json rule = {{"kind", type.rule}};
  if (type.rule == "ppo") {
    rule["low"] = of.number("epsilon");
    rule["high"] = of.number_or("epsilon_high", of.number("epsilon"));
    rule["delta"] = of.number_or("delta", 0);
  } else if (type.rule == "cispo") {
    rule["max"] = of.number_or("epsilon_high", of.number("epsilon"));
  } else if (type.rule == "sapo") {
    rule["tau_positive"] = of.number("sapo_temperature_pos");
    rule["tau_negative"] = of.number("sapo_temperature_neg");
  } else {
    rule["k_positive"] = of.number("vespo_k_pos");
    rule["lambda_positive"] = of.number("vespo_lambda_pos");
    rule["k_negative"] = of.number("vespo_k_neg");
    rule["lambda_negative"] = of.number("vespo_lambda_neg");
  }
  return rule;
}

Json correction_of(const TrlConfig& of) {
  const std::string mode = of.text("vllm_importance_sampling_mode");
  const double most = of.number_or("vllm_importance_sampling_clip_max", 0);
  const double least = of.number_or("vllm_importance_sampling_clip_min", 0);
  if (most == 0) of.refuse("vllm_importance_sampling_clip_max", "a number above 0");
  if (mode == "token_truncate" || mode == "sequence_truncate") {
    if (least > 0) of.refuse("vllm_importance_sampling_clip_min", "null for a truncation");
    return {{"kind", mode == "token_truncate" ? "truncate" : "sequence_truncate"}, {"cap", most}};
  }
  if (mode == "token_mask" || mode == "sequence_mask") {
    return {
        {"kind", mode == "token_mask" ? "mask" : "sequence_mask"}, {"low", least}, {"cap", most}};
  }
  of.refuse("vllm_importance_sampling_mode",
            "token_truncate, token_mask, sequence_truncate or sequence_mask");
}

Json options_of_grpo(const Json& config) {
  const TrlConfig of(config, kGrpo, kGrpoDefaults);
  const TrlLossType& type = loss_type_of(of);
  of.refuse_unless("top_entropy_quantile", 1, "no option drops tokens by their entropy");
  of.refuse_unless("use_adaptive_entropy", false, "the entropy coefficient is fixed");
  of.refuse_unless("multi_objective_aggregation", "sum_then_normalize",
                   "rewards are summed before the advantage");
  const std::string scale = of.text("scale_rewards");
  const std::string level = of.text("importance_sampling_level");
  if (scale != "group" && scale != "batch" && scale != "none") {
    of.refuse("scale_rewards", "group, batch or none");
  }
  if (level != "token" && level != "sequence") {
    of.refuse("importance_sampling_level", "token or sequence");
  }
  Json options = {{"advantage",
                   {{"kind", scale == "group"   ? "group_std"
                             : scale == "batch" ? "batch_std"
                                                : "group_mean"}}},
                  {"rule", rule_of(type, of)},
                  {"aggregation", type.aggregation},
                  {"max_completion_length", of.number("max_completion_length")},
                  {"kl",
                   {{"estimator", "k3"},
                    {"place", "loss"},
                    {"weight", of.flag("use_bias_correction_kl") ? "ratio" : "none"},
                    {"coefficient", of.number("beta")}}},
                  {"off_policy_drop", of.number_or("off_policy_mask_threshold", 0)},
                  {"entropy_coefficient", of.number("entropy_coef")},
                  {"unfinished", of.flag("mask_truncated_completions") ? "mask" : "keep"}};
  options["level"] = level == "token" || type.rule == "vespo" ? "token" : "sequence_mean";
  if (of.flag("use_vllm") && of.flag("vllm_importance_sampling_correction") &&
      type.rule != "vespo") {
    options["correction"] = correction_of(of);
  }
  return options;
}

Json options_of_rloo(const Json& config) {
  const TrlConfig of(config, kRloo, kRlooDefaults);
  of.refuse_unless("normalize_advantages", false,
                   "no option whitens leave-one-out advantages over completions");
  of.refuse_unless("reward_clip_range", nullptr, "rewards are limited by online.reward");
  return {{"advantage", {{"kind", "leave_one_out"}}},
          {"rule",
           {{"kind", "ppo"},
            {"low", of.number("epsilon")},
            {"high", of.number_or("epsilon_high", of.number("epsilon"))}}},
          {"level", "sequence_sum"},
          {"aggregation", "sequence_sum"},
          {"max_completion_length", of.number("max_completion_length")},
          {"kl", {{"estimator", "k1"}, {"place", "reward"}, {"coefficient", of.number("beta")}}},
          {"unfinished", of.flag("mask_truncated_completions") ? "mask" : "keep"}};
}

}  // namespace

bool is_trl_objective(const Json& config) {
  if (const auto trainer = config.find("trainer"); trainer != config.end()) {
    return *trainer == kGrpo || *trainer == kRloo;
  }
  const auto type = config.find("loss_type");
  if (config.contains("type") || type == config.end() || !type->is_string()) return false;
  const auto name = type->get<std::string>();
  return find_loss_type(name) != nullptr || name == "bnpo";
}

Json options_of_trl(const Json& config) {
  const auto trainer = config.find("trainer");
  const bool is_rloo = trainer != config.end() && *trainer == kRloo;
  return is_rloo ? options_of_rloo(config) : options_of_grpo(config);
}

}  // namespace prefopt::detail
