// SPDX-License-Identifier: Apache-2.0
#include "prefopt/exact/preferences.h"

#include <fmt/format.h>

#include <cmath>
#include <utility>

#include "prefopt/error.h"
#include "prefopt/math/functions.h"

namespace prefopt::exact {
namespace {

/// P(a, b) = f(r(a) - r(b))
template <class F>
std::vector<Eigen::MatrixXd> of_gaps(const Table& rewards, F&& f) {
  if (rewards.size() == 0 || !rewards.isFinite().all()) {
    throw ConfigError("preferences: expected a finite reward for each action of each prompt");
  }
  std::vector<Eigen::MatrixXd> probabilities;
  for (const auto& column : rewards.colwise()) {
    probabilities.push_back(
        Eigen::MatrixXd::NullaryExpr(rewards.rows(), rewards.rows(),
                                     [&](Index a, Index b) { return f(column[a] - column[b]); }));
  }
  return probabilities;
}

void check(const Eigen::MatrixXd& p, Index actions, std::size_t prompt) {
  constexpr double kTolerance = 1e-12;
  if (p.rows() != actions || p.cols() != actions || actions == 0) {
    throw ShapeError(
        fmt::format("preferences: expected a matrix [{}, {}] for prompt {}, got [{}, {}]", actions,
                    actions, prompt, p.rows(), p.cols()));
  }
  for (Index a = 0; a < actions; ++a) {
    for (Index b = 0; b < actions; ++b) {
      if (!(p(a, b) >= 0 && p(a, b) <= 1)) {
        throw ConfigError(
            fmt::format("preferences: expected P(a beats b) in [0, 1], got {} for actions {} and "
                        "{} of prompt {}",
                        p(a, b), a, b, prompt));
      }
      if (std::abs(p(a, b) + p(b, a) - 1) > kTolerance) {
        throw ConfigError(fmt::format(
            "preferences: expected P(a beats b) + P(b beats a) = 1, got {} for actions {} and {} "
            "of prompt {}",
            p(a, b) + p(b, a), a, b, prompt));
      }
    }
  }
}

}  // namespace

Preferences Preferences::bradley_terry(const Table& rewards) {
  return Preferences(of_gaps(rewards, [](double gap) { return math::sigmoid(gap); }));
}

Preferences Preferences::deterministic(const Table& rewards) {
  return Preferences(of_gaps(rewards, [](double gap) {
    return gap > 0 ? 1.0 : gap < 0 ? 0.0 : 0.5;
  }));
}

Preferences Preferences::general(std::vector<Eigen::MatrixXd> probabilities) {
  if (probabilities.empty()) {
    throw ShapeError("preferences: expected a matrix for each prompt, got none");
  }
  for (std::size_t prompt = 0; prompt < probabilities.size(); ++prompt) {
    check(probabilities[prompt], probabilities.front().rows(), prompt);
  }
  return Preferences(std::move(probabilities));
}

Preferences Preferences::flipped(double rate) const {
  if (!(rate >= 0 && rate < 0.5)) {
    throw ConfigError(fmt::format(
        "preferences: expected a flip rate in [0, 0.5), got {}; at 0.5 labels say nothing", rate));
  }
  std::vector<Eigen::MatrixXd> noisy;
  for (const Eigen::MatrixXd& p : probabilities_) {
    noisy.emplace_back(((1 - 2 * rate) * p.array() + rate).matrix());
  }
  return Preferences(std::move(noisy));
}

}  // namespace prefopt::exact
