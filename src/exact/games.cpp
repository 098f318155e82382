// SPDX-License-Identifier: Apache-2.0
#include "prefopt/exact/games.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "prefopt/error.h"
#include "prefopt/exact/measures.h"

namespace prefopt::exact {
namespace {

using Eigen::ArrayXd;
using Eigen::MatrixXd;
using Eigen::VectorXd;

void check_players(const Table& logps, const Table& other) {
  if (logps.rows() == other.rows() && logps.cols() == other.cols()) return;
  throw ShapeError(fmt::format("games: expected a table [{}, {}], got [{}, {}]", logps.rows(),
                               logps.cols(), other.rows(), other.cols()));
}

void check_positive(double value, const char* name) {
  if (value > 0 && std::isfinite(value)) return;
  throw ConfigError(fmt::format("games: expected {} above 0, got {}", name, value));
}

void check_share(double tau, double step) {
  check_positive(step, "step");
  if (step * tau >= 0 && step * tau <= 1) return;
  throw ConfigError(
      fmt::format("games: expected step tau from 0 to 1, the reference's share, got {} = {} * {}",
                  step * tau, step, tau));
}

/// Log of a^(1 - share) b^share, not normalized. A share of 0 or 1 is apart: 0 times -inf is no
/// number.
Table mixed(const Table& a, const Table& b, double share) {
  check_players(a, b);
  if (share == 0) return a;
  if (share == 1) return b;
  return (1 - share) * a + share * b;
}

/// Log of ref e^(P(. beats pi) / tau) / Z.
Table best_reply(const Table& logps, const Table& ref, const Preferences& preferences, double tau) {
  return optimum(ref, win_rates(logps, preferences), tau);
}

double largest_edge(const Preferences& preferences) {
  double edge = 0;
  for (Index x = 0; x < preferences.prompts(); ++x) {
    edge = std::max(edge, (preferences.of(x).array() - 0.5).abs().maxCoeff());
  }
  return edge;
}

/// maximize 1'u for B u <= 1, u >= 0, of a matrix of positive numbers: the simplex method on a
/// tableau, by Bland's rule, which cannot cycle.
class Simplex {
 public:
  explicit Simplex(const MatrixXd& b) : size_(b.rows()), tableau_(size_ + 1, 2 * size_ + 1) {
    tableau_ << b, MatrixXd::Identity(size_, size_), VectorXd::Ones(size_),
        -Eigen::RowVectorXd::Ones(size_), Eigen::RowVectorXd::Zero(size_ + 1);
    for (Index i = 0; i < size_; ++i) basis_.push_back(size_ + i);
  }

  VectorXd solve() {
    for (Index column = entering(); column >= 0; column = entering())
      pivot(leaving(column), column);
    VectorXd u = VectorXd::Zero(size_);
    for (Index i = 0; i < size_; ++i) {
      const Index variable = basis_[static_cast<std::size_t>(i)];
      if (variable < size_) u[variable] = tableau_(i, 2 * size_);
    }
    return u;
  }

 private:
  static constexpr double kRounding = 1e-12;

  /// The first column that gains; -1: there is no such column.
  Index entering() const {
    for (Index column = 0; column < 2 * size_; ++column) {
      if (tableau_(size_, column) < -kRounding) return column;
    }
    return -1;
  }

  Index leaving(Index column) const {
    Index best = -1;
    double least = std::numeric_limits<double>::infinity();
    for (Index row = 0; row < size_; ++row) {
      if (tableau_(row, column) <= kRounding) continue;
      const double ratio = tableau_(row, 2 * size_) / tableau_(row, column);
      const bool is_tie = best >= 0 && std::abs(ratio - least) <= kRounding;
      if (is_tie ? variable(row) < variable(best) : ratio < least) {
        best = row;
        least = std::min(ratio, least);
      }
    }
    return best;
  }

  void pivot(Index row, Index column) {
    tableau_.row(row) /= tableau_(row, column);
    for (Index other = 0; other <= size_; ++other) {
      if (other != row) tableau_.row(other) -= tableau_(other, column) * tableau_.row(row);
    }
    basis_[static_cast<std::size_t>(row)] = column;
  }

  Index variable(Index row) const { return basis_[static_cast<std::size_t>(row)]; }

