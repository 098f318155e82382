// SPDX-License-Identifier: Apache-2.0

// 2410.08193 (GenARM): an autoregressive reward model guides the decoding of a base model token by
// token. Random trees, the reward of a completion is known: the base, the exact optimum of E r − β
// KL, GenARM (the base times the model e^(r/β) / Z, token by token), the log-ratio of a model that
// was trained with the base as its reference, and the control: a reward model of whole texts that
// is asked about prefixes (ARGS, 2402.01694), whose answers are noise until the end. Then two
// rewards and weights that are chosen while decoding, against guides of one reward alone.

#include <algorithm>
#include <cmath>
#include <cstdint>

#include "lab/experiments.h"
#include "lab/token_tree.h"
#include "prefopt/exact/measures.h"

namespace prefopt::lab::guided_decoding {
namespace {

using exact::Random;

constexpr TokenTree kTree{.letters = 4, .depth = 3};
constexpr double kBeta = 0.5;

/// A guide's log-probs of tokens and its weight.
struct TableGuide {
  Table logps;
  double weight;
};

/// The base with guides, as GuidedPolicy.
Table guided(const Table& base, const std::vector<TableGuide>& guides) {
  Table logits = base;
  for (const TableGuide& guide : guides) logits += guide.weight * guide.logps;
  return exact::log_softmax(logits);
}

/// The model that `genarm` fits to pairs without end: of leaves ∝ e^(r / β_r), without a reference.
Table reward_model(const ArrayXd& rewards, double beta) {
  return policy_of_leaves(kTree, rewards / beta);
}

ArrayXd random_rewards(Random& random) { return random.normals(kTree.leaves(), 1).col(0); }

enum : std::size_t {
  kBase,
  kExact,
  kGenArm,
  kLogRatio,
  kPrefixes,
  kMethods,
  kExactError = kMethods
};
const std::vector<std::string> kNames{"base", "exact optimum", "genarm", "log-ratio guide",
                                      "control: texts' reward of prefixes"};

std::vector<Table> policies_of(const Table& base, const ArrayXd& rewards, Random& random) {
  const Table optimum = tilted_tree(kTree, base, rewards, kBeta);
  // Rewards of whole texts, asked about prefixes, have nothing to do with their continuations.
  Table of_prefixes = random.normals(kTree.letters, kTree.nodes());
  for (Index leaf = 0; leaf < kTree.leaves(); ++leaf) {
    const Index last = kTree.depth - 1;
    of_prefixes(kTree.letter_of(leaf, last), kTree.node_of(leaf, last)) = rewards[leaf];
  }
  return {base, optimum, guided(base, {{reward_model(rewards, kBeta), 1}}),
          guided(base, {{optimum, 1}, {base, -1}}), guided(base, {{of_prefixes, 1 / kBeta}})};
}

std::vector<double> run_methods(int seed) {
  Random random(static_cast<std::uint64_t>(seed));
  const Table base = random_policy(kTree, 1, random);
  const ArrayXd rewards = random_rewards(random);
  const auto policies = policies_of(base, rewards, random);
  std::vector<double> row;
  for (const Table& policy : policies) {
    row.push_back(regularized_reward(kTree, policy, base, rewards, kBeta));
  }
  row.push_back((policies[kLogRatio] - policies[kExact]).abs().maxCoeff());
  return row;
}

const std::vector<double> kWeights{0, 0.25, 0.5, 0.75, 1};

/// Of each weight of the first reward: both mean rewards, and what the weighted, regularized reward
/// gains over the better guide of one reward alone.
std::vector<double> run_frontier(int seed) {
  Random random(static_cast<std::uint64_t>(seed) + 1000);
  const Table base = random_policy(kTree, 1, random);
  const ArrayXd first = random_rewards(random);
  const ArrayXd second = random_rewards(random);
  const Table of_first = reward_model(first, kBeta);
  const Table of_second = reward_model(second, kBeta);
  const auto with = [&](double weight) {
    return guided(base, {{of_first, weight}, {of_second, 1 - weight}});
  };
  std::vector<double> firsts, seconds, gains;
  for (const double weight : kWeights) {
    const Table policy = with(weight);
    const ArrayXd p = leaf_logps(kTree, policy).exp();
    firsts.push_back((p * first).sum());
    seconds.push_back((p * second).sum());
    const ArrayXd mixed = weight * first + (1 - weight) * second;
    const auto worth = [&](const Table& of) {
      return regularized_reward(kTree, of, base, mixed, kBeta);
    };
    gains.push_back(worth(policy) - std::max(worth(with(0)), worth(with(1))));
  }
  std::vector<double> row = firsts;
  row.insert(row.end(), seconds.begin(), seconds.end());
  row.insert(row.end(), gains.begin(), gains.end());
  return row;
}

}  // namespace

Report run(const Settings& settings) {
  const BySeed methods = for_each_seed(settings.seeds, run_methods);
  const BySeed frontier = for_each_seed(settings.seeds, run_frontier);
  const std::size_t points = kWeights.size();
  Report report{.data = {{"guided-decoding-methods", {"method", "value", "low", "high"}},
                         {"guided-decoding", {"case", "weight", "reward", "low", "high"}}},
                .pictures = {{"guided-decoding",
                              {.title = "Two guides: mean rewards by the weight of the first",
                               .x_label = "weight of the first guide, the second has the rest",
                               .y_label = "mean reward"}}}};
  for (std::size_t method = 0; method < kMethods; ++method) {
    const Estimate value = mean(methods, method);
    report.data[0].rows.push_back({kNames[method], value.value, value.low, value.high});
  }
  add_curve(report, "first reward", kWeights, means(frontier, 0, points));
  add_curve(report, "second reward", kWeights, means(frontier, points, points));
  const std::size_t middle = points / 2;
  report.verdicts = {
      above("genarm has more E r − β KL than the base: by",
            mean_difference(methods, kGenArm, kBase), 0.3),
      above("the exact optimum has more than genarm: by", mean_difference(methods, kExact, kGenArm),
            0),
      below(
          "the log-ratio of a model trained with the base, weight 1, is the optimum: log distance, "
          "largest",
          exactly(largest(methods, kExactError, 1)), 1e-10),
      above("control: a reward of texts asked about prefixes has less than genarm: by",
            mean_difference(methods, kGenArm, kPrefixes), 0.3),
      above("two guides: the first reward rises with its weight, from 0 to 1: by",
            mean_difference(frontier, points - 1, 0), 0.3),
      above("and the second falls: by", mean_difference(frontier, points, 2 * points - 1), 0.3),
      above("at weight 1/2 both guides gain over the better one alone: by",
            mean(frontier, 2 * points + middle), 0),
      within("control: at weight 1 the second guide gains nothing: by",
             mean(frontier, 3 * points - 1), 0, 1e-12)};
  return report;
}

}  // namespace prefopt::lab::guided_decoding
