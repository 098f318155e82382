// SPDX-License-Identifier: Apache-2.0
#include "prefopt/exact/pairs.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <map>
#include <tuple>

#include "prefopt/error.h"
#include "prefopt/exact/measures.h"

namespace prefopt::exact {
namespace {

void check_shape(const Table& table, Index actions, Index prompts) {
  if (table.rows() == actions && table.cols() == prompts && table.size() > 0) return;
  throw ShapeError(fmt::format("pairs: expected a table [{}, {}], got [{}, {}]", actions, prompts,
                               table.rows(), table.cols()));
}

/// Rows one after the other.
class Builder {
 public:
  void add(Index prompt, Index chosen, Index rejected, double weight) {
    pairs_.prompts.push_back(prompt);
    pairs_.chosen.push_back(chosen);
    pairs_.rejected.push_back(rejected);
    weights_.push_back(weight);
  }
  /// Adds the pair at a place of `pairs`, with another weight.
  void add(const Pairs& pairs, std::size_t at, double weight) {
    add(pairs.prompts[at], pairs.chosen[at], pairs.rejected[at], weight);
    if (!pairs.from_reference.empty()) pairs_.from_reference.push_back(pairs.from_reference[at]);
  }

  Pairs done() {
    pairs_.weights =
        Eigen::Map<const Eigen::ArrayXd>(weights_.data(), static_cast<Index>(weights_.size()));
    return std::move(pairs_);
  }

 private:
  Pairs pairs_;
  std::vector<double> weights_;
};

}  // namespace

Table covering(const Table& logps, const Table& covered) {
  check_shape(covered, logps.rows(), logps.cols());
  for (Index x = 0; x < covered.cols(); ++x) {
    if (const auto count = (covered.col(x) != 0).count(); count < 2) {
      throw ConfigError(fmt::format(
          "pairs: expected at least two covered actions, got {} for prompt {}", count, x));
    }
  }
  return log_softmax((covered != 0).select(logps, -std::numeric_limits<double>::infinity()));
}

Pairs population(const Table& behaviour, const Preferences& preferences) {
  check_shape(behaviour, preferences.actions(), preferences.prompts());
  const auto prompts = static_cast<double>(behaviour.cols());
  Builder rows;
  for (Index x = 0; x < behaviour.cols(); ++x) {
    // Eigen's own exponential of -inf is not quite 0.
    const Eigen::ArrayXd p = behaviour.col(x).unaryExpr([](double v) { return std::exp(v); });
    const double different = p.sum() * p.sum() - p.square().sum();
    for (Index w = 0; w < p.size(); ++w) {
      for (Index l = 0; l < p.size(); ++l) {
        if (w == l) continue;
        const double weight = 2 * p[w] * p[l] * preferences(x, w, l) / (different * prompts);
        if (weight > 0) rows.add(x, w, l, weight);
      }
    }
  }
  return rows.done();
}

Pairs sample(const Pairs& population, Index count, Random& random) {
  if (count < 1) throw ConfigError(fmt::format("pairs: expected at least 1 draw, got {}", count));
  std::vector<double> sums;
  double sum = 0;
  for (const double weight : population.weights) sums.push_back(sum += weight);
  Builder rows;
  for (Index i = 0; i < count; ++i) {
    const auto at = std::upper_bound(sums.begin(), sums.end(), random.uniform() * sum);
    const auto row = static_cast<std::size_t>(
        std::min<std::ptrdiff_t>(at - sums.begin(), population.size() - 1));
    rows.add(population, row, 1 / static_cast<double>(count));
  }
  return rows.done();
}

Pairs merged(const Pairs& pairs) {
  struct Merged {
    std::size_t first;  ///< place of one of the equal rows
    double weight;
  };
  std::map<std::tuple<Index, Index, Index, int>, Merged> all;
  for (Index i = 0; i < pairs.size(); ++i) {
    const auto row = static_cast<std::size_t>(i);
    const int side = pairs.from_reference.empty() ? 0 : pairs.from_reference[row];
    const std::tuple key{pairs.prompts[row], pairs.chosen[row], pairs.rejected[row], side};
    all.emplace(key, Merged{row, 0}).first->second.weight += pairs.weights[i];
  }
  Builder rows;
  for (const auto& [key, row] : all) rows.add(pairs, row.first, row.weight);
  return rows.done();
}

}  // namespace prefopt::exact
