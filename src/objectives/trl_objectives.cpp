// SPDX-License-Identifier: Apache-2.0
#include "objectives/trl_objectives.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <set>
#include <string>
#include <string_view>
#include <vector>

#include "core/text.h"
#include "prefopt/error.h"

namespace prefopt::detail {
namespace {

constexpr std::string_view kGrpo = "GRPOTrainer";
constexpr std::string_view kRloo = "RLOOTrainer";
constexpr std::string_view kGrpoConfig = "GRPOConfig";
constexpr std::string_view kRlooConfig = "RLOOConfig";

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
      defaults_[std::string(entry.key)] = Json::parse(entry.value);
    }
    values_ = defaults_;
    for (const auto& [key, value] : config.items()) {
      if (key == "trainer") continue;
      if (!values_.contains(key)) refuse_unknown(key);
      values_[key] = value;
    }
  }

  double number(const std::string& key) {
    check(key, value(key).is_number(), "a number");
    return value(key).get<double>();
  }
  double number_or(const std::string& key, double fallback) {
    return value(key).is_null() ? fallback : number(key);
  }
  /// Returns 0 for null, which ours have where TRL has none.
  double positive_or_null(const std::string& key) {
    const double number = number_or(key, 0);
    check(key, value(key).is_null() || number > 0, "null or a number above 0");
    return number;
  }
  bool flag(const std::string& key) {
    check(key, value(key).is_boolean(), "true or false");
    return value(key).get<bool>();
  }
  std::string text(const std::string& key) {
    check(key, value(key).is_string(), "text");
    return value(key).get<std::string>();
  }
  const Json& value(const std::string& key) {
    read_.insert(key);
    return values_.at(key);
  }
  /// Throws ConfigError for a value that no option of an objective follows.
  void refuse_unless(const std::string& key, const Json& expected, std::string_view why) {
    if (are_equal(value(key), expected)) return;
    throw ConfigError(fmt::format("{}: expected {} {}, as {}, got {}", trainer_, key,
                                  shown_json(expected), why, shown_json(values_.at(key))));
  }
  /// Throws ConfigError for a key off its default that nobody has read.
  void refuse_unread(std::string_view reader) const {
    for (const auto& [key, given] : values_.items()) {
      if (read_.contains(key) || are_equal(given, defaults_.at(key))) continue;
      throw ConfigError(fmt::format("{}: expected {} {}, as {} does not read it, got {}", trainer_,
                                    key, shown_json(defaults_.at(key)), reader, shown_json(given)));
    }
  }
  [[noreturn]] void refuse(const std::string& key, std::string_view expected) const {
    throw ConfigError(fmt::format("{}: expected {} {}, got {}", trainer_, key, expected,
                                  shown_json(values_.at(key))));
  }

 private:
  static bool are_equal(const Json& a, const Json& b) {
    return a.is_number() && b.is_number() ? a.get<double>() == b.get<double>() : a == b;
  }
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
  Json defaults_ = Json::object(), values_ = {};
  std::set<std::string> read_;
};

const TrlLossType* find_loss_type(std::string_view name) {
  const auto found = std::find_if(kLossTypes.begin(), kLossTypes.end(),
                                  [&](const TrlLossType& type) { return type.name == name; });
  return found == kLossTypes.end() ? nullptr : &*found;
}

const TrlLossType& loss_type_of(TrlConfig& config) {
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

Json rule_of(const TrlLossType& type, TrlConfig& of) {
  Json rule = {{"kind", type.rule}};
  if (type.rule == "ppo") {
    rule["low"] = of.number("epsilon");
    rule["high"] = of.number_or("epsilon_high", of.number("epsilon"));
    rule["delta"] = of.positive_or_null("delta");
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

Json correction_of(TrlConfig& of) {
  const std::string mode = of.text("vllm_importance_sampling_mode");
  const double most = of.positive_or_null("vllm_importance_sampling_clip_max");
  const double least = of.positive_or_null("vllm_importance_sampling_clip_min");
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

/// Our advantage for TRL's scale_rewards, which may be a flag.
std::string_view advantage_of(TrlConfig& of) {
  const std::string key = "scale_rewards";
  const Json& scale = of.value(key);
  if (scale == "group" || scale == true) return "group_std";
  if (scale == "batch") return "batch_std";
  if (scale == "none" || scale == false) return "group_mean";
  of.refuse(key, "group, batch or none");
}

/// Ours for importance_sampling_level. The weights of 'vespo' are of completions in any case.
std::string_view level_of(const TrlLossType& type, TrlConfig& of) {
  const std::string key = "importance_sampling_level";
  const std::string level = of.text(key);
  if (level != "token" && level != "sequence") of.refuse(key, "token or sequence");
  if (type.rule == "vespo" && level != "token") of.refuse(key, "token for loss_type 'vespo'");
  return level == "token" ? "token" : "sequence_mean";
}

Json options_of_grpo(const Json& config) {
  TrlConfig of(config, kGrpo, kGrpoDefaults);
  const TrlLossType& type = loss_type_of(of);
  of.refuse_unless("top_entropy_quantile", 1, "no option drops tokens by their entropy");
  of.refuse_unless("use_adaptive_entropy", false, "the entropy coefficient is fixed");
  of.refuse_unless("multi_objective_aggregation", "sum_then_normalize",
                   "rewards are summed before the advantage");
  Json options = {{"advantage", {{"kind", advantage_of(of)}}},
                  {"rule", rule_of(type, of)},
                  {"level", level_of(type, of)},
                  {"aggregation", type.aggregation},
                  {"max_completion_length", of.number("max_completion_length")},
                  {"kl",
                   {{"estimator", "k3"},
                    {"place", "loss"},
                    {"weight", of.flag("use_bias_correction_kl") ? "ratio" : "none"},
                    {"coefficient", of.number("beta")}}},
                  {"off_policy_drop", of.positive_or_null("off_policy_mask_threshold")},
                  {"entropy_coefficient", of.number("entropy_coef")},
                  {"unfinished", of.flag("mask_truncated_completions") ? "mask" : "keep"}};
  if (of.flag("use_vllm") && of.flag("vllm_importance_sampling_correction")) {
    if (type.rule == "vespo") {
      of.refuse("vllm_importance_sampling_correction",
                "false for loss_type 'vespo', whose weights take the correction in");
    }
    options["correction"] = correction_of(of);
  }
  of.refuse_unread(fmt::format("loss_type '{}'", type.name));
  return options;
}

Json options_of_rloo(const Json& config) {
  TrlConfig of(config, kRloo, kRlooDefaults);
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

bool is_of_rloo(const Json& trainer) { return trainer == kRloo || trainer == kRlooConfig; }

}  // namespace

bool is_trl_objective(const Json& config) {
  if (const auto trainer = config.find("trainer"); trainer != config.end()) {
    return *trainer == kGrpo || *trainer == kGrpoConfig || is_of_rloo(*trainer);
  }
  const auto type = config.find("loss_type");
  if (config.contains("type") || type == config.end() || !type->is_string()) return false;
  const auto name = type->get<std::string>();
  return find_loss_type(name) != nullptr || name == "bnpo";
}

Json options_of_trl(const Json& config) {
  const auto trainer = config.find("trainer");
  const bool is_rloo = trainer != config.end() && is_of_rloo(*trainer);
  return is_rloo ? options_of_rloo(config) : options_of_grpo(config);
}

}  // namespace prefopt::detail
