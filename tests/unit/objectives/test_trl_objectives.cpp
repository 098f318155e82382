// SPDX-License-Identifier: Apache-2.0

// TRL's configs of GRPOTrainer and RLOOTrainer. The losses themselves: tests/golden.

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

json config_of(const char* trl) { return json::parse(make_token_objective(trl).config()); }

TEST_CASE("TRL's trainers have TRL's defaults", "[objectives]") {
  const json dapo = config_of(R"({"trainer": "GRPOTrainer"})");
  CHECK(dapo["advantage"]["kind"] == "group_std");
  CHECK(dapo["advantage"]["epsilon"] == 1e-4);
  CHECK(dapo["rule"] ==
        json{{"kind", "ppo"}, {"low", 0.2}, {"high", 0.2}, {"delta", 0.0}, {"dual", 0.0}});
  CHECK(dapo["level"] == "token");
  CHECK(dapo["aggregation"] == "token_mean");
  CHECK(dapo["kl"]["coefficient"] == 0.0);
  CHECK(dapo["kl"]["weight"] == "ratio");
  CHECK(dapo["correction"]["kind"] == "none");
  CHECK(dapo["unfinished"] == "keep");
  CHECK(config_of(R"({"trainer": "GRPOConfig"})") == dapo);
  CHECK(config_of(R"({"loss_type": "dapo"})") == dapo);

  const json rloo = config_of(R"({"trainer": "RLOOTrainer"})");
  CHECK(rloo["advantage"]["kind"] == "leave_one_out");
  CHECK(rloo["level"] == "sequence_sum");
  CHECK(rloo["aggregation"] == "sequence_sum");
  CHECK(rloo["kl"]["estimator"] == "k1");
  CHECK(rloo["kl"]["place"] == "reward");
  CHECK(rloo["kl"]["coefficient"] == 0.05);
  // The paper's and TRL's 'grpo' differ in the KL.
  CHECK(config_of(R"({"type": "grpo"})")["kl"]["coefficient"] == 0.04);
  CHECK(config_of(R"({"loss_type": "grpo"})")["kl"]["coefficient"] == 0.0);
}

TEST_CASE("TRL's keys reach the options", "[objectives]") {
  const json grpo = config_of(
      R"({"loss_type": "grpo", "beta": 0.1, "epsilon": 0.1, "epsilon_high": 0.3, "delta": 1.5,
          "scale_rewards": "batch", "importance_sampling_level": "sequence",
          "mask_truncated_completions": true, "use_bias_correction_kl": false,
          "off_policy_mask_threshold": 0.5, "entropy_coef": 0.01})");
  CHECK(grpo["rule"] ==
        json{{"kind", "ppo"}, {"low", 0.1}, {"high", 0.3}, {"delta", 1.5}, {"dual", 0.0}});
  CHECK(grpo["advantage"]["kind"] == "batch_std");
  CHECK(grpo["level"] == "sequence_mean");
  CHECK(grpo["kl"]["coefficient"] == 0.1);
  CHECK(grpo["kl"]["weight"] == "none");
  CHECK(grpo["unfinished"] == "mask");
  CHECK(grpo["off_policy_drop"] == 0.5);
  CHECK(grpo["entropy_coefficient"] == 0.01);
  CHECK(config_of(R"({"loss_type": "grpo", "scale_rewards": false})")["advantage"]["kind"] ==
        "group_mean");

  const json fixed = config_of(R"({"loss_type": "dr_grpo", "max_completion_length": 64})");
  CHECK(fixed["aggregation"] == "fixed");
  CHECK(fixed["max_completion_length"] == 64);
  CHECK(config_of(R"({"loss_type": "luspo"})")["aggregation"] == "sequence_sum");
  // TRL limits the ratio at epsilon_high itself, 0.2 by default.
  CHECK(config_of(R"({"loss_type": "cispo"})")["rule"]["max"] == 0.2);
  CHECK(config_of(R"({"loss_type": "sapo", "sapo_temperature_neg": 2})")["rule"]["tau_negative"] ==
        2.0);
  CHECK(config_of(R"({"loss_type": "vespo", "vespo_k_pos": 1})")["rule"]["k_positive"] == 1.0);

  const json corrected = config_of(R"({"loss_type": "dapo", "use_vllm": true})");
  CHECK(corrected["correction"] == json{{"kind", "sequence_mask"}, {"low", 0.0}, {"cap", 3.0}});
  CHECK(config_of(R"({"loss_type": "dapo", "use_vllm": true,
                      "vllm_importance_sampling_mode": "token_truncate"})")["correction"]["kind"] ==
        "truncate");
}

