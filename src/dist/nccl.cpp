// SPDX-License-Identifier: Apache-2.0
#include <c10/cuda/CUDAFunctions.h>

#include <chrono>
#include <torch/csrc/distributed/c10d/ProcessGroupNCCL.hpp>

#include "dist/c10d_ranks.h"

namespace prefopt::detail {

c10::intrusive_ptr<c10d::Backend> make_nccl(const c10::intrusive_ptr<c10d::Store>& store,
                                            const Launch& launch, const RanksOptions& options) {
  const auto gpus = static_cast<int>(c10::cuda::device_count());
  if (gpus > 0) c10::cuda::set_device(static_cast<c10::DeviceIndex>(launch.local_rank % gpus));
  auto nccl = c10d::ProcessGroupNCCL::Options::create();
  nccl->timeout = std::chrono::seconds(options.timeout_seconds);
  return c10::make_intrusive<c10d::ProcessGroupNCCL>(store, launch.rank, launch.size, nccl);
}

}  // namespace prefopt::detail
