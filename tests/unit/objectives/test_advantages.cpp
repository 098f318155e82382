// SPDX-License-Identifier: Apache-2.0
#include <cmath>
#include <initializer_list>
#include <limits>
#include <string>
#include <vector>

#include "prefopt/error.h"
#include "prefopt/objectives/advantage.h"
#include "prefopt/objectives/values.h"
#include "prefopt/testing/objective_checks.h"
#include "support/catch.h"
#include "support/close.h"
#include "support/errors.h"

namespace prefopt {
namespace {

using testing_support::check_close;

constexpr double kUnsaid = std::numeric_limits<double>::quiet_NaN();
constexpr double kInfinite = std::numeric_limits<double>::infinity();

Eigen::ArrayXd numbers_of(std::initializer_list<double> x) {
  return Eigen::Map<const Eigen::ArrayXd>(x.begin(), static_cast<Eigen::Index>(x.size()));
}

/// Completions of one token each, all of one prompt.
RolloutStep single_tokens(std::initializer_list<double> rewards) {
  RolloutStep step;
  step.rewards = numbers_of(rewards);
  step.lens.assign(rewards.size(), 1);
  step.groups.assign(rewards.size(), 3);
  step.acted = Eigen::ArrayXd::Ones(step.rewards.size());
  return step;
}

Eigen::ArrayXd advantages_of(const std::string& config, const RolloutStep& step) {
  return make_advantage(config).of(step);
}

TEST_CASE("every registered advantage passes the kit", "[objectives]") {
  CHECK(registered_advantages().size() == 12);
  for (const AdvantageEntry& entry : registered_advantages()) {
    const Advantage advantage = make_advantage("{\"kind\": \"" + entry.info.kind + "\"}");
    CHECK(testing::check_advantage(advantage).text() == "");
    CHECK(testing::check_advantage(advantage, {.seed = 5}).text() == "");
    CHECK(entry.info.formula != "");
  }
  for (const char* config :
       {R"({"kind": "group_std", "epsilon": 0, "ddof": 0, "baseline": "leave_one_out"})",
        R"({"kind": "gae", "gamma": 0.9, "lambda": 0.5, "whiten": true})",
        R"({"kind": "to_go", "gamma": 0.9, "whiten": true})",
        R"({"kind": "soft_mean", "tau": 0.01})", R"({"kind": "none", "clip": 0.25})"}) {
    CHECK(testing::check_advantage(make_advantage(config)).text() == "");
  }
}

TEST_CASE("a group of one is refused where completions are compared", "[objectives]") {
  RolloutStep step = single_tokens({1, 0, 2});
  step.groups = {3, 3, 8};
  CHECK_THROWS_TEXT(advantages_of(R"({"kind": "group_std"})", step), ConfigError,
                    "advantage: expected at least 2 completions of each prompt, as 'group_std' "
                    "compares them, got 1 in group 8");
  // Whether the one has a reward does not matter.
  step.rewards[2] = kUnsaid;
  CHECK_THROWS_TEXT(advantages_of(R"({"kind": "leave_one_out"})", step), ConfigError,
                    "advantage: expected at least 2 completions of each prompt, as 'leave_one_out' "
                    "compares them, got 1 in group 8");
  step.rewards[2] = 2;
  CHECK((advantages_of(R"({"kind": "none"})", step) == step.rewards).all());
}

TEST_CASE("equal rewards have advantage 0 exactly", "[objectives]") {
  // A sum of three of them is not three times one.
  const RolloutStep step = single_tokens({0.1, 0.1, 0.1});
  for (const char* kind :
       {"leave_one_out", "group_mean", "group_std", "batch_std", "length_mean", "soft_mean"}) {
    CAPTURE(kind);
    const auto got = advantages_of("{\"kind\": \"" + std::string(kind) + "\"}", step);
    CHECK((got == 0).all());
  }
}

TEST_CASE("a reward that nobody could say", "[objectives]") {
  const RolloutStep step = single_tokens({1, kUnsaid, 3});
  SECTION("is in no mean and has advantage 0") {
    const auto got = advantages_of(R"({"kind": "leave_one_out"})", step);
    CHECK((got == numbers_of({-2, 0, 2})).all());
  }
  SECTION("leaves a group of which one is rated without a comparison") {
    const auto got = advantages_of(R"({"kind": "leave_one_out"})", single_tokens({1, kUnsaid}));
    CHECK((got == 0).all());
  }
  SECTION("of the whole group") {
    for (const char* kind : {"group_std", "batch_std", "whiten_tokens", "length_mean"}) {
      const auto got = advantages_of("{\"kind\": \"" + std::string(kind) + "\"}",
                                     single_tokens({kUnsaid, kUnsaid}));
      CHECK((got == 0).all());
    }
  }
  SECTION("is refused on demand") {
    CHECK_THROWS_TEXT(advantages_of(R"({"kind": "leave_one_out", "unscorable": "error"})", step),
                      DataError,
                      "advantage: expected a reward of each completion, got none of completion 1");
  }
  SECTION("does not reach whitening, and its returns are the values") {
    RolloutStep valued = single_tokens({1, kUnsaid, 3});
    valued.values = numbers_of({0.5, 0.25, 1});
    const Advantage gae = make_advantage(R"({"kind": "gae", "whiten": true})");
    // Errors 0.5 and 2 have mean 1.25 and unbiased variance 1.125.
    const double scale = 0.75 / std::sqrt(1.125 + 1e-8);
    const auto got = gae.of(valued);
    check_close(got[0], -scale, 1e-14);
    CHECK(got[1] == 0);
    check_close(got[2], scale, 1e-14);
    CHECK((gae.returns(valued) == numbers_of({1, 0.25, 3})).all());
  }
  SECTION("of the greedy completion") {
    RolloutStep greedy = single_tokens({1, 2, 3});
    greedy.greedy_rewards = numbers_of({0.5, kUnsaid, 0.5});
    CHECK((advantages_of(R"({"kind": "greedy"})", greedy) == numbers_of({0.5, 0, 2.5})).all());
    CHECK_THROWS_TEXT(advantages_of(R"({"kind": "greedy", "unscorable": "error"})", greedy),
                      DataError,
                      "advantage: expected a reward of each completion, got none of completion 1");
  }
  SECTION("does not matter to given advantages") {
    RolloutStep given = step;
    given.given = numbers_of({1, 2, 3});
    const auto got = advantages_of(R"({"kind": "given", "unscorable": "error"})", given);
    CHECK((got == given.given).all());
  }
}

TEST_CASE("completions without acted tokens", "[objectives]") {
  RolloutStep step = single_tokens({4, 1, 0});
  step.lens = {2, 0, 1};
  step.acted = numbers_of({0, 0, 1});
  // The rewards count in the group, whoever chose the tokens.
  const auto got = advantages_of(R"({"kind": "group_mean"})", step);
  CHECK(got[0] == 0);
  CHECK(got[1] == 0);
  check_close(got[2], -5.0 / 3, 1e-15);
  // Weighed by length, the others have none.
  CHECK((advantages_of(R"({"kind": "length_mean"})", step) == 0).all());
  CHECK((advantages_of(R"({"kind": "to_go"})", step) == 0).all());
  CHECK((make_advantage(R"({"kind": "none", "keep_above": 0.5})").kept(step, got) ==
         numbers_of({0, 0, 1}))
            .all());
}

TEST_CASE("no completions at all", "[objectives]") {
  const RolloutStep nothing;
  for (const AdvantageEntry& entry : registered_advantages()) {
    CAPTURE(entry.info.kind);
    CHECK(advantages_of("{\"kind\": \"" + entry.info.kind + "\"}", nothing).size() == 0);
  }
}

TEST_CASE("one token cannot be whitened", "[objectives]") {
  RolloutStep step = single_tokens({4});
  CHECK((advantages_of(R"({"kind": "to_go", "whiten": true})", step) == 0).all());
}

TEST_CASE("advantages are limited, small ones are dropped", "[objectives]") {
  const RolloutStep step = single_tokens({9, -9, 0.25, 0.25});
  const Advantage advantage = make_advantage(R"({"kind": "none", "clip": 5, "keep_above": 0.25})");
  const auto got = advantage.of(step);
  CHECK((got == numbers_of({5, -5, 0.25, 0.25})).all());
  CHECK((advantage.kept(step, got) == numbers_of({1, 1, 0, 0})).all());
  CHECK((make_advantage(R"({"kind": "none"})").kept(step, got) == 1).all());
}

TEST_CASE("identities between advantages", "[objectives]") {
  RolloutStep step = testing::random_rollouts(3);
  const auto of = [&](const char* config) { return advantages_of(config, step); };
  SECTION("group_mean is (k - 1) / k of leave_one_out in each group") {
    const Eigen::ArrayXd ratio =
        of(R"({"kind": "group_mean"})") / of(R"({"kind": "leave_one_out"})");
    for (Eigen::Index t = 0; t < step.tokens(); ++t) {
      if (step.acted[t] == 0) continue;
      CHECK((std::abs(ratio[t] - 0.75) < 1e-12 || std::abs(ratio[t] - 2.0 / 3) < 1e-12));
    }
  }
  SECTION("gae at lambda 1 and values 0 is the reward to go") {
    step.values.setZero();
    const Eigen::ArrayXd gap = of(R"({"kind": "gae", "lambda": 1})") - of(R"({"kind": "to_go"})");
    CHECK(gap.abs().maxCoeff() < 1e-14);
  }
  SECTION("two completions of a prompt have advantages of equal size") {
    const auto got = advantages_of(R"({"kind": "leave_one_out"})", single_tokens({1, 0.25}));
    CHECK((got == numbers_of({0.75, -0.75})).all());
  }
  SECTION("group_std of right and wrong depends on the number of right ones only") {
    const char* config = R"({"kind": "group_std", "epsilon": 0})";
    const auto a = advantages_of(config, single_tokens({1, 0, 0, 0}));
    const auto b = advantages_of(config, single_tokens({0, 0, 100, 0}));
    check_close(a[0], b[2], 1e-14);
    check_close(a[1], b[0], 1e-14);
  }
  SECTION("the soft mean lies between the mean and the maximum") {
    const auto cold = advantages_of(R"({"kind": "soft_mean", "tau": 1e-6})", single_tokens({1, 0}));
    const auto hot = advantages_of(R"({"kind": "soft_mean", "tau": 1e6})", single_tokens({1, 0}));
    CHECK(std::abs(cold[0]) < 1e-5);
    check_close(hot[0], 0.5, 1e-5);
  }
}

TEST_CASE("errors of rollouts", "[objectives]") {
  const Advantage none = make_advantage(R"({"kind": "none"})");
  RolloutStep step = single_tokens({1, 2});
  const auto expect = [&](auto error, const std::string& text) {
    using Error = decltype(error);
    CHECK_THROWS_TEXT(none.of(step), Error, text);
  };
  SECTION("infinite reward") {
    step.rewards[1] = kInfinite;
    expect(DataError(""), "rollouts: expected a finite reward, got inf of completion 1");
  }
  SECTION("infinite reward below") {
    step.rewards[0] = -kInfinite;
    expect(DataError(""), "rollouts: expected a finite reward, got -inf of completion 0");
  }
  SECTION("infinite greedy reward") {
    step.greedy_rewards = numbers_of({0, kInfinite});
    expect(DataError(""), "rollouts: expected a finite greedy reward, got inf of completion 1");
  }
  SECTION("acted") {
    step.acted[1] = 0.5;
    expect(DataError(""), "rollouts: expected acted of 0 or 1, got 0.5 at token 0 of completion 1");
  }
  SECTION("negative length") {
    step.lens[0] = -1;
    expect(ShapeError(""), "rollouts: expected lens of at least 0, got -1 of completion 0");
  }
  SECTION("short arrays") {
    step.rewards = numbers_of({1});
    expect(ShapeError(""), "rollouts: expected rewards [2], got [1]");
  }
  SECTION("values that are not finite") {
    step.values = numbers_of({0, kUnsaid});
    expect(DataError(""), "rollouts: expected finite values, got nan at token 0 of completion 1");
  }
  SECTION("parts that are not there") {
    CHECK_THROWS_TEXT(advantages_of(R"({"kind": "gae"})", step), ShapeError,
                      "advantage: expected values of the rollouts for 'gae', got none");
    CHECK_THROWS_TEXT(advantages_of(R"({"kind": "greedy"})", step), ShapeError,
                      "advantage: expected greedy_rewards of the rollouts for 'greedy', got none");
    CHECK_THROWS_TEXT(advantages_of(R"({"kind": "given"})", step), ShapeError,
                      "advantage: expected advantages of the rollouts for 'given', got none");
  }
  SECTION("an advantage that overflows") {
    step.rewards = numbers_of({1e308, -1e308});
    CHECK_THROWS_TEXT(advantages_of(R"({"kind": "leave_one_out"})", step), NonFiniteError,
                      "advantage: expected finite numbers of 'leave_one_out', got inf at token 0 "
                      "of completion 0");
  }
}

TEST_CASE("errors of an advantage's config", "[objectives]") {
  const std::pair<const char*, const char*> cases[] = {
      {"[]", "advantage: expected an object with a key 'kind', got []"},
      {R"({"kind": 3})", "advantage: expected an object with a key 'kind', got {\"kind\":3}"},
      {R"({"kind": "group_sdt"})",
       "advantage: expected a registered kind, got 'group_sdt'; did you mean 'group_std'?"},
      {R"({"kind": "group_std", "epsiln": 1})",
       "group_std: expected a known option, got 'epsiln'; did you mean 'epsilon'?"},
      {R"({"kind": "group_std", "epsilon": -1})", "group_std: expected epsilon >= 0, got -1"},
      {R"({"kind": "group_std", "ddof": 2})", "group_std: expected ddof in [0, 1], got 2"},
      {R"({"kind": "soft_mean", "tau": 0})", "soft_mean: expected tau > 0, got 0"},
      {R"({"kind": "gae", "lambda": 1.5})", "gae: expected lambda in [0, 1], got 1.5"},
      {R"({"kind": "none", "clip": -1})", "advantage: expected clip >= 0, got -1"}};
  for (const auto& [config, text] : cases) {
    CHECK_THROWS_TEXT(make_advantage(config), ConfigError, text);
  }
  CHECK(make_advantage(R"({"kind": "soft_mean"})").config() ==
        R"({"kind":"soft_mean","tau":0.5,"clip":0.0,"keep_above":0.0,"unscorable":"zero"})");
}

TEST_CASE("reward normalization and the adaptive KL refuse what would spoil them", "[objectives]") {
  CHECK_THROWS_TEXT(RewardNormalizer(true, -1), ConfigError,
                    "reward normalization: expected clip >= 0, got -1");
  RewardNormalizer normalizer;
  CHECK_THROWS_TEXT(normalizer(numbers_of({1, kInfinite})), DataError,
                    "reward normalization: expected finite rewards, got inf of completion 1");
  CHECK(normalizer.state().count == 0);
  const auto got = normalizer(numbers_of({2, kUnsaid, 4}));
  check_close(got[0], -1 / std::sqrt(2), 1e-14);
  CHECK(std::isnan(got[1]));
  CHECK(normalizer.state().count == 2);
  RewardNormalizer equal;
  CHECK((equal(numbers_of({0.1, 0.1, 0.1})) == 0).all());
  CHECK_THROWS_TEXT(adapted_kl_coefficient(0.1, 1, 0, 8, 100), ConfigError,
                    "kl: expected a target and a horizon above 0, got 0 and 100");
}

}  // namespace
}  // namespace prefopt