TEST_CASE("errors of TRL's configs", "[objectives]") {
  const std::pair<const char*, const char*> cases[] = {
      {R"({"loss_type": "bnpo"})",
       "GRPOTrainer: expected a loss_type that does not depend on how a step is cut, got 'bnpo', "
       "which divides by the tokens of each micro-batch; 'dapo' divides by those of the step"},
      {R"({"trainer": "GRPOTrainer", "loss_type": "drgrpo"})",
       "GRPOTrainer: expected a known loss_type, got 'drgrpo'; did you mean 'dr_grpo'?"},
      {R"({"loss_type": "grpo", "bet": 0.1})",
       "GRPOTrainer: expected a known key, got 'bet'; did you mean 'beta'?"},
      {R"({"loss_type": "grpo", "num_generations": 8})",
       "GRPOTrainer: expected keys of the objective, got 'num_generations', which is "
       "online.sources, n of a run"},
      {R"({"loss_type": "grpo", "beta": "a"})", "GRPOTrainer: expected beta a number, got \"a\""},
      {R"({"loss_type": "grpo", "scale_rewards": "std"})",
       "GRPOTrainer: expected scale_rewards group, batch or none, got \"std\""},
      {R"({"loss_type": "grpo", "delta": 0})",
       "GRPOTrainer: expected delta null or a number above 0, got 0"},
      {R"({"loss_type": "grpo", "delta": 1.1})",
       "ppo: expected delta of at least 1 + high, 1.2, or 0, got 1.1"},
      {R"({"loss_type": "grpo", "top_entropy_quantile": 0.2})",
       "GRPOTrainer: expected top_entropy_quantile 1, as no option drops tokens by their entropy, "
       "got 0.2"},
      // Keys that TRL does not read for the loss.
      {R"({"loss_type": "sapo", "epsilon": 0.1})",
       "GRPOTrainer: expected epsilon 0.2, as loss_type 'sapo' does not read it, got 0.1"},
      {R"({"loss_type": "grpo", "vespo_k_pos": 1})",
       "GRPOTrainer: expected vespo_k_pos 2.0, as loss_type 'grpo' does not read it, got 1"},
      {R"({"loss_type": "dapo", "vllm_importance_sampling_clip_max": 2})",
       "GRPOTrainer: expected vllm_importance_sampling_clip_max 3.0, as loss_type 'dapo' does not "
       "read it, got 2"},
      {R"({"loss_type": "vespo", "importance_sampling_level": "sequence"})",
       "GRPOTrainer: expected importance_sampling_level token for loss_type 'vespo', got "
       "\"sequence\""},
      {R"({"loss_type": "vespo", "use_vllm": true})",
       "GRPOTrainer: expected vllm_importance_sampling_correction false for loss_type 'vespo', "
       "whose weights take the correction in, got true"},
      {R"({"trainer": "RLOOTrainer", "normalize_advantages": true})",
       "RLOOTrainer: expected normalize_advantages false, as no option whitens leave-one-out "
       "advantages over completions, got true"},
      {R"({"trainer": "RLOOTrainer", "loss_type": "grpo"})",
       "RLOOTrainer: expected a known key, got 'loss_type'"}};
  for (const auto& [config, text] : cases) {
    CHECK_THROWS_TEXT(make_token_objective(config), ConfigError, text);
  }
}

}  // namespace
}  // namespace prefopt
