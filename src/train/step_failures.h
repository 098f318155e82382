// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <exception>
#include <string>
#include <vector>

#include "core/memory.h"
#include "prefopt/policy/policy.h"
#include "prefopt/train/trainer.h"
#include "train/step_loss.h"

// Steps that cannot be made: their errors and reports.
namespace prefopt::detail {

/// Returns what `work` returns; `fail` throws where an allocation fails in it, and is given the
/// allocator's message.
template <class Work, class Fail>
auto with_memory(Work&& work, Fail&& fail) {
  try {
    return work();
  } catch (const std::exception& error) {
    const std::string why = allocation_failure(error);
    if (!why.empty()) fail(why);
    throw;
  }
}

[[noreturn]] void throw_no_memory_for_rows(const std::string& where,
                                           const std::vector<TokenRow>& rows,
                                           const TrainerOptions& options, const std::string& why);
[[noreturn]] void throw_no_memory_for_state(std::int64_t step, const OptimizerOptions& options,
                                            const std::string& why);

/// Describes a non-finite step while its gradients are still available. Re-scores all rows; rare
/// enough to be cheap.
NonFiniteStep describe_non_finite(const Policy& policy, const StepLoss& loss,
                                  const std::vector<TokenRow>& rows, const TrainerOptions& options);

}  // namespace prefopt::detail
