// SPDX-License-Identifier: Apache-2.0

// 2405.00451 (MCTS-DPO), 2409.09345 (step-level Q-values): a tree search turns rewards of whole
// completions into labels of steps. Small trees whose completions are right or wrong, a tabular
// policy, and true values of all steps by exact sums. A pair of steps is right where the chosen one
// has the larger true value; a pair of whole completions counts at the step where they part. All
// have as many letters drawn. Control: rewards of ends by chance.

#include <algorithm>
#include <cmath>
#include <cstdint>

#include "lab/experiments.h"
#include "prefopt/exact/measures.h"
#include "prefopt/exact/policy.h"
#include "prefopt/exact/random.h"
#include "prefopt/online/step_tree.h"

namespace prefopt::lab::tree_labels {
namespace {

using exact::Index;
using exact::Random;

constexpr Index kChoices = 4, kDepth = 6;
constexpr double kGoodSteps = 0.75;  ///< share of the steps that are no errors
constexpr int kProblems = 20;        ///< of a seed

using Letters = std::vector<std::int64_t>;

/// A complete tree of letters. States are numbered level by level, the first is the prompt.
class Problem {
 public:
  explicit Problem(Random& random) {
    Index states = 1;
    for (Index depth = 0; depth <= kDepth; ++depth) {
      if (depth > 0) states *= kChoices;
      first_.push_back(depth == 0 ? 0 : first_.back() + states / kChoices);
    }
    count_ = first_.back() + states;
    probs_ = exact::log_softmax(random.normals(kChoices, count_)).exp();
    is_right_.assign(static_cast<std::size_t>(count_), true);
    for (Index state = 1; state < count_; ++state) {
      is_right_[index(state)] =
          is_right_[index((state - 1) / kChoices)] && random.uniform() < kGoodSteps;
    }
    value_ = Eigen::ArrayXd::Zero(count_);
    for (Index state = count_ - 1; state >= 0; --state) {
      if (state >= first_.back()) {
        value_[state] = is_right_[index(state)] ? 1 : 0;
        continue;
      }
      for (Index letter = 0; letter < kChoices; ++letter) {
        value_[state] += probs_(letter, state) * value_[after(state, letter)];
      }
    }
  }

  static Index after(Index state, Index letter) { return kChoices * state + 1 + letter; }
  static Index state_of(const Letters& letters) {
    Index state = 0;
    for (const std::int64_t letter : letters) state = after(state, letter);
    return state;
  }
  Index draw(Index state, Random& random) const { return random.index(probs_.col(state)); }
  double logp(Index state, Index letter) const { return std::log(probs_(letter, state)); }
  /// Returns the probability that the policy ends rightly from a state.
  double value(Index state) const { return value_[state]; }

 private:
  static std::size_t index(Index state) { return static_cast<std::size_t>(state); }

  std::vector<Index> first_;  ///< state of each depth
  Index count_ = 0;
  exact::Table probs_;
  std::vector<bool> is_right_;
  Eigen::ArrayXd value_;
};

/// Pairs by whether their label agrees with true values; equal ones are neither.
struct Labels {
  double right = 0, wrong = 0;

