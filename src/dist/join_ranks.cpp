// SPDX-License-Identifier: Apache-2.0
#include <fmt/format.h>

#include "prefopt/dist/launch.h"
#include "prefopt/dist/ranks.h"
#include "prefopt/error.h"

#ifdef PREFOPT_WITH_RANKS
#include <ATen/Context.h>

#include <chrono>
#include <exception>
#include <string>
#include <torch/csrc/distributed/c10d/FileStore.hpp>
#include <torch/csrc/distributed/c10d/PrefixStore.hpp>
#include <torch/csrc/distributed/c10d/TCPStore.hpp>

#include "dist/c10d_ranks.h"
#include "dist/gathering_ranks.h"
#endif

namespace prefopt {
namespace {

void check_options(const RanksOptions& options, int size) {
  checked(options, "distributed");
  if (options.order == SumOrder::kTree && (size & (size - 1)) != 0) {
    throw ConfigError(fmt::format(
        "distributed.order: expected 1, 2, 4, 8, ... ranks with order tree, got {}", size));
  }
  if (options.order == SumOrder::kTree && options.sharding != Sharding::kNone) {
    throw ConfigError(
        "distributed.order: expected order fast with sharding, got tree; only whole gradients are "
        "added up in the order of a tree");
  }
#ifndef PREFOPT_WITH_NCCL
  if (options.backend == RanksBackend::kNccl) {
    throw ConfigError(
        "distributed.backend: expected auto or gloo in a build without NCCL, got nccl; configure "
        "with PREFOPT_WITH_CUDA");
  }
#endif
}

}  // namespace

#ifdef PREFOPT_WITH_RANKS

namespace detail {
namespace {

c10::intrusive_ptr<c10d::Store> make_store(const Launch& launch, const RanksOptions& options) {
  const std::chrono::seconds timeout(options.timeout_seconds);
  c10::intrusive_ptr<c10d::Store> store;
  if (!launch.store_file.empty()) {
    store = c10::make_intrusive<c10d::FileStore>(launch.store_file, launch.size);
    store->setTimeout(timeout);
  } else {
    c10d::TCPStoreOptions tcp;
    tcp.port = static_cast<std::uint16_t>(launch.port);
    tcp.isServer = launch.rank == 0 && !launch.agent_store;
    tcp.numWorkers = launch.size;
    tcp.timeout = timeout;
    store = c10::make_intrusive<c10d::TCPStore>(launch.host, tcp);
  }
  // Keys of an earlier attempt must not be seen.
  return c10::make_intrusive<c10d::PrefixStore>(fmt::format("prefopt/{}", launch.restart), store);
}

c10::intrusive_ptr<c10d::Store> apart(const c10::intrusive_ptr<c10d::Store>& store,
                                      const std::string& name) {
  return c10::make_intrusive<c10d::PrefixStore>(name, store);
}

}  // namespace

std::shared_ptr<Ranks> make_ranks(const c10::intrusive_ptr<c10d::Store>& store,
                                  const Launch& launch, const RanksOptions& options) {
  check_options(options, launch.size);
  auto host = make_gloo(apart(store, "gloo"), launch, options);
  c10::intrusive_ptr<c10d::Backend> gpu;
#ifdef PREFOPT_WITH_NCCL
  if (options.backend == RanksBackend::kNccl ||
      (options.backend == RanksBackend::kAuto && at::hasCUDA())) {
    gpu = make_nccl(apart(store, "nccl"), launch, options);
  }
#endif
  const auto ranks = std::make_shared<C10dRanks>(options, apart(store, "alive"), host, gpu);
  if (options.sharding == Sharding::kWeights) return std::make_shared<GatheringRanks>(ranks);
  return ranks;
}

}  // namespace detail

bool has_ranks() { return true; }

std::shared_ptr<Ranks> join_ranks(const RanksOptions& options, const Launch& launch) {
  check_options(options, launch.size);
  if (launch.size == 1) return one_process(options);
  try {
    return detail::make_ranks(detail::make_store(launch, options), launch, options);
  } catch (const Error&) {
    throw;
  } catch (const std::exception& error) {
    const std::string text = error.what();
    throw DeviceError(
        fmt::format("rank {}: expected {} ranks to meet at {}, got '{}'", launch.rank, launch.size,
                    launch.store_file.empty() ? fmt::format("{}:{}", launch.host, launch.port)
                                              : launch.store_file,
                    text.substr(0, text.find('\n'))));
  }
}

#else

bool has_ranks() { return false; }

std::shared_ptr<Ranks> join_ranks(const RanksOptions& options, const Launch& launch) {
  check_options(options, launch.size);
  if (launch.size == 1) return one_process(options);
  throw DeviceError(fmt::format(
      "ranks: expected 1 in a build without Gloo, got {}; the configuration found no LibTorch "
      "whose Gloo runs",
      launch.size));
}

#endif

}  // namespace prefopt
