// SPDX-License-Identifier: Apache-2.0
#include "logps/operators.h"

#include <ATen/Dispatch.h>

#include <array>
#include <optional>
#include <tuple>
#include <vector>

#include "core/parallel.h"
#include "kernels/block_tensor.h"
#include "logps/kernels/cpu/head.h"
#include "logps/kernels/cpu/softmax.h"

namespace prefopt {
namespace {

namespace cpu = kernels::cpu;

// A row of fewer logits than this is not worth a thread.
constexpr std::int64_t kGrainLogits = 1 << 14;

template <class F>
void for_rows(const at::Tensor& logits, const F& f) {
  const std::int64_t grain = std::max<std::int64_t>(1, kGrainLogits / logits.size(1));
  parallel_for(0, logits.size(0), grain, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t row = begin; row < end; ++row) f(row);
  });
}

template <class Element>
void write_gradient(const at::Tensor& logits, std::int64_t row, std::int64_t target,
                    const cpu::LogitMap& map, double logsumexp, const kernels::RowFactors& factors,
                    const at::Tensor& gradient) {
  Element* out = gradient.data_ptr<Element>() + row * gradient.stride(0);
  if (target == kIgnoredTarget) {
    std::fill_n(out, logits.size(1), Element(0));
  } else {
    cpu::row_gradient<Element>(logits.const_data_ptr<Element>() + row * logits.stride(0),
                               logits.size(1), target, map, logsumexp, factors, out);
  }
}

at::Tensor token_logps(const at::Tensor& logits, const at::Tensor& targets, double scale,
                       double softcap, double temperature, bool all_statistics,
                       const std::optional<at::Tensor>& gradient) {
  const cpu::LogitMap map{scale, softcap, temperature};
  const std::int64_t* target_of = targets.const_data_ptr<std::int64_t>();
  std::vector<cpu::RowMoments> moments(static_cast<std::size_t>(logits.size(0)), cpu::kIgnoredRow);
  AT_DISPATCH_FLOATING_TYPES_AND2(
      at::kBFloat16, at::kHalf, logits.scalar_type(), "token_logps", [&] {
        for_rows(logits, [&](std::int64_t row) {
          const std::int64_t target = target_of[row];
          cpu::RowMoments& of_row = moments[static_cast<std::size_t>(row)];
          if (target != kIgnoredTarget) {
            of_row = cpu::row_moments<scalar_t>(
                logits.const_data_ptr<scalar_t>() + row * logits.stride(0), logits.size(1), target,
                map, all_statistics);
          }
          if (gradient) {
            write_gradient<scalar_t>(logits, row, target, map, cpu::logsumexp_of(of_row), {1, 1, 0},
                                     *gradient);
          }
        });
      });
  at::Tensor statistics = cpu::statistics_of(moments, logits.size(1), all_statistics);
  double* is_top1 = statistics.data_ptr<double>() + kernels::kIsTop1 * logits.size(0);
  for (std::int64_t row = 0; row < logits.size(0); ++row) {
    if (target_of[row] == kIgnoredTarget) is_top1[row] = 0;
  }
  return statistics;
}

void token_logps_backward(const at::Tensor& factors, const at::Tensor& logits,
                          const at::Tensor& targets, const at::Tensor& logsumexp, double scale,
                          double softcap, double temperature, at::Tensor gradient) {
  const cpu::LogitMap map{scale, softcap, temperature};
  const auto* target_of = targets.const_data_ptr<std::int64_t>();
  const auto* sum_of = logsumexp.const_data_ptr<double>();
  const cpu::FactorsOfRows factors_of(factors);
  AT_DISPATCH_FLOATING_TYPES_AND2(
      at::kBFloat16, at::kHalf, logits.scalar_type(), "token_logps_backward", [&] {
        for_rows(logits, [&](std::int64_t row) {
          write_gradient<scalar_t>(logits, row, target_of[row], map, sum_of[row], factors_of(row),
                                   gradient);
        });
      });
}

HeadPlan plan_of(const at::Tensor& hidden, const at::Tensor& weight, bool hidden_grad,
                 bool weight_grad, bool by_product_grad, std::int64_t path,
                 std::int64_t budget_bytes) {
  return plan_head({.rows = hidden.size(0),
                    .hidden_size = hidden.size(1),
                    .vocab_size = weight.size(0),
                    .float64 = weight.scalar_type() == at::kDouble,
                    .narrow_weight = weight.element_size() == 2 || kernels::blocks_of(weight),
                    .hidden_grad = hidden_grad,
                    .weight_grad = weight_grad,
                    .by_product_grad = by_product_grad},
                   budget_bytes, static_cast<HeadPath>(path));
}

cpu::HeadInputs head_inputs(const at::Tensor& hidden, const at::Tensor& weight,
                            const std::optional<at::Tensor>& bias, const at::Tensor& targets,
                            double scale, double softcap, double temperature) {
  return {hidden, weight, bias.value_or(at::Tensor()), targets, {scale, softcap, temperature}};
}

std::tuple<at::Tensor, at::Tensor> linear_token_logps(
    const at::Tensor& hidden, const at::Tensor& weight, const std::optional<at::Tensor>& bias,
    const at::Tensor& targets, double scale, double softcap, double temperature,
    bool all_statistics, bool hidden_grad, bool weight_grad, bool by_product_grad,
    std::int64_t path, std::int64_t budget_bytes) {
  cpu::HeadForward result = cpu::head_forward(
      head_inputs(hidden, weight, bias, targets, scale, softcap, temperature),
      plan_of(hidden, weight, hidden_grad, weight_grad, by_product_grad, path, budget_bytes),
      all_statistics);
  return {std::move(result.statistics), std::move(result.kept)};
}

std::tuple<at::Tensor, at::Tensor, at::Tensor> linear_token_logps_backward(
    const at::Tensor& factors, const at::Tensor& hidden, const at::Tensor& weight,
    const std::optional<at::Tensor>& bias, const at::Tensor& targets, const at::Tensor& logsumexp,
    const at::Tensor& kept, double scale, double softcap, double temperature, bool hidden_grad,
    bool weight_grad, bool by_product_grad, bool needs_hidden, bool needs_weight, bool needs_bias,
    std::int64_t path, std::int64_t budget_bytes) {
  auto grads = cpu::head_backward(
      head_inputs(hidden, weight, bias, targets, scale, softcap, temperature),
      plan_of(hidden, weight, hidden_grad, weight_grad, by_product_grad, path, budget_bytes),
      factors, logsumexp, kept, {needs_hidden, needs_weight, needs_bias});
  return {grads[0], grads[1], grads[2]};
}

}  // namespace

const LogpsOperators kCpuLogps{token_logps, token_logps_backward, linear_token_logps,
                               linear_token_logps_backward};

}  // namespace prefopt
