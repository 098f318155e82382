// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <string>

#include "prefopt/decoder/decoder.h"
#include "prefopt/options.h"
#include "prefopt/policy/sampling.h"
#include "prefopt/train/trainer.h"

namespace demo {

/// All that examples/configs/smollm2.json says.
struct Settings {
  std::string chat_format = "smollm2";
  std::int64_t rounds = 6;
  std::int64_t prompts_per_round = 24;
  std::int64_t samples_per_prompt = 6;
  std::int64_t pairs_per_step = 12;
  double min_reward_gap = 0.05;
  std::int64_t samples_per_held_out_prompt = 2;
  std::int64_t seed = 0;
  std::string loss = R"({"type": "dpo"})";
  prefopt::LoraOptions lora = {};
  prefopt::OptimizerOptions optimizer = {};
  prefopt::SamplingOptions sampling = {};
  std::int64_t micro_batch_tokens = 2048;

  void fields(prefopt::FieldVisitor& v);
};

}  // namespace demo
