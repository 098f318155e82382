// SPDX-License-Identifier: Apache-2.0
#include "objectives/peer_names.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <array>
#include <string_view>
#include <utility>
#include <vector>

#include "prefopt/error.h"

namespace prefopt::detail {
namespace {

/// A value of theirs and the one of ours, both as JSON.
struct PeerValue {
  std::string_view theirs, ours;
};

/// A key of theirs that one of ours means: an option, or one of a piece, as in `rule.low`.
struct PeerKey {
  std::string_view program, key, option;
  std::vector<PeerValue> values = {};  ///< empty: numbers, the same in both
};

const std::vector<PeerKey>& same_keys() {
  static const std::vector<PeerKey> keys = {
      {"verl",
       "loss_agg_mode",
       "aggregation",
       {{R"("token-mean")", R"("token_mean")"},
        {R"("seq-mean-token-mean")", R"("sequence_token_mean")"},
        {R"("seq-mean-token-sum")", R"("sequence_sum")"},
        {R"("seq-mean-token-sum-norm")", R"("fixed")"}}},
      {"verl",
       "adv_estimator",
       "advantage",
       {{R"("grpo")", R"({"kind": "group_std", "epsilon": 1e-6})"},
        {R"("rloo")", R"({"kind": "leave_one_out"})"},
        {R"("opo")", R"({"kind": "length_mean"})"},
        {R"("reinforce_plus_plus_baseline")", R"({"kind": "whiten_tokens"})"}}},
      {"verl", "clip_ratio_low", "rule.low"},
      {"verl", "clip_ratio_high", "rule.high"},
      {"verl", "clip_ratio_c", "rule.dual"},
      {"NeMo-RL",
       "token_level_loss",
       "aggregation",
       {{"true", R"("token_mean")"}, {"false", R"("sequence_token_mean")"}}},
      {"NeMo-RL",
       "sequence_level_importance_ratios",
       "level",
       {{"true", R"("sequence_mean")"}, {"false", R"("token")"}}},
      {"NeMo-RL", "ratio_clip_min", "rule.low"},
      {"NeMo-RL", "ratio_clip_max", "rule.high"},
      {"NeMo-RL", "ratio_clip_c", "rule.dual"},
  };
  return keys;
}

/// A key of theirs whose meaning depends on others, and what says the same here.
struct OtherKey {
  std::string_view program, key, ours;
};

constexpr std::array kOtherKeys = {
    OtherKey{"TRL", "beta", "kl.coefficient"},
    OtherKey{"TRL", "epsilon", "rule.low and rule.high"},
    OtherKey{"TRL", "epsilon_high", "rule.high"},
    OtherKey{"TRL", "delta", "rule.delta"},
    OtherKey{"TRL", "scale_rewards", "advantage.kind"},
    OtherKey{"TRL", "importance_sampling_level", "level"},
    OtherKey{"verl", "norm_adv_by_std_in_grpo", "advantage.kind 'group_std' or 'group_mean'"},
    OtherKey{"verl", "clip_ratio", "rule.low and rule.high"},
    OtherKey{"verl", "loss_mode", "rule.kind and level"},
    OtherKey{"verl", "policy_loss", "rule.kind and level"},
    OtherKey{"verl", "use_kl_loss", "kl.place 'loss'"},
    OtherKey{"verl", "kl_loss_coef", "kl.coefficient"},
    OtherKey{"verl", "kl_loss_type", "kl.estimator"},
    OtherKey{"verl", "kl_penalty", "kl.estimator"},
    OtherKey{"verl", "entropy_coeff", "entropy_coefficient"},
    OtherKey{"verl", "use_critic", "advantage.kind 'gae'"},
    OtherKey{"verl", "lam", "advantage.lambda"},
    OtherKey{"verl", "cliprange_value", "value_loss.clip"},
    OtherKey{"verl", "rollout_correction", "correction"},
    OtherKey{"verl", "use_pf_ppo", "online.rollouts.filter"},
    OtherKey{"verl and NeMo-RL", "use_kl_in_reward", "kl.place 'reward'"},
    OtherKey{"verl and OpenRLHF", "gamma", "advantage.gamma"},
    OtherKey{"OpenRLHF", "advantage_estimator", "advantage.kind"},
    OtherKey{"OpenRLHF", "eps_clip", "rule.low and rule.high"},
    OtherKey{"OpenRLHF", "eps_clip_low_high", "rule.low and rule.high"},
    OtherKey{"OpenRLHF", "dual_clip", "rule.dual"},
    OtherKey{"OpenRLHF", "lambd", "advantage.lambda"},
    OtherKey{"OpenRLHF", "value_clip", "value_loss.clip"},
    OtherKey{"OpenRLHF", "init_kl_coef", "kl.coefficient"},
    OtherKey{"OpenRLHF", "kl_target", "kl.target"},
    OtherKey{"OpenRLHF", "kl_horizon", "kl.horizon"},
    OtherKey{"OpenRLHF", "kl_estimator", "kl.estimator"},
    OtherKey{"OpenRLHF", "use_loss", "kl.place"},
    OtherKey{"OpenRLHF", "entropy_loss_coef", "entropy_coefficient"},
    OtherKey{"OpenRLHF", "is_correction_mode", "correction.kind"},
    OtherKey{"OpenRLHF", "is_correction_level", "correction.kind"},
    OtherKey{"NeMo-RL", "use_leave_one_out_baseline", "advantage.kind and advantage.baseline"},
    OtherKey{"NeMo-RL", "normalize_rewards", "advantage.kind"},
    OtherKey{"NeMo-RL", "disable_ppo_ratio", "rule.kind 'none'"},
    OtherKey{"NeMo-RL", "use_cispo", "rule.kind 'cispo'"},
    OtherKey{"NeMo-RL", "reference_policy_kl_penalty", "kl.coefficient"},
    OtherKey{"NeMo-RL", "reference_policy_kl_type", "kl.estimator"},
    OtherKey{"NeMo-RL", "use_importance_sampling_correction", "correction.kind"},
    OtherKey{"NeMo-RL", "truncated_importance_sampling_ratio", "correction.cap"},
};

/// Returns our value for one of theirs.
Json our_value(const PeerKey& peer, const Json& given, const std::string& where) {
  if (peer.values.empty() && given.is_number()) return given;
  std::vector<std::string_view> known;
  for (const PeerValue& value : peer.values) {
    if (given == Json::parse(value.theirs)) return Json::parse(value.ours);
    known.push_back(value.theirs);
  }
  const std::string expected =
      known.empty() ? "a number" : fmt::format("one of {}", fmt::join(known, ", "));
  throw ConfigError(fmt::format("{}: expected {} for {}'s '{}', got {}; it is {} here", where,
                                expected, peer.program, peer.key, shown_json(given), peer.option));
}

/// Sets an option that the config does not have yet, or one of a piece of its.
void set_option(Json& config, const PeerKey& peer, Json value, const std::string& where) {
  const auto dot = peer.option.find('.');
  Json* place = &config;
  if (dot != std::string_view::npos) {
    place = &config[std::string(peer.option.substr(0, dot))];
    if (!place->is_null() && !place->is_object()) return;  // refused where it is read
  }
  const std::string name(dot == std::string_view::npos ? peer.option : peer.option.substr(dot + 1));
  if (place->is_object() && place->contains(name)) {
    throw ConfigError(fmt::format("{}: expected {} once, got it as {}'s '{}' too", where,
                                  peer.option, peer.program, peer.key));
  }
  (*place)[name] = std::move(value);
}

void refuse_other_keys(const Json& config, const std::string& where) {
  for (const OtherKey& other : kOtherKeys) {
    if (!config.contains(std::string(other.key))) continue;
    const std::string_view hint =
        other.program == "TRL" ? R"(, or a config of TRL's with "trainer": "GRPOTrainer")" : "";
    throw ConfigError(fmt::format("{}: expected {} for {}'s '{}'{}", where, other.ours,
                                  other.program, other.key, hint));
  }
}

}  // namespace

bool has_peer_name(const Json& config) {
  return std::any_of(same_keys().begin(), same_keys().end(),
                     [&](const PeerKey& peer) { return config.contains(std::string(peer.key)); });
}

void replace_peer_names(Json& config, const std::string& where) {
  refuse_other_keys(config, where);
  for (const PeerKey& peer : same_keys()) {
    const auto found = config.find(std::string(peer.key));
    if (found == config.end()) continue;
    Json value = our_value(peer, *found, where);
    config.erase(found);
    set_option(config, peer, std::move(value), where);
  }
}

}  // namespace prefopt::detail
