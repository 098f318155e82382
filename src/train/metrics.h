// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <ATen/core/Tensor.h>

#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "prefopt/train/trainer.h"

namespace prefopt::detail {

/// Nothing for a metric that is not there.
std::optional<double> find_metric(const Metrics& metrics, std::string_view name);

constexpr std::string_view kMargins = "rewards/margins";

/// Adds the margin of unpaired rows, which have none each: that of their two means. Metrics in the
/// order of StepMetrics::finish stay in it.
void add_margins(Metrics& metrics);

/// Likelihood displacement: the chosen completions' mean log-prob, nats, fell below the
/// reference's. A share of that keeps the rounding of a cached reference from counting as a fall.
bool is_displaced(double chosen_logps, double ref_chosen_logps);

/// Metrics of one step, summed over its micro-batches. Sums stay on their device until `finish`, so
/// that a step waits for the device once.
class StepMetrics {
 public:
  /// A mean over the whole step: `sum` over `count` values of this micro-batch.
  void add_mean(std::string_view name, const at::Tensor& sum, double count);
  /// A total that the micro-batches share out, such as the loss.
  void add_total(std::string_view name, const at::Tensor& value);
  /// A number that the host knows.
  void set(std::string_view name, double value);

  /// A sum that has come from its device; `count` 0: a total.
  struct HostSum {
    std::string name;
    double value, count;
  };
  std::vector<HostSum> sums() const;
  /// Puts others in their place.
  void set_sums(const std::vector<HostSum>& sums);

  /// In the order in which metrics are listed everywhere; other names follow as they came.
  Metrics finish() const;
  /// Returns how many values each mean is over.
  Metrics counts() const;

 private:
  struct Sum {
    std::string name;
    at::Tensor value;  ///< float64, zero-dimensional
    double count;      ///< 0: a total
  };

  Sum& find_or_add(std::string_view name, const at::Tensor& like);

  std::vector<Sum> sums_;
  Metrics known_;
};

}  // namespace prefopt::detail
