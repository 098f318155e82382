// SPDX-License-Identifier: Apache-2.0
#include "prefopt/online/episode.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <string_view>
#include <utility>

#include "core/text.h"
#include "data/chat_writer.h"
#include "online/draw_seed.h"
#include "prefopt/error.h"

namespace prefopt {
namespace {

using detail::ChatWriter;
using Ids = std::vector<std::int64_t>;

void check_positive_number(const char* name, std::int64_t value) {
  if (value >= 1) return;
  throw ConfigError(fmt::format("episodes: expected {} of at least 1, got {}", name, value));
}

void append(const Ids& more, Ids& to) { to.insert(to.end(), more.begin(), more.end()); }

std::string_view without_outer_space(std::string_view text) {
  constexpr std::string_view kSpace = " \t\r\n";
  const auto first = text.find_first_not_of(kSpace);
  if (first == std::string_view::npos) return {};
  return text.substr(first, text.find_last_not_of(kSpace) - first + 1);
}

/// The tokens of observations, with the turns of a chat format around them.
class ObservationWriter {
 public:
  ObservationWriter(const Tokenizer& tokenizer, const EpisodeOptions& options)
      : tokenizer_(tokenizer),
        sampling_(options.sampling),
        chat_(options.chat_format.empty() ? "plain" : options.chat_format, "episodes") {}

  /// Returns the prompt with a first observation. In a conversation the user speaks once more
  /// before the answer is opened.
  Ids begin(const EpisodePrompt& prompt, const std::string& observation) const {
    Ids ids = prompt.ids;
    if (observation.empty()) return ids;
    if (!prompt.is_conversation) {
      append(plain(observation, prompt.text), ids);
      return ids;
    }
    const std::string opening_text = chat_.opening_of("assistant");
    const std::string_view before = before_ending(prompt.text, opening_text);
    const Ids opening = tokenizer_.encode_part(opening_text, {}, {.before = before});
    const auto length = std::min(opening.size(), ids.size());
    if (!std::equal(opening.begin(), opening.end(), ids.end() - static_cast<std::ptrdiff_t>(length),
                    ids.end())) {
      throw DataError(fmt::format(
          "episodes: expected a prompt that ends with the opening of an answer ({}), for a first "
          "observation before it, got '{}'",
          chat_.name(), detail::printable(prompt.text)));
    }
    ids.resize(ids.size() - length);
    append(user_turn("", observation, before), ids);
    return ids;
  }

  /// Returns what follows an action.
  Ids next(const EpisodePrompt& prompt, std::int64_t last_token,
           const std::string& observation) const {
    const std::string before_token = tokenizer_.spelling(last_token);
    if (!prompt.is_conversation) return plain(observation, before_token);
    const bool is_closed = is_end_token(last_token, sampling_);
    std::string before(is_closed ? std::string_view() : chat_.end_of_turn());
    before += chat_.between_turns();
    return user_turn(std::move(before), observation, before_token);
  }

 private:
  static std::string_view before_ending(std::string_view text, std::string_view ending) {
    if (text.ends_with(ending)) text.remove_suffix(ending.size());
    return text;
  }

  Ids plain(const std::string& text, std::string_view before) const {
    const std::array ranges = {TextRange{.begin = 0, .end = text.size()}};
    return tokenizer_.encode_part(text, ranges, {.before = before, .is_last = false});
  }

  /// A turn of the user after the text `before`, and the opening of the answer; all of it follows
  /// `earlier`.
  Ids user_turn(std::string before, const std::string& observation,
                std::string_view earlier) const {
    const Message message{.role = "user", .content = std::string(without_outer_space(observation))};
    std::string text = std::move(before);
    text.append(chat_.opening_of(message.role)).append(chat_.before_content(message));
    const std::size_t begin = text.size();
    text += chat_.content(message);
    const std::array ranges = {TextRange{.begin = begin, .end = text.size()}};
    text.append(chat_.end_of_turn())
        .append(chat_.between_turns())
        .append(chat_.opening_of("assistant"));
    return tokenizer_.encode_part(text, ranges, {.before = earlier, .is_last = false});
  }

  const Tokenizer& tokenizer_;
  const SamplingOptions& sampling_;
  ChatWriter chat_;
};

/// An episode that is being played.
class Play {
 public:
  Play(std::int64_t place, const EpisodePrompt& prompt, std::int64_t group, std::int64_t max_tokens)
      : place_(place), prompt_(prompt), room_(max_tokens) {
    rollout_.group = group;
    rollout_.prompt_text = prompt.text;
    rollout_.rewards = {0};
  }

