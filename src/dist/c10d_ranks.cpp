// SPDX-License-Identifier: Apache-2.0
#include "dist/c10d_ranks.h"

#include <ATen/core/grad_mode.h>
#include <ATen/ops/empty.h>
#include <fmt/format.h>
#include <fmt/ranges.h>

#include <chrono>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "prefopt/error.h"

namespace prefopt::detail {

C10dRanks::C10dRanks(RanksOptions options, c10::intrusive_ptr<c10d::Store> store,
                     c10::intrusive_ptr<c10d::Backend> host, c10::intrusive_ptr<c10d::Backend> gpu)
    : options_(options), store_(std::move(store)), host_(std::move(host)), gpu_(std::move(gpu)) {}

c10d::Backend& C10dRanks::backend_for(const at::Tensor& tensor) {
  if (tensor.is_cpu()) return *host_;
  if (gpu_ && tensor.is_cuda()) return *gpu_;
  throw DeviceError(fmt::format("ranks: expected tensors that {} can send, got one on {}",
                                backend(), tensor.device().str()));
}

template <class Begin>
Ranks::Wait C10dRanks::begin(std::string_view what, Begin&& begin_work) {
  // Who is out of step once would only wait for the timeout again.
  if (!failure_.empty()) throw LostRankError(failure_);
  c10::intrusive_ptr<c10d::Work> work;
  try {
    work = begin_work();
  } catch (const DeviceError&) {
    throw;
  } catch (const std::exception& error) {
    fail(what, error);
  }
  return [this, what, work] {
    try {
      work->wait();
    } catch (const std::exception& error) {
      fail(what, error);
    }
  };
}

Ranks::Wait C10dRanks::begin_sum(const at::Tensor& values) {
  return begin("a sum", [&] {
    std::vector<at::Tensor> tensors{values.detach()};
    return backend_for(values).allreduce(tensors, {});
  });
}

Ranks::Wait C10dRanks::begin_sum_scatter(const at::Tensor& own, const at::Tensor& all) {
  return begin("a scattered sum", [&] {
    at::Tensor to = own.detach();
    at::Tensor from = all.detach().view(-1);
    return backend_for(all)._reduce_scatter_base(to, from, {});
  });
}

at::Tensor C10dRanks::gather(const at::Tensor& own) {
  const at::NoGradGuard no_grad;
  std::vector<std::int64_t> sizes = own.sizes().vec();
  sizes.insert(sizes.begin(), size());
  const at::Tensor all = at::empty(sizes, own.options().requires_grad(false));
  gather_into(all, own);
  return all;
}

void C10dRanks::gather_into(const at::Tensor& all, const at::Tensor& own) {
  if (own.numel() == 0) return;
  begin("a gather", [&] {
    at::Tensor to = all.view(-1);
    at::Tensor from = own.detach().contiguous().view(-1);
    return backend_for(own)._allgather_base(to, from, {});
  })();
}

void C10dRanks::broadcast(const at::Tensor& values) {
  begin("a broadcast", [&] {
    std::vector<at::Tensor> tensors{values.detach()};
    return backend_for(values).broadcast(tensors, {});
  })();
}

void C10dRanks::barrier() {
  begin("a barrier", [&] { return host_->barrier({}); })();
}

void C10dRanks::fail(std::string_view what, const std::exception& error) {
  const std::string text = error.what();
  failure_ = fmt::format("rank {}: expected {} of all {} ranks, got '{}'; {}", rank(), what, size(),
                         text.substr(0, text.find('\n')), missing_ranks());
  throw LostRankError(failure_);
}

/// Each rank that notices says so in the store; who has not after a while may have ended.
/// The wait also lets launchers see first who ended first.
std::string C10dRanks::missing_ranks() {
  using namespace std::chrono_literals;
  constexpr auto kWait = 5s;  // a rank on a busy machine may take some to notice
  const auto key = [](int of) { return fmt::format("noticed/{}", of); };
  std::vector<int> missing;
  try {
    store_->set(key(rank()), std::string("1"));
    const auto last = std::chrono::steady_clock::now() + kWait;
    do {
      std::this_thread::sleep_for(50ms);
      missing.clear();
      for (int r = 0; r < size(); ++r) {
        if (!store_->check({key(r)})) missing.push_back(r);
      }
    } while (!missing.empty() && std::chrono::steady_clock::now() < last);
  } catch (const std::exception&) {
    return "the store does not answer, so rank 0 or the launcher has ended";
  }
  if (missing.empty()) return "all of them have noticed";
  return missing.size() == 1
             ? fmt::format("no word from rank {}, which has ended, hangs or still computes",
                           missing.front())
             : fmt::format("no word from ranks {}, which have ended, hang or still compute",
                           fmt::join(missing, " and "));
}

}  // namespace prefopt::detail
