// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>

#include "online/selections/candidates.h"

namespace prefopt::detail {

struct Match {
  std::int64_t winner, loser;
};

/// Lets neighbours meet; the odd last one does not play. `beats` is P(first beats second): the
/// first wins a tie, and a match without an answer (NaN).
template <class Beats>
std::vector<Match> play_round(const Places& players, const Beats& beats) {
  std::vector<Match> matches;
  for (std::size_t i = 0; i + 1 < players.size(); i += 2) {
    const std::int64_t first = players[i], second = players[i + 1];
    const bool second_wins = beats(first, second) < 0.5;
    matches.push_back(second_wins ? Match{second, first} : Match{first, second});
  }
  return matches;
}

/// Returns one side of the matches, and the one that did not play.
inline Places next_round(const Places& players, const std::vector<Match>& matches,
                         std::int64_t Match::*side) {
  Places next;
  for (const Match& match : matches) next.push_back(match.*side);
  if (players.size() % 2 == 1) next.push_back(players.back());
  return next;
}

}  // namespace prefopt::detail
