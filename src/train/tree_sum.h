// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <ATen/TensorOperators.h>
#include <ATen/core/Tensor.h>

#include <cstddef>
#include <utility>
#include <vector>

namespace prefopt::detail {

/// A sum of lists of tensors in the order of a binary tree whose leaves come one by one: what it
/// adds to what does not depend on who holds an aligned run of a power of two of them. Keeps one
/// list for each level. A tensor that is undefined counts as nothing.
class TreeSum {
 public:
  using Tensors = std::vector<at::Tensor>;

  void add(Tensors leaf) {
    std::size_t level = 0;
    for (; level < levels_.size() && !levels_[level].empty(); ++level) {
      leaf = sum(levels_[level], leaf);
      levels_[level].clear();
    }
    if (level == levels_.size()) levels_.emplace_back();
    levels_[level] = std::move(leaf);
  }

  /// Returns the sum, empty without leaves, and forgets the leaves.
  Tensors take() {
    Tensors total;
    for (const Tensors& level : levels_) {
      if (!level.empty()) total = total.empty() ? level : sum(level, total);
    }
    levels_.clear();
    return total;
  }

 private:
  static Tensors sum(const Tensors& a, const Tensors& b) {
    Tensors sums;
    for (std::size_t i = 0; i < a.size(); ++i) {
      sums.push_back(!a[i].defined() ? b[i] : !b[i].defined() ? a[i] : a[i] + b[i]);
    }
    return sums;
  }

  std::vector<Tensors> levels_;
};

}  // namespace prefopt::detail
