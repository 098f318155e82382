// SPDX-License-Identifier: Apache-2.0
#include "run/run_prompt_cache.h"

#include <fmt/format.h>

#include <algorithm>
#include <vector>

#include "online/source_kinds.h"
#include "prefopt/device.h"
#include "prefopt/error.h"

namespace prefopt::detail {
void check_prompt_cache(const RunOptions& options, const RunLoss& loss) {
  constexpr std::string_view kOption = "machine.prompt_cache_mib";
  const std::int64_t mib = options.machine.prompt_cache_mib;
  if (mib == 0) return;
  if (!parse_device(options.model.device, "model.device").is_cpu()) {
    throw ConfigError(fmt::format("{}: expected the cpu as model.device, got '{}'", kOption,
                                  options.model.device));
  }
  if (options.distributed.sharding == Sharding::kWeights) {
    throw ConfigError(
        fmt::format("{}: expected 0 with slices of weights, which are whole for one call, got {}",
                    kOption, mib));
  }
  bool has_writer = false;
  if (options.online.is_online()) {
    const auto sources = parse_sources(options.online.sources, options.sampling, "online.sources");
    has_writer = std::any_of(sources.begin(), sources.end(), draws_tokens);
  }
  if (has_writer || loss.requirements().sample_source != SampleSource::kNone) return;
  throw ConfigError(fmt::format(
      "{}: expected 0 where nothing is drawn to train on, by online.prompts or '{}', got {}",
      kOption, loss.name(), mib));
}

RunPromptCache::RunPromptCache(std::int64_t mib)
    : room_(mib > 0 ? std::make_unique<const PromptRoom>(mib << 20) : nullptr),
      first_(prompt_cache_counts()),
      last_(first_) {}

void RunPromptCache::finish_step() const {
  if (room_) drop_past_prompts();
}

void RunPromptCache::add_counts(Json& line) {
  if (!room_) return;
  const PromptCacheCounts now = prompt_cache_counts();
  line["prompt_cache/hits"] = now.hits - last_.hits;
  line["prompt_cache/misses"] = now.misses - last_.misses;
  line["prompt_cache/mib"] = static_cast<double>(now.bytes) / (1 << 20);
  last_ = now;
}

std::string RunPromptCache::summary() const {
  if (!room_) return "";
  const PromptCacheCounts now = prompt_cache_counts();
  const std::int64_t hits = now.hits - first_.hits;
  const std::int64_t all = hits + now.misses - first_.misses;
  return fmt::format("machine.prompt_cache_mib: {} of {} prompts were kept from an earlier call{}",
                     hits, all, hits == 0 ? "; 0 would do the same" : "");
}

}  // namespace prefopt::detail
