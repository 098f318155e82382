// SPDX-License-Identifier: Apache-2.0
#include "online/rollout_writer.h"

#include <fmt/format.h>

#include <algorithm>
#include <utility>

#include "core/json.h"
#include "online/draw_seed.h"
#include "prefopt/error.h"
#include "prefopt/exact/random.h"
#include "prefopt/online/episode.h"
#include "prefopt/online/tree_search.h"

namespace prefopt::detail {
namespace {

std::vector<std::vector<std::int64_t>> ids_of(const std::vector<const OnlinePrompt*>& prompts) {
  std::vector<std::vector<std::int64_t>> ids;
  for (const OnlinePrompt* prompt : prompts) ids.push_back(prompt->ids);
  return ids;
}

}  // namespace

std::vector<Rollout> play_episodes(Policy& policy, const OnlineParts& parts, std::int64_t place,
                                   const std::vector<const OnlinePrompt*>& prompts, std::int64_t n,
                                   const SamplingOptions& sampling, std::int64_t at_once,
                                   const std::function<std::int64_t(std::int64_t)>& seeds) {
  constexpr int kLostBits = 10;  // 53 stay, which every program's numbers hold
  const SourceOptions& source = parts.sources[static_cast<std::size_t>(place)];
  std::vector<EpisodePrompt> starts;
  for (const OnlinePrompt* prompt : prompts) {
    starts.push_back({.ids = prompt->ids,
                      .text = prompt->text,
                      .is_conversation = prompt->is_conversation,
                      .seed = seeds(std::ssize(starts)) >> kLostBits});
  }
  return draw_episodes(policy, *parts.tokenizer,
                       *parts.environments.at(static_cast<std::size_t>(place)), starts,
                       {.samples_per_prompt = n,
                        .max_turns = source.max_turns,
                        .max_tokens = source.max_tokens,
                        .sampling = sampling,
                        .at_once = at_once,
                        .chat_format = parts.chat_format});
}

std::vector<std::vector<Rollout>> RolloutWriter::write(Policy& policy, const Prompts& prompts,
                                                       std::int64_t round, std::int64_t first) {
  std::vector<std::vector<Rollout>> written(prompts.size());
  const double number =
      exact::Random(static_cast<std::uint64_t>(draw_seed(seed_, {kRoundDraws, round}))).uniform();
  for (std::int64_t place = 0; place < std::ssize(parts_.sources); ++place) {
    const SourceOptions& source = parts_.sources[static_cast<std::size_t>(place)];
    const std::int64_t n = source.n;
    if (n == 0 || !source.rounds.contain(round, number)) continue;
    if (source.from == SourceKind::kTree) {
      // The only source, see check_trees.
      written = from_tree(place, policy, prompts, round, first);
      continue;
    }
    std::vector<Rollout> rollouts = draw(place, policy, prompts, round, first);
    for (std::size_t i = 0; i < rollouts.size(); ++i) {
      const std::size_t of = i / static_cast<std::size_t>(n);
      finish(rollouts[i], *prompts[of], place);
      rollouts[i].group = first + static_cast<std::int64_t>(of);
      written[of].push_back(std::move(rollouts[i]));
    }
  }
  return written;
}

std::vector<Rollout> RolloutWriter::draw(std::int64_t place, Policy& policy, const Prompts& prompts,
                                         std::int64_t round, std::int64_t first) {
  const SourceOptions& source = parts_.sources[static_cast<std::size_t>(place)];
  if (source.from == SourceKind::kData) return from_data(prompts, source.n);
  if (source.from == SourceKind::kProgram) return from_program(place, prompts);
  if (source.from == SourceKind::kFile) return from_file(place, prompts);
  if (source.from == SourceKind::kEnvironment) {
    return from_environment(place, policy, prompts, round, first);
  }
  if (!source.roll_in.from.empty()) {
    return draw_after_roll_in(place, policy, prompts, round, first);
  }
  return draw_by_model(place, policy, prompts, round, first, source.n);
}

std::vector<Rollout> RolloutWriter::draw_by_model(std::int64_t place, Policy& policy,
                                                  const Prompts& prompts, std::int64_t round,
                                                  std::int64_t first, std::int64_t n) {
  RolloutOptions options{.samples_per_prompt = n,
                         .sampling = sampling(place, round, kSourceDraws),
                         .at_once = at_once_};
  options.sampling.first_index = first * n;
  std::vector<Rollout> rollouts;
  models_.with_model(place, policy, round, seed_, [&](Policy& model) {
    rollouts = draw_rollouts(model, ids_of(prompts), options);
  });
  return rollouts;
}

/// The guide writes a whole completion, of which a prefix of uniform length stays.
std::vector<Rollout> RolloutWriter::draw_after_roll_in(std::int64_t place, Policy& policy,
                                                       const Prompts& prompts, std::int64_t round,
                                                       std::int64_t first) {
  const SourceOptions& source = parts_.sources[static_cast<std::size_t>(place)];
  const std::int64_t guide = place_of(source.roll_in.from);
  const bool is_data = parts_.sources[static_cast<std::size_t>(guide)].from == SourceKind::kData;
  std::vector<Rollout> rollouts =
      is_data ? from_data(prompts, source.n)
              : draw_by_model(guide, policy, prompts, round, first, source.n);
  for (std::size_t i = 0; i < rollouts.size(); ++i) {
    Rollout& rollout = rollouts[i];
    exact::Random random(static_cast<std::uint64_t>(draw_seed(
        seed_, {kRollInDraws, round, place, first * source.n + static_cast<std::int64_t>(i)})));
    const auto length = std::ssize(rollout.completion);
    const bool has_prefix = random.uniform() < source.roll_in.probability && length >= 2;
    const auto kept = has_prefix ? 1 + random.below(length - 1) : 0;
    rollout.completion.resize(static_cast<std::size_t>(kept));
    rollout.token_logps.resize(static_cast<std::size_t>(kept));
  }
  SamplingOptions options = sampling(place, round, kSourceDraws);
  models_.with_model(place, policy, round, seed_, [&](Policy& model) {
    for (std::size_t begin = 0; begin < rollouts.size();
         begin += static_cast<std::size_t>(at_once_)) {
      const std::size_t end = std::min(rollouts.size(), begin + static_cast<std::size_t>(at_once_));
      std::vector<std::vector<std::int64_t>> contexts;
      for (std::size_t i = begin; i < end; ++i) {
        contexts.push_back(rollouts[i].prompt);
        const auto& prefix = rollouts[i].completion;
        contexts.back().insert(contexts.back().end(), prefix.begin(), prefix.end());
      }
      options.first_index = first * source.n + static_cast<std::int64_t>(begin);
      Samples rest = sample_with_logps(model, contexts, options);
      for (std::size_t i = begin; i < end; ++i) {
        Rollout& rollout = rollouts[i];
        auto& more = rest.completions[i - begin];
        // The limit is that of prefix and rest together.
        const auto room = static_cast<std::size_t>(
            std::max<std::int64_t>(1, options.max_new_tokens - std::ssize(rollout.completion)));
        more.resize(std::min(more.size(), room));
        auto& logps = rest.token_logps[i - begin];
        logps.resize(more.size());
        const bool trains_prefix = is_policy(guide) && !is_policy(place);
        rollout.acted.assign(rollout.completion.size(), trains_prefix ? 1 : 0);
        rollout.acted.insert(rollout.acted.end(), more.size(), trains_prefix ? 0 : 1);
        rollout.completion.insert(rollout.completion.end(), more.begin(), more.end());
        rollout.token_logps.insert(rollout.token_logps.end(), logps.begin(), logps.end());
      }
    }
  });
  return rollouts;
}

std::vector<Rollout> RolloutWriter::from_data(const Prompts& prompts, std::int64_t n) const {
  std::vector<Rollout> rollouts;
  for (const OnlinePrompt* prompt : prompts) {
    for (std::int64_t i = 0; i < n; ++i) {
      rollouts.push_back({.prompt = prompt->ids,
                          .completion = prompt->completion,
                          .acted = prompt->completion_mask});
    }
  }
  return rollouts;
}

std::vector<Rollout> RolloutWriter::from_program(std::int64_t place, const Prompts& prompts) const {
  const SourceOptions& source = parts_.sources[static_cast<std::size_t>(place)];
  std::vector<std::string> texts;
  for (const OnlinePrompt* prompt : prompts) {
    texts.insert(texts.end(), static_cast<std::size_t>(source.n), prompt->text);
  }
  const auto completions = parts_.programs[static_cast<std::size_t>(place)](texts);
  std::vector<Rollout> rollouts;
  for (std::size_t i = 0; i < completions.size(); ++i) {
    const OnlinePrompt& prompt = *prompts[i / static_cast<std::size_t>(source.n)];
    Rollout rollout{
        .prompt = prompt.ids,
        .completion = parts_.tokenizer->encode_part(completions[i], {}, {.before = prompt.text})};
    const auto limit = static_cast<std::size_t>(source.sampling.max_new_tokens);
    if (rollout.completion.size() < limit && source.sampling.eos_id >= 0) {
      rollout.completion.push_back(source.sampling.eos_id);
    }
    rollout.completion.resize(std::min(rollout.completion.size(), limit));
    rollouts.push_back(std::move(rollout));
  }
  return rollouts;
}

/// The episodes of a prompt in a round are one task, whatever the source.
std::vector<Rollout> RolloutWriter::from_environment(std::int64_t place, Policy& policy,
                                                     const Prompts& prompts, std::int64_t round,
                                                     std::int64_t first) {
  const std::int64_t n = parts_.sources[static_cast<std::size_t>(place)].n;
  SamplingOptions options = sampling(place, round, kSourceDraws);
  options.first_index = first * n;
  std::vector<Rollout> rollouts;
  models_.with_model(place, policy, round, seed_, [&](Policy& model) {
    rollouts =
        play_episodes(model, parts_, place, prompts, n, options, at_once_, [&](std::int64_t i) {
          return draw_seed(seed_, {kEnvironmentDraws, round, first + i});
        });
  });
  return rollouts;
}

std::vector<std::vector<Rollout>> RolloutWriter::from_tree(std::int64_t place, Policy& policy,
                                                           const Prompts& prompts,
                                                           std::int64_t round, std::int64_t first) {
  const SourceOptions& source = parts_.sources[static_cast<std::size_t>(place)];
  const auto rewards_of = [&](const std::vector<const Rollout*>& ends) {
    std::vector<double> rewards = parts_.feedback->rewards(ends);
    for (std::size_t i = 0; i < std::min(ends.size(), rewards.size()); ++i) {
      rewards[i] -= end_penalty(*ends[i], parts_.rater);
    }
    return rewards;
  };
  const TreeSearch search(source.tree, sampling(place, round, kTreeDraws), parts_.tokenizer,
                          rewards_of,
                          source.tree.self_evaluation.question.empty()
                              ? StateValues()
                              : self_evaluation(source.tree.self_evaluation, parts_.tokenizer));
  std::vector<StepTree> trees;
  for (const OnlinePrompt* prompt : prompts) {
    trees.emplace_back(prompt->ids, prompt->text, first + std::ssize(trees));
  }
  models_.with_model(place, policy, round, seed_, [&](Policy& model) {
    search.run(model, trees, source.tree.iterations, at_once_);
  });
  std::vector<std::vector<Rollout>> written;
  for (const StepTree& tree : trees) {
    written.push_back(step_rollouts(tree));
    for (Rollout& rollout : written.back()) {
      rollout.group = tree.number();
      rollout.source = place;
    }
  }
  if (parts_.save_trees) parts_.save_trees(round, first, trees);
  return written;
}

/// The first `n` of the prompt, by its text.
std::vector<Rollout> RolloutWriter::from_file(std::int64_t place, const Prompts& prompts) const {
  const SourceOptions& source = parts_.sources[static_cast<std::size_t>(place)];
  const auto& saved = parts_.saved.at(static_cast<std::size_t>(place));
  std::vector<Rollout> rollouts;
  for (const OnlinePrompt* prompt : prompts) {
    std::int64_t found = 0;
    for (const Rollout& rollout : saved) {
      if (found == source.n) break;
      if (rollout.prompt_text != prompt->text) continue;
      rollouts.push_back(rollout);
      ++found;
    }
    if (found == source.n) continue;
    throw DataError(fmt::format("{}: expected {} rollouts of the prompt '{}', got {}", source.path,
                                source.n, shown_text(prompt->text), found));
  }
  return rollouts;
}

void RolloutWriter::finish(Rollout& rollout, const OnlinePrompt& prompt, std::int64_t place) const {
  const SamplingOptions& options = parts_.sources[static_cast<std::size_t>(place)].sampling;
  rollout.source = place;
  if (has_own_rewards(parts_.sources[static_cast<std::size_t>(place)])) return;
  rollout.ended = has_ended(rollout.completion, options);
  rollout.prompt_text = prompt.text;
  rollout.text = completion_text(rollout.completion, *parts_.tokenizer, options, rollout.prompt);
}

SamplingOptions RolloutWriter::sampling(std::int64_t place, std::int64_t round,
                                        std::int64_t user) const {
  SamplingOptions options = parts_.sources[static_cast<std::size_t>(place)].sampling;
  options.seed = draw_seed(seed_, {user, options.seed, round, place});
  return options;
}

std::int64_t RolloutWriter::place_of(const std::string& name) const {
  const auto found = std::find_if(parts_.sources.begin(), parts_.sources.end(),
                                  [&](const SourceOptions& source) { return source.name == name; });
  return found - parts_.sources.begin();
}

bool RolloutWriter::is_policy(std::int64_t place) const {
  return parts_.sources[static_cast<std::size_t>(place)].from == SourceKind::kPolicy;
}

}  // namespace prefopt::detail
