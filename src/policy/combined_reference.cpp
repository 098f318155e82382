// SPDX-License-Identifier: Apache-2.0
#include "prefopt/policy/combined_reference.h"

#include <ATen/TensorOperators.h>
#include <ATen/core/grad_mode.h>
#include <c10/core/ScalarType.h>
#include <c10/util/StringUtil.h>
#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "prefopt/error.h"

namespace prefopt {

CombinedReference::CombinedReference(std::vector<WeightedReference> parts)
    : parts_(std::move(parts)) {
  for (std::size_t k = 0; k < parts_.size(); ++k) {
    if (!parts_[k].reference) {
      throw ConfigError(
          fmt::format("combined reference: expected a reference at place {}, got null", k));
    }
    if (!std::isfinite(parts_[k].weight)) {
      throw ConfigError(fmt::format(
          "combined reference: expected a finite weight at place {}, got {}", k, parts_[k].weight));
    }
  }
  const auto counts = [](const WeightedReference& part) { return part.weight != 0; };
  if (std::none_of(parts_.begin(), parts_.end(), counts)) {
    throw ConfigError(
        "combined reference: expected at least one reference with a weight other than 0, got none");
  }
}

template <class LogpsOf>
at::Tensor CombinedReference::sum_of(const LogpsOf& logps_of) const {
  const at::NoGradGuard no_grad;
  at::Tensor sum;
  at::ScalarType dtype{};
  for (const auto& [reference, weight] : parts_) {
    if (weight == 0) continue;
    const at::Tensor logps = logps_of(*reference);
    const at::Tensor scaled = logps.to(at::kDouble) * weight;
    if (!sum.defined()) {
      sum = scaled;
      dtype = logps.scalar_type();
      continue;
    }
    if (scaled.sizes() != sum.sizes()) {
      throw ShapeError(fmt::format("combined reference: expected log-probs {}, got {}",
                                   c10::str(sum.sizes()), c10::str(scaled.sizes())));
    }
    sum = sum + scaled.to(sum.device());
    dtype = c10::promoteTypes(dtype, logps.scalar_type());
  }
  return sum.to(dtype);
}

at::Tensor CombinedReference::sequence_logps(const TokenBatch& batch) {
  return sum_of([&](Reference& reference) { return reference.sequence_logps(batch); });
}

at::Tensor CombinedReference::token_logps(const TokenBatch& batch) {
  return sum_of([&](Reference& reference) { return reference.token_logps(batch); });
}

at::Tensor CombinedReference::tempered_token_logps(const TokenBatch& batch, double temperature) {
  return sum_of(
      [&](Reference& reference) { return reference.tempered_token_logps(batch, temperature); });
}

void CombinedReference::after_step(const Policy& policy, std::int64_t step) {
  for (const auto& part : parts_) part.reference->after_step(policy, step);
}

std::vector<std::pair<std::string, at::Tensor>> CombinedReference::state() const {
  std::vector<std::pair<std::string, at::Tensor>> tensors;
  for (std::size_t k = 0; k < parts_.size(); ++k) {
    for (auto& [name, value] : parts_[k].reference->state()) {
      tensors.emplace_back(fmt::format("{}.{}", k, name), value);
    }
  }
  return tensors;
}

bool CombinedReference::is_normalized() const {
  const WeightedReference* sole = nullptr;
  for (const auto& part : parts_) {
    if (part.weight == 0) continue;
    if (sole != nullptr || part.weight != 1) return false;
    sole = &part;
  }
  return sole->reference->is_normalized();
}

void CombinedReference::flush() {
  for (const auto& part : parts_) part.reference->flush();
}

}  // namespace prefopt
