// SPDX-License-Identifier: Apache-2.0
#include "train/step_failures.h"

#include <ATen/core/grad_mode.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/isfinite.h>
#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <string_view>
#include <utility>

#include "math/given_back.h"
#include "math/sliced_weight.h"
#include "policy/token_range.h"
#include "prefopt/losses/pair_fields.h"

namespace prefopt::detail {
namespace {

bool is_finite(const at::Tensor& values) {
  if (!values.defined() || !has_memory(values)) return true;
  return at::isfinite(values).all().item<bool>();
}

std::vector<double> numbers_of(const at::Tensor& values) {
  const at::Tensor wide = values.to(at::kDouble).cpu().contiguous();
  return {wide.const_data_ptr<double>(), wide.const_data_ptr<double>() + wide.numel()};
}

}  // namespace

void throw_no_memory_for_rows(const std::string& where, const std::vector<TokenRow>& rows,
                              const TrainerOptions& options, const std::string& why) {
  std::size_t most_rows = 0;
  std::int64_t most_tokens = 0;
  for (const auto& part : cut_micro_batches(rows, options)) {
    std::int64_t tokens = 0;
    for (const TokenRow& row : part) tokens += tokens_of(row);
    most_rows = std::max(most_rows, part.size());
    most_tokens = std::max(most_tokens, tokens);
  }
  throw OutOfMemoryError(fmt::format(
      "{}: expected memory for {} pairs in micro-batches of up to {} pairs and {} tokens, got '{}' "
      "at a peak of {} MiB; lower batch.micro_tokens or data.max_length, or set "
      "machine.checkpointing to full",
      where, rows.size(), most_rows, most_tokens, why, peak_memory_bytes() >> 20));
}

void throw_no_memory_for_state(std::int64_t step, const OptimizerOptions& options,
                               const std::string& why) {
  const bool may_halve =
      options.state_dtype == StateDtype::kParameter && options.type != OptimizerType::kAdafactor;
  const std::string_view state = options.type == OptimizerType::kAdamW     ? "AdamW's means"
                                 : options.type == OptimizerType::kRmsprop ? "RMSprop's means"
                                                                           : "Adafactor's state";
  throw OutOfMemoryError(fmt::format(
      "step {}: expected memory for {} of all trained parameters, got '{}' at a peak of {} MiB; "
      "{}train an adapter (model.use_lora)",
      step, state, why, peak_memory_bytes() >> 20,
      may_halve ? "set optimizer.state_dtype to bfloat16, or " : ""));
}

NonFiniteStep describe_non_finite(const Policy& policy, const StepLoss& loss,
                                  const std::vector<TokenRow>& rows,
                                  const TrainerOptions& options) {
  const at::NoGradGuard no_grad;
  NonFiniteStep report{.rows = rows};
  HeldWeights held;  // until the next layer is
  for (const auto& [name, value] : policy.named_parameters()) {
    held = HeldWeights(value);
    if (report.weight.empty() && !is_finite(value)) report.weight = name;
    if (report.gradient.empty() && !is_finite(value.grad())) report.gradient = name;
  }
  std::vector<PairLogps> measured;
  for (const auto& part : cut_micro_batches(rows, options)) {
    measured.push_back(loss.measure_logps(part));
  }
  std::vector<bool> is_bad(rows.size());
  for (const auto& field : kPairFields<at::Tensor>) {
    const bool is_logp = !field.is_number() && !field.per_sample();
    if (!is_logp || !(measured.front().*field.value).defined()) continue;
    std::vector<at::Tensor> parts;
    for (const PairLogps& part : measured) parts.push_back(part.*field.value);
    std::vector<double> values = numbers_of(at::cat(parts));
    for (std::size_t i = 0; i < values.size(); ++i) {
      if (!std::isfinite(values[i])) is_bad[i] = true;
    }
    report.logps.emplace_back(field.name, std::move(values));
  }
  for (std::size_t i = 0; i < is_bad.size(); ++i) {
    if (is_bad[i]) report.offending.push_back(static_cast<std::int64_t>(i));
  }
  return report;
}

}  // namespace prefopt::detail