  std::int64_t place() const { return place_; }
  const EpisodePrompt& prompt() const { return prompt_; }
  const Ids& context() const { return context_; }
  std::int64_t room() const { return room_; }
  std::int64_t last_token() const { return rollout_.completion.back(); }
  const Rollout& rollout() const { return rollout_; }

  void begin(Ids prompt, const std::string& observation) {
    room_ -= std::ssize(prompt) - std::ssize(prompt_.ids);
    context_ = prompt;
    rollout_.prompt = std::move(prompt);
    add_text(observation);
  }

  void act(const Ids& tokens, const std::vector<double>& logps, const std::string& text) {
    add(tokens, 1);
    rollout_.token_logps.insert(rollout_.token_logps.end(), logps.begin(), logps.end());
    rollout_.turn_ends.push_back(std::ssize(rollout_.completion));
    add_text(text);
  }

  void earn(double reward) {
    rollout_.rewards.front() += reward;
    rollout_.token_rewards.back() += reward;
  }

  void observe(const Ids& tokens, const std::string& text) {
    add(tokens, 0);
    rollout_.token_logps.resize(rollout_.completion.size(), 0);
    add_text(text);
  }

  /// `done`: the environment ended it.
  Rollout finish(bool done) {
    rollout_.ended = done;
    if (rollout_.turn_ends.size() == 1) rollout_.acted.clear();  // all of them
    return std::move(rollout_);
  }

 private:
  void add(const Ids& tokens, std::uint8_t acted) {
    append(tokens, context_);
    append(tokens, rollout_.completion);
    rollout_.acted.resize(rollout_.completion.size(), acted);
    rollout_.token_rewards.resize(rollout_.completion.size(), 0);
    room_ -= std::ssize(tokens);
  }

  /// In a conversation the parts are lines, without what the chat format has around them.
  void add_text(const std::string& text) {
    if (!prompt_.is_conversation) {
      rollout_.text += text;
      return;
    }
    if (!rollout_.text.empty()) rollout_.text += '\n';
    rollout_.text += without_outer_space(text);
  }

  std::int64_t place_;
  const EpisodePrompt& prompt_;
  std::int64_t room_;  ///< tokens that are left of max_tokens
  Ids context_;
  Rollout rollout_;
};

template <class T>
std::vector<T> checked_answers(std::vector<T> answers, std::size_t asked) {
  if (answers.size() == asked) return answers;
  throw DataError(fmt::format("environments: expected {} answers, got {}", asked, answers.size()));
}

/// Episodes that are played together.
class Table {
 public:
  Table(Policy& policy, const Tokenizer& tokenizer, Environments& environments,
        const EpisodeOptions& options)
      : policy_(policy),
        tokenizer_(tokenizer),
        environments_(environments),
        options_(options),
        writer_(tokenizer, options) {}

  /// Plays the episodes [first, last) of all and appends them to `rollouts`.
  void play(const std::vector<EpisodePrompt>& prompts, std::int64_t first, std::int64_t last,
            std::vector<Rollout>& rollouts) {
    first_ = first;
    begin(prompts, first, last);
    finished_.assign(static_cast<std::size_t>(last - first), {});
    for (std::int64_t turn = 0; !live_.empty(); ++turn) {
      act(turn);
      observe(/*is_last=*/turn + 1 == options_.max_turns);
    }
    for (Rollout& rollout : finished_) rollouts.push_back(std::move(rollout));
  }

 private:
  void begin(const std::vector<EpisodePrompt>& prompts, std::int64_t first, std::int64_t last) {
    std::vector<Episode> episodes;
    for (std::int64_t i = first; i < last; ++i) {
      const std::int64_t of = i / options_.samples_per_prompt;
      const EpisodePrompt& prompt = prompts[static_cast<std::size_t>(of)];
      episodes.push_back(
          {.prompt = prompt.text, .seed = prompt.seed, .index = i % options_.samples_per_prompt});
      live_.emplace_back(i - first, prompt, of, options_.max_tokens);
    }
    const auto observations = checked_answers(environments_.start(episodes), episodes.size());
    for (std::size_t i = 0; i < live_.size(); ++i) {
      check_same_start(live_[i], observations[i]);
      live_[i].begin(writer_.begin(live_[i].prompt(), observations[i]), observations[i]);
      if (live_[i].room() >= 1) continue;
      throw DataError(fmt::format(
          "episodes: expected a first observation that leaves room within max_tokens {}, got one "
          "of {} tokens more than that: '{}'",
          options_.max_tokens, 1 - live_[i].room(), detail::printable(observations[i])));
    }
  }

