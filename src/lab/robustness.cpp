// SPDX-License-Identifier: Apache-2.0

// The effect of wrong labels, partial coverage and labels that favour length on each loss of the
// registry, at equal distance from the reference: tables for choosing one.

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "lab/all_losses.h"
#include "lab/experiments.h"

namespace prefopt::lab::robustness {
namespace {

constexpr double kDistance = 0.7;  ///< nats

struct Level {
  std::string name;
  TaskOptions task;
};

/// Share of the most reward that a policy can have at the distance, or tokens above the
/// reference's.
enum class Measured { kReward, kTokens };

/// A loss of the registry with its default options, or told the flip rate.
struct Contender {
  std::string name;
  std::string (*config)(const std::string& name, const TaskOptions& task);
};

std::string plain(const std::string& name, const TaskOptions& /*task*/) {
  return fmt::format(R"({{"type": "{}"}})", name);
}

std::string told_the_rate(const std::string& /*name*/, const TaskOptions& task) {
  return fmt::format(R"({{"type": "robust_dpo", "label_smoothing": {}}})", task.flips);
}

/// Each contender's measure at each level.
class Comparison {
 public:
  Comparison(std::vector<Level> levels, Measured measured, const Settings& settings)
      : levels_(std::move(levels)) {
    for (const std::string& name : losses_of_pairs()) {
      contenders_.push_back({name, name == "robust_dpo" ? told_the_rate : plain});
    }
    by_seed_ = for_each_seed(settings.seeds, [&](int seed) { return run_seed(seed, measured); });
  }

  Estimate at(const std::string& loss, std::size_t level) const {
    return mean(by_seed_, column(loss, level));
  }

  /// Of a difference within each seed.
  Estimate difference(const std::string& loss, std::size_t level, const std::string& other_loss,
                      std::size_t other_level) const {
    const std::size_t a = column(loss, level), b = column(other_loss, other_level);
    std::vector<std::vector<double>> differences;
    for (const auto& row : by_seed_) differences.push_back({row[a] - row[b]});
    return mean(differences, 0);
  }

  Report report(const std::string& name, const std::string& title, const std::string& x_label,
                const std::string& y_label) const {
    Report report{.data = {{name, {"loss", x_label, y_label, "low", "high"}}}};
    detail::Chart chart{.title = title, .x_label = x_label, .y_label = y_label};
    for (const Contender& contender : contenders_) {
      detail::Series series{.name = contender.name};
      for (std::size_t level = 0; level < levels_.size(); ++level) {
        const Estimate estimate = at(contender.name, level);
        series.xs.push_back(std::stod(levels_[level].name));
        series.ys.push_back(estimate.value);
        report.data[0].rows.push_back(
            {contender.name, levels_[level].name, estimate.value, estimate.low, estimate.high});
      }
      chart.series.push_back(std::move(series));
    }
    report.pictures = {{name, std::move(chart)}};
    return report;
  }

 private:
  std::size_t column(const std::string& loss, std::size_t level) const {
    const auto at = std::find_if(contenders_.begin(), contenders_.end(),
                                 [&](const Contender& c) { return c.name == loss; });
    return static_cast<std::size_t>(at - contenders_.begin()) * levels_.size() + level;
  }

  std::vector<double> run_seed(int seed, Measured measured) const {
    std::vector<Task> tasks;
    for (const Level& level : levels_)
      tasks.emplace_back(static_cast<std::uint64_t>(seed), level.task);
    std::vector<double> row;
    for (const Contender& contender : contenders_) {
      for (std::size_t level = 0; level < levels_.size(); ++level) {
        const Path path = follow(
            tasks[level], contender.config(contender.name, levels_[level].task), {kDistance});
        row.push_back(measured == Measured::kReward
                          ? path.rewards[0] / most_rewards(tasks[level], {kDistance})[0]
                          : path.lens[0]);
      }
    }
    return row;
  }

