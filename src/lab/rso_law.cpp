// SPDX-License-Identifier: Apache-2.0

// 2309.06657 (RSO) equation 4: completions that its algorithm 1 accepts from many draws of pi_sft
// follow pi_r ~ pi_sft e^(r / beta). Three actions, the library's own accept_by_rejection, 8 of 64
// draws as in the paper. Controls: 4 of 8 draws, where the largest reward drawn is seldom the
// largest there is, and half of the draws are accepted; draws at the paper's temperature of 0.7,
// whose law is not pi_sft's.

#include <cstdint>

#include "lab/experiments.h"
#include "prefopt/exact/measures.h"
#include "prefopt/exact/random.h"
#include "prefopt/online/rejection.h"

namespace prefopt::lab::rso_law {
namespace {

using namespace exact;
using Eigen::ArrayXd;

constexpr double kBeta = 0.5;
const std::vector<double> kLaw{0.5, 0.1, 0.4}, kRewards{0.2, 1, 0};

struct Case {
  std::string name;
  int draws, accepted;
  double temperature;
};

const std::vector<Case> kCases{{"8 of 512", 512, 8, 1},
                               {"8 of 64", 64, 8, 1},
                               {"8 of 16", 16, 8, 1},
                               {"4 of 8", 8, 4, 1},
                               {"8 of 64 at temperature 0.7", 64, 8, 0.7}};

ArrayXd as_array(const std::vector<double>& values) {
  return Eigen::Map<const ArrayXd>(values.data(), static_cast<Index>(values.size()));
}

/// Shares of the actions among the accepted, for each case.
std::vector<double> run_seed(int seed, int repeats) {
  Random random(static_cast<std::uint64_t>(seed));
  std::vector<double> row;
  for (const Case& one : kCases) {
    const ArrayXd law = as_array(kLaw).pow(1 / one.temperature);
    std::vector<double> counts(kLaw.size(), 0);
    for (int repeat = 0; repeat < repeats; ++repeat) {
      std::vector<std::size_t> actions;
      std::vector<double> rewards;
      for (int draw = 0; draw < one.draws; ++draw) {
        actions.push_back(static_cast<std::size_t>(random.index(law)));
        rewards.push_back(kRewards[actions.back()]);
      }
      const auto accepted =
          accept_by_rejection(rewards, kBeta, one.accepted, [&] { return random.uniform(); });
      for (const std::int64_t place : accepted) {
        counts[actions[static_cast<std::size_t>(place)]] += 1.0 / (repeats * one.accepted);
      }
    }
    row.insert(row.end(), counts.begin(), counts.end());
  }
  return row;
}

/// Total variation between the accepted of all seeds and pi_r, made of pi_sft at a temperature.
Estimate variation(const BySeed& by_seed, std::size_t c, double temperature = 1) {
  ArrayXd target = as_array(kLaw).pow(1 / temperature) * (as_array(kRewards) / kBeta).exp();
  target /= target.sum();
  return bootstrap(by_seed.size(), [&](const std::vector<std::size_t>& seeds) {
    const auto shares = mean_curve(by_seed, seeds, c * kLaw.size(), kLaw.size());
    return (as_array(shares) - target).abs().sum() / 2;
  });
}

}  // namespace

Report run(const Settings& settings) {
  const int repeats = settings.quick ? 50 : 400;
  const auto by_seed =
      for_each_seed(settings.seeds, [&](int seed) { return run_seed(seed, repeats); });
  std::vector<Estimate> found;
  for (std::size_t c = 0; c < kCases.size(); ++c) found.push_back(variation(by_seed, c));
  Report report{.data = {{"rso-law", {"case", "draws", "variation", "low", "high"}}},
                .pictures = {{"rso-law",
                              {.title = "The law of the accepted, 8 of so many draws",
                               .x_label = "draws",
                               .y_label = "total variation to π_r",
                               .log_x = true}}}};
  add_curve(report, "temperature 1", {512, 64, 16}, {found[0], found[1], found[2]});
  add_curve(report, "temperature 0.7", {64}, {found[4]});
  for (std::size_t c = 0; c < kCases.size(); ++c) {
    for (std::size_t y = 0; y < kLaw.size(); ++y) {
      const Estimate share = mean(by_seed, c * kLaw.size() + y);
      report.data[0].rows.push_back({kCases[c].name + ", share of action " + std::to_string(y),
                                     static_cast<double>(kCases[c].draws), share.value, share.low,
                                     share.high});
    }
  }
  report.verdicts = {
      below("8 of 64 draws follow π_r: total variation", found[1], 0.02),
      above("control: 4 of 8 draws do not: total variation", found[3], 0.1),
      above("control: nor do 8 of 64 at temperature 0.7: total variation", found[4], 0.05),
      below("but the law of those draws times e^(r / β): total variation",
            variation(by_seed, 4, kCases[4].temperature), 0.02)};
  return report;
}

}  // namespace prefopt::lab::rso_law
