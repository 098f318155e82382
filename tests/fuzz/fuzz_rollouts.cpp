// SPDX-License-Identifier: Apache-2.0
#include <cmath>
#include <cstdint>

#include "cli/rollouts_file.h"
#include "fuzz/input_files.h"
#include "fuzz/targets.h"
#include "fuzz/verdict.h"

namespace prefopt::fuzz {

void read_rollouts(std::string_view bytes) {
  const MemoryFile file(bytes);
  accepts(file.path(), [&] {
    for (const cli::RolloutRow& row : cli::read_rollouts(file.path())) {
      expect(row.length() > 0, "a completion without tokens");
      for (const auto& [key, numbers] : row.tokens) {
        expect(std::ssize(numbers) == row.length(), "a list of another length");
        for (const double number : numbers) {
          expect(std::isfinite(number), "a number that is not finite");
        }
      }
      for (const double flag : row.numbers("acted")) {
        expect(flag == 0 || flag == 1, "acted other than 0 or 1");
      }
      expect(!std::isinf(row.reward.value_or(0)), "an infinite reward");
      for (const auto* ends : {&row.turn_ends, &row.step_ends}) {
        std::int64_t last = 0;
        for (const std::int64_t end : *ends) {
          expect(end > last && end <= row.length(), "ends that do not ascend");
          last = end;
        }
      }
    }
  });
}

}  // namespace prefopt::fuzz
