// SPDX-License-Identifier: Apache-2.0
#pragma once

// The findings of `prefopt doctor`, a line of its table each.

#include <exception>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "cli/commands.h"

namespace prefopt::cli {

enum class Status { kOk, kWarning, kProblem };

struct Finding {
  std::string subject = {};
  Status status = Status::kOk;
  std::string found = {};
  std::string advice = {};        ///< what to do; empty where there is nothing to do
  std::exception_ptr error = {};  ///< what the problem was thrown as
};

/// Returns the finding of `look`, or a problem where it throws.
template <class Look>
Finding finding_of(const std::string& subject, Look&& look) {
  try {
    return std::forward<Look>(look)();
  } catch (const std::exception& error) {
    std::string_view what = error.what();
    what = what.substr(0, what.find('\n'));
    return {.subject = subject,
            .status = Status::kProblem,
            .found = std::string(what),
            .error = std::current_exception()};
  }
}

/// Processor, memory, kernels, and the speed of the folder for runs.
std::vector<Finding> examine_machine(const std::string& out);
/// Model, tokenizer, chat template, adapter and rows: how far each is understood.
std::vector<Finding> examine_files(const DoctorArguments& arguments);

}  // namespace prefopt::cli
