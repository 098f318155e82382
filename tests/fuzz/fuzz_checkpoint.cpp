// SPDX-License-Identifier: Apache-2.0
#include <string>

#include "fuzz/input_files.h"
#include "fuzz/targets.h"
#include "fuzz/verdict.h"
#include "run/checkpoint.h"

namespace prefopt::fuzz {

/// The manifest of a checkpoint that consists of a file `x` with the letter x in it.
void read_checkpoint(std::string_view bytes) {
  static const InputFolder folder;
  folder.put("x", "x");
  folder.put("manifest.json", bytes);
  accepts(folder.path(), [&] {
    const std::string defect = detail::defect_of_checkpoint(folder.path());
    if (!defect.empty()) throw CheckpointError(defect);
    expect(detail::step_of_checkpoint(folder.path()) >= 0, "a negative step");
  });
}

}  // namespace prefopt::fuzz
