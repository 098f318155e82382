// SPDX-License-Identifier: Apache-2.0
#include "support/oracle.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/log_softmax.h>
#include <ATen/ops/mm.h>
#include <ATen/ops/zeros.h>

#include <algorithm>
#include <cmath>

namespace prefopt::bench {
namespace {

// Rows whose float64 log-probs take some 256 MiB.
std::int64_t rows_at_once(std::int64_t vocab) {
  return std::max<std::int64_t>(1, (std::int64_t{32} << 20) / vocab);
}

// c · (onehot − p) from log p, in its place.
at::Tensor logits_gradient(at::Tensor log_p, const at::Tensor& column, const at::Tensor& c) {
  const at::Tensor wide = c.to(at::kDouble).unsqueeze(1);
  return log_p.exp_().mul_(wide.neg()).scatter_add_(1, column, wide);
}

}  // namespace

double logps_error(const at::Tensor& logps, const at::Tensor& expected) {
  const at::Tensor error = (logps.detach().to(at::kDouble) - expected).abs();
  return (error / (expected.abs() + 1)).max().item<double>();
}

double relative_error(const at::Tensor& got, const at::Tensor& expected) {
  const at::Tensor wide = expected.to(at::kDouble);
  return ((got.detach().to(at::kDouble) - wide).norm() / wide.norm()).item<double>();
}

LogitsErrors logits_errors(const at::Tensor& logits, const at::Tensor& targets, const at::Tensor& c,
                           const at::Tensor& logps, const at::Tensor& gradient) {
  LogitsErrors errors;
  double squared_error = 0, squared = 0;
  const std::int64_t step = rows_at_once(logits.size(1));
  for (std::int64_t begin = 0; begin < logits.size(0); begin += step) {
    const auto part = [&](const at::Tensor& tensor) {
      return tensor.detach().slice(0, begin, begin + step);
    };
    const at::Tensor column = part(targets).unsqueeze(1);
    const at::Tensor log_p = at::log_softmax(part(logits).to(at::kDouble), 1);
    // std::max would drop a NaN.
    const double error = logps_error(part(logps), log_p.gather(1, column).squeeze(1));
    if (!(error <= errors.logps)) errors.logps = error;
    if (!gradient.defined()) continue;
    const at::Tensor expected = logits_gradient(log_p, column, part(c));
    squared += expected.square().sum().item<double>();
    squared_error += (part(gradient).to(at::kDouble) - expected).square_().sum().item<double>();
  }
  if (gradient.defined()) errors.gradient = std::sqrt(squared_error / squared);
  return errors;
}

HeadOracle head_oracle(const at::Tensor& hidden, const at::Tensor& weight,
                       const at::Tensor& targets, const at::Tensor& c) {
  const at::Tensor x = hidden.detach().to(at::kDouble), w = weight.detach().to(at::kDouble);
  HeadOracle result;
  result.logps = at::empty({x.size(0)}, at::kDouble);
  if (c.defined()) {
    result.hidden_grad = at::empty(x.sizes(), at::kDouble);
    result.weight_grad = at::zeros(w.sizes(), at::kDouble);
  }
  const std::int64_t step = rows_at_once(w.size(0));
  for (std::int64_t begin = 0; begin < x.size(0); begin += step) {
    const auto part = [&](const at::Tensor& tensor) {
      return tensor.slice(0, begin, begin + step);
    };
    const at::Tensor column = part(targets).unsqueeze(1);
    const at::Tensor log_p = at::log_softmax(at::mm(part(x), w.t()), 1);
    part(result.logps).copy_(log_p.gather(1, column).squeeze(1));
    if (!c.defined()) continue;
    const at::Tensor gradient = logits_gradient(log_p, column, part(c));
    part(result.hidden_grad).copy_(at::mm(gradient, w));
    result.weight_grad.addmm_(gradient.t(), part(x));
  }
  return result;
}

}  // namespace prefopt::bench
