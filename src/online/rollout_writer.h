// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <vector>

#include "online/source_models.h"
#include "prefopt/online/online_rows.h"
#include "prefopt/online/rollout.h"

namespace prefopt::detail {

/// Plays `n` episodes of each prompt with the environments of source `place`. `seeds` gives those
/// of the prompts' episodes, by their places.
std::vector<Rollout> play_episodes(Policy& policy, const OnlineParts& parts, std::int64_t place,
                                   const std::vector<const OnlinePrompt*>& prompts, std::int64_t n,
                                   const SamplingOptions& sampling, std::int64_t at_once,
                                   const std::function<std::int64_t(std::int64_t)>& seeds);

/// Draws the completions of all sources for some prompts.
class RolloutWriter {
 public:
  /// `parts` and `models` have to outlive the writer.
  RolloutWriter(const OnlineParts& parts, SourceModels& models, std::int64_t at_once,
                std::int64_t seed)
      : parts_(parts), models_(models), at_once_(at_once), seed_(seed) {}

  /// Returns the completions of each prompt, source after source; of a source `tree` the steps of
  /// the prompt's tree. `first` is the place of the first
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
  std::vector<Rollout> from_environment(std::int64_t place, Policy& policy, const Prompts& prompts,
                                        std::int64_t round, std::int64_t first);
  std::vector<std::vector<Rollout>> from_tree(std::int64_t place, Policy& policy,
                                              const Prompts& prompts, std::int64_t round,
                                              std::int64_t first);
  std::vector<Rollout> from_file(std::int64_t place, const Prompts& prompts) const;
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
