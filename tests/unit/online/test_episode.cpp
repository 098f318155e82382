// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <functional>
#include <memory>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "prefopt/data/chat.h"
#include "prefopt/error.h"
#include "prefopt/online/episode.h"
#include "prefopt/online/guess.h"
#include "support/bigram_policy.h"
#include "support/errors.h"

namespace prefopt {
namespace {

using testing_support::BigramPolicy;

constexpr std::int64_t kEnd = 257;  // of ByteTokenizer

/// Writes what a function says comes next, a byte at a time.
class TextPolicy final : public Policy {
 public:
  /// The next token after a text, as the byte tokenizer shows it.
  using Next = std::function<std::int64_t(const std::string& text)>;

  explicit TextPolicy(Next next) : next_(std::move(next)) {}

  PolicyOutput forward(const TokenBatch& /*batch*/) override { return {}; }
  std::int64_t vocab_size() const override { return ByteTokenizer().vocab_size(); }
  std::vector<NamedParameter> named_parameters() const override { return {}; }
  void check_length(std::int64_t tokens, std::string_view where) const override {
    if (tokens > most) throw DataError(std::string(where) + ": too long");
  }

  std::unique_ptr<DecodeSession> start_decoding(
      const std::vector<std::vector<std::int64_t>>& prompts) override {
    return std::make_unique<Session>(prompts, next_);
  }

  std::int64_t most = 1'000'000;

 private:
  class Session final : public DecodeSession {
   public:
    Session(std::vector<std::vector<std::int64_t>> texts, Next next)
        : texts_(std::move(texts)), next_(std::move(next)) {}

    at::Tensor prefill() override { return logits(); }
    at::Tensor append(const at::Tensor& tokens) override {
      for (std::size_t i = 0; i < texts_.size(); ++i) {
        texts_[i].push_back(tokens.const_data_ptr<std::int64_t>()[i]);
      }
      return logits();
    }
    void keep(const std::vector<std::int64_t>& sequences) override {
      std::vector<std::vector<std::int64_t>> kept;
      for (const std::int64_t i : sequences) kept.push_back(texts_[static_cast<std::size_t>(i)]);
      texts_ = std::move(kept);
    }

   private:
    at::Tensor logits() const {
      const ByteTokenizer tokenizer;
      at::Tensor logits =
          torch::zeros({std::ssize(texts_), tokenizer.vocab_size()}, torch::kDouble);
      for (std::size_t i = 0; i < texts_.size(); ++i) {
        logits[static_cast<std::int64_t>(i)][next_(tokenizer.decode(texts_[i]))] = 1e4;
      }
      return logits;
    }

    std::vector<std::vector<std::int64_t>> texts_;
    Next next_;
  };

