// SPDX-License-Identifier: Apache-2.0
// Two ranks, threads of this program, add up their numbers over Gloo.
#include <ATen/ATen.h>

#include <chrono>
#include <cstdio>
#include <exception>
#include <thread>
#include <torch/csrc/distributed/c10d/HashStore.hpp>
#include <torch/csrc/distributed/c10d/ProcessGroupGloo.hpp>
#include <vector>

int main() {
  const auto store = c10::make_intrusive<c10d::HashStore>();
  double sums[2] = {0, 0};
  const auto run = [&](int rank) {
    try {
      using c10d::ProcessGroupGloo;
      auto options = ProcessGroupGloo::Options::create(std::chrono::seconds(20));
      options->devices.push_back(ProcessGroupGloo::createDeviceForHostname("127.0.0.1"));
      auto gloo = c10::make_intrusive<ProcessGroupGloo>(store, rank, 2, options);
      c10d::Backend& backend = *gloo;
      std::vector<at::Tensor> numbers{at::full({3}, rank + 1, at::kDouble)};
      backend.allreduce(numbers, {})->wait();
      at::Tensor all = at::zeros({6}, at::kDouble);
      backend._allgather_base(all, numbers[0], {})->wait();
      at::Tensor own = at::zeros({3}, at::kDouble);
      backend._reduce_scatter_base(own, all, {})->wait();
      sums[rank] = own.sum().item<double>();
    } catch (const std::exception& error) {
      std::printf("%s\n", error.what());
    }
  };
  std::thread other(run, 1);
  run(0);
  other.join();
  return sums[0] == 18 && sums[1] == 18 ? 0 : 1;
}
