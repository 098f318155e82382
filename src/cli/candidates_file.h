// SPDX-License-Identifier: Apache-2.0
#pragma once

// Lines of completions with their feedback, as `prefopt generate --candidates` begins them.

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "prefopt/online/preference.h"
#include "prefopt/online/selection.h"

namespace prefopt::cli {

/// Names that a completion may have in `sources`; Rollout::source is a place among them.
const SourceNames& candidate_sources();

/// One prompt with its completions.
struct CandidatesLine {
  std::string where;  ///< file:line
  /// `text` has the text; `completion` stands for its tokens, equal for equal texts, and of the
  /// length that `token_logps` say.
  std::vector<Rollout> rollouts;
  std::string prompt;
  std::vector<double> rewards;             ///< NaN: no answer; empty: not in the line
  std::vector<std::vector<double>> beats;  ///< likewise
  bool has_lengths = false;                ///< `token_logps` are there
  bool has_ends = false;                   ///< `ended` is there
};

/// Reads lines {"prompt": text, "completions": [text, …]} with "rewards": [number or null, …] or
/// "beats": [[P(i beats j) or null, …], …], and perhaps "token_logps": [[number, …], …], "ended":
/// [true or false, …], "sources": [name, …] or "gold_index": the place of a completion of the data.
/// "step_rewards", which `score` writes next to rewards, are not read.
/// Throws DataError, led by file and line, for anything else, for an entry of `beats` outside of
/// [0, 1], and where beats[i][j] + beats[j][i] is not 1 within 1e-9.
void read_candidates(const std::string& path,
                     const std::function<void(const CandidatesLine&)>& take);

/// The rewards or the comparisons of a line; of equal texts, which are one completion, the last
/// reward counts. `line` has to outlive it.
class LinePreference final : public RewardPreference {
 public:
  /// `temperature` is that of RewardPreference.
  LinePreference(const CandidatesLine& line, double temperature);

  bool has_rewards() const override { return !line_.rewards.empty(); }
  std::vector<double> rewards(const std::vector<const Rollout*>& rollouts) override;
  std::vector<double> beats(const std::vector<Comparison>& comparisons) override;

 private:
  std::size_t place(const Rollout* rollout) const {
    return static_cast<std::size_t>(rollout - line_.rollouts.data());
  }

  const CandidatesLine& line_;
};

}  // namespace prefopt::cli