  void add(double chosen, double rejected) {
    if (chosen > rejected) ++right;
    if (chosen < rejected) ++wrong;
  }
  double share() const { return right + wrong > 0 ? right / (right + wrong) : 0.5; }
};

enum class Ends { kTrue, kRandom };

StepTree search(const Problem& problem, const StepTreeOptions& options, std::int64_t letters,
                Ends ends, Random& random) {
  StepTree tree({0}, "");
  // Without end where a small tree has all its steps.
  while (tree.drawn_tokens() < letters && tree.iterations() < letters) {
    std::int64_t place = tree.select(options);
    while (!tree.node(place).is_end) {
      const Index state = Problem::state_of(tree.path_tokens(place));
      std::vector<StepNode> steps;
      for (Index k = 0; k < kChoices; ++k) {
        const Index letter = problem.draw(state, random);
        steps.push_back({.tokens = {letter},
                         .token_logps = {problem.logp(state, letter)},
                         .is_end = tree.node(place).depth + 1 == kDepth});
      }
      tree.count_drawn(kChoices);
      tree.expand(place, std::move(steps), options);
      place = tree.select(options, place);
    }
    if (!tree.node(place).is_rated) {
      const double right = ends == Ends::kRandom
                               ? (random.uniform() < 0.5 ? 1 : 0)
                               : problem.value(Problem::state_of(tree.path_tokens(place)));
      tree.rate(place, 2 * right - 1);
    }
    tree.back_up(place, options);
    tree.finish_iteration();
  }
  return tree;
}

/// Labels of the pairs of a tree: all, and those whose visits agree with their values or do not.
struct TreePairs {
  Labels all, sure, unsure;
};

void add_pairs(const StepTree& tree, const Problem& problem, TreePairs& pairs) {
  for (const StepNode& parent : tree.nodes()) {
    const StepNode* best = nullptr;
    const StepNode* worst = nullptr;
    for (const std::int64_t child : parent.children) {
      const StepNode& step = tree.node(child);
      if (step.visits == 0) continue;
      if (best == nullptr || step.value > best->value) best = &step;
      if (worst == nullptr || step.value < worst->value) worst = &step;
    }
    if (best == nullptr || best->value == worst->value) continue;
    const Letters path = tree.path_tokens(best->parent);
    const Index state = Problem::state_of(path);
    const double chosen = problem.value(Problem::after(state, best->tokens.front()));
    const double rejected = problem.value(Problem::after(state, worst->tokens.front()));
    pairs.all.add(chosen, rejected);
    const bool is_sure = visit_label_prob(best->visits, worst->visits) > 0.5;
    (is_sure ? pairs.sure : pairs.unsure).add(chosen, rejected);
  }
}

/// Pairs of a right with a wrong completion, each completion in one pair.
void add_outcome_pairs(const Problem& problem, std::int64_t letters, Random& random,
                       Labels& labels) {
  std::vector<Letters> right, wrong;
  for (std::int64_t drawn = 0; drawn < letters; drawn += kDepth) {
    Letters completion;
    for (Index depth = 0; depth < kDepth; ++depth) {
      completion.push_back(problem.draw(Problem::state_of(completion), random));
    }
    const bool is_right = problem.value(Problem::state_of(completion)) == 1;
    (is_right ? right : wrong).push_back(std::move(completion));
  }
  for (std::size_t i = 0; i < std::min(right.size(), wrong.size()); ++i) {
    const auto parts = std::mismatch(right[i].begin(), right[i].end(), wrong[i].begin());
    const Index state = Problem::state_of({right[i].begin(), parts.first});
    labels.add(problem.value(Problem::after(state, *parts.first)),
               problem.value(Problem::after(state, *parts.second)));
  }
}

const std::vector<std::int64_t> kBudgets{48, 144, 432};
const StepTreeOptions kPuct, kUct{.rule = TreeRule::kUct, .back_up = BackUp::kMean};

enum : std::size_t { kSearch, kMeans, kOutcome, kControl, kSure, kUnsure, kCases };
const std::vector<std::string> kNames{"PUCT, transitions", "UCT, means", "whole completions",
                                      "control: rewards by chance"};

/// Shares of right labels, budget by budget.
std::vector<double> run_seed(int seed) {
  Random random(static_cast<std::uint64_t>(seed));
  std::vector<double> row;
  for (const std::int64_t letters : kBudgets) {
    TreePairs puct_pairs, uct_pairs, control;
    Labels outcome;
    for (int i = 0; i < kProblems; ++i) {
      const Problem problem(random);
      add_pairs(search(problem, kPuct, letters, Ends::kTrue, random), problem, puct_pairs);
      add_pairs(search(problem, kUct, letters, Ends::kTrue, random), problem, uct_pairs);
      add_pairs(search(problem, kPuct, letters, Ends::kRandom, random), problem, control);
      add_outcome_pairs(problem, letters, random, outcome);
    }
    for (const Labels& labels : {puct_pairs.all, uct_pairs.all, outcome, control.all,
                                 puct_pairs.sure, puct_pairs.unsure}) {
      row.push_back(labels.share());
    }
  }
  return row;
}

}  // namespace

Report run(const Settings& settings) {
  const auto by_seed = for_each_seed(settings.seeds, run_seed);
  Report report{.data = {{"tree-labels", {"case", "letters", "share", "low", "high"}}},
                .pictures = {{"tree-labels",
                              {.title = "Pairs whose chosen step is the better one",
                               .x_label = "letters drawn for a prompt",
                               .y_label = "share",
                               .log_x = true}}}};
  const std::vector<double> budgets(kBudgets.begin(), kBudgets.end());
  const auto column = [](std::size_t budget, std::size_t of) { return kCases * budget + of; };
  for (std::size_t of = 0; of < kNames.size(); ++of) {
    std::vector<Estimate> ys;
    for (std::size_t budget = 0; budget < kBudgets.size(); ++budget) {
      ys.push_back(mean(by_seed, column(budget, of)));
    }
    add_curve(report, kNames[of], budgets, ys);
    report.pictures[0].chart.series.back().style = detail::Series::Style::kLineAndPoints;
  }
  const std::size_t first = 0, middle = 1, last = 2;
  report.verdicts = {
      above("pairs of a search, 144 letters: share of right labels",
            mean(by_seed, column(middle, kSearch)), 0.6),
      above("the same at 432 letters less that at 48",
            mean_difference(by_seed, column(last, kSearch), column(first, kSearch)), 0),
      above("pairs of a search less pairs of whole completions, 144 letters: share",
            mean_difference(by_seed, column(middle, kSearch), column(middle, kOutcome)), 0),
      above("the same at 432 letters",
            mean_difference(by_seed, column(last, kSearch), column(last, kOutcome)), 0),
      above("UCT with means less pairs of whole completions, 144 letters: share",
            mean_difference(by_seed, column(middle, kMeans), column(middle, kOutcome)), 0),
      above("pairs whose better step has more visits less the others, 144 letters: share",
            mean_difference(by_seed, column(middle, kSure), column(middle, kUnsure)), 0),
      within("control: rewards by chance, 144 letters: share of right labels",
             mean(by_seed, column(middle, kControl)), 0.5, 0.03)};
  return report;
}

}  // namespace prefopt::lab::tree_labels