  std::vector<Level> levels_;
  std::vector<Contender> contenders_;
  std::vector<std::vector<double>> by_seed_;
};

std::vector<Level> levels_of(const std::vector<double>& values, double TaskOptions::*option) {
  std::vector<Level> levels;
  for (const double value : values) {
    Level level{fmt::format("{}", value), {}};
    level.task.*option = value;
    levels.push_back(level);
  }
  return levels;
}

}  // namespace

Report noise(const Settings& settings) {
  const std::vector<double> rates =
      settings.quick ? std::vector<double>{0, 0.4} : std::vector<double>{0, 0.1, 0.2, 0.3, 0.4};
  const Comparison comparison(levels_of(rates, &TaskOptions::flips), Measured::kReward, settings);
  Report report = comparison.report("noise", "Wrong labels, 0.7 nats from the reference",
                                    "flip rate", "share of the most reward");
  const std::size_t most = rates.size() - 1;
  const Estimate loss = comparison.difference("dpo", 0, "dpo", most);
  const Estimate robust = comparison.difference("robust_dpo", most, "dpo", most);
  const Estimate clean = comparison.difference("robust_dpo", 0, "dpo", 0);
  report.verdicts = {
      {"wrong labels cost DPO reward: share lost at the highest rate", loss, "above 0",
       loss.low > 0},
      {"rDPO, told the rate, has more reward than DPO at the same distance", robust, "above 0",
       robust.low > 0},
      {"control: without wrong labels the two are one", clean, "0", clean.value == 0}};
  return report;
}

Report coverage(const Settings& settings) {
  const std::vector<double> shares =
      settings.quick ? std::vector<double>{0.25, 1} : std::vector<double>{0.25, 0.5, 0.75, 1};
  const Comparison comparison(levels_of(shares, &TaskOptions::coverage), Measured::kReward,
                              settings);
  Report report = comparison.report("coverage", "Partial coverage, 0.7 nats from the reference",
                                    "share of actions in the pairs", "share of the most reward");
  const std::size_t all = shares.size() - 1;
  const Estimate loss = comparison.difference("dpo", all, "dpo", 0);
  const Estimate rpo = comparison.difference("rpo", 0, "dpo", 0);
  const Estimate control = comparison.difference("rpo", all, "dpo", all);
  report.verdicts = {
      {"actions without pairs cost DPO reward: share lost with a quarter of the actions", loss,
       "above 0", loss.low > 0},
      {"RPO, pessimistic, has more reward than DPO there", rpo, "above 0", rpo.low > 0},
      {"control: with all actions in the pairs that is worth little", control, "within 0.05 of 0",
       std::max(std::abs(control.low), std::abs(control.high)) < 0.05}};
  return report;
}

Report length(const Settings& settings) {
  const std::vector<double> biases =
      settings.quick ? std::vector<double>{0, 0.04} : std::vector<double>{0, 0.01, 0.02, 0.04};
  const Comparison comparison(levels_of(biases, &TaskOptions::length_bias), Measured::kTokens,
                              settings);
  Report report =
      comparison.report("length", "Labels that favour length, 0.7 nats from the reference",
                        "reward of a token in the labels", "tokens above the reference's");
  const std::size_t most = biases.size() - 1;
  const Estimate dpo = comparison.difference("dpo", most, "dpo", 0);
  const Estimate r_dpo = comparison.difference("r_dpo", most, "dpo", most);
  const Estimate norm = comparison.difference("sigmoid_norm", most, "dpo", most);
  const Estimate control = comparison.at("dpo", 0);
  report.verdicts = {
      {"labels that favour length make DPO longer: tokens", dpo, "above 0", dpo.low > 0},
      {"R-DPO is shorter than DPO at the same distance: tokens", r_dpo, "below 0", r_dpo.high < 0},
      {"length-normalized DPO is shorter than DPO: tokens", norm, "below 0", norm.high < 0},
      {"control: labels that do not favour length leave it alone: tokens", control,
       "an interval that holds 0", control.low < 0 && control.high > 0}};
  return report;
}

}  // namespace prefopt::lab::robustness
