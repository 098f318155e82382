// SPDX-License-Identifier: Apache-2.0

// 2409.06957 (PF-PPO): of N completions one is kept by the rank of its reward, so that rewards that
// are kept say more of the true score: R². Four completions of a prompt, whose scores are those of
// the prompt and their own, and a reward with noise. The draw by rank is an expectation. Control:
// ranks of shuffled rewards.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <utility>

#include "lab/experiments.h"
#include "prefopt/exact/random.h"
#include "prefopt/objectives/reward_shaping.h"

namespace prefopt::lab::pg_rank_filter {
namespace {

using Eigen::ArrayXd;
using Eigen::Index;
using exact::Random;

constexpr Index kCompletions = 4;
constexpr double kOfPrompts = 0.5;  ///< standard deviation of the scores of prompts; own ones: 1
constexpr double kNoise = 1.34;     ///< of the reward

struct Filter {
  std::string name;
  RankFilter filter;
};

const std::vector<Filter> kFilters{{"none", RankFilter::kNone},
                                   {"best (BoN)", RankFilter::kBest},
                                   {"best and random (BR)", RankFilter::kBestRandom},
                                   {"best and worst (BW)", RankFilter::kBestWorst}};
constexpr std::size_t kAll = 0, kBest = 1, kBestRandom = 2, kBestWorst = 3, kFilterCount = 4;

/// Squared correlation of weighed pairs.
class Correlation {
 public:
  void add(const ArrayXd& weights, const ArrayXd& x, const ArrayXd& y) {
    weight_ += weights.sum();
    x_ += (weights * x).sum();
    y_ += (weights * y).sum();
    xx_ += (weights * x.square()).sum();
    yy_ += (weights * y.square()).sum();
    xy_ += (weights * x * y).sum();
  }
  double squared() const {
    const double x = x_ / weight_, y = y_ / weight_;
    const double covariance = xy_ / weight_ - x * y;
    return covariance * covariance / ((xx_ / weight_ - x * x) * (yy_ / weight_ - y * y));
  }

 private:
  double weight_ = 0, x_ = 0, y_ = 0, xx_ = 0, yy_ = 0, xy_ = 0;
};

/// R² with each filter, then with ranks of shuffled rewards.
std::vector<double> run_seed(int seed, int prompts) {
  Random random(static_cast<std::uint64_t>(seed));
  std::vector<Correlation> by_rank(kFilterCount), shuffled(kFilterCount);
  for (int prompt = 0; prompt < prompts; ++prompt) {
    const double common = kOfPrompts * random.normal();
    const ArrayXd scores = common + random.normals(kCompletions, 1).col(0);
    const ArrayXd rewards = scores + kNoise * random.normals(kCompletions, 1).col(0);
    ArrayXd other = rewards;
    for (Index i = kCompletions - 1; i > 0; --i) std::swap(other[i], other[random.below(i + 1)]);
    for (std::size_t f = 0; f < kFilterCount; ++f) {
      by_rank[f].add(rank_weights(rewards, kFilters[f].filter), rewards, scores);
      shuffled[f].add(rank_weights(other, kFilters[f].filter), rewards, scores);
    }
  }
  std::vector<double> row;
  for (const Correlation& each : by_rank) row.push_back(each.squared());
  for (const Correlation& each : shuffled) row.push_back(each.squared());
  return row;
}

/// The policy that kept completions are of: all triples of three actions.
ArrayXd induced(RankFilter filter) {
  constexpr Index kActions = 3;
  const ArrayXd p{{0.5, 0.3, 0.2}}, rewards{{0.0, 1.0, 2.0}};
  ArrayXd law = ArrayXd::Zero(kActions);
  for (Index a = 0; a < kActions; ++a) {
    for (Index b = 0; b < kActions; ++b) {
      for (Index c = 0; c < kActions; ++c) {
        const std::vector<Index> drawn{a, b, c};
        const ArrayXd weights = rank_weights(rewards(drawn), filter);
        for (std::size_t i = 0; i < drawn.size(); ++i) {
          law[drawn[i]] += p[a] * p[b] * p[c] * weights[static_cast<Index>(i)];
        }
      }
    }
  }
  return law;
}

}  // namespace

Report run(const Settings& settings) {
  const int prompts = settings.quick ? 1000 : 5000;
  const auto by_seed =
      for_each_seed(settings.seeds, [&](int seed) { return run_seed(seed, prompts); });
  Report report{.data = {{"pg-rank-filter-policies", {"filter", "p1", "p2", "p3"}},
                         {"pg-rank-filter", {"case", "place", "r2", "low", "high"}}},
                .pictures = {{"pg-rank-filter",
                              {.title = "What a kept reward says of the true score",
                               .x_label = "filter: none, best, best and random, best and worst",
                               .y_label = "R²"}}}};
  std::vector<double> places;
  double moved = 0;
  for (std::size_t f = 0; f < kFilterCount; ++f) {
    const ArrayXd law = induced(kFilters[f].filter);
    report.data[0].rows.push_back({kFilters[f].name, law[0], law[1], law[2]});
    places.push_back(static_cast<double>(f));
    if (f == kBestWorst) moved = (law - induced(RankFilter::kNone)).abs().sum() / 2;
  }
  add_curve(report, "ranks of rewards", places, means(by_seed, 0, kFilterCount));
  add_curve(report, "control: ranks of shuffled rewards", places,
            means(by_seed, kFilterCount, kFilterCount));
  for (auto& series : report.pictures[0].chart.series) {
    series.style = detail::Series::Style::kLineAndPoints;
  }
  const auto over_none = [&](std::size_t column) { return mean_difference(by_seed, column, kAll); };
  report.verdicts = {
      above("best and worst: R² above that of all completions, by", over_none(kBestWorst), 0),
      above("best and random: by", over_none(kBestRandom), 0),
      above("the best alone: by", over_none(kBest), 0),
      above("best and worst above best and random: by",
            mean_difference(by_seed, kBestWorst, kBestRandom), 0),
      below("kept completions are the policy's own: total variation, best and worst of three",
            exactly(moved), 1e-6),
      within("control: ranks of shuffled rewards: best and worst above all, by",
             over_none(kFilterCount + kBestWorst), 0, 0.01),
      within("control: the best alone: by", over_none(kFilterCount + kBest), 0, 0.01)};
  return report;
}

}  // namespace prefopt::lab::pg_rank_filter
