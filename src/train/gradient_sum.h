// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <ATen/core/Tensor.h>

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "prefopt/dist/ranks.h"
#include "train/rank_optimizer.h"
#include "train/tree_sum.h"

namespace prefopt::detail {

/// The gradients of a step, added up over micro-batches and ranks, in at least float32. They travel
/// in buckets, which leave while the last backward pass of the rank still computes others; by
/// ZeRO-2 in each backward pass, and only slices stay. In the order of a tree, after the last.
/// Autograd says when a gradient is complete, also that of a narrow parameter, to which nodes of
/// the graph add themselves (math/wide_gradient.h).
///
/// All ranks send the same buckets in the same order, with zeros for what they have no gradient of,
/// whatever happens on one of them.
class GradientSum {
 public:
  GradientSum(std::shared_ptr<Ranks> ranks, std::vector<RankOptimizer::Trained> trained);
  ~GradientSum();
  GradientSum(const GradientSum&) = delete;
  GradientSum& operator=(const GradientSum&) = delete;

  /// `most_parts`: of the rank that has most.
  void begin_step(std::int64_t most_parts);
  /// Runs the backward pass of a part; `is_last`: of this rank's.
  void backward(const at::Tensor& loss, bool is_last);
  /// Sends what has not left yet. Then gradients are the sums over all ranks.
  void finish();
  /// Sends zeros in place of what has not left yet, which the others wait for, a bucket at a time
  /// and without the gradients of this step: memory may be what is missing.
  void give_up();

  /// Returns a digit for each parameter: 1 where this rank had a gradient of it.
  std::string present() const;
  /// Drops the gradients that no rank had.
  void keep_present(const std::vector<std::string>& of_ranks);

 private:
  class Hook;
  /// A hook that autograd calls when all nodes that a parameter's gradient comes from are done.
  struct NarrowHook {
    at::Tensor parameter;
    unsigned place;
  };
  struct Bucket {
    std::vector<std::size_t> members;
    std::int64_t missing = 0;  ///< gradients, in this backward pass
    at::Tensor sent, received;
    Ranks::Wait wait = {};
  };

  bool is_several() const { return ranks_->size() > 1; }
  bool is_tree() const { return ranks_->options().order == SumOrder::kTree; }
  bool sends_in_each() const { return ranks_->options().sharding >= Sharding::kGradients; }
  bool is_sharded() const { return trained_.front().whole != trained_.front().own; }
  std::int64_t width_of(std::size_t member) const;

  void fill_buckets();
  void add_hooks();
  void add_narrow_hook(std::size_t member);
  void begin_round();
  void end_round();
  void ready(std::size_t member);
  void send(Bucket& bucket);
  void send_slices(Bucket& bucket);
  void receive(Bucket& bucket);
  static void discard(Bucket& bucket);
  void drop_gradients();
  void receive_slices(Bucket& bucket);
  void put(std::size_t member, const at::Tensor& sum);
  at::Tensor flat(const Bucket& bucket) const;
  void take_leaf();
  void finish_tree();
  void add_up_in_tree_order(Bucket& bucket);

  std::shared_ptr<Ranks> ranks_;
  std::vector<RankOptimizer::Trained> trained_;  ///< in the order in which gradients are complete
  std::vector<bool> present_;
  std::vector<Bucket> buckets_;
  std::vector<std::size_t> bucket_of_;  ///< of each parameter
  std::vector<bool> is_ready_;          ///< parameters whose gradient is complete in this round
  std::vector<NarrowHook> narrow_hooks_;
  std::size_t next_ = 0;  ///< bucket to leave
  bool in_round_ = false;
  std::int64_t rounds_left_ = 0;
  TreeSum tree_;
};

}  // namespace prefopt::detail
