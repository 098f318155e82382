// SPDX-License-Identifier: Apache-2.0

// 2409.01369 (IQLearn for language models): imitation whose implied rewards are kept small is said
// to keep diversity at equal quality. Tables of logits by prefix, a few demonstrations of a known
// policy, the registered loss by exact descent from logits of 0: likelihood of unseen completions
// and entropy of completions, against sft on the same demonstrations, as it ends and at its best
// step. Control: lambda 0 is sft.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <vector>

#include "lab/experiments.h"
#include "lab/token_tree.h"
#include "prefopt/exact/measures.h"
#include "prefopt/exact/random.h"
#include "prefopt/objectives/token_losses/iqlearn.h"

namespace prefopt::lab::iqlearn_diversity {
namespace {

using exact::Random;

constexpr TokenTree kTree{.letters = 4, .depth = 3};
constexpr double kRate = 2;
constexpr int kSteps = 400;
constexpr Index kDemonstrations = 30;

/// Numbers of a policy of logits: mean negative log-likelihood of the true policy's completions,
/// and own entropy, nats.
struct Quality {
  double nll = 0, entropy = 0;
};

struct Imitation {
  Quality end;
  Quality best;     ///< at the step of the least nll
  Quality as_even;  ///< at the last step whose entropy is at least `even`
};

/// Demonstrations as one step of tokens.
BasicTokenRows<ArrayXd> step_of(const std::vector<Index>& leaves) {
  const auto count = static_cast<Index>(leaves.size());
  const Index tokens = count * kTree.depth;
  BasicTokenRows<ArrayXd> in;
  in.logps = ArrayXd::Zero(tokens);
  in.log_normalizers = ArrayXd::Zero(tokens);
  in.completions =
      ArrayXd::NullaryExpr(tokens, [](Index t) { return static_cast<double>(t / kTree.depth); });
  in.lens = ArrayXd::Constant(tokens, static_cast<double>(kTree.depth));
  in.completion_count = count;
  in.totals = {.tokens = static_cast<double>(tokens), .completions = static_cast<double>(count)};
  return in;
}

ArrayXd log_normalizers_of(const Table& logits) {
  return (logits - exact::log_softmax(logits)).row(0).transpose();
}

/// Follows the loss; `even` is the entropy that `as_even` is taken at.
Imitation imitate(double lambda, const std::vector<Index>& leaves, const ArrayXd& truth,
                  double even) {
  const TokenLoss loss = IqlearnLoss({.lambda = lambda});
  BasicTokenRows<ArrayXd> in = step_of(leaves);
  Table logits = Table::Zero(kTree.letters, kTree.nodes());
  Imitation result;
  result.best.nll = std::numeric_limits<double>::infinity();
  for (int step = 0; step <= kSteps; ++step) {
    const Table policy = exact::log_softmax(logits);
    const ArrayXd normalizers = log_normalizers_of(logits);
    const ArrayXd own = leaf_logps(kTree, policy);
    result.end = {.nll = -(truth.exp() * own).sum(), .entropy = -(own.exp() * own).sum()};
    if (result.end.nll < result.best.nll) result.best = result.end;
    if (result.end.entropy >= even) result.as_even = result.end;
    for (std::size_t i = 0; i < leaves.size(); ++i) {
      for (Index t = 0; t < kTree.depth; ++t) {
        const Index at = static_cast<Index>(i) * kTree.depth + t;
        const Index node = kTree.node_of(leaves[i], t);
        in.logps[at] = policy(kTree.letter_of(leaves[i], t), node);
        in.log_normalizers[at] = normalizers[node];
      }
    }
    const auto out = loss.formula<ArrayXd>(in);
    Table by_logps = Table::Zero(kTree.letters, kTree.nodes());
    ArrayXd by_normalizers = ArrayXd::Zero(kTree.nodes());
    for (std::size_t i = 0; i < leaves.size(); ++i) {
      for (Index t = 0; t < kTree.depth; ++t) {
        const Index at = static_cast<Index>(i) * kTree.depth + t;
        const Index node = kTree.node_of(leaves[i], t);
        by_logps(kTree.letter_of(leaves[i], t), node) += out.grad_logps[at];
        by_normalizers[node] += out.grad_log_normalizers[at];
      }
    }
    logits -= kRate * (logit_gradient(policy, by_logps) +
                       policy.exp().rowwise() * by_normalizers.transpose());
  }
  return result;
}

enum : std::size_t {
  kSftNll,
  kIqNll,
  kSftEntropy,
  kIqEntropy,
  kSftBest,
  kSftEvenNll,
  kZeroGap,
  kByLambda
};

constexpr double kLambda = 0.1;
const std::vector<double> kLambdas{0.01, 0.03, 0.1, 0.3, 1};

std::vector<double> run_seed(int seed) {
  Random random(static_cast<std::uint64_t>(seed));
  const ArrayXd truth = leaf_logps(kTree, random_policy(kTree, 1, random));
  std::vector<Index> leaves;
  for (Index i = 0; i < kDemonstrations; ++i) leaves.push_back(random.index(truth.exp()));
  const Imitation iq = imitate(kLambda, leaves, truth, 0);
  // Sft, stopped where its entropy is that of the other's end.
  const Imitation sft = imitate(0, leaves, truth, iq.end.entropy);
  const TokenLoss zero = IqlearnLoss({.lambda = 0});
  BasicTokenRows<ArrayXd> in = step_of(leaves);
  in.logps = -random.normals(in.logps.size(), 1).col(0).abs();
  in.log_normalizers = random.normals(in.logps.size(), 1).col(0);
  const double zero_gap = std::abs(zero.formula<ArrayXd>(in).loss + in.logps.mean());
  std::vector<double> row{sft.end.nll,  iq.end.nll,      sft.end.entropy, iq.end.entropy,
                          sft.best.nll, sft.as_even.nll, zero_gap};
  std::vector<Quality> ends;
  for (const double lambda : kLambdas) ends.push_back(imitate(lambda, leaves, truth, 0).end);
  for (const Quality& end : ends) row.push_back(end.nll);
  for (const Quality& end : ends) row.push_back(end.entropy);
  return row;
}

}  // namespace

Report run(const Settings& settings) {
  const BySeed by_seed = for_each_seed(settings.seeds, run_seed);
  Report report{.data = {{"iqlearn-diversity-ends", {"case", "nats", "low", "high"}},
                         {"iqlearn-diversity", {"case", "lambda", "nats", "low", "high"}}},
                .pictures = {{"iqlearn-diversity",
                              {.title = "IQLearn after 400 steps on 30 demonstrations",
                               .x_label = "λ",
                               .y_label = "nats",
                               .log_x = true}}}};
  const std::size_t points = kLambdas.size();
  add_curve(report, "negative log-likelihood of unseen completions", kLambdas,
            means(by_seed, kByLambda, points));
  add_curve(report, "entropy", kLambdas, means(by_seed, kByLambda + points, points));
  const auto add = [&](const std::string& name, std::size_t column) {
    const Estimate nats = mean(by_seed, column);
    report.data[0].rows.push_back({name, nats.value, nats.low, nats.high});
  };
  add("sft: negative log-likelihood of unseen completions", kSftNll);
  add("iqlearn: the same", kIqNll);
  add("sft at its best step: the same", kSftBest);
  add("sft at iqlearn's entropy: the same", kSftEvenNll);
  add("sft: entropy", kSftEntropy);
  add("iqlearn: entropy", kIqEntropy);
  report.verdicts = {
      above("trained as long, iqlearn has more entropy than sft: nats",
            mean_difference(by_seed, kIqEntropy, kSftEntropy), 0.1),
      above("and gives unseen completions more likelihood: nats",
            mean_difference(by_seed, kSftNll, kIqNll), 0.1),
      above("than sft stopped at the same entropy, too: nats",
            mean_difference(by_seed, kSftEvenNll, kIqNll), 0),
      above("than sft at its best step, too: nats", mean_difference(by_seed, kSftBest, kIqNll), 0),
      below("control: lambda 0 is sft: difference of the loss, largest",
            exactly(largest(by_seed, kZeroGap, 1)), 1e-12)};
  return report;
}

}  // namespace prefopt::lab::iqlearn_diversity
