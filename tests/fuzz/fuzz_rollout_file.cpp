// SPDX-License-Identifier: Apache-2.0
#include "fuzz/input_files.h"
#include "fuzz/targets.h"
#include "fuzz/verdict.h"
#include "prefopt/online/rollout_file.h"

namespace prefopt::fuzz {

void read_rollout_file(std::string_view bytes) {
  const MemoryFile file(bytes);
  accepts(file.path(), [&] {
    for (const Rollout& rollout : load_rollouts(file.path())) {
      const std::size_t tokens = rollout.completion.size();
      expect(tokens > 0 && !rollout.prompt.empty(), "a rollout without tokens");
      for (const std::size_t length :
           {rollout.token_logps.size(), rollout.token_rewards.size(), rollout.acted.size()}) {
        expect(length == 0 || length == tokens, "a list that is not one of the tokens");
      }
      std::int64_t before = 0;
      for (const std::int64_t end : rollout.turn_ends) {
        expect(end > before, "a turn without a token");
        before = end;
      }
      expect(rollout.turn_ends.empty() || before == static_cast<std::int64_t>(tokens),
             "turns that are not the whole");
    }
  });
}

}  // namespace prefopt::fuzz
