// SPDX-License-Identifier: Apache-2.0

#include <cmath>

#include "prefopt/error.h"
#include "prefopt/evaluation/sampled_kl.h"
#include "support/bigram_policy.h"
#include "support/catch.h"
#include "support/errors.h"

namespace prefopt {
namespace {

using testing_support::BigramPolicy;
using testing_support::kVocab;

constexpr std::int64_t kEnd = 4;

/// KL of completions of up to `length` tokens after `from`, summed over all of them.
double exact_kl(const BigramPolicy& policy, const BigramPolicy& reference, std::int64_t from,
                std::int64_t length) {
  if (length == 0) return 0;
  double kl = 0;
  for (std::int64_t to = 0; to < kVocab; ++to) {
    const double log_p = policy.logp(from, to);
    const double rest = to == kEnd ? 0 : exact_kl(policy, reference, to, length - 1);
    kl += std::exp(log_p) * (log_p - reference.logp(from, to) + rest);
  }
  return kl;
}

TEST_CASE("Sampled KL is the exact one within its interval", "[evaluation]") {
  BigramPolicy policy(1), reference(2);
  const std::vector<std::vector<std::int64_t>> prompts = {{0}, {1}, {2}, {3}};
  const SamplingOptions sampling{.max_new_tokens = 4, .eos_id = kEnd, .seed = 11};
  const SampledKl result = sampled_kl(policy, reference, prompts, 400, sampling);
  double expected = 0;
  for (const auto& prompt : prompts) expected += exact_kl(policy, reference, prompt[0], 4) / 4;
  CHECK(result.samples == 1600);
  CHECK(result.completions.size() == 1600);
  CHECK(result.kl.mean == Approx(expected).epsilon(0.04));
  CHECK(result.kl.low < expected);
  CHECK(result.kl.high > expected);
  CHECK(result.mean_length > 1);
  CHECK(result.mean_length < 4);
  CHECK(result.unfinished > 0);
  CHECK(result.unfinished < 1600);
}

TEST_CASE("One token is exact, whatever is drawn", "[evaluation]") {
  BigramPolicy policy(1), reference(2);
  const SampledKl one = sampled_kl(policy, reference, {{3}}, 3, {.max_new_tokens = 1});
  CHECK(one.kl.mean == Approx(exact_kl(policy, reference, 3, 1)));
  CHECK(one.unfinished == 3);
  CHECK(one.mean_length == 1);
}

TEST_CASE("A policy has no KL from itself", "[evaluation]") {
  BigramPolicy policy(1);
  const SampledKl same = sampled_kl(policy, policy, {{0}, {1}}, 2, {.max_new_tokens = 3});
  CHECK(same.kl.mean == Approx(0).margin(1e-12));
}

TEST_CASE("Samples do not depend on how they are cut", "[evaluation]") {
  BigramPolicy policy(1), reference(2);
  const SamplingOptions sampling{.max_new_tokens = 3, .seed = 5};
  const auto many = sampled_kl(policy, reference, {{0}, {1}, {2}}, 9, sampling);
  std::vector<std::vector<std::int64_t>> prompts;
  for (std::int64_t prompt = 0; prompt < 3; ++prompt) prompts.insert(prompts.end(), 9, {prompt});
  CHECK(many.completions == sample(policy, prompts, sampling));
}

TEST_CASE("Sampled KL refuses what is no sample of the policy", "[evaluation]") {
  BigramPolicy policy(1);
  CHECK_THROWS_TEXT(sampled_kl(policy, policy, {{0}}, 1, {.temperature = 0.7}), ConfigError,
                    "sampled_kl: expected samples of the policy itself (temperature 1, top_k 0, "
                    "top_p 1), got temperature 0.7, top_k 0, top_p 1");
  CHECK_THROWS_TEXT(sampled_kl(policy, policy, {{0}}, 0, {}), ConfigError,
                    "sampled_kl: expected at least one sample a prompt, got 0");
  CHECK_THROWS_TEXT(sampled_kl(policy, policy, {}, 1, {}), DataError,
                    "sampled_kl: expected at least one prompt, got none");
}

}  // namespace
}  // namespace prefopt
