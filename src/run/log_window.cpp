// SPDX-License-Identifier: Apache-2.0
#include "run/log_window.h"

#include <algorithm>
#include <string_view>

#include "run/run_folder.h"
#include "train/metrics.h"

namespace prefopt::detail {
namespace {

constexpr std::string_view kSkipped = "skipped";

/// Metrics that say where a run is, not how a step went.
bool is_position(std::string_view name) { return name == "learning_rate" || name == "num_tokens"; }

}  // namespace

void LogWindow::add(const Metrics& metrics, const Metrics& counts) {
  ++steps_;
  last_ = metrics;
  if (find_metric(metrics, kSkipped)) {
    ++skipped_;
    return;
  }
  for (const auto& [name, value] : metrics) {
    if (name == kMargins && !find_metric(counts, name)) continue;  // the difference of two means
    auto sum = std::find_if(sums_.begin(), sums_.end(),
                            [&, &name = name](const Sum& known) { return known.name == name; });
    if (sum == sums_.end()) sum = sums_.insert(sums_.end(), Sum{.name = name});
    const double weight = find_metric(counts, name).value_or(1);
    sum->value += value * weight;
    sum->weight += weight;
  }
}

Metrics LogWindow::mean() const {
  if (steps_ <= 1) return last_;
  Metrics mean;
  if (sums_.empty()) {
    mean = last_;
    std::erase_if(mean, [](const auto& item) { return item.first == kSkipped; });
  }
  for (const Sum& sum : sums_) {
    const auto now = is_position(sum.name) ? find_metric(last_, sum.name) : std::nullopt;
    mean.emplace_back(sum.name, now.value_or(sum.value / sum.weight));
  }
  add_margins(mean);
  if (skipped_ > 0) mean.emplace_back(kSkipped, static_cast<double>(skipped_));
  return mean;
}

Json LogWindow::state() const {
  Json sums = Json::array();
  for (const Sum& sum : sums_) {
    sums.push_back({sum.name, json_number(sum.value), json_number(sum.weight)});
  }
  Json last = Json::array();
  for (const auto& [name, value] : last_) last.push_back({name, json_number(value)});
  return {{"steps", steps_}, {"skipped", skipped_}, {"sums", sums}, {"last", last}};
}

void LogWindow::load(const Json& state) {
  LogWindow loaded;
  loaded.steps_ = state.at("steps").get<std::int64_t>();
  loaded.skipped_ = state.at("skipped").get<std::int64_t>();
  for (const Json& sum : state.at("sums")) {
    loaded.sums_.push_back({.name = sum.at(0).get<std::string>(),
                            .value = number_in(sum.at(1)),
                            .weight = number_in(sum.at(2))});
  }
  for (const Json& item : state.at("last")) {
    loaded.last_.emplace_back(item.at(0).get<std::string>(), number_in(item.at(1)));
  }
  *this = std::move(loaded);
}

}  // namespace prefopt::detail