  Next next_;
};

/// The bytes of `whole` after what the last line has of it, then the end token.
std::int64_t next_of_line(const std::string& text, const std::string& whole) {
  const std::size_t written = text.size() - (text.rfind('\n') + 1);
  return written < whole.size() ? whole[written] : kEnd;
}

/// Halves what the hints leave.
std::int64_t halving(const std::string& text) {
  std::int64_t low = 1;
  std::int64_t high = 20;
  std::int64_t guess = 0;
  std::size_t begin = 0;
  for (std::size_t end = text.find('\n'); end != std::string::npos;
       begin = end + 1, end = text.find('\n', begin)) {
    const std::string line = text.substr(begin, end - begin);
    if (line == "It is higher.") {
      low = guess + 1;
    } else if (line == "It is lower.") {
      high = guess - 1;
    } else if (!line.empty() && line.find_first_not_of("0123456789") == std::string::npos) {
      guess = std::stoll(line);
    }
  }
  return next_of_line(text, std::to_string((low + high) / 2));
}

SamplingOptions bytes_sampling(std::int64_t max_new_tokens) {
  return {.max_new_tokens = max_new_tokens, .eos_id = kEnd, .seed = 4};
}

TEST_CASE("halving finds every number, and masks have the guesses alone", "[online]") {
  const ByteTokenizer tokenizer;
  TextPolicy policy(halving);
  const auto environments = make_environments(make_guess_factory());
  std::vector<EpisodePrompt> prompts;
  for (std::int64_t seed = 0; seed < 60; ++seed) {
    prompts.push_back({.ids = tokenizer.encode("Play."), .text = "Play.", .seed = seed});
  }
  const auto rollouts = draw_episodes(policy, tokenizer, *environments, prompts,
                                      {.sampling = bytes_sampling(8), .at_once = 7});
  REQUIRE(rollouts.size() == 60);
  std::set<std::int64_t> found;
  std::size_t most = 0;
  const std::string start =
      "\nI have a number from 1 to 20 in mind. Which one is it? Answer with a number alone.\n";
  for (std::size_t i = 0; i < rollouts.size(); ++i) {
    const Rollout& rollout = rollouts[i];
    CAPTURE(i, rollout.text);
    const auto hidden =
        hidden_number({}, {.prompt = "Play.", .seed = static_cast<std::int64_t>(i)});
    found.insert(hidden);
    CHECK(rollout.ended);
    CHECK(rollout.group == static_cast<std::int64_t>(i));
    CHECK(tokenizer.decode(rollout.prompt) == "Play." + start);
    CHECK(rollout.prompt_text == "Play.");
    const std::size_t turns = rollout.turn_ends.size();
    most = std::max(most, turns);
    CHECK(rollout.rewards.at(0) == Approx(1 - 0.1 * static_cast<double>(turns - 1)));
    REQUIRE(rollout.token_rewards.size() == rollout.completion.size());
    REQUIRE(rollout.token_logps.size() == rollout.completion.size());
    CHECK(rollout.turn_ends.back() == std::ssize(rollout.completion));
    // The acted tokens, turn by turn, and what lies between: guesses, hints.
    std::string said;
    std::int64_t at = 0;
    std::string guesses;
    for (const std::int64_t end : rollout.turn_ends) {
      for (; at < end; ++at) {
        const auto token = rollout.completion[static_cast<std::size_t>(at)];
        const bool acted =
            rollout.acted.empty() || rollout.acted[static_cast<std::size_t>(at)] == 1;
        (acted ? guesses : said) += token == kEnd ? '|' : static_cast<char>(token);
        const bool pays = rollout.token_rewards[static_cast<std::size_t>(at)] != 0;
        CHECK(pays == (at + 1 == end));
      }
    }
    CHECK(rollout.text == start + tokenizer.decode(rollout.completion));
    CHECK(guesses.ends_with(std::to_string(hidden) + "|"));
    CHECK(std::count(guesses.begin(), guesses.end(), '|') == std::ssize(rollout.turn_ends));
    CHECK(std::count(said.begin(), said.end(), '.') == std::ssize(rollout.turn_ends) - 1);
    CHECK(said.find_first_of("0123456789|") == std::string::npos);
  }
  CHECK(found.size() > 15);
  CHECK(most == 5);  // ⌊log2 20⌋ + 1
}

/// Says back what was done to it, a letter more each time, and counts its ends.
class Echo final : public Environment {
 public:
  Echo(std::string start, std::int64_t* open) : start_(std::move(start)), open_(open) { ++*open_; }
  ~Echo() override { --*open_; }

  std::string start() override { return start_; }
  EnvironmentStep step(const std::string& action) override {
    const auto as = std::count(action.begin(), action.end(), 'a');
    grown_ += "b";
    return {.observation = action.substr(0, 1) + grown_,
            .reward = static_cast<double>(as),
            .done = action.find("cc") != std::string::npos};
  }

