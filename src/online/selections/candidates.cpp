// SPDX-License-Identifier: Apache-2.0
#include "online/selections/candidates.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <set>
#include <utility>

#include "prefopt/error.h"

namespace prefopt::detail {
namespace {

bool has_less(const Scored& a, const Scored& b) { return a.score < b.score; }

Scored take(std::vector<Scored>& scored, std::vector<Scored>::iterator at) {
  const Scored taken = *at;
  scored.erase(at);
  return taken;
}

}  // namespace

void score_by_field(FieldVisitor& v, ScoreBy& by) {
  v.choice({"by", "score of a completion: its reward, or its mean probability of beating others"},
           by, {"reward", "row_mean"});
}

Places usable_places(const Rater& rater, SelectedRows& result) {
  Places places;
  for (std::int64_t i = 0; i < rater.size(); ++i) {
    if (rater.rollout(i).completion.empty()) {
      ++result.unusable;
    } else {
      places.push_back(i);
    }
  }
  return places;
}

void require_others(const Rater& rater, std::string_view selection) {
  if (rater.size() >= 2) return;
  throw ConfigError(
      fmt::format("{}: expected at least 2 completions of a prompt to compare with each other, got "
                  "{}; draw more of them",
                  selection, rater.size()));
}

std::vector<Scored> rewards_of(Rater& rater, const Places& places, std::string_view selection,
                               SelectedRows& result) {
  if (!rater.has_rewards()) {
    throw ConfigError(
        fmt::format("{}: expected rewards of completions, got comparisons alone", selection));
  }
  rater.ask_rewards();
  std::vector<Scored> scored;
  for (const std::int64_t place : places) {
    const double reward = rater.reward(place);
    if (std::isnan(reward)) {
      ++result.failed;
    } else {
      scored.push_back({place, reward});
    }
  }
  return scored;
}

std::vector<Scored> row_means_of(Rater& rater, const Places& places, const Places& against,
                                 bool include_self, SelectedRows& result) {
  std::vector<Scored> scored;
  std::set<std::pair<std::int64_t, std::int64_t>> unanswered;
  for (const std::int64_t i : places) {
    double sum = 0;
    std::int64_t answers = 0;
    for (const std::int64_t j : against) {
      if (i == j) continue;
      const double p = rater.beats(i, j);
      if (std::isnan(p)) {
        unanswered.emplace(std::min(i, j), std::max(i, j));
      } else {
        sum += p;
        ++answers;
      }
    }
    if (answers == 0) continue;
    if (include_self) {
      sum += 0.5;
      ++answers;
    }
    scored.push_back({i, sum / static_cast<double>(answers)});
  }
  result.failed += std::ssize(unanswered);
  return scored;
}

std::vector<Scored> score_candidates(Rater& rater, ScoreBy by, std::string_view selection,
                                     SelectedRows& result) {
  const Places places = usable_places(rater, result);
  if (by == ScoreBy::kReward) return rewards_of(rater, places, selection, result);
  rater.ask_comparisons();
  return row_means_of(rater, places, places, /*include_self=*/false, result);
}

Questions questions_of(ScoreBy by) {
  return by == ScoreBy::kReward ? Questions::kRewards : Questions::kComparisons;
}

Scored take_best(std::vector<Scored>& scored) {
  return take(scored, std::max_element(scored.begin(), scored.end(), has_less));
}

Scored take_worst(std::vector<Scored>& scored) {
  return take(scored, std::min_element(scored.begin(), scored.end(), has_less));
}

void rank_by_score(std::vector<Scored>& scored) {
  std::stable_sort(scored.begin(), scored.end(),
                   [](const Scored& a, const Scored& b) { return has_less(b, a); });
}

bool are_distinct(const Rater& rater, std::int64_t first, std::int64_t second,
                  SelectedRows& result) {
  if (!rater.is_identical(first, second)) return true;
  ++result.identical;
  return false;
}

void add_if_better(const Rater& rater, const Scored& chosen, const Scored& rejected, double min_gap,
                   SelectedRows& result) {
  if (!are_distinct(rater, chosen.place, rejected.place, result)) return;
  if (chosen.score == rejected.score) {
    ++result.ties;
  } else if (chosen.score - rejected.score >= min_gap && chosen.score > rejected.score) {
    result.rows.push_back({.chosen = chosen.place, .rejected = rejected.place});
  }
}

void add_labelled(const Rater& rater, std::int64_t first, std::int64_t second, double p,
                  SelectedRows& result) {
  if (!are_distinct(rater, first, second, result)) return;
  if (std::isnan(p)) {
    ++result.failed;
  } else if (p == 0.5) {
    ++result.ties;
  } else {
    const auto [chosen, rejected] = p > 0.5 ? std::pair(first, second) : std::pair(second, first);
    result.rows.push_back({.chosen = chosen, .rejected = rejected});
  }
}

void weigh_prompt(SelectedRows& result) {
  const double weight = 1.0 / static_cast<double>(result.rows.size());
  for (SelectedRow& row : result.rows) row.weight = weight;
}

}  // namespace prefopt::detail
