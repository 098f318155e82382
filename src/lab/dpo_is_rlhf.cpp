// SPDX-License-Identifier: Apache-2.0

// 2305.18290: the optimum of DPO's loss is the policy ref e^(r / beta) / Z that maximizes the
// KL-regularized reward. That is derived for preferences that are Bradley-Terry in r and for pairs
// that cover all actions. Controls: one action is never compared; another loss.

#include <algorithm>
#include <cmath>

#include "lab/experiments.h"
#include "prefopt/exact/measures.h"
#include "prefopt/exact/minimize.h"

namespace prefopt::lab::dpo_is_rlhf {
namespace {

using namespace exact;

constexpr Index kActions = 6, kPrompts = 3;
constexpr double kBeta = 0.2;
constexpr int kSteps = 14;

/// Largest |log pi - log pi*| after each of the first steps of Newton's method.
std::vector<double> distances(const Objective& objective, const Table& best) {
  std::vector<double> result;
  Eigen::VectorXd theta = Eigen::VectorXd::Zero(objective.policy().parameters());
  for (int step = 0; step <= kSteps; ++step) {
    const Table logps = objective.policy().logps(theta);
    result.push_back((logps - best).abs().maxCoeff());
    theta = minimize(objective, theta, {.gradient_tolerance = 0, .max_iterations = 1}).theta;
  }
  return result;
}

std::vector<double> run_seed(int seed) {
  Random random(static_cast<std::uint64_t>(seed));
  const Table ref = log_softmax(random.normals(kActions, kPrompts));
  const Table rewards = random.normals(kActions, kPrompts);
  const Table best = optimum(ref, rewards, kBeta);
  const SoftmaxPolicy policy = SoftmaxPolicy::tabular(ref);
  const Preferences preferences = Preferences::bradley_terry(rewards);
  const Pairs all = population(ref, preferences);
  Table covered = Table::Ones(kActions, kPrompts);
  covered.row(0) = 0;
  const Pairs some = population(covering(ref, covered), preferences);

  std::vector<double> row;
  const auto add = [&](const std::string& loss, const Pairs& pairs) {
    const auto found = distances(Objective(ExactLoss(loss), policy, ref, pairs), best);
    row.insert(row.end(), found.begin(), found.end());
  };
  add(R"({"type": "dpo", "beta": 0.2})", all);
  add(R"({"type": "dpo", "beta": 0.2})", some);
  add(R"({"type": "ipo", "beta": 0.2})", all);
  return row;
}

}  // namespace

Report run(const Settings& settings) {
  const auto by_seed = for_each_seed(settings.seeds, run_seed);
  const std::vector<std::string> names{
      "dpo, all actions compared", "dpo, one action never compared", "ipo, all actions compared"};
  Report report{.data = {{"dpo-is-rlhf", {"case", "newton_step", "largest_log_distance"}}}};
  detail::Chart chart{.title = "Distance to the optimum of the KL-regularized reward",
                      .x_label = "steps of Newton's method",
                      .y_label = "largest |log π − log π*|",
                      .log_y = true};
  std::vector<double> last_worst(names.size()), last_best(names.size());
  for (std::size_t i = 0; i < names.size(); ++i) {
    detail::Series series{.name = names[i]};
    for (int step = 0; step <= kSteps; ++step) {
      const std::size_t column = i * (kSteps + 1) + static_cast<std::size_t>(step);
      std::vector<double> values;
      for (const auto& row : by_seed) values.push_back(row[column]);
      const auto [least, most] = std::minmax_element(values.begin(), values.end());
      series.xs.push_back(step);
      series.ys.push_back(*most);
      report.data[0].rows.push_back({names[i], static_cast<double>(step), *most});
      last_best[i] = *least;
      last_worst[i] = *most;
    }
    chart.series.push_back(std::move(series));
  }
  report.pictures = {{"dpo-is-rlhf", std::move(chart)}};
  report.verdicts = {{"DPO's optimum is the closed form (largest log distance of all seeds)",
                      exactly(last_worst[0]), "below 1e-8", last_worst[0] < 1e-8},
                     {"control: an action without data keeps it from that (smallest distance)",
                      exactly(last_best[1]), "above 0.01", last_best[1] > 0.01},
                     {"control: IPO's optimum is another policy (smallest distance)",
                      exactly(last_best[2]), "above 0.01", last_best[2] > 0.01}};
  return report;
}

}  // namespace prefopt::lab::dpo_is_rlhf
