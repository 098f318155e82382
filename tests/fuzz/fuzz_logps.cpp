// SPDX-License-Identifier: Apache-2.0
#include <cmath>

#include "cli/logps_file.h"
#include "fuzz/input_files.h"
#include "fuzz/targets.h"
#include "fuzz/verdict.h"

namespace prefopt::fuzz {

void read_logps(std::string_view bytes) {
  const MemoryFile file(bytes);
  accepts(file.path(), [&] {
    for (const cli::LogpsRow& row : cli::read_logps(file.path())) {
      for (const auto& [field, completions] : row.completions) {
        for (const cli::CompletionLogps& completion : completions) {
          expect(std::isfinite(completion.sum), "a sum that is not finite");
          expect(completion.tokens.value_or(1) > 0, "a completion without tokens");
        }
      }
      for (const auto& [field, number] : row.numbers) {
        expect(std::isfinite(number), "a number that is not finite");
      }
    }
  });
}

}  // namespace prefopt::fuzz
