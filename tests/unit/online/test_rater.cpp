// SPDX-License-Identifier: Apache-2.0
#include <cmath>
#include <functional>
#include <limits>
#include <string>
#include <vector>

#include "prefopt/error.h"
#include "prefopt/online/feedback.h"
#include "support/catch.h"
#include "support/errors.h"

namespace prefopt {
namespace {

constexpr double kNaN = std::numeric_limits<double>::quiet_NaN();

using Completions = std::vector<std::vector<std::int64_t>>;

std::vector<Rollout> rollouts_of(const Completions& completions) {
  std::vector<Rollout> rollouts;
  for (const auto& tokens : completions) {
    rollouts.push_back({.prompt = {1}, .completion = tokens, .ended = true});
  }
  return rollouts;
}

/// Compares the first tokens by a function, and keeps what it was asked.
class FakeComparisons : public Preference {
 public:
  using Compare = std::function<double(std::int64_t, std::int64_t)>;
  explicit FakeComparisons(Compare compare) : compare_(std::move(compare)) {}

  std::vector<double> beats(const std::vector<Comparison>& comparisons) override {
    ++calls;
    std::vector<double> answers;
    for (const auto& [first, second] : comparisons) {
      asked.emplace_back(first->completion[0], second->completion[0]);
      answers.push_back(compare_(first->completion[0], second->completion[0]));
    }
    return answers;
  }

  int calls = 0;
  std::vector<std::pair<std::int64_t, std::int64_t>> asked;

 private:
  Compare compare_;
};

/// Rewards by the first token.
class FakeRewards : public RewardPreference {
 public:
  explicit FakeRewards(std::vector<double> rewards, double temperature = 1)
      : RewardPreference(temperature), rewards_(std::move(rewards)) {}

  std::vector<double> rewards(const std::vector<const Rollout*>& rollouts) override {
    ++calls;
    std::vector<double> answers;
    for (const Rollout* of : rollouts) answers.push_back(rewards_.at(of->completion[0]));
    questions += std::ssize(rollouts);
    return answers;
  }

  int calls = 0;
  std::int64_t questions = 0;

