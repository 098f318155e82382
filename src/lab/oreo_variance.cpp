// SPDX-License-Identifier: Apache-2.0

// 2412.16145 (OREO): the soft Bellman residual of each token or of the response alone. Random
// trees, completions of the reference, the registered loss, exact moments of its gradient over
// single completions. At the reference both levels have the same mean gradient, with the soft
// values of the reference; the token level's has less variance. At the optimum with its soft values
// every residual is 0. Controls: the response level, and values that are plain means in place of
// soft ones, whose gradient at the optimum does not vanish.

#include <cmath>
#include <cstdint>
#include <limits>

#include "lab/experiments.h"
#include "lab/token_tree.h"
#include "prefopt/exact/random.h"
#include "prefopt/objectives/token_losses/oreo.h"

namespace prefopt::lab::oreo_variance {
namespace {

using exact::Random;

constexpr TokenTree kTree{.letters = 3, .depth = 4};
constexpr double kBeta = 0.3;

struct Moments {
  Table mean;
  double variance = 0;  ///< trace of the covariance
};

/// Moments of the loss's gradient in the logits of tokens, over completions of the reference, each
/// a step. `values` [nodes] of prefixes.
Moments moments(BellmanLevel level, double beta, const Table& policy, const Table& ref,
                const ArrayXd& rewards, const ArrayXd& values) {
  const TokenLoss loss = OreoLoss({.beta = beta, .alpha = 0, .level = level});
  const ArrayXd weights = leaf_logps(kTree, ref).exp();
  Moments moments{.mean = Table::Zero(kTree.letters, kTree.nodes())};
  double squares = 0;
  for (Index leaf = 0; leaf < kTree.leaves(); ++leaf) {
    BasicTokenRows<ArrayXd> in;
    in.logps = token_logps(kTree, policy, leaf);
    in.ref_logps = token_logps(kTree, ref, leaf);
    in.rewards = ArrayXd::Constant(kTree.depth, rewards[leaf]);
    in.completions = ArrayXd::Zero(kTree.depth);
    in.lens = ArrayXd::Constant(kTree.depth, kTree.depth);
    in.values =
        ArrayXd::NullaryExpr(kTree.depth, [&](Index t) { return values[kTree.node_of(leaf, t)]; });
    in.completion_count = 1;
    in.totals = {.tokens = static_cast<double>(kTree.depth), .completions = 1};
    // A mean over the states of a completion, of which the response level has one.
    const double states = level == BellmanLevel::kToken ? static_cast<double>(kTree.depth) : 1;
    const ArrayXd slopes = states * loss.formula<ArrayXd>(in).grad_logps;
    Table by_logps = Table::Zero(kTree.letters, kTree.nodes());
    for (Index t = 0; t < kTree.depth; ++t) {
      by_logps(kTree.letter_of(leaf, t), kTree.node_of(leaf, t)) = slopes[t];
    }
    const Table gradient = logit_gradient(policy, by_logps);
    moments.mean += weights[leaf] * gradient;
    squares += weights[leaf] * gradient.square().sum();
  }
  moments.variance = squares - moments.mean.square().sum();
  return moments;
}

/// Largest residual at a policy with these values, over completions and tokens.
double largest_residual(const Table& policy, const Table& ref, const ArrayXd& rewards,
                        const ArrayXd& values) {
  double worst = 0;
  for (Index leaf = 0; leaf < kTree.leaves(); ++leaf) {
    double to_go = 0;
    for (Index t = kTree.depth - 1; t >= 0; --t) {
      const Index node = kTree.node_of(leaf, t);
      const Index letter = kTree.letter_of(leaf, t);
      to_go += policy(letter, node) - ref(letter, node);
      worst = std::max(worst, std::abs(values[node] - rewards[leaf] + kBeta * to_go));
    }
  }
  return worst;
}

enum : std::size_t { kMeanGap, kToken, kResponse, kResidual, kSoftEnd, kMeanEnd, kByBeta };

const std::vector<double> kBetas{0.1, 0.3, 1, 3};

std::vector<double> run_seed(int seed) {
  Random random(static_cast<std::uint64_t>(seed));
  const Table ref = random_policy(kTree, 1, random);
  // One answer in four is right.
  const ArrayXd rewards =
      ArrayXd::NullaryExpr(kTree.leaves(), [&] { return random.uniform() < 0.25 ? 1.0 : 0.0; });
  const auto at_reference = [&](BellmanLevel level, double beta) {
    return moments(level, beta, ref, ref, rewards, soft_values(kTree, ref, rewards, beta));
  };
  const Moments token = at_reference(BellmanLevel::kToken, kBeta);
  const Moments response = at_reference(BellmanLevel::kResponse, kBeta);
  const ArrayXd soft = soft_values(kTree, ref, rewards, kBeta);
  const ArrayXd mean = soft_values(kTree, ref, rewards, std::numeric_limits<double>::infinity());
  const Table optimum = tilted_tree(kTree, ref, rewards, kBeta);
  const auto variance_at_end = [&](const ArrayXd& values) {
    return moments(BellmanLevel::kToken, kBeta, optimum, ref, rewards, values).variance;
  };
  std::vector<double> row{
      (token.mean - response.mean).abs().maxCoeff(), token.variance,        response.variance,
      largest_residual(optimum, ref, rewards, soft), variance_at_end(soft), variance_at_end(mean)};
  // In units of β², the scale of the gradient.
  for (const BellmanLevel level : {BellmanLevel::kToken, BellmanLevel::kResponse}) {
    for (const double beta : kBetas) {
      row.push_back(at_reference(level, beta).variance / (beta * beta));
    }
  }
  return row;
}

}  // namespace

Report run(const Settings& settings) {
  const BySeed by_seed = for_each_seed(settings.seeds, run_seed);
  Report report{.data = {{"oreo-variance-ends", {"case", "variance", "low", "high"}},
                         {"oreo-variance", {"case", "beta", "variance", "low", "high"}}},
                .pictures = {{"oreo-variance",
                              {.title = "Variance of the gradient at the reference, over β²",
                               .x_label = "β",
                               .y_label = "trace",
                               .log_x = true}}}};
  const std::size_t points = kBetas.size();
  add_curve(report, "token level", kBetas, means(by_seed, kByBeta, points));
  add_curve(report, "response level", kBetas, means(by_seed, kByBeta + points, points));
  const auto add = [&](const std::string& name, std::size_t column) {
    const Estimate variance = mean(by_seed, column);
    report.data[0].rows.push_back({name, variance.value, variance.low, variance.high});
  };
  add("at the reference, token level", kToken);
  add("at the reference, response level", kResponse);
  add("at the optimum, soft values", kSoftEnd);
  add("at the optimum, mean values", kMeanEnd);
  report.verdicts = {
      below("at the reference token and response level have one mean gradient: difference, largest",
            exactly(largest(by_seed, kMeanGap, 1)), 1e-12),
      above("the response level has more variance: times the token level's",
            mean_ratio(by_seed, kResponse, kToken), 1),
      below("at the optimum and its soft values every residual is 0: largest",
            exactly(largest(by_seed, kResidual, 1)), 1e-12),
      below("and no gradient is left: variance, largest", exactly(largest(by_seed, kSoftEnd, 1)),
            1e-24),
      above("control: with mean values some is: variance, least",
            exactly(smallest(by_seed, kMeanEnd, 1)), 1e-8)};
  return report;
}

}  // namespace prefopt::lab::oreo_variance