 private:
  std::string start_, grown_;
  std::int64_t* open_;
};

/// Letters a to e are the tokens 0 to 4 of a BigramPolicy.
class LetterTokenizer final : public Tokenizer {
 public:
  std::string name() const override { return "letters"; }
  std::vector<std::int64_t> encode(std::string_view text) const override {
    std::vector<std::int64_t> ids;
    for (const char letter : text) ids.push_back(letter - 'a');
    return ids;
  }
  std::string decode(const std::vector<std::int64_t>& ids) const override {
    std::string text;
    for (const std::int64_t id : ids) text += static_cast<char>('a' + id);
    return text;
  }
  std::int64_t vocab_size() const override { return 5; }
  std::int64_t bos_id() const override { return -1; }
  std::int64_t eos_id() const override { return -1; }
  std::int64_t pad_id() const override { return -1; }
};

TEST_CASE("episodes do not depend on how many are played at once", "[online]") {
  const LetterTokenizer tokenizer;
  BigramPolicy policy(6);
  std::int64_t open = 0;
  const auto environments =
      make_environments([&](const Episode&) { return std::make_unique<Echo>("e", &open); });
  const std::vector<EpisodePrompt> prompts = {
      {.ids = {0, 1}, .text = "ab"}, {.ids = {2}, .text = "c"}, {.ids = {3}, .text = "d"}};
  EpisodeOptions options{.samples_per_prompt = 5,
                         .max_turns = 4,
                         .max_tokens = 17,
                         .sampling = {.max_new_tokens = 4, .eos_id = 4, .seed = 8}};
  const auto whole = draw_episodes(policy, tokenizer, *environments, prompts, options);
  REQUIRE(whole.size() == 15);
  std::set<bool> ends;
  std::set<std::size_t> turns;
  std::set<std::vector<std::int64_t>> different;
  for (const Rollout& rollout : whole) {
    CAPTURE(rollout.text);
    ends.insert(rollout.ended);
    turns.insert(rollout.turn_ends.size());
    different.insert(rollout.completion);
    CHECK(rollout.prompt.back() == 4);  // the first observation, e
    CHECK(std::ssize(rollout.completion) <= 16);
    // Each acted token has its log-prob in the whole text.
    std::int64_t from = rollout.prompt.back();
    for (std::size_t t = 0; t < rollout.completion.size(); ++t) {
      const bool acted = rollout.acted.empty() || rollout.acted[t] == 1;
      const double expected = acted ? policy.logp(from, rollout.completion[t]) : 0;
      CHECK(rollout.token_logps[t] == Approx(expected));
      from = rollout.completion[t];
    }
    double sum = 0;
    for (const double part : rollout.token_rewards) sum += part;
    CHECK(rollout.rewards == std::vector<double>{sum});
  }
  CHECK(ends.size() == 2);
  CHECK(turns.size() == 2);
  CHECK(different.size() > 10);
  for (const std::int64_t at_once : {1, 2, 7}) {
    CAPTURE(at_once);
    options.at_once = at_once;
    std::vector<std::size_t> done;
    const auto cut =
        draw_episodes(policy, tokenizer, *environments, prompts, options,
                      [&](std::size_t so_far, std::size_t) { done.push_back(so_far); });
    CHECK(done.back() == 15);
    for (std::size_t i = 0; i < whole.size(); ++i) {
      CHECK(cut[i].completion == whole[i].completion);
      CHECK(cut[i].token_logps == whole[i].token_logps);
      CHECK(cut[i].acted == whole[i].acted);
      CHECK(cut[i].token_rewards == whole[i].token_rewards);
      CHECK(cut[i].text == whole[i].text);
    }
  }
  // The third prompt alone, at its own place.
  options.sampling.first_index = 10;
  const auto third = draw_episodes(policy, tokenizer, *environments, {prompts[2]}, options);
  for (std::size_t i = 0; i < 5; ++i) CHECK(third[i].completion == whole[10 + i].completion);
  CHECK(open == 0);
}

/// Keeps the episodes and the actions it was asked, and what ended early.
class Recorder final : public Environments {
 public:
  std::vector<std::string> start(const std::vector<Episode>& given) override {
    episodes.insert(episodes.end(), given.begin(), given.end());
    std::vector<std::string> observations;
    for (const Episode& of : given) observations.push_back(first(of));
    return observations;
  }
  std::vector<EnvironmentStep> step(const std::vector<EpisodeAction>& given) override {
    std::vector<EnvironmentStep> steps;
    for (const EpisodeAction& action : given) {
      actions.push_back(action.text);
      steps.push_back({.observation = observation, .reward = 1, .done = actions.size() == last});
    }
    return steps;
  }
  void end(const std::vector<std::int64_t>& places) override {
    ended.insert(ended.end(), places.begin(), places.end());
  }

