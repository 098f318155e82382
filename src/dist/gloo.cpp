// SPDX-License-Identifier: Apache-2.0
// The only source that sees gloo_abi, in place of headers that LibTorch does not ship.
#include <chrono>
#include <cstdlib>
#include <torch/csrc/distributed/c10d/ProcessGroupGloo.hpp>

#include "dist/c10d_ranks.h"

namespace prefopt::detail {
namespace {

/// A launcher that gives no local size may have started ranks on several machines.
bool meets_on_this_machine(const Launch& launch) {
  return launch.host.empty() || launch.host == "localhost" || launch.host == "::1" ||
         launch.host.starts_with("127.");
}

}  // namespace

c10::intrusive_ptr<c10d::Backend> make_gloo(const c10::intrusive_ptr<c10d::Store>& store,
                                            const Launch& launch, const RanksOptions& options) {
  using c10d::ProcessGroupGloo;
  auto gloo = ProcessGroupGloo::Options::create(std::chrono::seconds(options.timeout_seconds));
  if (const char* const name = std::getenv("GLOO_SOCKET_IFNAME")) {
    gloo->devices.push_back(ProcessGroupGloo::createDeviceForInterface(name));
  } else if (launch.local_size == launch.size && meets_on_this_machine(launch)) {
    // A machine's own name need not resolve.
    gloo->devices.push_back(ProcessGroupGloo::createDeviceForHostname("127.0.0.1"));
  } else {
    gloo->devices.push_back(ProcessGroupGloo::createDefaultDevice());
  }
  return c10::make_intrusive<ProcessGroupGloo>(store, launch.rank, launch.size, gloo);
}

}  // namespace prefopt::detail
