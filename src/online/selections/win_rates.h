// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "online/selections/candidates.h"
#include "online/selections/selection_of.h"
#include "prefopt/math/functions.h"

namespace prefopt::detail {

enum class WinRatePick { kBestWorst, kAll };

struct WinRateOptions {
  WinRatePick pick = WinRatePick::kBestWorst;
  bool include_self = false;
  bool label_probs = false;
  PromptWeightOptions weights = {};

  void fields(FieldVisitor& v) {
    v.choice({"pick",
              "the best completion with the worst, or K/2 pairs: also the second best with "
              "the second worst, and so on"},
             pick, {"best_worst", "all"});
    v.flag({"include_self",
            "count the completion itself with 1/2, as SPPO's code: scales P - 1/2 by (K - 1)/K"},
           include_self);
    v.flag({"label_probs", "column label_prob = sigmoid(win rate of chosen - that of rejected)"},
           label_probs);
    weights.fields(v);
  }
};

/// Pairs with the win rates of both sides among the K completions of the prompt,
///
///   P_i = 1/(K - 1) sum over j != i of P(y_i beats y_j):
///
/// an unbiased estimate of P(y_i beats pi) for SPPO (2405.00675, equation 4.7 and section 4), and
/// with `label_probs` the label sigmoid(r_1 - r_2) of DNO (2404.03715, equation 12). Equal win
/// rates make a row: they say that the target is 1/2.
class WinRateSelection final : public SelectionOf<WinRateSelection, WinRateOptions> {
 public:
  using SelectionOf::SelectionOf;
  static constexpr std::string_view kName = "win_rates";
  static constexpr std::string_view kRows = "pairs with the win rates of both sides";

  Questions questions() const override { return Questions::kComparisons; }

  SelectedRows select(Rater& rater, exact::Random& /*random*/) const override {
    require_others(rater, kName);
    SelectedRows result;
    rater.ask_comparisons();
    const Places places = usable_places(rater, result);
    std::vector<Scored> left = row_means_of(rater, places, places, options_.include_self, result);
    while (left.size() > 1) {
      const Scored best = take_best(left);
      add_rates(rater, best, take_worst(left), result);
      if (options_.pick == WinRatePick::kBestWorst) break;
    }
    if (options_.weights.weigh_prompts) weigh_prompt(result);
    return result;
  }

 private:
  void add_rates(const Rater& rater, const Scored& chosen, const Scored& rejected,
                 SelectedRows& result) const {
    if (!are_distinct(rater, chosen.place, rejected.place, result)) return;
    SelectedRow row{.chosen = chosen.place,
                    .rejected = rejected.place,
                    .chosen_win_rate = chosen.score,
                    .rejected_win_rate = rejected.score};
    if (options_.label_probs) row.label_prob = math::sigmoid(chosen.score - rejected.score);
    result.rows.push_back(row);
  }
};

}  // namespace prefopt::detail
