// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "core/json.h"
#include "prefopt/online/step_tree.h"

namespace prefopt::detail {

/// A metric over the steps; NaN where it was not finite.
struct Curve {
  std::vector<double> steps, values;
};

/// By the metric's name, without `eval_`.
using Curves = std::map<std::string, Curve, std::less<>>;

/// A run folder as it was found. Files that are missing or damaged leave gaps, which are reported.
struct RunRecord {
  std::string folder;
  Json config, environment, facts;  ///< objects, empty where there is no such file
  Curves train, evaluations;
  std::vector<Json> samples, rounds, notes;
  std::vector<StepTree> trees;  ///< of the newest round that searched
  std::vector<std::string> gaps;
  double seconds = 0;  ///< of the last line of metrics

  double last_step() const;
  /// Returns how many times the run was evaluated.
  std::size_t count_evaluations() const;
};

/// Throws CheckpointError where `folder` holds neither config.json nor metrics.jsonl.
RunRecord read_run(const std::string& folder);

struct JsonLines {
  std::vector<Json> lines;  ///< objects only
  std::string defect;       ///< what cannot be read, or ""
};
/// Lenient: lines that are no JSON object are skipped and reported. A missing file has no lines.
JsonLines read_json_lines(const std::string& path);

/// Returns the number under `key`, NaN for null; nothing where there is something else.
std::optional<double> number_at(const Json& object, std::string_view key);
/// Returns the value under `key` as text: itself, else JSON; empty where there is nothing.
std::string text_at(const Json& object, std::string_view key);
/// Returns the object under `key`, else an empty one.
const Json& object_at(const Json& object, std::string_view key);

}  // namespace prefopt::detail
