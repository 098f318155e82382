// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "core/json.h"
#include "dist/meeting.h"
#include "prefopt/policy/policy.h"
#include "prefopt/policy/sampling.h"
#include "prefopt/train/row_source.h"

namespace prefopt::detail {

/// Completions of a few held-out prompts by the policy, and once by the reference: samples.jsonl.
/// Each draw uses the same random numbers, which are nobody else's: samples differ by the policy
/// alone, and training continues as if there were none.
class SampleTable {
 public:
  struct Size {
    std::int64_t prompts = 0;  ///< the first distinct ones of the rows
    std::int64_t tokens = 0;   ///< of a completion, at most
  };
  /// `source` must outlive the table.
  SampleTable(const RowSource& source, SamplingOptions sampling, Size size);

  struct Draw {
    /// One a prompt: `step`, `index`, `prompt`, then `policy` with `policy_tokens` and
    /// `policy_ended`, `kl`, and where `with_reference` also `reference…`.
    std::vector<Json> lines;
    /// Mean over the prompts of KL(policy || reference) in nats along the policy's completions, the
    /// sum over their tokens of each exact KL over the vocabulary: an estimate of the KL of whole
    /// completions. Only with a reference, and where samples are the policy's own (temperature 1,
    /// no top-k, no top-p).
    std::optional<double> kl;
  };
  /// Whether a draw has a `kl`.
  bool gives_kl(const Policy* reference) const;
  /// `reference` may be null. The ranks share the prompts, and all get all lines.
  Draw draw(std::int64_t step, Policy& policy, Policy* reference, bool with_reference,
            Meeting& meeting) const;

 private:
  using Tokens = std::vector<std::int64_t>;

  std::vector<Json> draw_part(std::int64_t first, std::int64_t end, Policy& policy,
                              Policy* reference, bool with_reference) const;
  void add_completion(Json& line, const std::string& name, const Tokens& completion) const;
  static std::vector<double> kl_of(Policy& policy, Policy& reference,
                                   const std::vector<Tokens>& prompts,
                                   const std::vector<Tokens>& completions);

  std::vector<Tokens> prompts_;
  const RowSource* source_;
  SamplingOptions sampling_;
};

}  // namespace prefopt::detail
