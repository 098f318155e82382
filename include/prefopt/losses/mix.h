// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <string>
#include <vector>

#include "prefopt/export.h"
#include "prefopt/losses/loss.h"
#include "prefopt/losses/pair_logps.h"
#include "prefopt/options.h"

namespace prefopt {

struct MixOptions {
  /// A JSON list of {"weight": …, "loss": {"type": …, …}}.
  std::string terms =
      R"([{"weight": 0.8, "loss": {"type": "dpo"}},)"
      R"( {"weight": 0.2, "loss": {"type": "bco_pair"}}, {"weight": 1, "loss": {"type": "sft"}}])";

  PREFOPT_API void fields(FieldVisitor& v);
};

/// A weighted sum of registered losses on the same log-probs, which are computed once:
///   sum_k weight_k loss_k
/// TRL's `loss_type` list with `loss_weights`. The default is MPO (2411.10442) as TRL writes it;
/// the paper's quality term is bco_pair with `running_delta` and its generation term sft with
/// `reduction` sequence_mean. Next to terms for labelled rows, a term `sft` imitates the desirable
/// ones. Derivatives are the weighted sum of those of the terms; rewards are those of the first
/// term that has some.
class PREFOPT_API MixLoss {
 public:
  using Options = MixOptions;

  /// Throws ConfigError for no terms, an unknown key, terms that want different fresh samples, more
  /// than one term with a running mean, or rows both paired and unpaired.
  explicit MixLoss(MixOptions options = {});

  LossOutput forward(const PairLogps& logps) const;
  LossOutput operator()(const PairLogps& logps) const { return forward(logps); }
  LossRequirements requirements() const { return needs_; }
  /// Returns those of all terms.
  GradientExceptions gradient_exceptions() const;
  const MixOptions& options() const { return options_; }

  static LossInfo info();

 private:
  struct Term {
    double weight;
    Loss loss;
    std::string name;  ///< in the metrics: the loss's name, numbered from the second term on
  };

  MixOptions options_;
  std::vector<Term> terms_;
  LossRequirements needs_;
};

}  // namespace prefopt
