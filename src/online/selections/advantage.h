// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <cmath>
#include <string>
#include <utility>

#include "online/selections/candidates.h"
#include "online/selections/selection_of.h"

namespace prefopt::detail {

enum class AdvantageBaseline { kHalf, kGroup, kNone };

struct AdvantageOptions {
  ScoreBy by = ScoreBy::kRowMean;
  std::string against = "others";
  AdvantageBaseline baseline = AdvantageBaseline::kHalf;
  bool normalize = false;

  void fields(FieldVisitor& v) {
    score_by_field(v, by);
    v.text({"against",
            "opponents: others (of the prompt), the name of a source, or queue (others, and those "
            "of the source 'queue')"},
           against);
    v.choice({"baseline",
              "subtracted from a score: 1/2, the mean score of the prompt's other completions, or "
              "nothing"},
             baseline, {"half", "group", "none"});
    v.flag({"normalize", "divide by the standard deviation of the prompt's scores + 1e-4"},
           normalize);
  }
};

/// Single completions with an advantage, the score less a baseline. The score is the mean
/// probability of beating the opponents,
///
///   A_i = 1/(K - 1) sum over j != i of P(y_i beats y_j) - 1/2    (SPO, 2401.04056)
///   A_i = 1/m sum over the m opponents of P(y_i beats y'_j) - 1/2    (Nash-MD, 2312.00886, eq. 13)
///
/// or the reward; with the baseline `group` and rewards this is leave-one-out (RLOO, 2402.14740).
/// Opponents of another source get no row. Advantages against the others add up to 0.
class AdvantageSelection final : public SelectionOf<AdvantageSelection, AdvantageOptions> {
 public:
  AdvantageSelection(Options options, SourceNames sources)
      : SelectionOf(std::move(options), std::move(sources)) {
    if (options_.against != kOthers) require_source("against", options_.against);
    if (options_.by == ScoreBy::kRowMean) return;
    if (options_.against != kOthers) {
      throw ConfigError(
          fmt::format("advantage: expected no opponents with by = 'reward', got against = '{}'",
                      shown_text(options_.against)));
    }
    if (options_.baseline == AdvantageBaseline::kHalf) {
      throw ConfigError(
          "advantage: expected the baseline 'group' or 'none' with by = 'reward', got 'half', "
          "which is the mean of a probability");
    }
  }
  static constexpr std::string_view kName = "advantage";
  static constexpr std::string_view kRows = "single completions with an advantage";

  Questions questions() const override {
    return options_.against == kOthers ? questions_of(options_.by) : Questions::kAdaptive;
  }
  bool needs_own_distribution() const override { return true; }

  SelectedRows select(Rater& rater, exact::Random& /*random*/) const override {
    SelectedRows result;
    const std::vector<Scored> scored = score(rater, result);
    if (needs_group() && scored.size() < 2) return result;
    const double scale = options_.normalize ? 1 / (deviation(scored) + 1e-4) : 1;
    for (const Scored& completion : scored) {
      result.rows.push_back(
          {.chosen = completion.place,
           .advantage = (completion.score - baseline(completion, scored)) * scale});
    }
    return result;
  }

 private:
  static constexpr std::string_view kOthers = "others";
  static constexpr std::string_view kQueue = "queue";

  bool needs_group() const {
    return options_.normalize || options_.baseline == AdvantageBaseline::kGroup;
  }

  std::vector<Scored> score(Rater& rater, SelectedRows& result) const {
    const bool is_against_others = options_.against == kOthers;
    if (needs_group() || (is_against_others && options_.by == ScoreBy::kRowMean)) {
      require_others(rater, kName);
    }
    if (is_against_others) return score_candidates(rater, options_.by, kName, result);
    Places places, opponents;
    for (const std::int64_t i : usable_places(rater, result)) {
      const bool is_opponent = is_from(rater.rollout(i), options_.against);
      if (!is_opponent) places.push_back(i);
      if (is_opponent || options_.against == kQueue) opponents.push_back(i);
    }
    return row_means_of(rater, places, opponents, /*include_self=*/false, result);
  }

  double baseline(const Scored& completion, const std::vector<Scored>& scored) const {
    switch (options_.baseline) {
      case AdvantageBaseline::kHalf:
        return 0.5;
      case AdvantageBaseline::kGroup:
        return (sum(scored) - completion.score) / static_cast<double>(scored.size() - 1);
      case AdvantageBaseline::kNone:
        break;
    }
    return 0;
  }

  static double sum(const std::vector<Scored>& scored) {
    double total = 0;
    for (const Scored& completion : scored) total += completion.score;
    return total;
  }

  /// Of a sample: divided by K - 1.
  static double deviation(const std::vector<Scored>& scored) {
    const double mean = sum(scored) / static_cast<double>(scored.size());
    double squares = 0;
    for (const Scored& completion : scored) {
      squares += (completion.score - mean) * (completion.score - mean);
    }
    return std::sqrt(squares / static_cast<double>(scored.size() - 1));
  }
};

}  // namespace prefopt::detail
