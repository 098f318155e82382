// SPDX-License-Identifier: Apache-2.0
#include "logps/operators.h"

#include <ATen/ops/empty.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <fmt/format.h>
#include <torch/library.h>

#include <optional>

#include "logps/kernels/cuda/row_logps.h"
#include "prefopt/error.h"

/// The symbol by which a linker takes this file out of a static library: nothing else refers to the
/// registrations in it. See src/CMakeLists.txt.
extern "C" const int prefopt_cuda_operators = 1;

namespace prefopt {
namespace {

namespace cuda = kernels::cuda;

cuda::ElementType element_of(const at::Tensor& logits) {
  switch (logits.scalar_type()) {
    case at::kFloat:
      return cuda::ElementType::kFloat;
    case at::kDouble:
      return cuda::ElementType::kDouble;
    case at::kBFloat16:
      return cuda::ElementType::kBFloat16;
    case at::kHalf:
      return cuda::ElementType::kHalf;
    default:
      throw DtypeError(fmt::format(
          "token_logps: expected logits of float32, float64, bfloat16 or float16, got {}",
          c10::toString(logits.scalar_type())));
  }
}

cuda::LogitRows rows_of(const at::Tensor& logits, const at::Tensor& targets, double scale,
                        double softcap, double temperature,
                        const std::optional<at::Tensor>& gradient) {
  return {.element = element_of(logits),
          .logits = logits.const_data_ptr(),
          .rows = logits.size(0),
          .size = logits.size(1),
          .stride = logits.stride(0),
          .targets = targets.const_data_ptr<std::int64_t>(),
          .ignored_target = kIgnoredTarget,
          .scale = scale,
          .softcap = softcap,
          .temperature = temperature,
          .gradient = gradient ? gradient->mutable_data_ptr() : nullptr,
          .gradient_stride = gradient ? gradient->stride(0) : 0};
}

void check_launch(cudaError_t error, const at::Tensor& logits) {
  if (error == cudaSuccess) return;
  throw DeviceError(fmt::format("token_logps: expected its kernel to start on {}, got {}",
                                logits.device().str(), cudaGetErrorString(error)));
}

at::Tensor token_logps_cuda(const at::Tensor& logits, const at::Tensor& targets, double scale,
                            double softcap, double temperature, bool all_statistics,
                            const std::optional<at::Tensor>& gradient) {
  const c10::cuda::CUDAGuard guard(logits.device());
  const at::Tensor dense_targets = targets.contiguous();
  at::Tensor statistics = at::empty(
      {all_statistics ? kernels::kAllStatistics : kernels::kFewStatistics, logits.size(0)},
      logits.options().dtype(at::kDouble));
  check_launch(
      cuda::score_rows(rows_of(logits, dense_targets, scale, softcap, temperature, gradient),
                       all_statistics, statistics.mutable_data_ptr<double>(),
                       c10::cuda::getCurrentCUDAStream()),
      logits);
  return statistics;
}

void token_logps_backward_cuda(const at::Tensor& factors, const at::Tensor& logits,
                               const at::Tensor& targets, const at::Tensor& logsumexp, double scale,
                               double softcap, double temperature, at::Tensor gradient) {
  const c10::cuda::CUDAGuard guard(logits.device());
  const at::Tensor dense_factors = factors.contiguous(), dense_targets = targets.contiguous(),
                   dense_logsumexp = logsumexp.contiguous();
  const auto column = [&](kernels::FactorRow row) {
    return row < factors.size(0) ? dense_factors.const_data_ptr<double>() + row * logits.size(0)
                                 : nullptr;
  };
  check_launch(cuda::backpropagate_rows(
                   rows_of(logits, dense_targets, scale, softcap, temperature, gradient),
                   {column(kernels::kOfTarget), column(kernels::kOfP), column(kernels::kOfPLogP)},
                   dense_logsumexp.const_data_ptr<double>(), c10::cuda::getCurrentCUDAStream()),
               logits);
}

}  // namespace

TORCH_LIBRARY_IMPL(prefopt, CUDA, library) {
  library.impl("_token_logps", token_logps_cuda);
  library.impl("_token_logps_backward", token_logps_backward_cuda);
}

}  // namespace prefopt
