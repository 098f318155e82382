// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <memory>
#include <string>
#include <utility>

#include "prefopt/dist/ranks.h"

namespace prefopt::testing_support {

/// Ranks that do all by others, for those that watch what is sent.
class ForwardingRanks : public Ranks {
 public:
  explicit ForwardingRanks(std::shared_ptr<Ranks> ranks) : ranks_(std::move(ranks)) {}

  int rank() const override { return ranks_->rank(); }
  int size() const override { return ranks_->size(); }
  const RanksOptions& options() const override { return ranks_->options(); }
  std::string backend() const override { return ranks_->backend(); }
  Wait begin_sum(const at::Tensor& values) override { return ranks_->begin_sum(values); }
  Wait begin_sum_scatter(const at::Tensor& own, const at::Tensor& all) override {
    return ranks_->begin_sum_scatter(own, all);
  }
  at::Tensor gather(const at::Tensor& own) override { return ranks_->gather(own); }
  void broadcast(const at::Tensor& values) override { ranks_->broadcast(values); }
  void barrier() override { ranks_->barrier(); }

 private:
  std::shared_ptr<Ranks> ranks_;
};

}  // namespace prefopt::testing_support
