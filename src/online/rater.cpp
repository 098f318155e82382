// SPDX-License-Identifier: Apache-2.0
#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <map>
#include <numeric>

#include "prefopt/error.h"
#include "prefopt/online/preference.h"

namespace prefopt {
namespace {

std::vector<std::int64_t> first_of_equal(const std::vector<Rollout>& rollouts) {
  std::map<std::vector<std::int64_t>, std::int64_t> places;
  std::vector<std::int64_t> first;
  for (const Rollout& rollout : rollouts) {
    first.push_back(places.try_emplace(rollout.completion, std::ssize(first)).first->second);
  }
  return first;
}

void check_answers(const std::vector<double>& answers, std::size_t asked) {
  if (answers.size() == asked) return;
  throw DataError(fmt::format("preference: expected {} answers, got {}", asked, answers.size()));
}

}  // namespace

double end_penalty(const Rollout& rollout, const RaterOptions& options) {
  return (rollout.ended ? 0 : options.missing_eos_penalty) +
         options.length_penalty * static_cast<double>(rollout.completion.size());
}

Rater::Rater(Preference& preference, const std::vector<Rollout>& rollouts,
             const RaterOptions& options)
    : preference_(&preference),
      rollouts_(&rollouts),
      options_(options),
      first_(first_of_equal(rollouts)),
      rated_(first_),
      rewards_(rollouts.size()),
      has_reward_(rollouts.size()),
      beats_(rollouts.size() * rollouts.size()),
      is_known_(rollouts.size() * rollouts.size()) {
  if (!preference.is_of_tokens()) std::iota(rated_.begin(), rated_.end(), 0);
}

double Rater::reward(std::int64_t i) {
  const std::int64_t asked = rated_.at(i);
  if (!has_reward_[asked]) {
    const std::vector<double> answers = preference_->rewards({&rollout(asked)});
    check_answers(answers, 1);
    set_reward(asked, answers.front());
  }
  return rewards_[asked] - end_penalty(rollout(i), options_);
}

double Rater::beats(std::int64_t i, std::int64_t j) {
  if (i > j) return 1 - beats(j, i);
  if (is_identical(i, j)) {
    count_identical({i, j});
    return 0.5;
  }
  if (is_settled({i, j})) return rollout(i).ended ? 1 : 0;
  if (has_rewards()) return compare_rewards(reward(i), reward(j), preference_->temperature());
  return asked_comparison({first_[i], first_[j]});
}

void Rater::ask_rewards() { ask_rewards(std::span(this, 1)); }
void Rater::ask_comparisons() { ask_comparisons(std::span(this, 1)); }

void Rater::ask_rewards(std::span<Rater> raters) { ask_rewards_of(raters, &Rater::all); }
void Rater::ask_comparisons(std::span<Rater> raters) { ask_comparisons_of(raters, &Rater::all); }
void Rater::ask_first_comparison(std::span<Rater> raters) {
  ask_comparisons_of(raters, &Rater::first_two);
}

void Rater::ask_rewards_of(std::span<Rater> raters, Places (Rater::*among)() const) {
  for (std::span<Rater> rest = raters; !rest.empty();) {
    const std::span<Rater> group = with_one_preference(rest);
    rest = rest.subspan(group.size());
    std::vector<const Rollout*> asked;
    for (const Rater& rater : group) {
      for (const std::int64_t i : rater.open_rewards((rater.*among)())) {
        asked.push_back(&rater.rollout(i));
      }
    }
    if (asked.empty()) continue;
    const std::vector<double> answers = group.front().preference_->rewards(asked);
    check_answers(answers, asked.size());
    auto answer = answers.begin();
    for (Rater& rater : group) {
      for (const std::int64_t i : rater.open_rewards((rater.*among)())) {
        rater.set_reward(i, *answer++);
      }
    }
  }
}

void Rater::ask_comparisons_of(std::span<Rater> raters, Places (Rater::*among)() const) {
  for (std::span<Rater> rest = raters; !rest.empty();) {
    const std::span<Rater> group = with_one_preference(rest);
    rest = rest.subspan(group.size());
    Preference& preference = *group.front().preference_;
    if (preference.has_rewards()) {
      ask_rewards_of(group, among);
      continue;
    }
    std::vector<Comparison> asked;
    for (const Rater& rater : group) {
      for (const Pair pair : rater.open_comparisons((rater.*among)())) {
        asked.push_back({&rater.rollout(pair.first), &rater.rollout(pair.second)});
      }
    }
    if (asked.empty()) continue;
    const std::vector<double> answers = preference.beats(asked);
    check_answers(answers, asked.size());
    auto answer = answers.begin();
    for (Rater& rater : group) {
      for (const Pair pair : rater.open_comparisons((rater.*among)())) {
        rater.set_comparison(pair, *answer++);
      }
    }
  }
}

std::size_t Rater::place(Pair pair) const {
  return static_cast<std::size_t>(pair.first * size() + pair.second);
}

/// Whether the one completion with an end token wins without a question.
bool Rater::is_settled(Pair pair) const {
  return options_.unfinished == Unfinished::kLoses &&
         rollout(pair.first).ended != rollout(pair.second).ended;
}

bool Rater::is_first(std::int64_t i) const { return first_[i] == i; }

/// `pair` is of first rollouts.
double Rater::asked_comparison(Pair pair) {
  if (pair.first > pair.second) return 1 - asked_comparison({pair.second, pair.first});
  if (!is_known_[place(pair)]) {
    const std::vector<double> answers =
        preference_->beats({{&rollout(pair.first), &rollout(pair.second)}});
    check_answers(answers, 1);
    set_comparison(pair, answers.front());
  }
  return beats_[place(pair)];
}

void Rater::count_identical(Pair pair) {
  if (pair.first == pair.second || is_known_[place(pair)]) return;
  is_known_[place(pair)] = true;
  ++counts_.identical;
}

void Rater::count_answer(double answer) {
  ++counts_.questions;
  if (std::isnan(answer)) ++counts_.failures;
}

Rater::Places Rater::all() const {
  Places places(rollouts_->size());
  std::iota(places.begin(), places.end(), 0);
  return places;
}

Rater::Places Rater::first_two() const {
  Places places;
  for (std::int64_t i = 0; i < size() && places.size() < 2; ++i) {
    if (!rollout(i).completion.empty()) places.push_back(i);
  }
  for (std::int64_t& place : places) place = first_[place];
  places.erase(std::unique(places.begin(), places.end()), places.end());
  return places;
}

Rater::Places Rater::open_rewards(const Places& among) const {
  Places open;
  for (const std::int64_t i : among) {
    if (rated_[i] == i && !has_reward_[i]) open.push_back(i);
  }
  return open;
}

std::vector<Rater::Pair> Rater::open_comparisons(const Places& among) const {
  std::vector<Pair> open;
  for (std::size_t i = 0; i < among.size(); ++i) {
    for (std::size_t j = i + 1; j < among.size(); ++j) {
      const Pair pair{among[i], among[j]};
      const bool is_own = is_first(pair.first) && is_first(pair.second);
      if (is_own && !is_known_[place(pair)] && !is_settled(pair)) open.push_back(pair);
    }
  }
  return open;
}

void Rater::set_reward(std::int64_t i, double answer) {
  if (std::isinf(answer)) {
    throw DataError(fmt::format("preference: expected a finite reward, got {}", answer));
  }
  rewards_[i] = answer;
  has_reward_[i] = true;
  count_answer(answer);
}

void Rater::set_comparison(Pair pair, double answer) {
  if (answer < 0 || answer > 1) {
    throw DataError(fmt::format("preference: expected a probability in [0, 1], got {}", answer));
  }
  beats_[place(pair)] = answer;
  is_known_[place(pair)] = true;
  count_answer(answer);
}

/// The raters up to the first one of another preference.
std::span<Rater> Rater::with_one_preference(std::span<Rater> raters) {
  std::size_t count = 0;
  while (count < raters.size() && raters[count].preference_ == raters.front().preference_) ++count;
  return raters.first(count);
}

}  // namespace prefopt