  /// Of all episodes of a prompt, also those of other tables: the prompts of a group are one.
  void check_same_start(const Play& play, const std::string& observation) {
    if (play.rollout().group != group_) {
      group_ = play.rollout().group;
      start_ = observation;
    }
    if (observation == start_) return;
    throw DataError(fmt::format(
        "episodes: expected one first observation for all episodes of a prompt, got '{}' and '{}'",
        detail::printable(start_), detail::printable(observation)));
  }

  void act(std::int64_t turn) {
    SamplingOptions sampling = options_.sampling;
    sampling.seed = detail::draw_seed(options_.sampling.seed, {turn});
    std::vector<Ids> contexts;
    for (const Play& play : live_) {
      const std::int64_t most = std::min(play.room(), sampling.max_new_tokens);
      policy_.check_length(std::ssize(play.context()) + most,
                           fmt::format("episodes: turn {} of '{}'", turn + 1,
                                       detail::printable(play.prompt().text)));
      contexts.push_back(play.context());
      sampling.indices.push_back(options_.sampling.first_index + first_ + play.place());
    }
    const Samples drawn = sample_with_logps(policy_, contexts, sampling);
    actions_.clear();
    for (std::size_t i = 0; i < live_.size(); ++i) {
      // Cut here and not by max_new_tokens, which is one for all: draws do not depend on others.
      Ids tokens = drawn.completions[i];
      std::vector<double> logps = drawn.token_logps[i];
      tokens.resize(std::min(tokens.size(), static_cast<std::size_t>(live_[i].room())));
      logps.resize(tokens.size());
      const std::string text = completion_text(tokens, tokenizer_, options_.sampling, contexts[i]);
      live_[i].act(tokens, logps, text);
      actions_.push_back({.episode = live_[i].place(), .text = text});
    }
  }

  void observe(bool is_last) {
    const auto steps = checked_answers(environments_.step(actions_), actions_.size());
    std::vector<std::int64_t> cut;
    std::vector<Play> live;
    for (std::size_t i = 0; i < live_.size(); ++i) {
      Play& play = live_[i];
      play.earn(steps[i].reward);
      const auto place = static_cast<std::size_t>(play.place());
      if (steps[i].done) {
        finished_[place] = play.finish(/*done=*/true);
        continue;
      }
      const Ids tokens = writer_.next(play.prompt(), play.last_token(), steps[i].observation);
      if (is_last || std::ssize(tokens) >= play.room()) {
        cut.push_back(play.place());
        finished_[place] = play.finish(/*done=*/false);
        continue;
      }
      play.observe(tokens, steps[i].observation);
      live.push_back(std::move(play));
    }
    if (!cut.empty()) environments_.end(cut);
    live_.swap(live);
  }

  Policy& policy_;
  const Tokenizer& tokenizer_;
  Environments& environments_;
  const EpisodeOptions& options_;
  ObservationWriter writer_;
  std::int64_t first_ = 0;
  std::int64_t group_ = -1;
  std::string start_;  ///< first observation of the group
  std::vector<Play> live_;
  std::vector<EpisodeAction> actions_;
  std::vector<Rollout> finished_;
};

}  // namespace

std::vector<Rollout> draw_episodes(Policy& policy, const Tokenizer& tokenizer,
                                   Environments& environments,
                                   const std::vector<EpisodePrompt>& prompts,
                                   const EpisodeOptions& options, const RolloutProgress& progress) {
  check_positive_number("samples_per_prompt", options.samples_per_prompt);
  check_positive_number("max_turns", options.max_turns);
  check_positive_number("max_tokens", options.max_tokens);
  check_positive_number("at_once", options.at_once);
  const std::int64_t total = std::ssize(prompts) * options.samples_per_prompt;
  Table table(policy, tokenizer, environments, options);
  std::vector<Rollout> rollouts;
  for (std::int64_t first = 0; first < total; first += options.at_once) {
    const std::int64_t last = std::min(first + options.at_once, total);
    table.play(prompts, first, last, rollouts);
    if (progress) progress(static_cast<std::size_t>(last), static_cast<std::size_t>(total));
  }
  return rollouts;
}

}  // namespace prefopt
