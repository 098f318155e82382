// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <optional>
#include <string>

namespace prefopt::detail {

/// The part of the machine that this process may use, as far as the system says. A control group,
/// as containers have one, may allow less than the machine has.
struct Machine {
  std::string processor = {};                        ///< the maker's name of it
  std::int64_t cores = 0;                            ///< that the process may be run on
  std::optional<double> core_limit = {};             ///< of its control group
  std::optional<std::int64_t> total_memory = {};     ///< bytes
  std::optional<std::int64_t> free_memory = {};      ///< bytes that can be had without swapping
  std::optional<std::int64_t> memory_limit = {};     ///< bytes, of its control group
  std::optional<std::int64_t> memory_in_group = {};  ///< bytes, used of the limit

  /// Returns the least of what the machine and the control group still have.
  std::optional<std::int64_t> usable_memory() const;
  /// Cores at once, rounded up.
  std::int64_t usable_cores() const;
};

/// `root` leads the paths that are read, for tests.
Machine read_machine(const std::string& root = "");

}  // namespace prefopt::detail
