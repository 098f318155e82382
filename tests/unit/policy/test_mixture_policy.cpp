// SPDX-License-Identifier: Apache-2.0
#include <cmath>
#include <limits>

#include "prefopt/decoder/decoder.h"
#include "prefopt/error.h"
#include "prefopt/losses/registry.h"
#include "prefopt/policy/mixture_policy.h"
#include "prefopt/policy/sampling.h"
#include "prefopt/policy/sequence_logps.h"
#include "prefopt/train/trainer.h"
#include "support/bigram_policy.h"
#include "support/errors.h"

namespace prefopt::test_mixture_policy {
namespace {

using namespace testing_support;
using Prompts = std::vector<std::vector<std::int64_t>>;

const Prompts kRagged{{1, 2, 3, 4, 5}, {6}, {7, 8}, {1, 2, 3, 4, 5}, {9, 10}};

std::shared_ptr<Decoder> decoder_of(std::uint64_t seed, at::ScalarType dtype = at::kFloat) {
  torch::manual_seed(seed);
  auto decoder = std::make_shared<Decoder>(DecoderOptions{.vocab_size = 13,
                                                          .hidden_size = 16,
                                                          .intermediate_size = 24,
                                                          .num_hidden_layers = 2,
                                                          .num_attention_heads = 4,
                                                          .num_key_value_heads = 2,
                                                          .initializer_range = 0.5});
  decoder->to(dtype);
  return decoder;
}

/// The same logits after any tokens.
std::shared_ptr<BigramPolicy> constant(const std::vector<double>& logits) {
  return std::make_shared<BigramPolicy>(at::zeros({kVocab, kVocab}, at::kDouble),
                                        torch::tensor(logits, at::kDouble));
}

TokenBatch batch_of(const Prompts& prompts, const Prompts& completions) {
  std::vector<TokenSequence> sequences;
  for (std::size_t i = 0; i < prompts.size(); ++i) {
    sequences.push_back({prompts[i], completions[i]});
  }
  return make_batch(sequences);
}

TEST_CASE("mixture: log-probs of mixed logits are TRL's", "[policy]") {
  // trl.geometric_mixture of golden/online.json: GeometricMixtureWrapper.forward of TRL 0.29.1,
  // with a fifth token that neither model can draw.
  constexpr double kNever = -std::numeric_limits<double>::infinity();
  const auto policy = constant({1.0, 0.2, -0.5, 0.0, kNever});
  const auto reference = constant({-0.3, 0.8, 0.1, 0.4, kNever});
  const std::vector<std::pair<double, std::vector<double>>> golden{
      {0.0, {-0.7131157575352711, -1.5131157575352712, -2.213115757535271, -1.7131157575352711}},
      {0.125, {-0.8362554432171637, -1.3987554432171638, -2.0987554432171636, -1.6237554432171637}},
      {0.5, {-1.2807927325988424, -1.1307927325988423, -1.8307927325988422, -1.4307927325988423}},
      {1.0, {-2.0162013012854105, -0.9162013012854103, -1.6162013012854104, -1.3162013012854104}}};
  for (const auto& [weight, logps] : golden) {
    MixturePolicy mixture(policy, reference, weight);
    const Samples samples =
        sample_with_logps(mixture, Prompts(6, {0}), {.max_new_tokens = 20, .seed = 3});
    for (std::size_t s = 0; s < samples.completions.size(); ++s) {
      for (std::size_t t = 0; t < samples.completions[s].size(); ++t) {
        const auto token = static_cast<std::size_t>(samples.completions[s][t]);
        REQUIRE(token < logps.size());
        CHECK(samples.token_logps[s][t] == Approx(logps[token]).epsilon(1e-14));
      }
    }
  }
}

TEST_CASE("mixture: a token that one model rules out cannot be drawn", "[policy]") {
  constexpr double kNever = -std::numeric_limits<double>::infinity();
  const auto policy = constant({kNever, 0, 0, 0, 0});
  const auto reference = constant({5, 0, 0, 0, kNever});
  MixturePolicy mixture(policy, reference, 0.5);
  for (const auto& completion : sample(mixture, Prompts(20, {1}), {.max_new_tokens = 20})) {
    for (const std::int64_t token : completion) CHECK((token >= 1 && token <= 3));
  }
}

TEST_CASE("mixture: weights 0 and 1 are the two models, bit for bit", "[policy]") {
  const auto policy = decoder_of(1);
  const auto reference = decoder_of(2);
  const SamplingOptions options{.max_new_tokens = 12, .eos_id = 4, .seed = 9};
  const at::NoGradGuard no_grad;
  for (const auto& [weight, model] : {std::pair(0.0, policy), std::pair(1.0, reference)}) {
    MixturePolicy mixture(policy, reference, weight);
    const Samples expected = sample_with_logps(*model, kRagged, options);
    const Samples got = sample_with_logps(mixture, kRagged, options);
    CHECK(got.completions == expected.completions);
    CHECK(got.token_logps == expected.token_logps);
    const TokenBatch batch = batch_of(kRagged, got.completions);
    CHECK(at::equal(sequence_logps(mixture, batch).logps, sequence_logps(*model, batch).logps));
  }
  const auto middle =
      sample(*std::make_shared<MixturePolicy>(policy, reference, 0.5), kRagged, options);
  CHECK(middle != sample(*policy, kRagged, options));
  CHECK(middle != sample(*reference, kRagged, options));
}

TEST_CASE("mixture: a session gives what whole forwards give", "[policy]") {
  MixturePolicy mixture(decoder_of(1, at::kDouble), decoder_of(2, at::kDouble), 0.375);
  const Samples samples = sample_with_logps(
      mixture, kRagged, {.max_new_tokens = 9, .temperature = 0.8, .eos_id = 4, .seed = 5});
  TokenBatch batch = batch_of(kRagged, samples.completions);
  const at::Tensor scored = sequence_logps(mixture, batch).token_logps.to(at::kDouble);
  CHECK_FALSE(scored.requires_grad());
  std::int64_t row = 0;
  for (const auto& tokens : samples.token_logps) {
    for (const double logp : tokens) {
      CHECK(logp == Approx(scored[row++].item<double>()).margin(1e-11).epsilon(0));
    }
  }
  CHECK(row == scored.size(0));
}

TEST_CASE("mixture: a sample depends on seed and index, not on its neighbours", "[policy]") {
  MixturePolicy mixture(decoder_of(1), decoder_of(2), 0.5);
  SamplingOptions options{.max_new_tokens = 15, .eos_id = 4, .seed = 3};
  const auto all = sample(mixture, kRagged, options);
  const int threads = at::get_num_threads();
  at::set_num_threads(1);
  CHECK(sample(mixture, kRagged, options) == all);
  at::set_num_threads(threads);
  for (std::size_t s = 0; s < kRagged.size(); ++s) {
    options.first_index = static_cast<std::int64_t>(s);
    CHECK(sample(mixture, {kRagged[s]}, options).front() == all[s]);
  }
}

TEST_CASE("mixture: it follows its models, whose content is its own", "[policy]") {
  const auto policy = std::make_shared<BigramPolicy>(1);
  const auto reference = std::make_shared<BigramPolicy>(2);
  MixturePolicy mixture(policy, reference, 0.25);
  const std::string before = content_hash(mixture);
  CHECK(content_hash(MixturePolicy(policy, reference, 0.25)) == before);
  CHECK(content_hash(MixturePolicy(policy, reference, 0.5)) != before);
  CHECK(content_hash(MixturePolicy(reference, policy, 0.25)) != before);
  policy->bias().detach().add_(torch::arange(kVocab, at::kDouble));
  CHECK(content_hash(mixture) != before);
  CHECK(mixture.named_parameters().size() == 4);
  CHECK(mixture.named_parameters().front().name == "policy.table");
}

TEST_CASE("mixture: what cannot be mixed or trained is refused", "[policy]") {
  const auto policy = std::make_shared<BigramPolicy>(1);
  CHECK_THROWS_TEXT(MixturePolicy(policy, nullptr, 0.5), ConfigError,
                    "mixture: expected a policy and a reference, got no reference");
  CHECK_THROWS_TEXT(
      MixturePolicy(policy, decoder_of(1), 0.5), ConfigError,
      "mixture: expected a reference with the policy's vocabulary of 5 tokens, got 13");
  CHECK_THROWS_TEXT(MixturePolicy(policy, policy, 1.5), ConfigError,
                    "mixture: expected weight in [0, 1], got 1.5; it is the reference's share");
  CHECK_THROWS_TEXT(MixturePolicy(policy, policy, kNan), ConfigError,
                    "mixture: expected weight in [0, 1], got nan; it is the reference's share");

  Trainer trainer(std::make_shared<MixturePolicy>(policy, policy, GENERATE(0.0, 0.5)), nullptr,
                  make_loss(R"({"type": "sft"})"),
                  {.optimizer = {.schedule = Schedule::kConstant}});
  CHECK_THROWS_TEXT(trainer.step(pairs()), ConfigError,
                    "trainer: expected a policy with parameters that require a gradient, got none");
  CHECK(policy->table().requires_grad());
}

}  // namespace
}  // namespace prefopt::test_mixture_policy
