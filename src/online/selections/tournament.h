// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <cmath>
#include <set>
#include <utility>

#include "online/selections/candidates.h"
#include "online/selections/knockout.h"
#include "online/selections/selection_of.h"

namespace prefopt::detail {

struct TournamentOptions {
  void fields(FieldVisitor& /*v*/) {}
};

/// The winner of a knockout against the loser of one among those who lost their first match, kept
/// where the winner beats the loser (INPO, 2407.00617): 11 questions for 8 completions. The first
/// wins a tie, and a match without an answer; the odd last one advances.
class TournamentSelection final : public SelectionOf<TournamentSelection, TournamentOptions> {
 public:
  using SelectionOf::SelectionOf;
  static constexpr std::string_view kName = "tournament";
  static constexpr std::string_view kRows =
      "winner and loser of a knockout, where the winner beats the loser";

  Questions questions() const override { return Questions::kAdaptive; }

  SelectedRows select(Rater& rater, exact::Random& /*random*/) const override {
    SelectedRows result;
    std::set<std::pair<std::int64_t, std::int64_t>> unanswered;
    const auto beats = [&](std::int64_t first, std::int64_t second) {
      const double p = rater.beats(first, second);
      if (std::isnan(p)) unanswered.emplace(std::min(first, second), std::max(first, second));
      return p;
    };
    const Places players = usable_places(rater, result);
    if (players.size() < 2) return result;
    const std::vector<Match> first_round = play_round(players, beats);
    Places winners = next_round(players, first_round, &Match::winner);
    Places losers;
    for (const Match& match : first_round) losers.push_back(match.loser);
    while (winners.size() > 1) {
      winners = next_round(winners, play_round(winners, beats), &Match::winner);
    }
    while (losers.size() > 1) {
      losers = next_round(losers, play_round(losers, beats), &Match::loser);
    }
    const std::int64_t winner = winners.front(), loser = losers.front();
    const double p = beats(winner, loser);
    if (p >= 0.5) add_labelled(rater, winner, loser, p, result);
    result.failed += std::ssize(unanswered);
    return result;
  }
};

}  // namespace prefopt::detail
