// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>

#include "online/selections/candidates.h"
#include "online/selections/selection_of.h"

namespace prefopt::detail {

struct BestOfOptions {
  ScoreBy by = ScoreBy::kReward;
  std::int64_t n = 1;

  void fields(FieldVisitor& v) {
    score_by_field(v, by);
    v.integer({"n", "completions to keep"}, n, Range::at_least(1));
  }
};

/// The n best different completions of a prompt, as rows of single completions for `sft`.
class BestOfSelection final : public SelectionOf<BestOfSelection, BestOfOptions> {
 public:
  using SelectionOf::SelectionOf;
  static constexpr std::string_view kName = "best_of";
  static constexpr std::string_view kRows = "the n best completions, single";

  Questions questions() const override { return questions_of(options_.by); }

  SelectedRows select(Rater& rater, exact::Random& /*random*/) const override {
    SelectedRows result;
    std::vector<Scored> scored = score_candidates(rater, options_.by, kName, result);
    rank_by_score(scored);
    for (const Scored& candidate : scored) {
      if (std::ssize(result.rows) == options_.n) break;
      const bool is_new = std::none_of(
          result.rows.begin(), result.rows.end(),
          [&](const SelectedRow& row) { return rater.is_identical(row.chosen, candidate.place); });
      if (is_new) {
        result.rows.push_back({.chosen = candidate.place});
      } else {
        ++result.identical;
      }
    }
    result.missing += options_.n - std::ssize(result.rows);
    return result;
  }
};

}  // namespace prefopt::detail
