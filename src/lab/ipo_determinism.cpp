// SPDX-License-Identifier: Apache-2.0

// 2310.12036, sections 4.2 and 5: where the better action always wins, DPO's optimum puts all mass
// on the best action whatever beta is; IPO's stays at a distance from the reference that tau sets.
// A tabular policy is followed to ever smaller gradients: KL(ref || pi) then grows without end for
// DPO, while KL(pi || ref) tends to the most it can be, -log ref(best). Control: Bradley-Terry
// preferences, on which DPO has an optimum.

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "lab/experiments.h"
#include "prefopt/exact/measures.h"
#include "prefopt/exact/minimize.h"

namespace prefopt::lab::ipo_determinism {
namespace {

using namespace exact;

constexpr Index kActions = 5;
const std::vector<double> kBetas{0.1, 0.5, 2};
const std::vector<double> kTolerances{1e-2, 1e-4, 1e-6, 1e-8, 1e-10};
const std::vector<double> kTaus{1, 2, 4, 8};

struct Followed {
  std::vector<double> forward_kl;  ///< KL(ref || pi) for each tolerance
  double missing = 0;              ///< -log ref(best) - KL(pi || ref) at the last
};

Followed follow(const std::string& type, double beta, const Table& ref, const Table& rewards,
                const Preferences& preferences) {
  const SoftmaxPolicy policy = SoftmaxPolicy::tabular(ref);
  const std::string config = type == "ipo" ? fmt::format(R"({{"type": "ipo", "beta": {}}})", beta)
                                           : fmt::format(R"({{"type": "dpo", "beta": {}}})", beta);
  const Objective objective(ExactLoss(config), policy, ref, population(ref, preferences));
  Followed result;
  Eigen::VectorXd theta = Eigen::VectorXd::Zero(policy.parameters());
  for (const double tolerance : kTolerances) {
    theta = minimize(objective, theta, {.gradient_tolerance = beta * tolerance}).theta;
    result.forward_kl.push_back(kl(ref, policy.logps(theta)));
  }
  Index best = 0;
  rewards.col(0).maxCoeff(&best);
  result.missing = -ref(best, 0) - kl(policy.logps(theta), ref);
  return result;
}

/// Columns: for dpo, ipo and dpo on Bradley-Terry preferences, for each beta, the KLs and what is
/// missing; then IPO's KL(pi || ref) for each tau.
std::vector<double> run_seed(int seed) {
  Random random(static_cast<std::uint64_t>(seed));
  const Table ref = log_softmax(random.normals(kActions, 1));
  const Table rewards = random.normals(kActions, 1);
  const Preferences sure = Preferences::deterministic(rewards);
  const Preferences bt = Preferences::bradley_terry(rewards);
  std::vector<double> row;
  const auto add = [&](const std::string& type, const Preferences& preferences) {
    for (const double beta : kBetas) {
      const Followed found = follow(type, beta, ref, rewards, preferences);
      row.insert(row.end(), found.forward_kl.begin(), found.forward_kl.end());
      row.push_back(found.missing);
    }
  };
  add("dpo", sure);
  add("ipo", sure);
  add("dpo", bt);
  for (const double tau : kTaus) {
    const SoftmaxPolicy policy = SoftmaxPolicy::tabular(ref);
    const Objective ipo(ExactLoss(fmt::format(R"({{"type": "ipo", "beta": {}}})", tau)), policy,
                        ref, population(ref, sure));
    row.push_back(kl(policy.logps(minimize(ipo, Eigen::VectorXd::Zero(kActions)).theta), ref));
  }
  return row;
}

}  // namespace

Report run(const Settings& settings) {
  const auto by_seed = for_each_seed(settings.seeds, run_seed);
  const std::size_t block = kTolerances.size() + 1;
  const auto column = [&](std::size_t kind, std::size_t beta) {
    return (kind * kBetas.size() + beta) * block;
  };
  std::vector<double> efolds;
  for (const double tolerance : kTolerances) efolds.push_back(-std::log(tolerance));

  const std::vector<std::string> kinds{"dpo", "ipo", "dpo, Bradley–Terry"};
  Report report{.data = {{"ipo-determinism", {"case", "beta", "gradient", "forward_kl"}}}};
  detail::Chart chart{.title = "Deterministic preferences: distance from the reference",
                      .x_label = "1 / gradient that the optimizer stopped at",
                      .y_label = "KL(π_ref ‖ π), nats",
                      .log_x = true,
                      .log_y = true};
  // Growth of the KL from the second tolerance on, for each kind and beta.
  std::vector<std::vector<Estimate>> growth(kinds.size());
  for (std::size_t kind = 0; kind < kinds.size(); ++kind) {
    for (std::size_t b = 0; b < kBetas.size(); ++b) {
      const std::size_t first = column(kind, b);
      detail::Series series{.name = fmt::format("{}, β = {}", kinds[kind], kBetas[b])};
      for (std::size_t t = 0; t < kTolerances.size(); ++t) {
        const Estimate forward_kl = mean(by_seed, first + t);
        add_point(series, 1 / kTolerances[t], forward_kl);
        report.data[0].rows.push_back({kinds[kind], kBetas[b], kTolerances[t], forward_kl.value});
      }
      chart.series.push_back(std::move(series));
      growth[kind].push_back(bootstrap(by_seed.size(), [&](const std::vector<std::size_t>& seeds) {
        double sum = 0;
        for (const std::size_t seed : seeds) {
          const std::vector<double> kls(
              by_seed[seed].begin() + static_cast<long>(first) + 1,
              by_seed[seed].begin() + static_cast<long>(first + block) - 1);
          sum += slope({efolds.begin() + 1, efolds.end()}, kls);
        }
        return kBetas[b] * sum / static_cast<double>(seeds.size());
      }));
    }
  }
  report.pictures = {{"ipo-determinism", std::move(chart)}};

  double most_missing = 0;
  for (std::size_t b = 0; b < kBetas.size(); ++b) {
    for (const auto& row : by_seed) {
      most_missing = std::max(most_missing, row[column(0, b) + kTolerances.size()]);
    }
  }
  const auto extreme = [](const std::vector<Estimate>& all, bool least) {
    const auto by_value = [](const Estimate& a, const Estimate& b) {
      return std::abs(a.value) < std::abs(b.value);
    };
    return least ? *std::min_element(all.begin(), all.end(), by_value)
                 : *std::max_element(all.begin(), all.end(), by_value);
  };
  const Estimate dpo = extreme(growth[0], true), ipo = extreme(growth[1], false),
                 control = extreme(growth[2], false);
  const Estimate tau = exponent(by_seed, kinds.size() * kBetas.size() * block, kTaus);
  report.verdicts = {
      {"DPO's β KL(π_ref ‖ π) grows with each e-fold of the gradient, least of all β", dpo,
       "above 0.1", dpo.low > 0.1},
      {"DPO ends on the best action for every β: −log π_ref(best) − KL(π ‖ π_ref), largest",
       exactly(most_missing), "below 0.01", most_missing < 0.01},
      {"IPO's KL stops growing: the same slope, largest of all τ", ipo, "below 1e-3 in size",
       std::max(std::abs(ipo.low), std::abs(ipo.high)) < 1e-3},
      {"τ sets IPO's distance: exponent of KL(π ‖ π_ref) in τ", tau, "−2 within 0.2",
       std::abs(tau.value + 2) < 0.2},
      {"control: on Bradley–Terry preferences DPO's KL stops growing, largest slope", control,
       "below 1e-3 in size", std::max(std::abs(control.low), std::abs(control.high)) < 1e-3}};
  return report;
}

}  // namespace prefopt::lab::ipo_determinism