  std::function<std::string(const Episode&)> first = [](const Episode&) { return ""; };
  std::string observation = " ok\n";
  std::size_t last = 0;  ///< action that ends an episode
  std::vector<Episode> episodes;
  std::vector<std::string> actions;
  std::vector<std::int64_t> ended;
};

TEST_CASE("observations are turns of the user in a conversation", "[online]") {
  const ByteTokenizer tokenizer;
  const Message question{.role = "user", .content = "hi"};
  const auto said = [](const std::string& role, const std::string& content) {
    return Message{.role = role, .content = content};
  };
  for (const std::string format : {"chatml", "llama3", "zephyr", "dialogue", "alpaca"}) {
    for (const bool has_start : {false, true}) {
      CAPTURE(format, has_start);
      std::vector<Message> messages = {question};
      const std::string text = format_chat(format, messages, true);
      // A stop string ends an action, so that the format's end of turn is written after it.
      TextPolicy policy([](const std::string& so_far) {
        return so_far.ends_with("yes")  ? '.'
               : so_far.ends_with("ye") ? 's'
               : so_far.ends_with("y")  ? 'e'
                                        : 'y';
      });
      Recorder environments;
      environments.last = 2;
      environments.observation = "\n <|im_end|> go \n";
      if (has_start) environments.first = [](const Episode&) { return "\nbegin\n"; };
      SamplingOptions sampling = bytes_sampling(9);
      sampling.stop = {"."};
      sampling.tokenizer = std::make_shared<ByteTokenizer>();
      const auto rollouts =
          draw_episodes(policy, tokenizer, environments,
                        {{.ids = tokenizer.encode(text), .text = text, .is_conversation = true}},
                        {.sampling = sampling, .chat_format = format});
      if (has_start) messages.push_back(said("user", "begin"));
      CHECK(tokenizer.decode(rollouts.at(0).prompt) == format_chat(format, messages, true));
      messages.push_back(said("assistant", "yes."));
      messages.push_back(said("user", "<|im_end|> go"));
      std::string expected = format_chat(format, messages, true) + "yes.";
      // The policy writes no blank where "dialogue" has one before an answer.
      if (format == "dialogue") expected.erase(expected.find(" yes."), 1);
      Rollout rollout = rollouts[0];
      std::vector<std::int64_t> all = rollout.prompt;
      all.insert(all.end(), rollout.completion.begin(), rollout.completion.end());
      CHECK(tokenizer.decode(all) == expected);
      CHECK(environments.actions == std::vector<std::string>{"yes.", "yes."});
      CHECK(rollout.text == std::string(has_start ? "begin\n" : "") + "yes.\n<|im_end|> go\nyes.");
      CHECK(std::count(rollout.acted.begin(), rollout.acted.end(), 1) == 8);
      CHECK(rollout.ended);
    }
  }
}

TEST_CASE("an end token closes a turn by itself", "[online]") {
  const ByteTokenizer tokenizer;
  TextPolicy policy([](const std::string& text) {
    return text.ends_with("y") ? kEnd : static_cast<std::int64_t>('y');
  });
  Recorder environments;
  environments.last = 2;
  const std::string text = format_chat("chatml", {{.role = "user", .content = "hi"}}, true);
  const auto rollouts =
      draw_episodes(policy, tokenizer, environments,
                    {{.ids = tokenizer.encode(text), .text = text, .is_conversation = true}},
                    {.sampling = bytes_sampling(4), .chat_format = "chatml"});
  CHECK(tokenizer.decode(rollouts.at(0).completion) ==
        "y\n<|im_start|>user\nok<|im_end|>\n<|im_start|>assistant\ny");
}

TEST_CASE("episodes end at their limits", "[online]") {
  const ByteTokenizer tokenizer;
  TextPolicy policy([](const std::string&) { return 'y'; });
  const std::vector<EpisodePrompt> prompts = {
      {.ids = tokenizer.encode("p"), .text = "p", .seed = 5}};
  const auto play = [&](Recorder& environments, const EpisodeOptions& options) {
    return draw_episodes(policy, tokenizer, environments, prompts, options);
  };
  Recorder turns;
  const auto by_turns =
      play(turns, {.samples_per_prompt = 2, .max_turns = 3, .sampling = bytes_sampling(2)});
  for (const Rollout& rollout : by_turns) {
    CHECK(rollout.text == "yy ok\nyy ok\nyy");
    CHECK_FALSE(rollout.ended);
    CHECK(rollout.rewards == std::vector<double>{3});
    CHECK(rollout.turn_ends == std::vector<std::int64_t>{2, 8, 14});
  }
  CHECK(turns.ended == std::vector<std::int64_t>{0, 1});
  REQUIRE(turns.episodes.size() == 2);
  CHECK(turns.episodes[1].prompt == "p");
  CHECK(turns.episodes[1].seed == 5);
  CHECK(turns.episodes[0].index == 0);
  CHECK(turns.episodes[1].index == 1);

  // Six tokens to the second action, of which there is room for one; then for no observation.
  Recorder tokens;
  const auto by_tokens = play(tokens, {.max_tokens = 7, .sampling = bytes_sampling(2)});
  CHECK(by_tokens[0].text == "yy ok\ny");
  CHECK(tokens.actions == std::vector<std::string>{"yy", "y"});
  CHECK(tokens.ended == std::vector<std::int64_t>{0});
  // An observation that leaves no room for an action is not part of the rollout.
  Recorder none;
  const auto dropped = play(none, {.max_tokens = 6, .sampling = bytes_sampling(2)});
  CHECK(dropped[0].text == "yy");
  CHECK(dropped[0].acted.empty());
  CHECK(dropped[0].rewards == std::vector<double>{1});
}

TEST_CASE("episodes that cannot be played are refused", "[online]") {
  const ByteTokenizer tokenizer;
  TextPolicy policy([](const std::string&) { return 'y'; });
  Recorder environments;
  const std::vector<EpisodePrompt> prompts = {{.ids = tokenizer.encode("p"), .text = "p"}};
  const auto play = [&](const EpisodeOptions& options) {
    return draw_episodes(policy, tokenizer, environments, prompts, options);
  };
  const auto sampling = bytes_sampling(2);
  CHECK_THROWS_TEXT(play({.samples_per_prompt = 0}), ConfigError,
                    "episodes: expected samples_per_prompt of at least 1, got 0");
  CHECK_THROWS_TEXT(play({.max_turns = 0}), ConfigError,
                    "episodes: expected max_turns of at least 1, got 0");
  CHECK_THROWS_TEXT(play({.max_tokens = 0}), ConfigError,
                    "episodes: expected max_tokens of at least 1, got 0");
  CHECK_THROWS_TEXT(play({.at_once = 0}), ConfigError,
                    "episodes: expected at_once of at least 1, got 0");
  environments.first = [](const Episode& episode) { return std::to_string(episode.index); };
  CHECK_THROWS_TEXT(play({.samples_per_prompt = 2, .sampling = sampling, .at_once = 1}), DataError,
                    "episodes: expected one first observation for all episodes of a prompt, got "
                    "'0' and '1'");
  environments.first = [](const Episode&) { return "abcd"; };
  CHECK_THROWS_TEXT(play({.max_tokens = 4, .sampling = sampling}), DataError,
                    "episodes: expected a first observation that leaves room within max_tokens 4, "
                    "got one of 1 tokens more than that: 'abcd'");
  policy.most = 6;
  CHECK_THROWS_TEXT(play({.sampling = sampling}), DataError, "episodes: turn 1 of 'p': too long");
  policy.most = 12;
  CHECK_THROWS_TEXT(play({.sampling = sampling}), DataError, "episodes: turn 2 of 'p': too long");
  CHECK_THROWS_TEXT(
      draw_episodes(policy, tokenizer, environments,
                    {{.ids = tokenizer.encode("p"), .text = "p", .is_conversation = true}},
                    {.sampling = sampling, .chat_format = "zephyr"}),
      DataError,
      "episodes: expected a prompt that ends with the opening of an answer (zephyr), for a first "
      "observation before it, got 'p'");
  SamplingOptions short_of = sampling;
  short_of.indices = {1, 2};
  CHECK_THROWS_TEXT(sample(policy, {{1}}, short_of), ShapeError,
                    "sampling: expected an index of each of the 1 prompts, got 2");
}

}  // namespace
}  // namespace prefopt
