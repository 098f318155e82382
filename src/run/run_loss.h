// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <memory>
#include <string>
#include <string_view>
#include <variant>

#include "prefopt/export.h"
#include "prefopt/losses/loss.h"
#include "prefopt/objectives/token_loss.h"
#include "prefopt/objectives/token_objective.h"
#include "prefopt/policy/policy.h"
#include "prefopt/policy/reference.h"
#include "prefopt/train/trainer.h"

namespace prefopt::detail {

/// The loss of a run: one on pairs, labelled rows or rewards, one on tokens of given rows, or an
/// objective on tokens of rollouts.
class PREFOPT_API RunLoss {
 public:
  /// Throws ConfigError as make_loss and make_token_objective.
  explicit RunLoss(std::string_view config_json);

  std::string name() const;
  std::string config() const;
  /// Returns what rows and reference have to give; of an objective, whose rows a round makes, the
  /// reference alone.
  LossRequirements requirements() const;
  /// Returns the objective; null: a loss on rows.
  const TokenObjective* objective() const { return std::get_if<TokenObjective>(&loss_); }
  /// Returns the loss on tokens of rows; null: another one.
  const TokenLoss* token_loss() const { return std::get_if<TokenLoss>(&loss_); }
  /// Returns whether there is a value model.
  bool has_values() const;
  std::unique_ptr<Trainer> make_trainer(const std::shared_ptr<Policy>& policy,
                                        const std::shared_ptr<Reference>& reference,
                                        TrainerOptions options) const;

 private:
  std::variant<Loss, TokenObjective, TokenLoss> loss_;
};

}  // namespace prefopt::detail