  Index size_;
  MatrixXd tableau_;  ///< last row: what a unit of each variable costs; last column: values
  std::vector<Index> basis_;
};

/// The root of ratio + weight e^ratio = target, weight >= 0, by Newton's method. The left side
/// rises and is convex, so that steps from above never pass the root.
double stationary_ratio(double target, double weight) {
  constexpr int kSteps = 200;
  // Where the root is above 0, weight e^ratio is below the target.
  const bool is_bent = weight > 0 && target > 0;
  double ratio = is_bent ? std::min(target, std::max(0.0, std::log(target / weight))) : target;
  for (int i = 0; i < kSteps; ++i) {
    const double bend = weight * std::exp(ratio);
    const double move = (ratio + bend - target) / (1 + bend);
    ratio -= move;
    if (std::abs(move) <= 1e-16 * std::max(1.0, std::abs(ratio))) break;
  }
  return ratio;
}

/// Log-ratios of the normalized policy nearest to `targets` in the mean square under `p`: its
/// stationary point has ratio + weight e^ratio = target for each action. Targets have mean 0 under
/// p, so that e^target has a mean of at least 1, and the weight is not below 0.
ArrayXd nearest_ratios(const ArrayXd& p, const ArrayXd& targets) {
  constexpr int kBisections = 200;
  const auto ratios = [&](double weight) -> ArrayXd {
    return targets.unaryExpr([&](double target) { return stationary_ratio(target, weight); });
  };
  const auto sum = [&](double weight) { return (p * ratios(weight).exp()).sum(); };
  double low = 0, high = 1;
  while (sum(high) > 1) high *= 2;
  for (int i = 0; i < kBisections; ++i) {
    const double middle = (low + high) / 2;
    if (middle <= low || middle >= high) break;
    (sum(middle) > 1 ? low : high) = middle;
  }
  return ratios((low + high) / 2);
}

}  // namespace

Table win_rates(const Table& logps, const Preferences& preferences) {
  if (preferences.prompts() != logps.cols() || preferences.actions() != logps.rows()) {
    throw ShapeError(
        fmt::format("games: expected preferences of {} actions and {} prompts, got {} and {}",
                    logps.rows(), logps.cols(), preferences.actions(), preferences.prompts()));
  }
  Table rates(logps.rows(), logps.cols());
  for (Index x = 0; x < logps.cols(); ++x) {
    const VectorXd p = logps.col(x).unaryExpr([](double v) { return std::exp(v); }).matrix();
    rates.col(x) = preferences.of(x) * p;
  }
  return rates;
}

double exploitability(const Table& logps, const Preferences& preferences) {
  return win_rates(logps, preferences).colwise().maxCoeff().mean() - 0.5;
}

double regularized_win_rate(const Table& p, const Table& q, const Table& ref,
                            const Preferences& preferences, double tau) {
  return win_rate(p, q, preferences) - tau * kl(p, ref) + tau * kl(q, ref);
}

double duality_gap(const Table& logps, const Table& ref, const Preferences& preferences,
                   double tau) {
  check_positive(tau, "tau");
  check_players(logps, ref);
  const Table reply = best_reply(logps, ref, preferences, tau);
  return 2 * (regularized_win_rate(reply, logps, ref, preferences, tau) - 0.5);
}

Equilibrium equilibrium(const Table& ref, const Preferences& preferences, double tau,
                        const EquilibriumOptions& options) {
  check_positive(tau, "tau");
  const double rotation = largest_edge(preferences) / tau;
  const double damping = 1 / (1 + rotation * rotation);
  Equilibrium found{.logps = ref};
  for (;; ++found.iterations) {
    const Table reply = best_reply(found.logps, ref, preferences, tau);
    // Where ref is 0 both are -inf.
    const Table distance = (reply == found.logps).select(0.0, reply - found.logps);
    found.residual = distance.abs().maxCoeff();
    found.converged = found.residual <= options.tolerance;
    if (found.converged || found.iterations >= options.max_iterations) return found;
    found.logps = log_softmax(found.logps + damping * distance);
  }
}

Table minimax_winner(const Preferences& preferences) {
  Table winner(preferences.actions(), preferences.prompts());
  for (Index x = 0; x < preferences.prompts(); ++x) {
    // Above 0 throughout, so that the value is, too.
    const VectorXd u = Simplex(preferences.of(x).array() + 1).solve();
    winner.col(x) =
        (u.array().max(0) / u.array().max(0).sum()).unaryExpr([](double p) { return std::log(p); });
  }
  return winner;
}

Table multiplicative_weights_step(const Table& logps, const Preferences& preferences, double step) {
  check_positive(step, "step");
  return log_softmax(logps + step * win_rates(logps, preferences));
}

Table mirror_descent_step(const Table& logps, const Table& ref, const Preferences& preferences,
                          double tau, double step) {
  check_share(tau, step);
  return log_softmax(mixed(logps, ref, step * tau) + step * win_rates(logps, preferences));
}

Table nash_md_step(const Table& logps, const Table& ref, const Preferences& preferences, double tau,
                   double step) {
  check_share(tau, step);
  const Table mixture = log_softmax(mixed(logps, ref, step * tau));
  return log_softmax(mixture + step * win_rates(mixture, preferences));
}

Table sppo_step(const Table& logps, const Preferences& preferences, double step) {
  check_positive(step, "step");
  const Table targets = step * (win_rates(logps, preferences) - 0.5);
  Table next(logps.rows(), logps.cols());
  for (Index x = 0; x < logps.cols(); ++x) {
    next.col(x) = logps.col(x) + nearest_ratios(logps.col(x).exp(), targets.col(x));
  }
  return log_softmax(next);
}

Table extrapolated(const Table& now, const Table& before, double alpha) {
  if (!(alpha >= 0 && alpha < 1)) {
    throw ConfigError(fmt::format("games: expected alpha in [0, 1), got {}", alpha));
  }
  check_players(now, before);
  return log_softmax(alpha == 0 ? now : Table(now + alpha * (now - before)));
}

}  // namespace prefopt::exact
