// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <memory>
#include <string>

#include "core/json.h"
#include "decoder/kept_prompts.h"
#include "prefopt/decoder/prompt_cache.h"
#include "prefopt/run/run.h"
#include "run/run_loss.h"

namespace prefopt::detail {

/// Throws ConfigError for a prompt cache that would keep nothing: on another device than the CPU,
/// or in a run from files that draws samples for evaluations alone, with another policy each time.
void check_prompt_cache(const RunOptions& options, const RunLoss& loss);

/// The prompts that a run keeps for its models, `machine.prompt_cache_mib`. They are part of no
/// checkpoint.
class RunPromptCache {
 public:
  /// Keeps none where `mib` is 0.
  explicit RunPromptCache(std::int64_t mib);

  /// Frees the prompts of weights that the step has changed, so that the next one has their memory.
  void finish_step() const;
  /// Adds prompt_cache/hits and prompt_cache/misses since the last call, and prompt_cache/mib, that
  /// are kept now, to a line of metrics.jsonl. Counts are those of the process.
  void add_counts(Json& line);
  /// Returns what the run has had of it, as a note; empty where nothing is kept.
  std::string summary() const;

 private:
  std::unique_ptr<const PromptRoom> room_;  ///< null: off
  PromptCacheCounts first_, last_;
};

}  // namespace prefopt::detail
