// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <exception>
#include <memory>
#include <string>
#include <string_view>
#include <torch/csrc/distributed/c10d/Backend.hpp>
#include <torch/csrc/distributed/c10d/Store.hpp>

#include "prefopt/dist/launch.h"
#include "prefopt/dist/ranks.h"

namespace prefopt::detail {

/// Ranks over backends of c10d: one for tensors on the host, perhaps another for those on GPUs.
class C10dRanks final : public Ranks {
 public:
  /// `gpu` may be null. `store` tells which ranks are alive when one has gone.
  C10dRanks(RanksOptions options, c10::intrusive_ptr<c10d::Store> store,
            c10::intrusive_ptr<c10d::Backend> host, c10::intrusive_ptr<c10d::Backend> gpu);

  int rank() const override { return host_->getRank(); }
  int size() const override { return host_->getSize(); }
  const RanksOptions& options() const override { return options_; }
  std::string backend() const override { return gpu_ ? "gloo and nccl" : "gloo"; }
  Wait begin_sum(const at::Tensor& values) override;
  Wait begin_sum_scatter(const at::Tensor& own, const at::Tensor& all) override;
  at::Tensor gather(const at::Tensor& own) override;
  void gather_into(const at::Tensor& all, const at::Tensor& own) override;
  void broadcast(const at::Tensor& values) override;
  void barrier() override;

 private:
  c10d::Backend& backend_for(const at::Tensor& tensor);
  template <class Begin>
  Wait begin(std::string_view what, Begin&& begin_work);
  [[noreturn]] void fail(std::string_view what, const std::exception& error);
  std::string missing_ranks();

  RanksOptions options_;
  c10::intrusive_ptr<c10d::Store> store_;
  c10::intrusive_ptr<c10d::Backend> host_, gpu_;
  std::string failure_;  ///< empty: none yet
};

/// Returns Gloo's ranks of a store that all of them share. On one machine they talk over loopback.
c10::intrusive_ptr<c10d::Backend> make_gloo(const c10::intrusive_ptr<c10d::Store>& store,
                                            const Launch& launch, const RanksOptions& options);

/// Returns NCCL's ranks, each on the GPU of its local rank; in builds with NCCL.
c10::intrusive_ptr<c10d::Backend> make_nccl(const c10::intrusive_ptr<c10d::Store>& store,
                                            const Launch& launch, const RanksOptions& options);

/// Returns the ranks that meet in `store`.
std::shared_ptr<Ranks> make_ranks(const c10::intrusive_ptr<c10d::Store>& store,
                                  const Launch& launch, const RanksOptions& options);

}  // namespace prefopt::detail
