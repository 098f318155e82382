// SPDX-License-Identifier: Apache-2.0
#include "train/router_term.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/zeros.h>
#include <fmt/format.h>

#include <exception>

#include "prefopt/error.h"
#include "train/whole_step.h"

namespace prefopt::detail {

void RouterTerm::begin_step(const std::function<RouterLoad()>& count) {
  if (!is_on()) return;
  // A rank's message: whether it is in trouble, its pairs, its choices.
  at::Tensor own = at::zeros({spec_.experts + 2}, at::kDouble);
  std::exception_ptr trouble;
  at::Device device = at::kCPU;
  try {
    const RouterLoad load = count();
    if (load.chosen.defined()) {
      own[1] = load.pairs;
      own.narrow(0, 2, spec_.experts).copy_(load.chosen);
      device = load.chosen.device();
    }
  } catch (...) {
    trouble = std::current_exception();
    own[0] = 1;
  }
  const at::Tensor all = ranks_->size() == 1 ? own : ranks_->gather(own).sum(0);
  if (trouble) std::rethrow_exception(trouble);
  if (all[0].item<double>() > 0) throw TroubleElsewhere();
  const auto pairs = all[1].item<double>();
  const auto experts = static_cast<double>(spec_.experts);
  factors_ = (all.narrow(0, 2, spec_.experts) * (experts / (pairs * pairs))).to(device);
}

at::Tensor RouterTerm::added_to(const at::Tensor& loss, const RouterLoad& part, double weight,
                                StepMetrics& metrics) const {
  if (!is_on()) return loss;
  const at::Tensor unscaled = (factors_ * part.shares).sum();
  const at::Tensor term = unscaled * spec_.coefficient;
  metrics.add_total("aux_loss", unscaled.detach() * weight);
  metrics.add_total("loss", term.detach() * weight);
  return loss.defined() ? loss + term : term;
}

void expect_no_router_loss(std::string_view name, const Policy& policy, const Policy* value_model) {
  for (const Policy* model : {&policy, value_model}) {
    if (model == nullptr || router_loss_of(*model).coefficient == 0) continue;
    throw ConfigError(fmt::format(
        "{}: expected output_router_logits false in the config of its {}, got true; the loss of "
        "routers is added to losses of pairs, labelled rows and demonstrations alone",
        name, model == &policy ? "model" : "value model"));
  }
}

}  // namespace prefopt::detail
