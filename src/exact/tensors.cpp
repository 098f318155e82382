// SPDX-License-Identifier: Apache-2.0
#include "exact/tensors.h"

#include <ATen/ops/from_blob.h>
#include <ATen/ops/scalar_tensor.h>

#include "prefopt/losses/pair_fields.h"

namespace prefopt::exact {
namespace {

at::Tensor as_tensor(const Eigen::ArrayXd& x) {
  if (x.size() == 0) return {};
  // A loss only reads its inputs.
  return at::from_blob(const_cast<double*>(x.data()), {x.size()}, at::kDouble);
}

Eigen::ArrayXd as_array(const at::Tensor& x) {
  if (!x.defined()) return {};
  const at::Tensor flat = x.detach().to(at::kDouble).contiguous();
  return Eigen::Map<const Eigen::ArrayXd>(flat.const_data_ptr<double>(), flat.numel());
}

double as_number(const at::Tensor& x) { return x.defined() ? x.item<double>() : 0; }

}  // namespace

PairLogps as_tensors(const ExactPairLogps& in) {
  PairLogps out;
  for (std::size_t i = 0; i < kPairFields<at::Tensor>.size(); ++i) {
    out.*kPairFields<at::Tensor>[i].value = as_tensor(in.*kPairFields<Eigen::ArrayXd>[i].value);
  }
  out.samples_per_prompt = in.samples_per_prompt;
  out.running = {at::scalar_tensor(in.running.mean, at::kDouble), in.running.count,
                 in.running.is_frozen};
  out.totals = in.totals;
  return out;
}

ExactLossOutput as_arrays(const LossOutput& out) {
  ExactLossOutput copy;
  copy.loss = as_number(out.loss);
  copy.losses = as_array(out.losses);
  for (std::size_t i = 0; i < kPairFields<at::Tensor>.size(); ++i) {
    const auto from = kPairFields<at::Tensor>[i].gradient;
    if (from != nullptr) copy.*kPairFields<Eigen::ArrayXd>[i].gradient = as_array(out.*from);
  }
  copy.chosen_rewards = as_array(out.chosen_rewards);
  copy.rejected_rewards = as_array(out.rejected_rewards);
  copy.margins = as_array(out.margins);
  for (const LossTerm& term : out.terms) copy.terms.push_back({term.name, as_number(term.value)});
  copy.kl = as_number(out.kl);
  copy.running = {as_number(out.running.mean), out.running.count, out.running.is_frozen};
  return copy;
}

}  // namespace prefopt::exact
