// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <exception>
#include <functional>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "prefopt/dist/ranks.h"

namespace prefopt::detail {

/// The points of a run at which its ranks come together, where any of them may have failed on its
/// way. Between two points a rank works by itself, or in what lets an error of one rank be thrown
/// by all, as a step of a Trainer does. A rank whose work throws calls `settle` in place of its
/// next point, where the others then throw.
class Meeting {
 public:
  explicit Meeting(std::shared_ptr<Ranks> ranks) : ranks_(std::move(ranks)) {}

  const std::shared_ptr<Ranks>& ranks() const { return ranks_; }
  int rank() const { return ranks_->rank(); }
  int size() const { return ranks_->size(); }
  /// Returns whether this is the rank that writes and speaks.
  bool is_first() const { return rank() == 0; }

  /// Returns the text of each rank, which may be any bytes.
  std::vector<std::string> texts(const std::string& own);
  /// Returns whether `is_true` holds on all ranks.
  bool all(bool is_true);
  /// Returns when all ranks are here.
  void wait() { all(true); }
  /// Runs `work` on rank 0, for which the others wait.
  void on_first(const std::function<void()>& work);
  /// Returns on all ranks what `work` returns on rank 0, which alone runs it.
  std::string from_first(const std::function<std::string()>& work);

  /// Returns the error that this rank has to throw, given its own: that one, where no rank before
  /// it has failed too, else "rank 1: …". A second call returns what it is given, as does the first
  /// one where ranks cannot be reached.
  std::exception_ptr settle(const std::exception_ptr& own);
  /// Returns whether ranks could not be reached: there is no further point then.
  bool is_broken() const { return is_broken_; }

 private:
  std::vector<std::string> exchange(const std::string& own);

  std::shared_ptr<Ranks> ranks_;
  bool is_settled_ = false;
  bool is_broken_ = false;
};

/// Returns what `work` returns; what it throws is settled.
template <class Work>
auto settled(Meeting& meeting, Work&& work) {
  try {
    return work();
  } catch (const std::exception&) {
    std::rethrow_exception(meeting.settle(std::current_exception()));
  }
}

/// The places [begin, end) of a rank, where `count` things are dealt in runs.
struct Portion {
  std::int64_t begin = 0, end = 0;
};

/// Returns the share of this rank: runs differ in length by one at most, in the order of ranks.
Portion portion_of(std::int64_t count, const Ranks& ranks);

}  // namespace prefopt::detail
