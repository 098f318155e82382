// SPDX-License-Identifier: Apache-2.0

// Reward against distance from the reference for every loss of the registry, on one task with 400
// clean Bradley-Terry pairs of all actions, with the most that any policy can have. 2305.18290 does
// the same for DPO and PPO. Control: DPO on labels that say nothing.

#include <algorithm>

#include "lab/all_losses.h"
#include "lab/experiments.h"

namespace prefopt::lab::frontier {
namespace {

const std::vector<double> kDistances{0.05, 0.1, 0.2, 0.3, 0.5, 0.7, 1, 1.3};
constexpr std::size_t kAtOneNat = 6;

std::vector<double> run_seed(int seed, const std::vector<std::string>& losses) {
  const auto number = static_cast<std::uint64_t>(seed);
  const Task task(number, {});
  std::vector<double> row = most_rewards(task, kDistances);
  const auto add = [&](const Task& of, const std::string& loss) {
    const Path path = follow(of, R"({"type": ")" + loss + R"("})", kDistances);
    row.insert(row.end(), path.rewards.begin(), path.rewards.end());
  };
  for (const std::string& loss : losses) add(task, loss);
  add(Task(number, {.flips = 0.499999}), "dpo");
  return row;
}

}  // namespace

Report run(const Settings& settings) {
  const std::vector<std::string> losses = losses_of_pairs();
  const auto by_seed =
      for_each_seed(settings.seeds, [&](int seed) { return run_seed(seed, losses); });
  std::vector<std::string> names{"the most there is"};
  names.insert(names.end(), losses.begin(), losses.end());
  const std::size_t points = kDistances.size();

  Report report{.data = {{"frontier", {"loss", "kl", "reward", "low", "high"}}}};
  detail::Chart chart{.title = "Reward against distance from the reference, default options",
                      .x_label = "KL(π ‖ π_ref), nats",
                      .y_label = "reward above the reference's"};
  for (std::size_t i = 0; i < names.size(); ++i) {
    detail::Series series{.name = names[i]};
    for (std::size_t k = 0; k < points; ++k) {
      const Estimate reward = mean(by_seed, i * points + k);
      series.xs.push_back(kDistances[k]);
      series.ys.push_back(reward.value);
      report.data[0].rows.push_back(
          {names[i], kDistances[k], reward.value, reward.low, reward.high});
    }
    chart.series.push_back(std::move(series));
  }
  report.pictures = {{"frontier", std::move(chart)}};

  double excess = -1;
  for (const auto& row : by_seed) {
    for (std::size_t i = points; i < row.size(); ++i) {
      excess = std::max(excess, row[i] - row[i % points]);
    }
  }
  const auto share = [&](std::size_t i) {
    return bootstrap(by_seed.size(), [&](const std::vector<std::size_t>& seeds) {
      double reward = 0, most = 0;
      for (const std::size_t seed : seeds) {
        reward += by_seed[seed][i * points + kAtOneNat];
        most += by_seed[seed][kAtOneNat];
      }
      return reward / most;
    });
  };
  const auto dpo =
      static_cast<std::size_t>(std::find(names.begin(), names.end(), "dpo") - names.begin());
  const Estimate dpo_share = share(dpo), control = share(names.size());
  report.verdicts = {
      {"no loss has more reward than the optimum of the same distance: largest excess",
       exactly(excess), "below 0.01, the error of interpolating", excess < 0.01},
      {"DPO's share of the most reward at 1 nat", dpo_share, "above 0.8", dpo_share.low > 0.8},
      {"control: on labels that say nothing its share", control, "below 0.2", control.high < 0.2}};
  return report;
}

}  // namespace prefopt::lab::frontier
