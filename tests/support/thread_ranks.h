// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <exception>
#include <functional>
#include <memory>
#include <vector>

#include "prefopt/dist/ranks.h"

namespace prefopt::testing_support {

/// Ranks that are threads of this process and talk over Gloo, without a launcher or a port known
/// beforehand. They wait for each other 20 s at most.
class ThreadRanks {
 public:
  explicit ThreadRanks(int size, RanksOptions options = {});

  using Work = std::function<void(const std::shared_ptr<Ranks>& ranks)>;
  /// Calls `work` on each rank, in a thread of one processor; throws what rank 0, else 1, … threw.
  /// Checks of Catch2 belong to the caller's thread.
  void run(const Work& work) const;
  /// The same; returns what each threw.
  std::vector<std::exception_ptr> troubles(const Work& work) const;
  /// Ends a rank, whose connections close; called by its own thread.
  void leave(int rank) { ranks_[static_cast<std::size_t>(rank)].reset(); }
  /// As run; returns what `work` returned on each.
  template <class Result>
  std::vector<Result> results(
      const std::function<Result(const std::shared_ptr<Ranks>& ranks)>& work) const {
    std::vector<Result> all(ranks_.size());
    run([&](const auto& ranks) { all[static_cast<std::size_t>(ranks->rank())] = work(ranks); });
    return all;
  }

 private:
  std::vector<std::shared_ptr<Ranks>> ranks_;
};

}  // namespace prefopt::testing_support