 private:
  std::vector<double> rewards_;
};

TEST_CASE("a rater asks about each pair once, and its answers are antisymmetric", "[online]") {
  // No order of the completions explains these: 0 beats 1 beats 2 beats 0.
  FakeComparisons cycle([](std::int64_t i, std::int64_t j) {
    return i == j ? 0.5 : (i + 1) % 3 == j ? 0.7 : 0.1 + 0.2 / 3;
  });
  const auto rollouts = rollouts_of({{0}, {1}, {2}});
  Rater rater(cycle, rollouts);
  CHECK_FALSE(rater.has_rewards());
  CHECK(rater.beats(2, 0) == 1 - (0.1 + 0.2 / 3));  // asked as (0, 2)
  CHECK(cycle.asked == std::vector<std::pair<std::int64_t, std::int64_t>>{{0, 2}});
  for (int round = 0; round < 2; ++round) {
    for (std::int64_t i = 0; i < 3; ++i) {
      CHECK(rater.beats(i, i) == 0.5);
      for (std::int64_t j = 0; j < 3; ++j) CHECK(rater.beats(i, j) + rater.beats(j, i) == 1);
    }
  }
  CHECK(rater.beats(0, 1) == 0.7);
  CHECK(rater.beats(1, 2) == 0.7);
  CHECK(cycle.asked.size() == 3);
  CHECK(rater.counts().questions == 3);
  CHECK(rater.counts().failures == 0);
  CHECK(rater.counts().identical == 0);
}

TEST_CASE("equal token sequences are never asked about", "[online]") {
  FakeComparisons preference([](std::int64_t i, std::int64_t j) { return i < j ? 0.9 : 0.2; });
  const auto rollouts = rollouts_of({{3, 1}, {2}, {3, 1}, {2}});
  Rater rater(preference, rollouts);
  CHECK(rater.is_identical(0, 2));
  CHECK_FALSE(rater.is_identical(0, 1));
  CHECK(rater.beats(0, 2) == 0.5);
  CHECK(rater.beats(2, 0) == 0.5);
  CHECK(preference.calls == 0);
  CHECK(rater.counts().identical == 1);
  // The four pairs of different ones have one question, asked in one order.
  rater.ask_comparisons();
  CHECK(preference.asked == std::vector<std::pair<std::int64_t, std::int64_t>>{{3, 2}});
  CHECK(rater.beats(0, 1) == 0.2);
  CHECK(rater.beats(1, 2) == 0.8);
  CHECK(rater.beats(2, 3) == 0.2);
  CHECK(rater.beats(3, 0) == 0.8);
  CHECK(rater.beats(1, 3) == 0.5);
  CHECK(rater.counts().questions == 1);
  CHECK(rater.counts().identical == 2);

  FakeRewards rewards({0, 0, 2, 3});
  Rater rated(rewards, rollouts);
  rated.ask_rewards();
  CHECK(rewards.questions == 2);
  CHECK(rated.reward(2) == 3);
  CHECK(rated.beats(0, 2) == 0.5);
  CHECK(rewards.calls == 1);
}

TEST_CASE("comparisons follow from rewards by the temperature", "[online]") {
  const auto rollouts = rollouts_of({{0}, {1}, {2}});
  for (const double temperature : {0.0, 0.5, 1.0, 4.0}) {
    CAPTURE(temperature);
    FakeRewards rewards({1.5, -0.5, 1.5}, temperature);
    Rater rater(rewards, rollouts);
    const double expected = temperature == 0
                                ? 1
                                : std::exp(1.5 / temperature) /
                                      (std::exp(1.5 / temperature) + std::exp(-0.5 / temperature));
    CHECK(rater.beats(0, 1) == Approx(expected));
    CHECK(rater.beats(1, 0) == 1 - rater.beats(0, 1));
    CHECK(rater.beats(0, 2) == 0.5);
    CHECK(rewards.questions == 3);  // each asked by itself
    // The preference by itself says the same.
    CHECK(rewards.beats(std::vector{Comparison{&rollouts[0], &rollouts[1]}}).front() ==
          rater.beats(0, 1));
  }
  CHECK(compare_rewards(1e9, -1e9, 1) == 1);
  CHECK(compare_rewards(-1e9, 1e9, 1) == 0);
  CHECK(compare_rewards(-1, 2, 0) == 0);
  CHECK(std::isnan(compare_rewards(kNaN, 0, 0)));
  CHECK_THROWS_TEXT(FakeRewards({}, -1), ConfigError,
                    "feedback: expected a temperature of at least 0, got -1");
}

TEST_CASE("penalties are subtracted before completions are compared", "[online]") {
  // selections.missing_eos of golden/online.json, and the rewards of TRL 1.16's OnlineDPOTrainer in
  // online_dpo there.
  FakeRewards golden({0.9, 0.5, 0.4, 0.7, 0.4, 0.1});
  auto rollouts = rollouts_of({{0}, {1}, {2}, {3}, {4}, {5}});
  rollouts[0].ended = rollouts[3].ended = false;
  Rater rater(golden, rollouts, {.missing_eos_penalty = 1});
  const std::vector<double> after = {-0.1, 0.5, 0.4, -0.3, 0.4, 0.1};
  for (std::int64_t i = 0; i < 6; ++i) CHECK(rater.reward(i) == Approx(after[i]));
  CHECK(rater.beats(0, 1) == Approx(1 / (1 + std::exp(0.6))));

  FakeRewards equal({1, 1});
  const auto lengths = rollouts_of({{0, 7, 7}, {1}});
  Rater shorter(equal, lengths, {.length_penalty = 0.25});
  CHECK(shorter.reward(0) == 1 - 0.75);
  CHECK(shorter.reward(1) == 1 - 0.25);
  Rater without(equal, lengths);  // the control
  CHECK(without.reward(0) == without.reward(1));
}

TEST_CASE("an unfinished completion loses only where the options say so", "[online]") {
  FakeComparisons first_wins([](std::int64_t, std::int64_t) { return 0.75; });
  auto rollouts = rollouts_of({{0}, {1}, {2}, {2}});
  rollouts[0].ended = rollouts[1].ended = false;
  Rater judged(first_wins, rollouts);
  CHECK(judged.beats(0, 2) == 0.75);
  first_wins.asked.clear();
  Rater strict(first_wins, rollouts, {.unfinished = Unfinished::kLoses});
  strict.ask_comparisons();
  CHECK(strict.beats(0, 2) == 0);
  CHECK(strict.beats(2, 0) == 1);
  CHECK(strict.beats(3, 1) == 1);
  CHECK(strict.beats(0, 1) == 0.75);  // both have no end
  CHECK(strict.beats(2, 3) == 0.5);
  CHECK(first_wins.asked.size() == 1);
  CHECK(strict.counts().questions == 1);
}

TEST_CASE("many raters ask in one call", "[online]") {
  const auto one = rollouts_of({{0}, {1}, {2}});
  const auto two = rollouts_of({{3}, {4}, {4}});
  FakeComparisons preference(
      [](std::int64_t i, std::int64_t j) { return 0.5 + 0.01 * static_cast<double>(10 * i - j); });
  std::vector<Rater> raters = {Rater(preference, one), Rater(preference, two)};
  raters[0].beats(0, 1);
  ask(raters, Questions::kComparisons);
  CHECK(preference.calls == 2);
  CHECK(preference.asked ==
        std::vector<std::pair<std::int64_t, std::int64_t>>{{0, 1}, {0, 2}, {1, 2}, {3, 4}});
  CHECK(raters[0].beats(1, 2) == Approx(0.58));
  CHECK(raters[1].beats(0, 2) == Approx(0.76));
  for (const Questions questions :
       {Questions::kNone, Questions::kAdaptive, Questions::kComparisons}) {
    ask(raters, questions);  // nothing is left, or nothing to be asked ahead
  }
  CHECK(preference.calls == 2);

  FakeRewards rewards({1, 2, 3, 4, 5});
  FakeRewards others({5, 4, 3, 2, 1});
  for (const Questions questions : {Questions::kRewards, Questions::kComparisons}) {
    rewards.calls = others.calls = 0;
    std::vector<Rater> rated = {Rater(rewards, one), Rater(rewards, two), Rater(others, one)};
    ask(rated, questions);
    CHECK(rated[1].reward(2) == 5);
    CHECK(rated[2].reward(0) == 5);
    CHECK(rewards.calls == 1);
    CHECK(others.calls == 1);
  }
}

TEST_CASE("the first comparison is of the first two completions with a token", "[online]") {
  const auto three = rollouts_of({{0}, {1}, {2}});
  const auto equal = rollouts_of({{3}, {3}, {4}});
  const auto empty = rollouts_of({{}, {5}, {6}, {7}});
  FakeComparisons preference([](std::int64_t, std::int64_t) { return 0.7; });
  std::vector<Rater> raters = {Rater(preference, three), Rater(preference, equal),
                               Rater(preference, empty)};
  ask(raters, Questions::kFirstComparison);
  CHECK(preference.calls == 1);
  CHECK(preference.asked == std::vector<std::pair<std::int64_t, std::int64_t>>{{0, 1}, {5, 6}});
  CHECK(raters[0].beats(0, 1) == 0.7);
  CHECK(raters[2].beats(2, 1) == Approx(0.3));
  CHECK(preference.calls == 1);

  FakeRewards rewards({1, 2, 3, 4, 5, 6, 7, 8});
  std::vector<Rater> rated = {Rater(rewards, three), Rater(rewards, equal), Rater(rewards, empty)};
  ask(rated, Questions::kFirstComparison);
  CHECK(rewards.calls == 1);
  CHECK(rewards.questions == 5);  // equal completions share theirs
  CHECK(rated[0].has_reward(1));
  CHECK_FALSE(rated[0].has_reward(2));
  CHECK(rated[1].has_reward(1));
}

TEST_CASE("a question without an answer is counted, and NaN on both sides", "[online]") {
  FakeComparisons silent([](std::int64_t i, std::int64_t) { return i == 0 ? kNaN : 0.5; });
  const auto rollouts = rollouts_of({{0}, {1}, {2}});
  Rater rater(silent, rollouts);
  rater.ask_comparisons();
  CHECK(std::isnan(rater.beats(0, 1)));
  CHECK(std::isnan(rater.beats(1, 0)));
  CHECK(rater.beats(1, 2) == 0.5);
  CHECK(rater.counts().questions == 3);
  CHECK(rater.counts().failures == 2);
  CHECK(silent.calls == 1);  // failures are not asked again

  FakeRewards rewards({1, kNaN, 2});
  Rater rated(rewards, rollouts, {.missing_eos_penalty = 1});
  CHECK(std::isnan(rated.reward(1)));
  CHECK(std::isnan(rated.beats(0, 1)));
  CHECK(rated.beats(2, 0) > 0.5);
  CHECK(rated.counts().failures == 1);
}

TEST_CASE("answers that are none of a preference are refused", "[online]") {
  const auto rollouts = rollouts_of({{0}, {1}});
  FakeComparisons sure([](std::int64_t, std::int64_t) { return 1.5; });
  CHECK_THROWS_TEXT(Rater(sure, rollouts).beats(0, 1), DataError,
                    "preference: expected a probability in [0, 1], got 1.5");
  FakeRewards endless({std::numeric_limits<double>::infinity(), 0});
  CHECK_THROWS_TEXT(Rater(endless, rollouts).ask_rewards(), DataError,
                    "preference: expected a finite reward, got inf");
  CHECK_THROWS_TEXT(Rater(sure, rollouts).reward(0), ConfigError,
                    "feedback: expected rewards of single completions, got comparisons alone; use "
                    "a source of rewards, or a selection that compares");
  struct Short : FakeRewards {
    using FakeRewards::FakeRewards;
    std::vector<double> rewards(const std::vector<const Rollout*>&) override { return {1}; }
  } shorter(std::vector<double>{});
  CHECK_THROWS_TEXT(Rater(shorter, rollouts).ask_rewards(), DataError,
                    "preference: expected 2 answers, got 1");
}

}  // namespace
}  // namespace prefopt
