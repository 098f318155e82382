// SPDX-License-Identifier: Apache-2.0

// 2309.16240: the divergence trades reward against diversity. In the paper's order reverse KL has
// the most reward and the least entropy, then Jensen-Shannon, then alpha-divergences from 0.3 to
// 0.7, and forward KL has the least reward and the most entropy, at the same beta; and the
// calibration error of a policy is bounded by its divergence from a calibrated reference. Optima on
// the exact population, tabular policies. Control: at the same KL(pi || ref), not beta, no
// divergence has more reward than reverse KL, whose frontier that is.

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "lab/experiments.h"
#include "prefopt/exact/measures.h"
#include "prefopt/exact/minimize.h"

namespace prefopt::lab::fdpo_frontier {
namespace {

using namespace exact;

constexpr Index kActions = 8, kPrompts = 2;
const std::vector<double> kBetas{0.1, 0.2, 0.4, 0.8, 1.6};
constexpr std::size_t kStrong =
    3;  ///< so many of them are small next to the rewards, as the paper's

struct Divergence {
  std::string name, options;
};

/// In the paper's order; its alpha is 1 less the option's.
const std::vector<Divergence> kDivergences{
    {"reverse KL", R"("divergence": "reverse_kl")"},
    {"Jensen–Shannon", R"("divergence": "js_divergence")"},
    {"α = 0.3", R"("divergence": "alpha_divergence", "divergence_alpha": 0.7)"},
    {"α = 0.5", R"("divergence": "alpha_divergence", "divergence_alpha": 0.5)"},
    {"α = 0.7", R"("divergence": "alpha_divergence", "divergence_alpha": 0.3)"},
    {"forward KL", R"("divergence": "forward_kl")"}};

enum Measure : std::size_t { kReward, kEntropy, kReverseKl, kCalibration, kExcess, kMeasures };
const std::vector<std::string> kMeasureNames{"reward", "entropy", "kl", "calibration_error",
                                             "reward_above_reverse_kl_frontier"};

/// Returns how far the probability of the likeliest action is from what it is under the reference,
/// which counts as the truth.
double calibration_error(const Table& logps, const Table& ref) {
  double sum = 0;
  for (Index x = 0; x < logps.cols(); ++x) {
    Index top = 0;
    logps.col(x).maxCoeff(&top);
    sum += std::abs(std::exp(logps(top, x)) - std::exp(ref(top, x)));
  }
  return sum / static_cast<double>(logps.cols());
}

/// Measures of each divergence at each beta.
std::vector<double> run_seed(int seed) {
  Random random(static_cast<std::uint64_t>(seed));
  const Table ref = log_softmax(0.5 * random.normals(kActions, kPrompts));
  const Table rewards = random.normals(kActions, kPrompts);
  const Pairs pairs = population(ref, Preferences::bradley_terry(rewards));
  const SoftmaxPolicy policy = SoftmaxPolicy::tabular(ref);
  std::vector<double> row;
  for (const Divergence& divergence : kDivergences) {
    for (const double beta : kBetas) {
      const Objective objective(ExactLoss(fmt::format(R"({{"type": "f_dpo", "beta": {}, {}}})",
                                                      beta, divergence.options)),
                                policy, ref, pairs);
      const Table logps =
          policy.logps(minimize(objective, Eigen::VectorXd::Zero(policy.parameters())).theta);
      const double reward = expectation(logps, rewards), distance = kl(logps, ref);
      row.insert(row.end(), {reward - expectation(ref, rewards), entropy(logps), distance,
                             calibration_error(logps, ref),
                             reward - expectation(optimum_at(ref, rewards, distance), rewards)});
    }
  }
  return row;
}

std::size_t column(std::size_t divergence, std::size_t beta, Measure measure) {
  return (divergence * kBetas.size() + beta) * kMeasures + measure;
}

}  // namespace

Report run(const Settings& settings) {
  const auto by_seed = for_each_seed(settings.seeds, run_seed);
  Report report{
      .data = {{"fdpo-frontier", {"divergence", "beta", "measure", "mean", "low", "high"}}}};
  detail::Chart frontier{.title = "Reward against entropy, β from 0.1 to 1.6",
                         .x_label = "entropy, nats",
                         .y_label = "reward above the reference's"};
  for (std::size_t d = 0; d < kDivergences.size(); ++d) {
    detail::Series series{.name = kDivergences[d].name,
                          .style = detail::Series::Style::kLineAndPoints};
    for (std::size_t b = 0; b < kBetas.size(); ++b) {
      for (std::size_t m = 0; m < kMeasures; ++m) {
        const Estimate at = mean(by_seed, column(d, b, static_cast<Measure>(m)));
        report.data[0].rows.push_back(
            {kDivergences[d].name, kBetas[b], kMeasureNames[m], at.value, at.low, at.high});
      }
      series.xs.push_back(mean(by_seed, column(d, b, kEntropy)).value);
      series.ys.push_back(mean(by_seed, column(d, b, kReward)).value);
    }
    frontier.series.push_back(std::move(series));
  }
  report.pictures = {{"fdpo-frontier", std::move(frontier)}};

  // Returns how often two divergences are in the paper's order, over a range of beta.
  const auto in_order = [&](Measure measure, std::size_t first, std::size_t second,
                            std::size_t from = 0, std::size_t to = kStrong) {
    const double sign = measure == kReward ? 1 : -1;
    std::vector<std::vector<double>> shares;
    for (const auto& row : by_seed) {
      double count = 0;
      for (std::size_t b = from; b < to; ++b) {
        const double gap = row[column(first, b, measure)] - row[column(second, b, measure)];
        count += sign * gap > 0 ? 1 : 0;
      }
      shares.push_back({count / static_cast<double>(to - from)});
    }
    return mean(shares, 0);
  };
  const std::size_t forward = kDivergences.size() - 1;
  const Estimate reward_ends = in_order(kReward, 0, forward);
  const Estimate entropy_ends = in_order(kEntropy, 0, forward);
  Estimate alphas = exactly(1);
  for (const std::size_t d : {2, 3, 4}) {
    for (const Measure measure : {kReward, kEntropy}) {
      const Estimate pair = in_order(measure, d, d + 1);
      if (pair.value < alphas.value) alphas = pair;
    }
  }
  const Estimate js = in_order(kReward, 0, 1), js_alpha = in_order(kReward, 1, 2);
  const Estimate weak = in_order(kReward, 0, forward, kBetas.size() - 1, kBetas.size());
  double broken = 0, excess = -1;
  for (const auto& row : by_seed) {
    for (std::size_t d = 0; d < kDivergences.size(); ++d) {
      for (std::size_t b = 0; b < kBetas.size(); ++b) {
        // Pinsker: a difference of probabilities is at most sqrt(KL / 2); prompts by Jensen.
        const double bound = std::sqrt(row[column(d, b, kReverseKl)] / 2);
        broken = std::max(broken, row[column(d, b, kCalibration)] / bound);
        excess = std::max(excess, row[column(d, b, kExcess)]);
      }
    }
  }
  const auto often = [](const Estimate& share) { return share.low > 0.9; };
  report.verdicts = {
      {"reverse KL has more reward than forward KL, β up to 0.4: share of cases", reward_ends,
       "above 0.9", often(reward_ends)},
      {"and less entropy: share", entropy_ends, "above 0.9", often(entropy_ends)},
      {"α-divergences stand in order between, in reward and entropy: share, worst neighbours",
       alphas, "above 0.9", often(alphas)},
      {"the order of the ends holds at β = 1.6 too: share", weak, "above 0.9", often(weak)},
      {"reverse KL has more reward than Jensen–Shannon at the same β: share", js, "above 0.9",
       often(js)},
      {"Jensen–Shannon has more reward than α = 0.3 at the same β: share", js_alpha, "above 0.9",
       often(js_alpha)},
      {"the calibration error is within its bound, sqrt(KL / 2): largest ratio", exactly(broken),
       "at most 1", broken <= 1},
      {"control: at the same KL(π ‖ π_ref) none has more reward than reverse KL: largest excess",
       exactly(excess), "below 1e-9", excess < 1e-9}};
  return report;
}

}  // namespace prefopt::lab::fdpo_frontier
