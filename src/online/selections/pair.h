// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <cmath>

#include "online/selections/candidates.h"
#include "online/selections/selection_of.h"

namespace prefopt::detail {

struct PairSelectionOptions {
  bool soft = false;

  void fields(FieldVisitor& v) {
    v.flag({"soft", "column label_prob = P(chosen beats rejected); ties stay, with 1/2"}, soft);
  }
};

/// The first two completions of a prompt, labelled: OAIF (2402.04792), INPO (2407.00617,
/// Algorithm 1 with two samples), XPO (2405.21046).
class PairSelection final : public SelectionOf<PairSelection, PairSelectionOptions> {
 public:
  using SelectionOf::SelectionOf;
  static constexpr std::string_view kName = "pair";
  static constexpr std::string_view kRows = "the first two completions, labelled";

  Questions questions() const override { return Questions::kFirstComparison; }

  SelectedRows select(Rater& rater, exact::Random& /*random*/) const override {
    SelectedRows result;
    const Places places = usable_places(rater, result);
    if (places.size() < 2) return result;
    const std::int64_t first = places[0], second = places[1];
    if (!are_distinct(rater, first, second, result)) return result;
    const double p = rater.beats(first, second);
    if (!options_.soft || std::isnan(p)) {
      add_labelled(rater, first, second, p, result);
    } else {
      const bool keeps_order = p >= 0.5;
      result.rows.push_back({.chosen = keeps_order ? first : second,
                             .rejected = keeps_order ? second : first,
                             .label_prob = std::max(p, 1 - p)});
    }
    return result;
  }
};

}  // namespace prefopt::detail
