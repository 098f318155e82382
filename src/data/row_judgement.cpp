// SPDX-License-Identifier: Apache-2.0
#include "data/row_judgement.h"

#include <exception>

#include "data/line_error.h"
#include "prefopt/error.h"

namespace prefopt::detail {
namespace {

bool keeps(RowDefect defect, const DataOptions& options, const std::string& where) {
  const RowAction policy = policy_for(defect, options).policy;
  if (policy == RowAction::kError) throw DataError(refusal_of(defect, options, where));
  return policy == RowAction::kKeep;
}

}  // namespace

void count_cuts(const Cuts& cuts, std::int64_t line, RowReport& report) {
  report.truncated_prompts += cuts.prompt ? 1 : 0;
  report.truncated_completions += cuts.completions;
  if (cuts.prompt || cuts.completions > 0) report.truncated_lines.push_back(line);
}

bool judge_row(const std::string& path, std::int64_t line, const DataOptions& options,
               const PreparedRow& row, RowReport& report) {
  ++report.rows_read;
  if (row.error) std::rethrow_exception(row.error);
  if (!row.refusal.empty()) {
    const RowAction policy = policy_for(row.defects.front(), options).policy;
    if (policy == RowAction::kError) throw DataError(row.refusal);
    report.dropped[refusal_reason(row.refusal, path, line)].push_back(line);
    return false;
  }
  const std::string where = row_place(path, line);
  for (const UnreadColumn& column : row.unread) ++report.unread[column.name];
  check_unread(row.unread, options, where);
  for (const RowDefect defect : row.defects) {
    if (keeps(defect, options, where)) continue;
    report.dropped[std::string(defect_name(defect))].push_back(line);
    return false;
  }

  // Counted last: a row that was dropped for one defect was not kept with another.
  for (const RowDefect defect : row.defects) {
    // A long prompt was cut, and cuts are counted anyway.
    if (defect == RowDefect::kLongPrompt) continue;
    report.kept_with[std::string(defect_name(defect))].push_back(line);
  }
  count_cuts(row.cuts, line, report);
  report.message_rows += row.from_messages ? 1 : 0;
  ++report.rows_kept;
  return true;
}

}  // namespace prefopt::detail
