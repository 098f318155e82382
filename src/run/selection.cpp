// SPDX-License-Identifier: Apache-2.0
#include "run/selection.h"

#include <algorithm>
#include <cmath>

namespace prefopt::detail {

Selection::Selection(std::string_view metric, std::int64_t keep_best, std::int64_t patience)
    : less_(metric.ends_with("loss") || metric.ends_with("kl")),
      keep_best_(keep_best),
      patience_(patience) {}

bool Selection::add(std::int64_t step, double value) {
  ++since_best_;
  if (!std::isfinite(value)) return false;
  // Of equal values the earlier one stays in front.
  const auto place = std::find_if(best_.begin(), best_.end(), [&](const auto& known) {
    return is_better(value, known.second);
  });
  const auto rank = place - best_.begin();
  best_.insert(place, {step, value});
  best_.resize(
      std::min(best_.size(), static_cast<std::size_t>(std::max<std::int64_t>(1, keep_best_))));
  if (rank == 0) since_best_ = 0;
  return rank < keep_best_;
}

std::vector<std::int64_t> Selection::best_steps() const {
  std::vector<std::int64_t> steps;
  for (const auto& [step, value] : best_) steps.push_back(step);
  steps.resize(std::min(steps.size(), static_cast<std::size_t>(keep_best_)));
  return steps;
}

Json Selection::state() const {
  Json best = Json::array();
  for (const auto& [step, value] : best_) best.push_back({{"step", step}, {"value", value}});
  return {{"best", best}, {"evaluations_since_best", since_best_}};
}

void Selection::load(const Json& state) {
  decltype(best_) best;
  for (const Json& item : state.at("best")) {
    best.emplace_back(item.at("step").get<std::int64_t>(), item.at("value").get<double>());
  }
  since_best_ = state.at("evaluations_since_best").get<std::int64_t>();
  best_ = std::move(best);
}

}  // namespace prefopt::detail
