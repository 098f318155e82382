// SPDX-License-Identifier: Apache-2.0
#include "lab/all_losses.h"

#include <algorithm>
#include <cmath>

#include "prefopt/exact/measures.h"
#include "prefopt/losses/registry.h"

namespace prefopt::lab {
namespace {

using namespace exact;
using Eigen::VectorXd;

constexpr Index kPrompts = 4, kActions = 8, kFeatures = 10;
constexpr double kUncovered = -2;  ///< reward that an action without pairs gets in addition
constexpr double kStep = 0.05;
constexpr int kMostSteps = 300;

/// Returns the first actions of each prompt, which come in no order.
Table first_actions(double share) {
  Table covered = Table::Zero(kActions, kPrompts);
  const auto count = static_cast<Index>(std::lround(share * kActions));
  covered.topRows(std::max<Index>(count, 2)) = 1;
  return covered;
}

/// Linear between the two policies whose distances enclose the asked one.
class Interpolation {
 public:
  explicit Interpolation(const std::vector<double>& distances) : distances_(distances) {}

  void add(double distance, double value) {
    while (next() < distances_.size() && distance >= distances_[next()]) {
      const double asked = distances_[next()];
      const double share =
          distance > last_distance_ ? (asked - last_distance_) / (distance - last_distance_) : 1;
      values_.push_back(last_value_ + share * (value - last_value_));
    }
    last_distance_ = distance;
    last_value_ = value;
  }

  bool complete() const { return next() == distances_.size(); }

  std::vector<double> values() const {
    std::vector<double> all = values_;
    all.resize(distances_.size(), last_value_);
    return all;
  }

 private:
  std::size_t next() const { return values_.size(); }

  const std::vector<double>& distances_;
  std::vector<double> values_;
  double last_distance_ = 0, last_value_ = 0;
};

}  // namespace

std::vector<std::string> losses_of_pairs() {
  std::vector<std::string> names = registered_losses();
  std::erase_if(names, [](const std::string& name) {
    const LossRequirements needs = find_loss(name).make("{}").requirements();
    return needs.of_rewards || needs.of_own_samples || needs.has(Input::from_reference);
  });
  return names;
}

Task::Task(std::uint64_t seed, const TaskOptions& options)
    : policy(SoftmaxPolicy::tabular(Table::Zero(1, 1))),
      labels(Preferences::bradley_terry(Table::Zero(1, 1))) {
  Random random(seed);
  const Table covered = first_actions(options.coverage);
  Eigen::MatrixXd features(kActions * kPrompts, kFeatures + 1);
  features << random.normals(kActions * kPrompts, kFeatures).matrix(),
      (1 - covered).reshaped().matrix();
  VectorXd direction(kFeatures + 1);
  direction << random.normals(kFeatures, 1).matrix() / std::sqrt(kFeatures / 2.0), kUncovered;
  rewards = (features * direction).reshaped(kActions, kPrompts).array();
  ref = log_softmax(0.5 * random.normals(kActions, kPrompts));
  lens = (55 + 20 * random.normals(kActions, kPrompts)).max(10).min(100).round();
  policy = SoftmaxPolicy::log_linear(ref, features);
  labels = Preferences::bradley_terry(rewards + options.length_bias * lens).flipped(options.flips);
  pairs = sample(population(covering(ref, covered), labels), options.pairs, random);
}

Objective Task::objective(const std::string& config) const {
  return {ExactLoss(config),
          policy,
          ref,
          pairs,
          {.lens = lens, .rewards = rewards, .preferences = labels}};
}

Path follow(const Task& task, const std::string& config, const std::vector<double>& distances) {
  const Objective objective = task.objective(config);
  const double reward = expectation(task.ref, task.rewards), len = expectation(task.ref, task.lens);
  Interpolation rewards(distances), lens(distances);
  VectorXd theta = VectorXd::Zero(task.policy.parameters());
  for (int step = 0; step < kMostSteps && !rewards.complete(); ++step) {
    const Table logps = task.policy.logps(theta);
    const double distance = kl(logps, task.ref);
    rewards.add(distance, expectation(logps, task.rewards) - reward);
    lens.add(distance, expectation(logps, task.lens) - len);
    const VectorXd gradient = objective.evaluate(theta).gradient;
    const double norm = gradient.norm();
    if (!(norm > 1e-12)) break;
    theta -= kStep / norm * gradient;
  }
  return {rewards.values(), lens.values()};
}

std::vector<double> most_rewards(const Task& task, const std::vector<double>& distances) {
  std::vector<double> result;
  for (const double distance : distances) {
    result.push_back(expectation(optimum_at(task.ref, task.rewards, distance), task.rewards) -
                     expectation(task.ref, task.rewards));
  }
  return result;
}

}  // namespace prefopt::lab
