// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <string>

#include "report/run_record.h"

namespace prefopt::detail {

// Parts of report.html, with their headings; empty where the folder has nothing for them.

/// `dpo`; empty without a config.
std::string loss_type(const RunRecord& record);

/// Policy, reference, data, loss, optimizer and length of the run.
std::string subject_html(const RunRecord& record);

/// Returns the verdict with its warnings, and the figures that a reader looks for first.
std::string verdict_html(const RunRecord& record);
/// First and last evaluation side by side.
std::string evaluations_html(const RunRecord& record);
/// Prompts with completions from before and after.
std::string samples_html(const RunRecord& record);
/// Rounds of a policy that writes its own rows: curves, and the last completions.
std::string rounds_html(const RunRecord& record);
/// Trees of the newest round that searched.
std::string trees_html(const RunRecord& record);

}  // namespace prefopt::detail
