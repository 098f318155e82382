// SPDX-License-Identifier: Apache-2.0
#include "prefopt/exact/measures.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "prefopt/error.h"

namespace prefopt::exact {
namespace {

void check_same(const Table& a, const Table& b) {
  if (a.rows() == b.rows() && a.cols() == b.cols()) return;
  throw ShapeError(fmt::format("measures: expected a table [{}, {}], got [{}, {}]", a.rows(),
                               a.cols(), b.rows(), b.cols()));
}

void check_beta(double beta) {
  if (!(beta > 0)) throw ConfigError(fmt::format("measures: expected beta above 0, got {}", beta));
}

/// p log(p/q) + q - p of log p and log q: what KL(p || q) is a sum of, with no term below 0, so
/// that none cancel.
double kl_term(double logp, double logq) {
  const double p = std::exp(logp), gap = logq - logp;
  if (std::abs(gap) < 1) return p * (std::expm1(gap) - gap);
  return std::exp(logq) - (p > 0 ? p * (1 + gap) : 0);
}

/// Mean over prompts of sum_y p(y) f(y), where nothing is added for p(y) = 0.
template <class F>
double expectation_of(const Table& logps, F&& f) {
  double sum = 0;
  for (Index x = 0; x < logps.cols(); ++x) {
    for (Index y = 0; y < logps.rows(); ++y) {
      const double p = std::exp(logps(y, x));
      if (p > 0) sum += p * f(y, x);
    }
  }
  return sum / static_cast<double>(logps.cols());
}

}  // namespace

Table log_softmax(const Table& logits) {
  const Table shifted = logits.rowwise() - logits.colwise().maxCoeff().eval();
  return shifted.rowwise() - shifted.exp().colwise().sum().log().eval();
}

double expectation(const Table& logps, const Table& values) {
  check_same(logps, values);
  return expectation_of(logps, [&](Index y, Index x) { return values(y, x); });
}

double entropy(const Table& logps) {
  return expectation_of(logps, [&](Index y, Index x) { return -logps(y, x); });
}

double kl(const Table& p, const Table& q) {
  check_same(p, q);
  return expectation_of(p, [&](Index y, Index x) { return p(y, x) - q(y, x); });
}

double win_rate(const Table& p, const Table& q, const Preferences& preferences) {
  check_same(p, q);
  if (preferences.prompts() != p.cols() || preferences.actions() != p.rows()) {
    throw ShapeError(
        fmt::format("measures: expected preferences of {} actions and {} prompts, got {} and {}",
                    p.rows(), p.cols(), preferences.actions(), preferences.prompts()));
  }
  double sum = 0;
  for (Index x = 0; x < p.cols(); ++x) {
    sum += p.col(x).exp().matrix().dot(preferences.of(x) * q.col(x).exp().matrix());
  }
  return sum / static_cast<double>(p.cols());
}

Table optimum(const Table& ref, const Table& rewards, double beta) {
  check_same(ref, rewards);
  check_beta(beta);
  return log_softmax(ref + rewards / beta);
}

Table optimum_at(const Table& ref, const Table& rewards, double distance) {
  if (!(distance > 0)) {
    throw ConfigError(fmt::format("measures: expected a distance above 0, got {}", distance));
  }
  constexpr int kBisections = 100;
  // In units of the rewards' range, from where the best action is all to where nothing moves.
  const double range = std::max(rewards.maxCoeff() - rewards.minCoeff(), 1e-300);
  double low = 1e-6 * range, high = 1e6 * range;
  for (int i = 0; i < kBisections; ++i) {
    const double beta = std::sqrt(low * high);
    (kl(optimum(ref, rewards, beta), ref) > distance ? low : high) = beta;
  }
  return optimum(ref, rewards, high);
}

double regularized_reward(const Table& logps, const Table& ref, const Table& rewards, double beta) {
  check_beta(beta);
  return expectation(logps, rewards) - beta * kl(logps, ref);
}

double suboptimality_gap(const Table& logps, const Table& ref, const Table& rewards, double beta) {
  const Table best = optimum(ref, rewards, beta);
  check_same(logps, best);
  double sum = 0;
  for (Index i = 0; i < logps.size(); ++i) sum += kl_term(logps(i), best(i));
  return beta * sum / static_cast<double>(logps.cols());
}

}  // namespace prefopt::exact
