// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <optional>
#include <utility>

#include "online/selections/candidates.h"
#include "online/selections/selection_of.h"

namespace prefopt::detail {

struct AllPairsOptions {
  ScoreBy by = ScoreBy::kReward;
  double min_gap = 0;
  std::optional<double> min_score = {};
  std::optional<double> min_gap_own = {};
  std::string data_source = "data";
  PromptWeightOptions weights = {};

  void fields(FieldVisitor& v) {
    score_by_field(v, by);
    v.real({"min_gap", "least difference of the two scores"}, min_gap, Range::at_least(0));
    optional_real(v, {"min_score", "least score of chosen; null: any"}, min_score, "all_pairs");
    optional_real(
        v,
        {"min_gap_own", "min_gap where chosen is no completion of the data source; null: min_gap"},
        min_gap_own, "all_pairs");
    v.text({"data_source", "source whose completions are not the policy's own"}, data_source);
    weights.fields(v);
  }
};

/// Every ordered pair whose scores differ by at least a gap. DNO-Prct (2404.03715, section 4): six
/// scores, one of a completion of the data, min_score 5, min_gap 2, min_gap_own 1.
class AllPairsSelection final : public SelectionOf<AllPairsSelection, AllPairsOptions> {
 public:
  AllPairsSelection(Options options, SourceNames sources)
      : SelectionOf(std::move(options), std::move(sources)) {
    if (options_.min_gap_own && !sources_.empty()) {
      require_source("data_source", options_.data_source);
    }
  }
  static constexpr std::string_view kName = "all_pairs";
  static constexpr std::string_view kRows = "every pair whose scores are that far apart";

  Questions questions() const override { return questions_of(options_.by); }

  SelectedRows select(Rater& rater, exact::Random& /*random*/) const override {
    SelectedRows result;
    const std::vector<Scored> scored = score_candidates(rater, options_.by, kName, result);
    for (const Scored& chosen : scored) {
      if (options_.min_score && chosen.score < *options_.min_score) continue;
      const double gap = gap_of(rater.rollout(chosen.place));
      for (const Scored& rejected : scored) add_pair(rater, chosen, rejected, gap, result);
    }
    if (options_.weights.weigh_prompts) weigh_prompt(result);
    return result;
  }

 private:
  double gap_of(const Rollout& chosen) const {
    const bool is_own = !is_from(chosen, options_.data_source);
    return is_own && options_.min_gap_own ? *options_.min_gap_own : options_.min_gap;
  }

  /// A pair of equal completions or scores is looked at twice and counted once.
  static void add_pair(const Rater& rater, const Scored& chosen, const Scored& rejected, double gap,
                       SelectedRows& result) {
    const bool is_counted = chosen.place < rejected.place;
    if (chosen.score > rejected.score || (is_counted && chosen.score == rejected.score)) {
      add_if_better(rater, chosen, rejected, gap, result);
    }
  }
};

}  // namespace prefopt::detail
