// SPDX-License-Identifier: Apache-2.0
#include "prefopt/error.h"
#include "prefopt/online/rollout.h"
#include "support/bigram_policy.h"
#include "support/errors.h"

namespace prefopt {
namespace {

using namespace testing_support;

const std::vector<std::vector<std::int64_t>> kPrompts = {{0, 1}, {2}, {3, 3, 1}};
const SamplingOptions kSampling = {.max_new_tokens = 6, .eos_id = 4, .seed = 9};

TEST_CASE("rollouts are what the policy writes, with its log-probs", "[online]") {
  BigramPolicy policy(5);
  const auto rollouts =
      draw_rollouts(policy, kPrompts, {.samples_per_prompt = 4, .sampling = kSampling});
  REQUIRE(rollouts.size() == 12);
  bool some_ended = false;
  bool some_open = false;
  for (std::size_t i = 0; i < rollouts.size(); ++i) {
    const Rollout& rollout = rollouts[i];
    CAPTURE(i);
    CHECK(rollout.group == static_cast<std::int64_t>(i / 4));
    CHECK(rollout.prompt == kPrompts[i / 4]);
    CHECK(rollout.ended == (rollout.completion.back() == 4));
    CHECK((rollout.ended || std::ssize(rollout.completion) == 6));
    (rollout.ended ? some_ended : some_open) = true;
    REQUIRE(rollout.token_logps.size() == rollout.completion.size());
    std::int64_t from = rollout.prompt.back();
    for (std::size_t t = 0; t < rollout.completion.size(); ++t) {
      CHECK(rollout.token_logps[t] == Approx(policy.logp(from, rollout.completion[t])));
      from = rollout.completion[t];
    }
  }
  CHECK(some_ended);
  CHECK(some_open);
}

TEST_CASE("rollouts do not depend on how many are drawn at once", "[online]") {
  BigramPolicy policy(5);
  const auto whole =
      draw_rollouts(policy, kPrompts, {.samples_per_prompt = 3, .sampling = kSampling});
  std::vector<std::size_t> done;
  const auto cut = draw_rollouts(policy, kPrompts,
                                 {.samples_per_prompt = 3, .sampling = kSampling, .at_once = 4},
                                 [&](std::size_t so_far, std::size_t total) {
                                   CHECK(total == 9);
                                   done.push_back(so_far);
                                 });
  CHECK(done == std::vector<std::size_t>{4, 8, 9});
  REQUIRE(cut.size() == whole.size());
  for (std::size_t i = 0; i < whole.size(); ++i) CHECK(cut[i].completion == whole[i].completion);
  // The second prompt alone, at its own place.
  auto sampling = kSampling;
  sampling.first_index = 3;
  const auto second =
      draw_rollouts(policy, {kPrompts[1]}, {.samples_per_prompt = 3, .sampling = sampling});
  for (std::size_t i = 0; i < 3; ++i) CHECK(second[i].completion == whole[3 + i].completion);
}

TEST_CASE("numbers of rollouts below 1 are refused", "[online]") {
  BigramPolicy policy(5);
  CHECK_THROWS_TEXT(draw_rollouts(policy, kPrompts, {.samples_per_prompt = 0}), ConfigError,
                    "rollouts: expected samples_per_prompt of at least 1, got 0");
  CHECK_THROWS_TEXT(draw_rollouts(policy, kPrompts, {.at_once = 0}), ConfigError,
                    "rollouts: expected at_once of at least 1, got 0");
}

TEST_CASE("the text of a completion lacks its end token alone", "[online]") {
  const ByteTokenizer tokenizer;
  const SamplingOptions options{.eos_id = 'z', .extra_eos_ids = {'y'}};
  CHECK(completion_text({'a', 'z'}, tokenizer, options) == "a");
  CHECK(completion_text({'a', 'y'}, tokenizer, options) == "a");
  CHECK(completion_text({'z', 'a'}, tokenizer, options) == "za");  // a stop string may end it
  CHECK(completion_text({}, tokenizer, options).empty());
}

}  // namespace
}  // namespace prefopt
