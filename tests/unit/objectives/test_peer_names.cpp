// SPDX-License-Identifier: Apache-2.0

// Keys of verl, OpenRLHF and NeMo-RL in a config. What verl's mean in numbers: tests/golden.

#include <nlohmann/json.hpp>
#include <string>
#include <utility>

#include "prefopt/error.h"
#include "prefopt/objectives/token_objective.h"
#include "support/catch.h"
#include "support/errors.h"

namespace prefopt {
namespace {

using nlohmann::json;

json resolved(const char* config) { return json::parse(make_token_objective(config).config()); }

TEST_CASE("peers' keys set our option of the same meaning alone", "[objectives]") {
  const std::pair<const char*, const char*> same[] = {
      {R"({"type": "grpo", "loss_agg_mode": "token-mean"})",
       R"({"type": "grpo", "aggregation": "token_mean"})"},
      {R"({"type": "rloo", "loss_agg_mode": "seq-mean-token-mean"})",
       R"({"type": "rloo", "aggregation": "sequence_token_mean"})"},
      {R"({"type": "grpo", "loss_agg_mode": "seq-mean-token-sum"})",
       R"({"type": "grpo", "aggregation": "sequence_sum"})"},
      {R"({"type": "dapo", "loss_agg_mode": "seq-mean-token-sum-norm",
           "max_completion_length": 64})",
       R"({"type": "dapo", "aggregation": "fixed", "max_completion_length": 64})"},
      {R"({"type": "dapo", "adv_estimator": "grpo"})",
       R"({"type": "dapo", "advantage": {"kind": "group_std", "epsilon": 1e-6}})"},
      {R"({"type": "grpo", "adv_estimator": "rloo"})",
       R"({"type": "grpo", "advantage": {"kind": "leave_one_out"}})"},
      {R"({"type": "grpo", "adv_estimator": "opo"})",
       R"({"type": "grpo", "advantage": {"kind": "length_mean"}})"},
      {R"({"type": "grpo", "adv_estimator": "reinforce_plus_plus_baseline"})",
       R"({"type": "grpo", "advantage": {"kind": "whiten_tokens"}})"},
      {R"({"type": "grpo", "clip_ratio_low": 0.1, "clip_ratio_high": 0.3, "clip_ratio_c": 4})",
       R"({"type": "grpo", "rule": {"low": 0.1, "high": 0.3, "dual": 4}})"},
      {R"({"type": "grpo", "rule": {"high": 0.3}, "ratio_clip_min": 0.1, "ratio_clip_c": 4})",
       R"({"type": "grpo", "rule": {"low": 0.1, "high": 0.3, "dual": 4}})"},
      {R"({"type": "grpo", "token_level_loss": true, "ratio_clip_max": 0.25})",
       R"({"type": "grpo", "aggregation": "token_mean", "rule": {"high": 0.25}})"},
      {R"({"type": "dapo", "token_level_loss": false})",
       R"({"type": "dapo", "aggregation": "sequence_token_mean"})"},
      {R"({"type": "grpo", "sequence_level_importance_ratios": true})",
       R"({"type": "grpo", "level": "sequence_mean"})"},
      {R"({"type": "gspo", "sequence_level_importance_ratios": false})",
       R"({"type": "gspo", "level": "token"})"},
      {R"({"type": "policy_gradient", "adv_estimator": "rloo"})",
       R"({"type": "policy_gradient", "advantage": {"kind": "leave_one_out"}})"}};
  for (const auto& [theirs, ours] : same) {
    CAPTURE(theirs);
    CHECK(resolved(theirs) == resolved(ours));
    CHECK(is_token_objective(theirs));
  }
  CHECK_FALSE(is_token_objective(R"({"type": "policy_gradient", "tau": 0.1})"));
}

TEST_CASE("peers' keys that no single option means are refused, naming ours", "[objectives]") {
  const std::pair<const char*, const char*> cases[] = {
      {R"({"type": "grpo", "beta": 0.1})",
       "grpo: expected kl.coefficient for TRL's 'beta', or a config of TRL's with \"trainer\": "
       "\"GRPOTrainer\""},
      {R"({"type": "policy_gradient", "rule": {"kind": "ppo"}, "epsilon": 0.1})",
       "policy_gradient: expected rule.low and rule.high for TRL's 'epsilon', or a config of TRL's "
       "with \"trainer\": \"GRPOTrainer\""},
      {R"({"type": "grpo", "kl_loss_coef": 0.001})",
       "grpo: expected kl.coefficient for verl's 'kl_loss_coef'"},
      {R"({"type": "grpo", "norm_adv_by_std_in_grpo": false})",
       "grpo: expected advantage.kind 'group_std' or 'group_mean' for verl's "
       "'norm_adv_by_std_in_grpo'"},
      {R"({"type": "rloo", "advantage_estimator": "rloo"})",
       "rloo: expected advantage.kind for OpenRLHF's 'advantage_estimator'"},
      {R"({"type": "ppo", "lambd": 0.9})", "ppo: expected advantage.lambda for OpenRLHF's 'lambd'"},
      {R"({"type": "rloo", "use_leave_one_out_baseline": true})",
       "rloo: expected advantage.kind and advantage.baseline for NeMo-RL's "
       "'use_leave_one_out_baseline'"},
      {R"({"type": "grpo", "loss_agg_mode": "token_mean"})",
       "grpo: expected one of \"token-mean\", \"seq-mean-token-mean\", \"seq-mean-token-sum\", "
       "\"seq-mean-token-sum-norm\" for verl's 'loss_agg_mode', got \"token_mean\"; it is "
       "aggregation here"},
      {R"({"type": "grpo", "adv_estimator": "remax"})",
       "grpo: expected one of \"grpo\", \"rloo\", \"opo\", \"reinforce_plus_plus_baseline\" for "
       "verl's 'adv_estimator', got \"remax\"; it is advantage here"},
      {R"({"type": "grpo", "ratio_clip_c": null})",
       "grpo: expected a number for NeMo-RL's 'ratio_clip_c', got null; it is rule.dual here"},
      {R"({"type": "grpo", "token_level_loss": 1})",
       "grpo: expected one of true, false for NeMo-RL's 'token_level_loss', got 1; it is "
       "aggregation here"},
      // Two keys of one meaning.
      {R"({"type": "grpo", "aggregation": "token_mean", "loss_agg_mode": "token-mean"})",
       "grpo: expected aggregation once, got it as verl's 'loss_agg_mode' too"},
      {R"({"type": "grpo", "clip_ratio_low": 0.1, "ratio_clip_min": 0.1})",
       "grpo: expected rule.low once, got it as NeMo-RL's 'ratio_clip_min' too"},
      {R"({"type": "grpo", "rule": {"dual": 3}, "clip_ratio_c": 3})",
       "grpo: expected rule.dual once, got it as verl's 'clip_ratio_c' too"},
      // A rule without that option.
      {R"({"type": "sapo", "clip_ratio_low": 0.1})", "sapo: expected a known option, got 'low'"}};
  for (const auto& [config, text] : cases) {
    CAPTURE(config);
    CHECK_THROWS_TEXT(make_token_objective(config), ConfigError, text);
  }
}

}  // namespace
}  // namespace prefopt
