// SPDX-License-Identifier: Apache-2.0

// 2404.18922 (RTO): the log-ratio of a model that DPO trained, as the reward of each token, has the
// optimum of a larger reward of whole completions, and is learned faster. The lock of pg-resets:
// one completion of H letters is rewarded, exact policy gradients from uniform or nearly uniform
// policies. Rewards of tokens are those of the registered objective: with returns to go they add up
// to the larger reward, so that nothing is gained; as each token's own advantage (gamma 0), which
// the log-ratio of the optimal policy is, they open the lock letter by letter. Letters that are in
// neither lock end a completion, as nothing after them is rewarded. Controls: the same size of
// reward at the end alone, and the model that DPO trained for another lock.

#include <algorithm>
#include <cmath>
#include <cstdint>

#include "lab/experiments.h"
#include "lab/lock.h"
#include "lab/token_steps.h"
#include "lab/token_tree.h"
#include "prefopt/exact/measures.h"

namespace prefopt::lab::rto_lock {
namespace {

using exact::Random;

constexpr double kDpoBeta = 0.05, kTokenWeight = 0.05;

enum : std::size_t { kSparse, kScaled, kToGo, kRto, kWrongModel, kKinds };
const std::vector<std::string> kNames{"reward at the end", "control: twice the reward at the end",
                                      "rto, returns to go", "rto, each token's own reward",
                                      "control: the same with another lock's model"};

struct Lock {
  RolloutStep step;
  std::vector<Index> depths, letters;  ///< of the tokens
};

/// log π_dpo of the right letter and of each other one, for a lock whose reward is 1: those of the
/// optimum of E r − β KL(π ‖ uniform), where the beginning is right so far.
struct DpoModel {
  ArrayXd right, others;
};

DpoModel dpo_model(Index depth) {
  const double log_others = std::log(kLockLetters - 1);
  DpoModel model{.right = ArrayXd(depth), .others = ArrayXd(depth)};
  double value = 1 / kDpoBeta;
  for (Index t = depth - 1; t >= 0; --t) {
    const double most = std::max(value, log_others);
    const double total = most + std::log(std::exp(value - most) + std::exp(log_others - most));
    model.right[t] = value - total;
    model.others[t] = -total;
    value = total - std::log(kLockLetters);
  }
  return model;
}

/// Completions of a lock whose right letters are all 0: beginnings of the letter 0, and of the
/// letter 1, with the first other letter after them, and both to their end. `right`: the letter of
/// the lock that the model behind π_dpo was trained for.
Lock make_lock(Index depth, Index right) {
  Lock lock;
  std::vector<std::int64_t> lens;
  std::vector<double> dpo;
  const DpoModel model = dpo_model(depth);
  const auto add = [&](Index letter, Index count, Index last) {
    bool is_on = true;
    for (Index t = 0; t <= count; ++t) {
      const Index next = t == count ? last : letter;
      const double of_next = next == right ? model.right[t] : model.others[t];
      dpo.push_back(is_on ? of_next : -std::log(kLockLetters));
      is_on = is_on && next == right;
      lock.depths.push_back(t);
      lock.letters.push_back(next);
    }
    lens.push_back(count + 1);
  };
  for (const Index letter : {Index{1}, Index{0}}) {
    for (Index count = 0; count < depth; ++count) {
      for (Index last = 0; last < kLockLetters; ++last) {
        // Completions that begin with the letter 1 are listed once.
        const bool is_listed = count > 0 || (letter == 0 && last > 1);
        if (is_listed && last != letter) add(letter, count, last);
      }
    }
    add(letter, depth - 1, letter);
  }
  ArrayXd rewards = ArrayXd::Zero(static_cast<Index>(lens.size()));
  rewards[rewards.size() - 1] = 1;
  lock.step = listed_step(std::move(lens), rewards);
  lock.step.extra_logps = Eigen::Map<const ArrayXd>(dpo.data(), static_cast<Index>(dpo.size()));
  lock.step.ref_logps = ArrayXd::Constant(lock.step.tokens(), -std::log(kLockLetters));
  return lock;
}

/// Advantages of the tokens of a lock's completions.
ArrayXd advantages_of(const Lock& lock, std::size_t kind) {
  const bool is_dense = kind >= kToGo;
  const bool is_own = kind >= kRto;
  const TokenObjective objective({.advantage = is_own ? R"({"kind": "to_go", "gamma": 0})"
                                                      : R"({"kind": "to_go", "gamma": 1})",
                                  .dpo_reward = {.coefficient = is_dense ? kTokenWeight : 0}});
  const ArrayXd advantages = objective.advantages(lock.step).advantages;
  return kind == kScaled ? ArrayXd((1 + kTokenWeight / kDpoBeta) * advantages) : advantages;
}

/// Steps of exact ascent until 90 % of the completions open the lock; kMostLockSteps if none does.
int steps_to_open(Table logits, std::size_t kind) {
  const Index depth = logits.cols();
  const Lock lock = make_lock(depth, kind == kWrongModel ? 1 : 0);
  const ArrayXd advantages = advantages_of(lock, kind);
  const auto starts = lock.step.starts();
  for (int taken = 0; taken < kMostLockSteps; ++taken) {
    const Table policy = exact::log_softmax(logits);
    if (std::exp(policy.row(0).sum()) > kLockGoal) return taken;
    Table by_logps = Table::Zero(kLockLetters, depth);
    for (std::size_t i = 0; i + 1 < starts.size(); ++i) {
      double logp = 0;
      for (auto t = starts[i]; t < starts[i + 1]; ++t) {
        const auto at = static_cast<std::size_t>(t);
        logp += policy(lock.letters[at], lock.depths[at]);
      }
      for (auto t = starts[i]; t < starts[i + 1]; ++t) {
        const auto at = static_cast<std::size_t>(t);
        by_logps(lock.letters[at], lock.depths[at]) += std::exp(logp) * advantages[t];
      }
    }
    logits += kLockRate * logit_gradient(policy, by_logps);
  }
  return kMostLockSteps;
}

/// Log distance of the optimum with rewards of tokens to that of a larger reward, on a random tree.
double optimum_distance(Random& random) {
  constexpr TokenTree kTree{.letters = 3, .depth = 3};
  const double beta = 0.3, weight = 0.2, end = 0.7;
  const Table ref = random_policy(kTree, 1, random);
  const ArrayXd rewards = random.normals(kTree.leaves(), 1).col(0);
  const Table dpo = tilted_tree(kTree, ref, rewards, kDpoBeta);
  const ArrayXd of_tokens = weight * (leaf_logps(kTree, dpo) - leaf_logps(kTree, ref));
  const Table with_tokens = tilted_tree(kTree, ref, end * rewards + of_tokens, beta);
  const Table larger = tilted_tree(kTree, ref, (end + weight / kDpoBeta) * rewards, beta);
  return (with_tokens - larger).abs().maxCoeff();
}

std::vector<double> run_seed(int seed, Index depth) {
  Random random(static_cast<std::uint64_t>(seed));
  std::vector<double> row = lock_steps(random, depth, kKinds, steps_to_open);
  row.push_back(optimum_distance(random));
  return row;
}

}  // namespace

Report run(const Settings& settings) {
  const Index depth = settings.quick ? 5 : 8;
  const auto by_seed =
      for_each_seed(settings.seeds, [&](int seed) { return run_seed(seed, depth); });
  auto [report, uniform] = report_lock_steps("rto-lock", kNames, by_seed, depth, steps_to_open);
  report.verdicts = {
      below("the optimum with rewards of tokens is that of a larger reward: log distance, largest",
            exactly(largest(by_seed, kKinds, 1)), 1e-10),
      within("with returns to go it takes the steps of the larger reward, depth 8: difference",
             exactly(uniform[kToGo][1] - uniform[kScaled][1]), 0, 1),
      above(
          "as each token's own reward it is faster, depth 8: steps with the reward at the end over "
          "those of rto",
          exactly(uniform[kSparse][1] / uniform[kRto][1]), 10),
      above("depth 12: with the reward at the end it is still closed after: steps",
            exactly(uniform[kSparse][2]), kMostLockSteps - 1),
      below("depth 12: rto opens it after: steps", exactly(uniform[kRto][2]), 2000),
      above("policies near uniform: steps with the reward at the end over those of rto",
            mean_ratio(by_seed, kSparse, kRto), 4),
      above("control: as large a reward at the end alone takes longer, depth 8: steps over rto's",
            exactly(uniform[kScaled][1] / uniform[kRto][1]), 4),
      above("control: with another lock's model it stays closed, depth 8, after: steps",
            exactly(uniform[kWrongModel][1]), kMostLockSteps - 1)};
  return report;
}

}  // namespace prefopt::lab::rto_lock
