// SPDX-License-Identifier: Apache-2.0
#pragma once

// The ranks of a run, as a plain shell starts them.

#include <cstdlib>
#include <deque>
#include <string>
#include <vector>

#include "support/process.h"
#include "support/temp_dir.h"

namespace prefopt::testing_support {

class RankProcesses {
 public:
  /// `more` is given to rank `only`, or to all where that is -1.
  RankProcesses(int size, const std::vector<std::string>& arguments,
                const std::vector<std::string>& more = {}, int only = -1) {
    for (int rank = 0; rank < size; ++rank) {
      std::vector<std::string> words = arguments;
      if (only < 0 || only == rank) words.insert(words.end(), more.begin(), more.end());
      ranks_.emplace_back(words, [this, rank, size] {
        const auto set = [](const char* name, const std::string& value) {
          ::setenv(name, value.c_str(), 1);
        };
        set("RANK", std::to_string(rank));
        set("WORLD_SIZE", std::to_string(size));
        set("PREFOPT_STORE", folder_.file("store"));
        set("OMP_NUM_THREADS", "1");
      });
    }
  }

  const Process& operator[](int rank) const { return ranks_.at(static_cast<std::size_t>(rank)); }

  /// The exit code of each.
  std::vector<int> wait() const {
    std::vector<int> codes;
    for (const Process& rank : ranks_) codes.push_back(rank.wait());
    return codes;
  }

 private:
  TempDir folder_;
  std::deque<Process> ranks_;
};

}  // namespace prefopt::testing_support
