// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "online/selections/candidates.h"
#include "online/selections/selection_of.h"

namespace prefopt::detail {

struct BestAgainstOptions {
  ScoreBy by = ScoreBy::kReward;
  double min_gap = 0;

  void fields(FieldVisitor& v) {
    score_by_field(v, by);
    v.real({"min_gap", "least difference of the two scores"}, min_gap, Range::at_least(0));
  }
};

/// The completion with the largest score, the first of equal ones, against one of the others, which
/// `S::other` finds.
template <class S>
class BestAgainst : public SelectionOf<S, BestAgainstOptions> {
 public:
  using SelectionOf<S, BestAgainstOptions>::SelectionOf;

  Questions questions() const override { return questions_of(this->options_.by); }

  SelectedRows select(Rater& rater, exact::Random& random) const override {
    SelectedRows result;
    std::vector<Scored> scored = score_candidates(rater, this->options_.by, S::kName, result);
    if (scored.size() < 2) return result;
    const Scored best = take_best(scored);
    add_if_better(rater, best, S::other(scored, random), this->options_.min_gap, result);
    return result;
  }
};

/// RLHFlow's max_min.
class BestWorstSelection final : public BestAgainst<BestWorstSelection> {
 public:
  using BestAgainst::BestAgainst;
  static constexpr std::string_view kName = "best_worst";
  static constexpr std::string_view kRows = "the best completion against the worst";

  static Scored other(std::vector<Scored> others, exact::Random& /*random*/) {
    return take_worst(others);
  }
};

/// RLHFlow's max_random: "best v.s. random from the remaining".
class BestRandomSelection final : public BestAgainst<BestRandomSelection> {
 public:
  using BestAgainst::BestAgainst;
  static constexpr std::string_view kName = "best_random";
  static constexpr std::string_view kRows = "the best completion against a random other one";

  static Scored other(const std::vector<Scored>& others, exact::Random& random) {
    return others[static_cast<std::size_t>(random.below(std::ssize(others)))];
  }
};

/// RLHFlow's max_max.
class BestSecondSelection final : public BestAgainst<BestSecondSelection> {
 public:
  using BestAgainst::BestAgainst;
  static constexpr std::string_view kName = "best_second";
  static constexpr std::string_view kRows = "the best completion against the second best";

  static Scored other(std::vector<Scored> others, exact::Random& /*random*/) {
    return take_best(others);
  }
};

}  // namespace prefopt::detail
