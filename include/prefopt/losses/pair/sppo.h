// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <utility>

#include "prefopt/error.h"
#include "prefopt/losses/pairwise_loss.h"

namespace prefopt {

/// (w - target_w)^2 + (l - target_l)^2
template <class T>
struct TwoTargetsLink {
  T chosen_target, rejected_target;

  T value(const T& w, const T& l) const {
    return math::square(T(w - chosen_target)) + math::square(T(l - rejected_target));
  }

  BasicSlopes<T> slopes(const T& w, const T& l) const {
    return {2 * (w - chosen_target), 2 * (l - rejected_target)};
  }
};

struct SppoOptions {
  double beta = 0.1;
  bool soft = false;
  ScoreOptions score = {};
  PairOptions pair = {};

  void fields(FieldVisitor& v) {
    v.real(
        {"beta", "the paper's 1 / eta, 1e-3 there, where targets are +-500 nats; +-5 at 0.1 (TRL)"},
        beta, kBetaRange);
    v.flag({"soft", "targets from the given win rates; else 1 for chosen, 0 for rejected"}, soft);
    score.fields(v);
    pair.fields(v);
  }
};

/// Self-play preference optimization (2405.00675 eq. 4.7), w and l the log-ratios of the two sides:
///   (w - (P_w - 1/2)/beta)^2 + (l - (P_l - 1/2)/beta)^2
/// with the probabilities P that a completion beats one of the policy: the columns
/// `chosen_win_rates` and `rejected_win_rates` with `soft`, else 1 and 0. [batch] log-probs in
/// nats. Derivatives: twice the two differences. At w = l = 0, not soft: 1/(2 beta^2). `soft` with
/// `use_label_probs` is refused: win rates belong to their completions, whichever is preferred.
class SppoLoss : public PairwiseLoss<SppoLoss, SppoOptions> {
 public:
  /// Throws ConfigError for soft with use_label_probs.
  explicit SppoLoss(SppoOptions options = {}) : PairwiseLoss(std::move(options)) {
    if (options_.soft && options_.pair.use_label_probs) {
      throw ConfigError(
          "sppo: expected use_label_probs false where soft is true, got true; win rates already "
          "say "
          "how likely each completion is the better one");
    }
  }

  template <class T>
  TwoTargetsLink<T> link(const BasicPairLogps<T>& in) const {
    const double beta = options_.beta;
    if (options_.soft) {
      return {(in.chosen_win_rates - 0.5) / beta, (in.rejected_win_rates - 0.5) / beta};
    }
    const T target = math::constant(in.chosen_logps, 0.5 / beta);
    return {target, -target};
  }
  LossRequirements requirements() const {
    LossRequirements needs = PairwiseLoss::requirements();
    needs.inputs |= when(options_.soft, {Input::chosen_win_rates, Input::rejected_win_rates});
    return needs;
  }

  static LossProperties properties() { return {.log_ratios_only = true, .non_negative = true}; }
  static LossInfo info() {
    return {.name = "sppo",
            .aliases = {"sppo_hard"},
            .formula = "(w - (P_w - 1/2)/beta)^2 + (l - (P_l - 1/2)/beta)^2",
            .source = "arXiv:2405.00675 eq. 4.7",
            .anchors = {{0, 0, 50}, {5, -5, 0}},
            .when_to_use = "Self-play with a preference model that gives win rates.",
            .elsewhere = {{"TRL", "sppo_hard", "without win rates"},
                          {"Liger", "sppo_hard", "without win rates"},
                          {"SPPO authors' code", "sppo", "half of the sum"}}};
  }
};

}  // namespace prefopt
