// SPDX-License-Identifier: Apache-2.0
#include <memory>
#include <vector>

#include "prefopt/error.h"
#include "prefopt/policy/token_rewards.h"
#include "support/bigram_policy.h"
#include "support/errors.h"
#include "support/fixed_policy.h"

namespace prefopt::test_token_rewards {
namespace {

using namespace testing_support;

TEST_CASE("implicit rewards: beta times the log-ratio of each token that counts", "[policy]") {
  BigramPolicy model(1), reference(2);
  const std::vector<std::int64_t> prompt{0}, first{1, 2, 3}, second{4, 0};
  const std::vector<std::uint8_t> mask{1, 0, 1};
  const std::vector<TokenSequence> sequences{
      {.prompt = prompt, .completion = first, .weights = {}, .mask = mask},
      {.prompt = prompt, .completion = second}};
  for (const std::int64_t at_once : {1, 2}) {
    const auto rewards = implicit_token_rewards(model, reference, sequences, 0.5, at_once);
    const auto expected = [&](std::int64_t from, std::int64_t to) {
      return Approx(0.5 * (model.logp(from, to) - reference.logp(from, to))).epsilon(1e-12);
    };
    REQUIRE(rewards.size() == 2);
    REQUIRE(rewards[0].size() == 2);
    REQUIRE(rewards[1].size() == 2);
    CHECK(rewards[0][0] == expected(0, 1));
    CHECK(rewards[0][1] == expected(2, 3));
    CHECK(rewards[1][0] == expected(0, 4));
    CHECK(rewards[1][1] == expected(4, 0));
  }
}

TEST_CASE("implicit rewards: models that do not fit", "[policy]") {
  BigramPolicy model(1), reference(2);
  FixedPolicy other({}, at::Tensor(), 7);
  const std::vector<std::int64_t> prompt{0}, completion{1, 2};
  const std::vector<TokenSequence> sequences{{.prompt = prompt, .completion = completion}};
  CHECK_THROWS_TEXT(
      implicit_token_rewards(model, other, sequences, 1), ConfigError,
      "implicit rewards: expected a reference with the model's vocabulary of 5 tokens, got 7");
  CHECK_THROWS_TEXT(implicit_token_rewards(model, reference, sequences, 1, 0), ConfigError,
                    "implicit rewards: expected at least one text at once, got 0");
  reference.poisoned = true;
  CHECK_THROWS_TEXT(
      implicit_token_rewards(model, reference, sequences, 1), NonFiniteError,
      "implicit rewards: expected finite log-probs of model and reference, got a reward of nan for "
      "token 0 of sequence 0");
}

}  // namespace
}  // namespace prefopt::test_token_rewards
