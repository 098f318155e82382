// SPDX-License-Identifier: Apache-2.0

// Online VPO: at each step the policy answers every prompt twice, a judge picks the better answer,
// and the loss with an optimistic value incentive is taken on the fresh pairs.
//   train_vpo [STEPS]

#include <fmt/format.h>

#include <cstdlib>
#include <filesystem>
#include <memory>
#include <string>
#include <vector>

#include "prefopt/data/controlled_task.h"
#include "prefopt/data/dataset.h"
#include "prefopt/decoder/decoder.h"
#include "prefopt/error.h"
#include "prefopt/losses/pair/sft.h"
#include "prefopt/losses/pair/vpo.h"
#include "prefopt/policy/reference.h"
#include "prefopt/policy/sampling.h"
#include "prefopt/train/trainer.h"

using namespace prefopt;

namespace {

constexpr std::int64_t kPrompts = 24;

struct FreshPairs {
  std::vector<TokenRow> pairs;
  double mean_reward = 0;
};

FreshPairs draw_pairs(Decoder& policy, ControlledTask& task, std::int64_t step) {
  const ByteTokenizer tokenizer;
  std::vector<std::string> texts;
  std::vector<std::vector<std::int64_t>> prompts;
  for (std::int64_t i = 0; i < kPrompts; ++i) {
    texts.push_back(task.sample_prompt());
    prompts.push_back(tokenizer.encode(texts.back()));
    prompts.back().insert(prompts.back().begin(), tokenizer.bos_id());
  }
  const auto first = [&](std::int64_t seed) {
    return sample(policy, prompts,
                  {.max_new_tokens = 12, .eos_id = tokenizer.eos_id(), .seed = seed});
  };
  const auto a = first(2 * step);
  const auto b = first(2 * step + 1);
  FreshPairs fresh;
  for (std::size_t i = 0; i < prompts.size(); ++i) {
    const std::string answer_a = tokenizer.decode(a[i]);
    const std::string answer_b = tokenizer.decode(b[i]);
    fresh.mean_reward += (task.reward(texts[i], answer_a) + task.reward(texts[i], answer_b)) /
                         (2.0 * static_cast<double>(kPrompts));
    if (a[i] == b[i]) continue;  // nothing to prefer
    const bool a_wins = task.prefers_first(texts[i], answer_a, answer_b);
    fresh.pairs.push_back({prompts[i], a_wins ? a[i] : b[i], a_wins ? b[i] : a[i]});
  }
  return fresh;
}

int run(std::int64_t steps) {
  ControlledTask task({.seed = 3});
  auto policy = std::make_shared<Decoder>(DecoderOptions{.hidden_size = 64,
                                                         .intermediate_size = 128,
                                                         .num_hidden_layers = 2,
                                                         .num_attention_heads = 4,
                                                         .num_key_value_heads = 4});
  const std::string sft_file =
      (std::filesystem::temp_directory_path() / "train_vpo-sft.jsonl").string();
  task.write_sft(sft_file, 32 * steps);
  const std::vector<TokenRow> rows =
      load_dataset(sft_file, ByteTokenizer(), {.train = sft_file}, {.rejected = false}).pairs;
  std::filesystem::remove(sft_file);
  Trainer sft(policy, nullptr, SftLoss(),
              {.optimizer = {.learning_rate = 3e-3}, .total_steps = steps});
  for (std::int64_t step = 0; step < steps; ++step) {
    sft.step({rows.begin() + 32 * step, rows.begin() + 32 * (step + 1)});
  }

  Trainer trainer(policy, make_frozen_reference(policy->frozen_copy()),
                  VpoLoss({.beta = 0.1,
                           .alpha = 0.05,
                           .mode = VpoMode::kOnline,
                           .calibration = Calibration::kRejected}),
                  {.optimizer = {.learning_rate = 5e-4, .schedule = Schedule::kConstant},
                   .total_steps = steps});
  for (std::int64_t step = 0; step < steps; ++step) {
    const FreshPairs fresh = draw_pairs(*policy, task, step);
    if (fresh.pairs.empty()) continue;
    const Metrics metrics = trainer.step(fresh.pairs);
    fmt::print("step {:3}  reward of fresh answers {:+.3f}  loss {:.4f}\n", step + 1,
               fresh.mean_reward, metric(metrics, "loss"));
  }
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  try {
    return run(argc > 1 ? std::atoll(argv[1]) : 20);
  } catch (const Error& error) {
    fmt::print(stderr, "{}\n", error.what());
    return 1;
  }
}
