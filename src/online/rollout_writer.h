// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "online/source_models.h"
#include "prefopt/online/online_rows.h"
#include "prefopt/online/rollout.h"

namespace prefopt::detail {

/// Draws the completions of all sources for some prompts.
class RolloutWriter {
 public:
  /// `parts` and `models` have to outlive the writer.
  RolloutWriter(const OnlineParts& parts, SourceModels& models, std::int64_t at_once,
                std::int64_t seed)
      : parts_(parts), models_(models), at_once_(at_once), seed_(seed) {}

  /// Returns the completions of each prompt, source after source. `first` is the place of the first
  /// prompt in its round, which draws depend on.
  std::vector<std::vector<Rollout>> write(Policy& policy,
                                          const std::vector<const OnlinePrompt*>& prompts,
                                          std::int64_t round, std::int64_t first);

 private:
  using Prompts = std::vector<const OnlinePrompt*>;

  std::vector<Rollout> draw(std::int64_t place, Policy& policy, const Prompts& prompts,
                            std::int64_t round, std::int64_t first);
  std::vector<Rollout> draw_by_model(std::int64_t place, Policy& policy, const Prompts& prompts,
                                     std::int64_t round, std::int64_t first, std::int64_t n);
  std::vector<Rollout> draw_after_roll_in(std::int64_t place, Policy& policy,
                                          const Prompts& prompts, std::int64_t round,
                                          std::int64_t first);
  std::vector<Rollout> from_data(const Prompts& prompts, std::int64_t n) const;
  std::vector<Rollout> from_program(std::int64_t place, const Prompts& prompts) const;
  void finish(Rollout& rollout, const OnlinePrompt& prompt, std::int64_t place) const;
  SamplingOptions sampling(std::int64_t place, std::int64_t round, std::int64_t user) const;
  std::int64_t place_of(const std::string& name) const;
  bool is_policy(std::int64_t place) const;

  const OnlineParts& parts_;
  SourceModels& models_;
  std::int64_t at_once_;
  std::int64_t seed_;
};

}  // namespace prefopt::detail
