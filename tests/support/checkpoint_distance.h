// SPDX-License-Identifier: Apache-2.0
#pragma once

// How far two checkpoints are from each other, in numbers.

#include <ATen/ops/sub.h>

#include <algorithm>
#include <filesystem>
#include <string>

#include "prefopt/files/safetensors.h"
#include "support/catch.h"
#include "support/checkpoint_parts.h"

namespace prefopt::testing_support {

/// Returns the largest difference of a number in the weights and the optimizer's state, and checks
/// that both have the same tensors.
inline double distance(const std::string& a, const std::string& b) {
  double most = 0;
  for (const std::string& name : kTensorFiles) {
    REQUIRE(std::filesystem::exists(a + "/" + name) == std::filesystem::exists(b + "/" + name));
    if (!std::filesystem::exists(a + "/" + name)) continue;
    const auto of_a = read_safetensors(a + "/" + name).tensors;
    const auto of_b = read_safetensors(b + "/" + name).tensors;
    REQUIRE(of_a.size() == of_b.size());
    for (std::size_t i = 0; i < of_a.size(); ++i) {
      INFO(of_a[i].first);
      REQUIRE(of_a[i].first == of_b[i].first);
      REQUIRE(of_a[i].second.sizes() == of_b[i].second.sizes());
      if (of_a[i].second.numel() == 0) continue;
      const at::Tensor gap = of_a[i].second.to(at::kDouble) - of_b[i].second.to(at::kDouble);
      most = std::max(most, gap.abs().max().item<double>());
    }
  }
  return most;
}

/// Checks that the metrics of two runs have the same names, and values that differ by rounding.
inline void check_same_metrics(const std::string& a, const std::string& b, double tolerance) {
  const auto of_a = untimed(a);
  const auto of_b = untimed(b);
  REQUIRE(of_a.size() == of_b.size());
  for (std::size_t i = 0; i < of_a.size(); ++i) {
    for (const auto& [name, value] : of_b[i].items()) {
      INFO("line " << i << ": " << name);
      if (name.starts_with("ranks/")) continue;
      REQUIRE(of_a[i].contains(name));
      CHECK(std::abs(of_a[i][name].get<double>() - value.get<double>()) <= tolerance);
    }
    for (const auto& item : of_a[i].items()) {
      INFO("line " << i << ": " << item.key());
      CHECK((of_b[i].contains(item.key()) || item.key().starts_with("ranks/")));
    }
  }
}

}  // namespace prefopt::testing_support
