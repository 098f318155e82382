// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <Eigen/Core>
#include <optional>
#include <vector>

#include "prefopt/exact/loss.h"
#include "prefopt/exact/pairs.h"
#include "prefopt/exact/policy.h"
#include "prefopt/exact/preferences.h"
#include "prefopt/export.h"

namespace prefopt::exact {

/// Facts that some losses need in addition to pairs and a reference. Empty: not known.
struct Knowledge {
  Table lens = {};                              ///< tokens of each action; empty: 1
  Table rewards = {};                           ///< for margins, and whose best action is the gold
  std::optional<Preferences> preferences = {};  ///< for win rates and label probabilities
  Table calibration = {};  ///< log-probs of VPO's calibration policy; empty: the reference's
};

/// A registered loss as a function of a policy's parameters:
///   L(theta) = sum_i weight_i loss(pair_i; log pi_theta)
/// with its exact gradient.
///
/// Token by token, an action counts as one token (overlaps of LD-DPO, WPO's sums of squares, TDPO's
/// KL). Terms on fresh samples (HyPO, VPO) are expectations over the policy, or the calibration
/// policy: the loss of one sample, weighted by its probability, so that the gradient of HyPO's KL
/// is exact. Unpaired losses (KTO, BCO) see the two sides of a pair as rows of half its weight, and
/// the next row's action as the completion of another row. policy_gradient sees all actions of the
/// pairs' prompts, as likely as the policy draws them, with the advantage over another draw of the
/// policy: P(y beats y') - 1/2 where preferences are known, else the reward above the policy's
/// mean. Running means are those of a first step. Parts that a loss detaches (KTO's z0, WPO's
/// weights) are held fixed in the gradient, as in training.
class PREFOPT_API Objective {
 public:
  struct Evaluation {
    double value = 0;
    Eigen::VectorXd gradient;
  };

  /// Throws ShapeError for tables that do not fit, DataError for an action or prompt out of range,
  /// ConfigError for knowledge, or sides of the reference, that the loss needs and that is missing,
  /// weights that do not sum to 1, and pairs of unequal weight for a loss that sees a step as a
  /// whole.
  Objective(ExactLoss loss, SoftmaxPolicy policy, Table ref_logps, const Pairs& pairs,
            Knowledge knowledge = {});

  Evaluation evaluate(const Eigen::VectorXd& theta) const;

  /// Returns central differences of the exact gradient, of fourth order, made symmetric.
  Eigen::MatrixXd hessian(const Eigen::VectorXd& theta) const;

  const SoftmaxPolicy& policy() const { return policy_; }
  const ExactLoss& loss() const { return loss_; }

 private:
  struct Rows {
    std::vector<Index> prompts, chosen, rejected;
    std::vector<Index> sampled;  ///< action of each row's one sample
    std::vector<Index> gold, mismatched;
    std::vector<double> weights;              ///< without the probability of the sample
    std::vector<double> from_reference = {};  ///< of each row the side that the reference drew
  };

  void complete_knowledge();
  void add_row(Index prompt, Index chosen, Index rejected, double weight);
  void add_pairs(const Pairs& pairs);
  void add_sides(const Pairs& pairs);
  void add_own_samples(const Pairs& pairs);
  Table advantages(const Table& logps) const;
  void set_fixed_inputs();
  ExactPairLogps inputs(const Table& logps) const;
  Eigen::ArrayXd row_weights(const Table& logps) const;
  Table slopes(const ExactPairLogps& in, const ExactLossOutput& out,
               const Eigen::ArrayXd& weights) const;

  ExactLoss loss_;
  SoftmaxPolicy policy_;
  Table ref_;
  Knowledge knowledge_;
  Rows rows_;
  ExactPairLogps fixed_;  ///< inputs that do not depend on theta
};

}  // namespace prefopt::exact
