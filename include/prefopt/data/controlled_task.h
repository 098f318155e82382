// SPDX-License-Identifier: Apache-2.0
#pragma once

// A small task with a reward that can be computed, so that a run can be judged without a reward
// model: prompts, responses, and preferences drawn from the reward by Bradley-Terry.

#include <cstdint>
#include <random>
#include <string>
#include <string_view>
#include <vector>

#include "prefopt/export.h"
#include "prefopt/options.h"

namespace prefopt {

/// Prompt: three distinct letters of a to z, such as `kfa>`. Response: letters. The reward likes
/// letters of the prompt and a length of six:
///   r(x, y) = scale * (fraction of y's letters that occur in x) - 0.25 * | |y| - 6 |
/// and is `-scale` for a response that is empty or holds anything but letters.
struct ControlledTaskOptions {
  double reward_scale = 4;
  double flip_rate = 0;           ///< probability that a preference label is flipped
  double prompt_affinity = 0.35;  ///< chance that a letter of a base response comes from the prompt
  std::int64_t seed = 0;

  PREFOPT_API void fields(FieldVisitor& v);
};

class PREFOPT_API ControlledTask {
 public:
  explicit ControlledTask(ControlledTaskOptions options = {});

  std::string sample_prompt();
  /// Draws a response from the base distribution: three to nine letters.
  std::string sample_response(std::string_view prompt);
  double reward(std::string_view prompt, std::string_view response) const;
  /// Draws whether `first` is preferred: Bradley-Terry by the reward, then flipped by `flip_rate`.
  bool prefers_first(std::string_view prompt, std::string_view first, std::string_view second);

  /// Writes `{"prompt", "completion"}` rows.
  void write_sft(const std::string& path, std::int64_t rows);
  /// Writes `{"prompt", "chosen", "rejected"}` rows.
  void write_preferences(const std::string& path, std::int64_t rows);

 private:
  ControlledTaskOptions options_;
  std::mt19937_64 rng_;
};

}  // namespace prefopt
