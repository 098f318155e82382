// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "support/forwarding_ranks.h"

namespace prefopt::testing_support {

/// Ranks that count what they send.
class CountingRanks final : public ForwardingRanks {
 public:
  using ForwardingRanks::ForwardingRanks;

  Wait begin_sum(const at::Tensor& values) override {
    ++sums;
    return ForwardingRanks::begin_sum(values);
  }
  Wait begin_sum_scatter(const at::Tensor& own, const at::Tensor& all) override {
    ++sums;
    return ForwardingRanks::begin_sum_scatter(own, all);
  }
  at::Tensor gather(const at::Tensor& own) override {
    ++gathers;
    return ForwardingRanks::gather(own);
  }
  void broadcast(const at::Tensor& values) override {
    ++others;
    ForwardingRanks::broadcast(values);
  }
  void barrier() override {
    ++others;
    ForwardingRanks::barrier();
  }

  int sums = 0, gathers = 0, others = 0;
};

}  // namespace prefopt::testing_support
