// SPDX-License-Identifier: Apache-2.0

// Ionides 2008, truncated importance sampling: completions come from a sampler q that is not the
// policy p (another number format, an older copy), and a factor min(p/q, C) trades the bias of
// ignoring that for the variance of correcting it. One prompt, one completion a step, its
// gradient's mean and variance by listing all actions. Controls: the sampler ignored; a factor
// without a limit.

#include <algorithm>
#include <cmath>
#include <cstdint>

#include "lab/experiments.h"
#include "lab/token_steps.h"
#include "prefopt/exact/measures.h"
#include "prefopt/exact/random.h"
#include "prefopt/objectives/advantages/none.h"

namespace prefopt::lab::pg_sampler_mismatch {
namespace {

using Eigen::ArrayXd;
using Eigen::Index;
using exact::Random;

struct Named {
  std::string name;
  CorrectionOptions correction;
};

enum : std::size_t { kWhole, kIgnored, kTruncate2, kTruncate3, kMask2, kCorrections };

const std::vector<Named>& corrections() {
  static const std::vector<Named> all{
      {"control: no limit", {.kind = CorrectionKind::kTruncate, .cap = 1e6}},
      {"control: ignored", {}},
      {"min(p/q, 2)", {.kind = CorrectionKind::kTruncate, .cap = 2}},
      {"min(p/q, 3)", {.kind = CorrectionKind::kTruncate, .cap = 3}},
      {"p/q up to 2, else 0", {.kind = CorrectionKind::kMask, .cap = 2}}};
  return all;
}

/// Cosine with the true gradient, length along it, trace variance, squared bias.
struct Quality {
  double cosine, scale, variance, bias;
};

Quality quality(const Bandit& bandit, const CorrectionOptions& correction) {
  const TokenObjective objective(
      {.aggregation = Aggregation::kSequenceSum, .correction = correction});
  const ArrayXd exact = true_gradient(bandit);
  const auto [mean, variance] = group_gradient(NoBaseline(), objective, bandit, 1);
  return {.cosine = cosine(mean, exact),
          .scale = (mean * exact).sum() / exact.square().sum(),
          .variance = variance,
          .bias = (mean - exact).square().sum()};
}

/// Four actions, the rewards measured from their mean, as by the best baseline.
Bandit four_actions_of_a_sampler() {
  return {ArrayXd{{0.5, 0.3, 0.15, 0.05}}.log(), ArrayXd{{-0.25, 0.05, 0.25, 1.45}},
          ArrayXd{{0.6, 0.3, 0.09, 0.01}}.log()};
}

/// The same of each correction, for a policy and a sampler that has moved from it.
std::vector<double> run_seed(int seed) {
  Random random(static_cast<std::uint64_t>(seed));
  constexpr Index kActions = 6;
  const ArrayXd logps = exact::log_softmax(random.normals(kActions, 1)).col(0);
  const ArrayXd sampler = exact::log_softmax(logps + random.normals(kActions, 1).col(0)).col(0);
  const ArrayXd rewards = random.normals(kActions, 1).col(0);
  const Bandit bandit{logps, rewards - (logps.exp() * rewards).sum(), sampler};
  std::vector<double> row;
  for (const Named& each : corrections()) {
    const Quality of = quality(bandit, each.correction);
    row.insert(row.end(), {of.cosine, of.scale, of.variance, of.bias});
  }
  return row;
}

constexpr std::size_t cosine_of(std::size_t correction) { return 4 * correction; }
constexpr std::size_t variance_of(std::size_t correction) { return 4 * correction + 2; }
constexpr std::size_t bias_of(std::size_t correction) { return 4 * correction + 3; }

/// Squared error of the mean of `count` gradients, mean over instances of one less another.
Estimate error_difference(const BySeed& by_seed, std::size_t correction, std::size_t less,
                          double count) {
  BySeed errors;
  for (const auto& row : by_seed) {
    const auto error = [&](std::size_t of) {
      return row[bias_of(of)] + row[variance_of(of)] / count;
    };
    errors.push_back({error(correction), error(less)});
  }
  return mean_difference(errors, 0, 1);
}

}  // namespace

Report run(const Settings& settings) {
  constexpr double kFew = 4, kMany = 100000;
  const auto by_seed = for_each_seed(settings.seeds, run_seed);
  Report report{
      .data = {{"pg-sampler-mismatch-four", {"correction", "cosine", "scale", "trace variance"}},
               {"pg-sampler-mismatch", {"case", "completions", "error", "low", "high"}}},
      .pictures = {{"pg-sampler-mismatch",
                    {.title = "Squared error of the gradient, random policies and samplers",
                     .x_label = "completions",
                     .y_label = "squared error",
                     .log_x = true,
                     .log_y = true}}}};
  std::vector<Quality> four;
  for (const Named& each : corrections()) {
    four.push_back(quality(four_actions_of_a_sampler(), each.correction));
    report.data[0].rows.push_back(
        {each.name, four.back().cosine, four.back().scale, four.back().variance});
  }
  std::vector<double> counts;
  for (double count = 1; count <= kMany; count *= 10) counts.push_back(count);
  for (std::size_t c = 0; c < kCorrections; ++c) {
    std::vector<Estimate> ys;
    for (const double count : counts) {
      BySeed errors;
      for (const auto& row : by_seed) {
        errors.push_back({row[bias_of(c)] + row[variance_of(c)] / count});
      }
      ys.push_back(mean(errors, 0));
    }
    add_curve(report, corrections()[c].name, counts, ys);
  }
  const auto gained = [&](std::size_t correction) {
    return exactly(four[correction].cosine - four[kIgnored].cosine);
  };
  report.verdicts = {
      above("four actions: min(p/q, 2) is closer to the true direction than ignoring: cosine, by",
            gained(kTruncate2), 0),
      above("min(p/q, 3): by", gained(kTruncate3), 0),
      above("the mask at 2: by", gained(kMask2), 0),
      below("min(p/q, 2): its variance over that without a limit",
            exactly(four[kTruncate2].variance / four[kWhole].variance), 0.5),
      above("random samplers: min(p/q, 2) has less bias than ignoring: by",
            mean_difference(by_seed, bias_of(kIgnored), bias_of(kTruncate2)), 0),
      above("and less variance than no limit: by",
            mean_difference(by_seed, variance_of(kWhole), variance_of(kTruncate2)), 0),
      above("a few completions: no limit has the larger error: by",
            error_difference(by_seed, kWhole, kTruncate2, kFew), 0),
      above("many completions: min(p/q, 2) has: by",
            error_difference(by_seed, kTruncate2, kWhole, kMany), 0),
      above("control: ignoring has another direction: 1 − cosine of four actions",
            exactly(1 - four[kIgnored].cosine), 0.05),
      below("control: no limit has no bias: squared, largest",
            exactly(largest(by_seed, bias_of(kWhole), 1)), 1e-20)};
  return report;
}

}  // namespace prefopt::lab::pg_sampler_mismatch
