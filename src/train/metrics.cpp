// SPDX-License-Identifier: Apache-2.0
#include "train/metrics.h"

#include <ATen/ops/scalar_tensor.h>
#include <ATen/ops/stack.h>
#include <ATen/ops/zeros.h>
#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <array>
#include <cmath>

#include "prefopt/error.h"

namespace prefopt {

double metric(const Metrics& metrics, std::string_view name) {
  if (const auto value = detail::find_metric(metrics, name)) return *value;
  std::vector<std::string_view> names;
  for (const auto& item : metrics) names.push_back(item.first);
  throw Error(fmt::format("metric: expected one of {}, got '{}'", fmt::join(names, ", "), name));
}

namespace detail {

std::optional<double> find_metric(const Metrics& metrics, std::string_view name) {
  for (const auto& [known, value] : metrics) {
    if (known == name) return value;
  }
  return std::nullopt;
}

bool is_displaced(double chosen_logps, double ref_chosen_logps) {
  return chosen_logps < ref_chosen_logps - 1e-5 * std::abs(ref_chosen_logps);
}

namespace {

constexpr std::array kOrder = {
    std::string_view("loss"),
    std::string_view("grad_norm"),
    std::string_view("learning_rate"),
    std::string_view("skipped"),
    std::string_view("entropy"),
    std::string_view("num_tokens"),
    std::string_view("rewards/chosen"),
    std::string_view("rewards/rejected"),
    std::string_view("rewards/accuracies"),
    kMargins,
    std::string_view("logps/chosen"),
    std::string_view("logps/rejected"),
    std::string_view("logits/chosen"),
    std::string_view("logits/rejected"),
    std::string_view("mean_token_accuracy"),
    std::string_view("logps/ref_chosen"),
    std::string_view("logps/ref_rejected"),
    std::string_view("kl"),
    std::string_view("lengths/chosen"),
    std::string_view("lengths/rejected"),
};

auto rank(std::string_view name) { return std::find(kOrder.begin(), kOrder.end(), name); }

}  // namespace

void add_margins(Metrics& metrics) {
  const auto chosen = find_metric(metrics, "rewards/chosen");
  const auto rejected = find_metric(metrics, "rewards/rejected");
  if (!chosen || !rejected || find_metric(metrics, kMargins)) return;
  const auto place = std::find_if(metrics.begin(), metrics.end(), [](const auto& item) {
    return rank(item.first) > rank(kMargins);
  });
  metrics.emplace(place, std::string(kMargins), *chosen - *rejected);
}

StepMetrics::Sum& StepMetrics::find_or_add(std::string_view name, const at::Tensor& like) {
  for (auto& sum : sums_) {
    if (sum.name == name) return sum;
  }
  sums_.push_back({std::string(name), at::zeros({}, like.options().dtype(at::kDouble)), 0});
  return sums_.back();
}

void StepMetrics::add_mean(std::string_view name, const at::Tensor& sum, double count) {
  auto& total = find_or_add(name, sum);
  total.value.add_(sum.detach());
  total.count += count;
}

void StepMetrics::add_total(std::string_view name, const at::Tensor& value) {
  find_or_add(name, value).value.add_(value.detach());
}

void StepMetrics::set(std::string_view name, double value) { known_.emplace_back(name, value); }

std::vector<StepMetrics::HostSum> StepMetrics::sums() const {
  std::vector<HostSum> sums;
  if (sums_.empty()) return sums;
  std::vector<at::Tensor> values;
  for (const auto& sum : sums_) values.push_back(sum.value);
  const auto on_host = at::stack(values).cpu();
  const double* value = on_host.const_data_ptr<double>();
  for (const auto& sum : sums_) sums.push_back({sum.name, *value++, sum.count});
  return sums;
}

void StepMetrics::set_sums(const std::vector<HostSum>& sums) {
  sums_.clear();
  for (const auto& [name, value, count] : sums) {
    sums_.push_back({name, at::scalar_tensor(value, at::kDouble), count});
  }
}

Metrics StepMetrics::finish() const {
  Metrics metrics = known_;
  for (const auto& [name, value, count] : sums()) {
    metrics.emplace_back(name, count > 0 ? value / count : value);
  }
  add_margins(metrics);
  for (auto& [name, value] : metrics) {
    if (std::isnan(value)) value = std::abs(value);  // the sign of a NaN says nothing
  }
  std::stable_sort(metrics.begin(), metrics.end(),
                   [](const auto& a, const auto& b) { return rank(a.first) < rank(b.first); });
  return metrics;
}

Metrics StepMetrics::counts() const {
  Metrics counts;
  for (const Sum& sum : sums_) {
    if (sum.count > 0) counts.emplace_back(sum.name, sum.count);
  }
  return counts;
}

}  // namespace detail
}  // namespace prefopt
