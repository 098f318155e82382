// SPDX-License-Identifier: Apache-2.0
#include <string>

#include "fuzz/targets.h"
#include "fuzz/verdict.h"
#include "prefopt/losses/registry.h"
#include "prefopt/options.h"
#include "prefopt/run/run.h"

namespace prefopt::fuzz {

void read_config(std::string_view bytes) {
  const auto check_loss = [](std::string_view config) {
    // The place of a loss is its name, or "loss" before that is known.
    accepts("", [&] {
      const std::string full = make_loss(config).config();
      expect(make_loss(full).config() == full, "a loss that its own config does not give back");
    });
  };
  check_loss(bytes);
  accepts("run", [&] {
    const auto options = options_from_json<RunOptions>(bytes, "run");
    const std::string full = options_to_json(options);
    expect(options_to_json(options_from_json<RunOptions>(full, "run")) == full,
           "options that their own JSON does not give back");
    check_loss(options.loss);
  });
}

}  // namespace prefopt::fuzz
