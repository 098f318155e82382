// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <ATen/core/Tensor.h>

#include <functional>
#include <memory>
#include <string_view>

#include "decoder/router_load.h"
#include "prefopt/dist/ranks.h"
#include "prefopt/policy/policy.h"
#include "train/metrics.h"

namespace prefopt::detail {

/// The loss that balances routed experts, c E Σ_e f_e P_e (2101.03961, equations 4 to 6): f_e is
/// the share of (token, layer) pairs that choose expert e, of those of the whole step, and P_e the
/// mean of the router's probability of it over the same pairs. f has no gradient and is known
/// before the first backward pass, so that the sum over the parts of a step does not depend on
/// their cut.
class RouterTerm {
 public:
  RouterTerm(const Policy& policy, std::shared_ptr<Ranks> ranks)
      : spec_(router_loss_of(policy)), ranks_(std::move(ranks)) {}

  /// Whether the model's config asks for the loss. Otherwise the functions below do nothing.
  bool is_on() const { return spec_.coefficient > 0; }

  /// Takes the choices of a step, those that `count` returns on each rank.
  void begin_step(const std::function<RouterLoad()>& count);
  /// Returns `loss`, which may be undefined, with the share of a part of the step, and adds
  /// `weight` times it to the metrics.
  at::Tensor added_to(const at::Tensor& loss, const RouterLoad& part, double weight,
                      StepMetrics& metrics) const;

 private:
  RouterLossSpec spec_;
  std::shared_ptr<Ranks> ranks_;
  at::Tensor factors_;  ///< [experts] float64: E f_e / pairs of the step
};

/// Throws ConfigError, led by `name`, for a loss that does not add that of routers, where the
/// config of its policy or value model, which may be null, asks for it.
void expect_no_router_loss(std::string_view name, const Policy& policy, const Policy* value_model);

}  // namespace prefopt::detail
