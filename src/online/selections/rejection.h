// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <cstddef>

#include "online/selections/candidates.h"
#include "online/selections/knockout.h"
#include "online/selections/selection_of.h"
#include "prefopt/online/rejection.h"

namespace prefopt::detail {

enum class RejectionPairs { kFirstRound, kTournament };

struct RejectionOptions {
  double beta = 0.5;
  std::int64_t n = 8;
  RejectionPairs then = RejectionPairs::kFirstRound;
  bool merge = true;
  PromptWeightOptions weights = {};

  void fields(FieldVisitor& v) {
    v.real({"beta", "temperature of the target pi exp(reward / beta); 0: the n best"}, beta,
           Range::at_least(0));
    v.integer({"n", "completions to accept"}, n, Range::at_least(1));
    v.choice({"then",
              "pairs of accepted completions: 1 and 2, 3 and 4, …, or all matches of a knockout"},
             then, {"first_round", "tournament"});
    v.flag({"merge",
            "equal completions are one candidate, at the first place with the last reward; "
            "false keeps the law of the draws where there are few completions"},
           merge);
    weights.fields(v);
  }
};

/// Statistical rejection sampling and pairs of what it accepts (RSO, 2309.06657, Algorithm 1 and
/// section 3.3).
class RejectionSelection final : public SelectionOf<RejectionSelection, RejectionOptions> {
 public:
  using SelectionOf::SelectionOf;
  static constexpr std::string_view kName = "rejection";
  static constexpr std::string_view kRows =
      "pairs of completions that statistical rejection sampling accepts";

  Questions questions() const override { return Questions::kRewards; }

  SelectedRows select(Rater& rater, exact::Random& random) const override {
    SelectedRows result;
    const Places accepted = accept(rater, random, result);
    pair_up(rater, accepted, result);
    if (options_.weights.weigh_prompts) weigh_prompt(result);
    return result;
  }

 private:
  Places accept(Rater& rater, exact::Random& random, SelectedRows& result) const {
    std::vector<Scored> scored = rewards_of(rater, usable_places(rater, result), kName, result);
    if (options_.merge) scored = merged(rater, scored, result);
    std::vector<double> rewards;
    for (const Scored& candidate : scored) rewards.push_back(candidate.score);
    Places accepted =
        accept_by_rejection(rewards, options_.beta, options_.n, [&] { return random.uniform(); });
    for (std::int64_t& place : accepted) place = scored[static_cast<std::size_t>(place)].place;
    result.missing += options_.n - std::ssize(accepted);
    return accepted;
  }

  static std::vector<Scored> merged(const Rater& rater, const std::vector<Scored>& scored,
                                    SelectedRows& result) {
    std::vector<Scored> kept;
    for (const Scored& candidate : scored) {
      const auto same = std::find_if(kept.begin(), kept.end(), [&](const Scored& other) {
        return rater.is_identical(other.place, candidate.place);
      });
      if (same == kept.end()) {
        kept.push_back(candidate);
      } else {
        same->score = candidate.score;
        ++result.identical;
      }
    }
    return kept;
  }

  /// The paper flips pairs at random before they are labelled, against position bias; a Rater's
  /// answers are the same in both orders.
  void pair_up(Rater& rater, Places players, SelectedRows& result) const {
    const auto label = [&](std::int64_t first, std::int64_t second) {
      const double p = rater.beats(first, second);
      add_labelled(rater, first, second, p, result);
      return p;
    };
    while (players.size() > 1) {
      players = next_round(players, play_round(players, label), &Match::winner);
      if (options_.then == RejectionPairs::kFirstRound) return;
    }
  }
};

}  // namespace prefopt::detail
