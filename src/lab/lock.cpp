// SPDX-License-Identifier: Apache-2.0
#include "lab/lock.h"

#include "lab/experiments.h"

namespace prefopt::lab {

using Eigen::Index;
using exact::Table;

std::vector<double> lock_steps(exact::Random& random, Index depth, std::size_t kinds,
                               const StepsToOpen& steps_to_open) {
  const Table logits = 0.3 * random.normals(kLockLetters, depth);
  std::vector<double> steps;
  for (std::size_t kind = 0; kind < kinds; ++kind) steps.push_back(steps_to_open(logits, kind));
  return steps;
}

LockSteps report_lock_steps(const std::string& experiment, const std::vector<std::string>& names,
                            const std::vector<std::vector<double>>& by_seed, Index depth,
                            const StepsToOpen& steps_to_open) {
  LockSteps steps{.report = {.data = {{experiment, {"case", "depth", "steps", "low", "high"}}},
                             .pictures = {{experiment,
                                           {.title = "Steps until a lock opens, 20000: never",
                                            .x_label = "depth",
                                            .y_label = "steps",
                                            .log_y = true}}}},
                  .uniform = std::vector<std::vector<double>>(names.size())};
  Report& report = steps.report;
  const std::vector<double> depths{4, 8, 12};
  for (std::size_t kind = 0; kind < names.size(); ++kind) {
    std::vector<Estimate> ys;
    for (const double each : depths) {
      const Table logits = Table::Zero(kLockLetters, static_cast<Index>(each));
      steps.uniform[kind].push_back(steps_to_open(logits, kind));
      ys.push_back(exactly(steps.uniform[kind].back()));
    }
    add_curve(report, names[kind], depths, ys);
    report.pictures[0].chart.series.back().style = detail::Series::Style::kLineAndPoints;
    const Estimate random = mean(by_seed, kind);
    report.data[0].rows.push_back({names[kind] + ", policies near uniform",
                                   static_cast<double>(depth), random.value, random.low,
                                   random.high});
  }
  return steps;
}

}  // namespace prefopt::lab
