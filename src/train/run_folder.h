// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <fstream>
#include <string>
#include <string_view>

#include "core/json.h"
#include "prefopt/model/policy.h"
#include "prefopt/train/trainer.h"

namespace prefopt::detail {

/// The files of one run.
class RunFolder {
 public:
  /// Throws ConfigError if a run was here before.
  explicit RunFolder(std::string path);

  std::string file(std::string_view name) const;

  /// Writes config.json and env.json and opens metrics.jsonl.
  void start(const Json& config, const Json& environment);

  void append_metrics(const Json& line);

  /// Gives the checkpoint's folder, which `last` then names.
  std::string save(const Policy& policy, const LossState& loss, std::int64_t step) const;

 private:
  void check_metrics() const;

  std::string path_;
  std::ofstream metrics_;
};

}  // namespace prefopt::detail
