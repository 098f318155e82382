// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <memory>
#include <string>
#include <string_view>

#include "prefopt/exact/pair_logps.h"
#include "prefopt/export.h"
#include "prefopt/losses/loss.h"

namespace prefopt::exact {

/// Any registered loss on arrays of float64, by its config. A loss that comes with the library runs
/// its template on Eigen arrays; a mix, and a loss that a user registered, run on float64 tensors
/// made from the arrays.
class PREFOPT_API ExactLoss {
 public:
  /// Throws ConfigError as make_loss does.
  explicit ExactLoss(std::string_view config_json);

  /// Throws ShapeError for arrays that are missing or of another length.
  ExactLossOutput evaluate(const ExactPairLogps& in) const { return evaluator_->evaluate(in); }

  const LossRequirements& requirements() const { return requirements_; }
  const std::string& name() const { return name_; }
  /// Returns `{"type": …, every option}`.
  const std::string& config() const { return config_; }

  /// The implementation of evaluate() for one loss.
  class Evaluator {
   public:
    virtual ~Evaluator() = default;
    virtual ExactLossOutput evaluate(const ExactPairLogps& in) const = 0;
  };

 private:
  std::shared_ptr<const Evaluator> evaluator_;
  LossRequirements requirements_;
  std::string name_;
  std::string config_;
};

}  // namespace prefopt::exact
