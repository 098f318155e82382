// SPDX-License-Identifier: Apache-2.0

// Steps over several ranks, threads of this process, are those of one process.

#include <map>
#include <string>
#include <vector>

#include "prefopt/decoder/reward_model.h"
#include "prefopt/policy/moving_reference.h"
#include "support/rank_jobs.h"
#include "support/reward_models.h"
#include "support/temp_dir.h"

namespace prefopt::over_ranks {
namespace {

std::vector<std::string> pair_losses() {
  std::vector<std::string> all;
  for (const std::string& name : registered_losses()) {
    if (!make_loss(named(name)).requirements().of_rewards) all.push_back(name);
  }
  return all;
}

void check_losses(int size, const std::vector<std::string>& losses, int steps) {
  const ThreadRanks ranks(size);
  for (const std::string& loss : losses) {
    CAPTURE(size, loss);
    check_against_one_process(
        ranks, size, [&] { return pair_job(torch::kDouble, named(loss)); }, steady(), 1e-12, steps);
  }
}

TEST_CASE("ranks: every loss trains as in one process", "[train]") {
  check_losses(2, pair_losses(), 1);
  // Whole steps, a running mean, mismatched rows, samples; four ranks of four parts.
  const std::vector<std::string> some = {"dpo", "kto", "bco_pair", "aot", "xpo"};
  check_losses(3, some, 2);
  check_losses(4, some, 2);
}

TEST_CASE("ranks: every loss, three steps", "[train][.long]") {
  for (const int size : {2, 3, 4}) check_losses(size, pair_losses(), 3);
}

TEST_CASE("ranks: adapters, moving and cached references", "[train]") {
  const int size = 3;
  const ThreadRanks ranks(size);
  TempDir folder;
  int caches = 0;
  const MovingReferenceOptions soft{.alpha = 0.3, .update_steps = 1};
  const std::map<std::string, std::function<Job()>> jobs = {
      {"lora", [] { return pair_job(torch::kDouble, named("dpo"), Adapter::kLora); }},
      {"moving", [&] { return with_moving(Adapter::kNone, soft); }},
      {"moving lora", [&] { return with_moving(Adapter::kLora, soft); }},
      {"cached", [&] { return with_cached(folder.file(std::to_string(caches++))); }}};
  for (const auto& [name, make_job] : jobs) {
    CAPTURE(name);
    check_against_one_process(ranks, size, make_job, steady(), 1e-12, 3);
  }
}

TEST_CASE("ranks: a policy that autograd differentiates, and a reward model", "[train]") {
  const ThreadRanks ranks(2);
  check_against_one_process(
      ranks, 2,
      [] {
        const auto policy = std::make_shared<BigramPolicy>(9);
        return pair_job(policy, make_frozen_reference(std::make_shared<BigramPolicy>(8)),
                        named("dpo"));
      },
      steady(), 1e-12, 3, bigram_rows);
  check_against_one_process(
      ranks, 2,
      [] {
        return pair_job(RewardModel::load(kRewardModels + "llama", "float64"), nullptr,
                        named("reward_bt"));
      },
      steady(), 1e-12, 2, [](int) { return reward_rows(); });
}

}  // namespace
}  // namespace prefopt::over_ranks
