// SPDX-License-Identifier: Apache-2.0
#include <cmath>
#include <limits>
#include <memory>
#include <vector>

#include "prefopt/decoder/decoder.h"
#include "prefopt/error.h"
#include "prefopt/policy/guided_policy.h"
#include "prefopt/policy/mixture_policy.h"
#include "prefopt/policy/sampling.h"
#include "prefopt/policy/sequence_logps.h"
#include "support/bigram_policy.h"
#include "support/errors.h"

namespace prefopt::test_guided_policy {
namespace {

using namespace testing_support;
using Prompts = std::vector<std::vector<std::int64_t>>;

std::shared_ptr<Decoder> decoder_of_seed(std::uint64_t seed) {
  torch::manual_seed(seed);
  return std::make_shared<Decoder>(DecoderOptions{.vocab_size = 13,
                                                  .hidden_size = 16,
                                                  .intermediate_size = 24,
                                                  .num_hidden_layers = 2,
                                                  .num_attention_heads = 4,
                                                  .num_key_value_heads = 2,
                                                  .initializer_range = 0.5});
}

std::shared_ptr<BigramPolicy> bigram(std::uint64_t seed) {
  return std::make_shared<BigramPolicy>(seed);
}

/// log-probs of the completion tokens of two sequences.
at::Tensor logps_of(Policy& policy) {
  const at::NoGradGuard no_grad;
  const std::vector<std::int64_t> a{0}, b{1, 2, 3}, c{2, 1}, d{4, 0};
  return sequence_logps(policy, make_batch({{a, b}, {c, d}})).token_logps;
}

/// The same of Σ w_k z_k, by the formula of bigrams.
std::vector<double> summed_logps(const std::vector<std::pair<const BigramPolicy*, double>>& terms) {
  std::vector<double> all;
  const std::vector<std::vector<std::int64_t>> walks{{0, 1, 2, 3}, {1, 4, 0}};
  for (const auto& walk : walks) {
    for (std::size_t t = 1; t < walk.size(); ++t) {
      const auto logit = [&](std::int64_t v) {
        double sum = 0;
        for (const auto& [model, weight] : terms) sum += weight * model->logp(walk[t - 1], v);
        return sum;
      };
      double total = 0;
      for (std::int64_t v = 0; v < kVocab; ++v) total += std::exp(logit(v));
      all.push_back(logit(walk[t]) - std::log(total));
    }
  }
  return all;
}

TEST_CASE("guided policy: log-probs are those of the weighted product", "[policy]") {
  const auto base = bigram(1), first = bigram(2), second = bigram(3);
  GuidedPolicy policy(base, {{first, 0.7}, {second, -1.5}});
  const at::Tensor got = logps_of(policy);
  const auto expected = summed_logps({{base.get(), 1}, {first.get(), 0.7}, {second.get(), -1.5}});
  REQUIRE(got.size(0) == 5);
  for (std::int64_t t = 0; t < 5; ++t) {
    CHECK(got[t].item<double>() == Approx(expected[static_cast<std::size_t>(t)]).epsilon(1e-12));
  }
  // Two guides with parts of a weight are one with their sum; the log-ratio of a model over the
  // base is the model itself.
  GuidedPolicy halves(base, {{first, 0.4}, {first, 0.3}}), one(base, {{first, 0.7}});
  CHECK(at::allclose(logps_of(halves), logps_of(one), 1e-13, 1e-13));
  GuidedPolicy ratio(base, {{first, 1}, {base, -1}});
  CHECK(at::allclose(logps_of(ratio), logps_of(*first), 1e-13, 1e-13));
}

TEST_CASE("guided policy: weight 0 is the base to the last bit", "[policy]") {
  const auto base = decoder_of_seed(1);
  const auto guide = decoder_of_seed(2);
  GuidedPolicy policy(base, {{guide, 0}});
  const Prompts prompts{{1, 2, 3}, {4}};
  const SamplingOptions sampling{.max_new_tokens = 6, .seed = 5};
  const Samples ours = sample_with_logps(policy, prompts, sampling);
  const Samples theirs = sample_with_logps(*base, prompts, sampling);
  CHECK(ours.completions == theirs.completions);
  CHECK(ours.token_logps == theirs.token_logps);
}

TEST_CASE("guided policy: decoding is the forward pass, one token at a time", "[policy]") {
  const auto base = decoder_of_seed(1);
  const auto policy = std::make_shared<GuidedPolicy>(
      base, std::vector<Guide>{{decoder_of_seed(2), 2}, {decoder_of_seed(3), -0.5}});
  const Prompts prompts{{1, 2, 3, 4, 5}, {6}, {7, 8}};
  const Samples samples = sample_with_logps(*policy, prompts, {.max_new_tokens = 7, .seed = 4});
  std::vector<TokenSequence> sequences;
  for (std::size_t i = 0; i < prompts.size(); ++i) {
    sequences.push_back({.prompt = prompts[i], .completion = samples.completions[i]});
  }
  const at::Tensor logps = sequence_logps(*policy, make_batch(sequences)).token_logps;
  std::int64_t at = 0;
  for (const auto& of_sequence : samples.token_logps) {
    for (const double logp : of_sequence) {
      CHECK(logps[at++].item<double>() == Approx(logp).margin(2e-5));
    }
  }
  CHECK(at == 21);
  CHECK_FALSE(logps.requires_grad());
}

TEST_CASE("guided policy: what a model rules out stays ruled out", "[policy]") {
  constexpr double kNever = -std::numeric_limits<double>::infinity();
  const auto constant = [](const std::vector<double>& logits) {
    return std::make_shared<BigramPolicy>(at::zeros({kVocab, kVocab}, at::kDouble),
                                          torch::tensor(logits, at::kDouble));
  };
  GuidedPolicy policy(constant({kNever, 0, 0, 0, 0}),
                      {{constant({0, kNever, 0, 0, 0}), 1}, {constant({0, 0, kNever, 0, 0}), -1}});
  for (const auto& completion : sample(policy, Prompts(20, {1}), {.max_new_tokens = 10})) {
    for (const std::int64_t token : completion) CHECK(token > 2);
  }
}

TEST_CASE("guided policy: parameters are detached and named by model", "[policy]") {
  const auto base = bigram(1), guide = bigram(2);
  GuidedPolicy policy(base, {{guide, 2}});
  std::vector<std::string> names;
  for (const auto& [name, value] : policy.named_parameters()) {
    names.push_back(name);
    CHECK_FALSE(value.requires_grad());
  }
  CHECK(names ==
        std::vector<std::string>{"base.table", "base.bias", "guide0.table", "guide0.bias"});
  CHECK(GuidedPolicy(base, {{guide, 3}}).config() != policy.config());
  CHECK(policy.vocab_size() == kVocab);
}

TEST_CASE("guided policy: what it cannot be made of", "[policy]") {
  const auto base = bigram(1);
  CHECK_THROWS_TEXT(GuidedPolicy(nullptr, {{base, 1}}), ConfigError,
                    "guided policy: expected a base model, got null");
  CHECK_THROWS_TEXT(GuidedPolicy(base, {}), ConfigError,
                    "guided policy: expected a guide, got none");
  CHECK_THROWS_TEXT(GuidedPolicy(base, {{base, 1}, {nullptr, 1}}), ConfigError,
                    "guide 1: expected a model, got null");
  CHECK_THROWS_TEXT(GuidedPolicy(base, {{decoder_of_seed(1), 1}}), ConfigError,
                    "guide 0: expected a model with the base's vocabulary of 5 tokens, got 13");
  CHECK_THROWS_TEXT(GuidedPolicy(base, {{base, kNan}}), ConfigError,
                    "guide 0: expected a finite weight, got nan");
}

}  // namespace
}  // namespace prefopt::test_guided_policy
