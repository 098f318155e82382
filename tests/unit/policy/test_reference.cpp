// SPDX-License-Identifier: Apache-2.0
#include <ATen/ops/linspace.h>

#include <filesystem>
#include <fstream>

#include "prefopt/decoder/decoder.h"
#include "prefopt/error.h"
#include "prefopt/files/safetensors.h"
#include "prefopt/policy/combined_reference.h"
#include "prefopt/policy/moving_reference.h"
#include "prefopt/policy/past_weights.h"
#include "prefopt/policy/reference.h"
#include "prefopt/policy/sequence_logps.h"
#include "support/catch.h"
#include "support/errors.h"
#include "support/temp_dir.h"

namespace prefopt::test_reference {
namespace {

using testing_support::TempDir;

std::shared_ptr<Decoder> small_decoder(std::uint64_t seed) {
  torch::manual_seed(seed);
  return std::make_shared<Decoder>(DecoderOptions{.vocab_size = 13,
                                                  .hidden_size = 16,
                                                  .intermediate_size = 24,
                                                  .num_hidden_layers = 1,
                                                  .num_attention_heads = 2,
                                                  .num_key_value_heads = 1,
                                                  .initializer_range = 0.5});
}

const std::vector<std::vector<std::int64_t>>& prompts() {
  static const std::vector<std::vector<std::int64_t>> kPrompts{{1, 2}, {3}, {4, 5, 6}, {1}};
  return kPrompts;
}

const std::vector<std::vector<std::int64_t>>& completions() {
  static const std::vector<std::vector<std::int64_t>> kCompletions{
      {7, 8, 9}, {10}, {11, 12}, {2, 7, 8, 9}};
  return kCompletions;
}

TokenBatch batch_of(const std::vector<std::size_t>& rows) {
  std::vector<TokenSequence> sequences;
  for (const std::size_t row : rows) sequences.push_back({prompts()[row], completions()[row]});
  return make_batch(sequences);
}

SafetensorsFile changed(const std::string& path, const std::string& name, at::Tensor value) {
  SafetensorsFile file = read_safetensors(path);
  for (auto& [found, tensor] : file.tensors) {
    if (found == name) tensor = value;
  }
  return file;
}

}  // namespace

TEST_CASE("frozen reference: the policy's numbers without a graph", "[policy]") {
  const auto policy = small_decoder(1);
  const auto reference = make_frozen_reference(policy->frozen_copy());
  const TokenBatch batch = batch_of({0, 1, 2, 3});
  const SequenceLogps live = sequence_logps(*policy, batch);
  CHECK(live.logps.requires_grad());
  // Bit for bit: a loss that compares a policy with its own copy starts at exactly log 2.
  CHECK(at::equal(reference->sequence_logps(batch), live.logps));
  CHECK(at::equal(reference->token_logps(batch), live.token_logps));
  CHECK_FALSE(reference->sequence_logps(batch).requires_grad());
  CHECK_FALSE(make_frozen_reference(policy)->sequence_logps(batch).requires_grad());
  CHECK(reference->policy() != nullptr);
  CHECK(reference->policy() != policy.get());

  policy->named_parameters().front().value.detach().mul_(2);
  CHECK(at::equal(reference->sequence_logps(batch), live.logps));
  CHECK_THROWS_TEXT(make_frozen_reference(nullptr), ConfigError,
                    "reference: expected a policy, got none");
}

TEST_CASE("cached reference: cached equals live bit for bit, in memory and from disk", "[policy]") {
  const auto dtype = GENERATE(at::kFloat, at::kDouble);
  const auto level = GENERATE(CacheLevel::kSequence, CacheLevel::kToken);
  const TempDir dir;
  const auto policy = small_decoder(1);
  policy->to(dtype);
  const TokenBatch batch = batch_of({0, 1, 2, 3});
  const auto live = make_frozen_reference(policy);
  const at::Tensor sums = live->sequence_logps(batch);
  const at::Tensor tokens = live->token_logps(batch);

  CachedReference first(policy, dir.path(), level);
  CHECK(at::equal(first.sequence_logps(batch), sums));
  CHECK(first.misses() == 4);
  CHECK(first.hits() == 0);
  CHECK(at::equal(first.sequence_logps(batch), sums));
  CHECK(first.hits() == 4);
  CHECK_FALSE(std::filesystem::exists(first.path()));
  first.flush();
  CHECK(std::filesystem::exists(first.path()));

  CachedReference second(policy, dir.path(), level);
  CHECK(second.path() == first.path());
  CHECK(at::equal(second.sequence_logps(batch), sums));
  if (level == CacheLevel::kToken) {
    const at::Tensor cached = second.token_logps(batch);
    CHECK(cached.scalar_type() == dtype);
    CHECK(at::equal(cached, tokens));
  }
  CHECK(second.misses() == 0);
}

TEST_CASE("cached reference: order, padding and company of a sequence do not matter", "[policy]") {
  const TempDir dir;
  const auto policy = small_decoder(1);
  policy->to(at::kDouble);
  CachedReference cache(policy, dir.path(), CacheLevel::kToken);
  const at::Tensor all = cache.sequence_logps(batch_of({0, 1, 2, 3}));
  const at::Tensor turned = cache.sequence_logps(batch_of({2, 0}));
  CHECK(cache.misses() == 4);
  CHECK(cache.hits() == 2);
  CHECK(turned[0].item<double>() == all[2].item<double>());
  CHECK(turned[1].item<double>() == all[0].item<double>());

  // Tokens of a reordered batch, some of them new.
  CachedReference other(policy, dir.file("other"), CacheLevel::kToken);
  other.token_logps(batch_of({3}));
  const TokenBatch mixed = batch_of({1, 3, 2});
  CHECK(at::allclose(other.token_logps(mixed), make_frozen_reference(policy)->token_logps(mixed), 0,
                     1e-12));
  CHECK(other.misses() == 3);
  CHECK(other.hits() == 1);
}

TEST_CASE("cached reference: the border of prompt and completion is part of the key", "[policy]") {
  // Rows 0 and 3 hold the same tokens, 1 2 7 8 9, cut at different places.
  const TempDir dir;
  const auto policy = small_decoder(1);
  CachedReference cache(policy, dir.path());
  cache.sequence_logps(batch_of({0}));
  const at::Tensor cached = cache.sequence_logps(batch_of({3}));
  CHECK(cache.hits() == 0);
  CHECK(at::equal(cached, make_frozen_reference(policy)->sequence_logps(batch_of({3}))));
}

TEST_CASE("cached reference: what is kept of a sequence serves any weights of its tokens",
          "[policy]") {
  const TempDir dir;
  const auto policy = small_decoder(1);
  TokenBatch batch = batch_of({0, 1, 2});
  const auto count = batch.completion_lens.sum().item<std::int64_t>();
  CachedReference cache(policy, dir.path(), CacheLevel::kToken);
  for (const double first : {0.0, 2.0}) {
    batch.token_weights = at::linspace(first, 1, count, at::kDouble);
    CHECK(at::allclose(cache.sequence_logps(batch), sequence_logps(*policy, batch).logps, 1e-12));
  }
  CHECK(cache.misses() == 3);
  TokenBatch bad = batch;
  bad.token_weights = batch.token_weights.slice(0, 1);
  CHECK_THROWS_TEXT(cache.sequence_logps(bad), ShapeError,
                    "cached reference: expected token_weights [" + std::to_string(count) +
                        "], got [" + std::to_string(count - 1) + "]");
  bad.token_weights = batch.token_weights.to(at::kFloat);
  CHECK_THROWS_TEXT(cache.sequence_logps(bad), DtypeError,
                    "cached reference: expected token_weights of dtype Double, got Float");
  CHECK_THROWS_TEXT(CachedReference(policy, dir.path()).sequence_logps(batch), ConfigError,
                    "cached reference: expected a cache of token level for weighted tokens, got "
                    "sequence level");
}

TEST_CASE("cached reference: another model's log-probs are never used", "[policy]") {
  const TempDir dir;
  const TokenBatch batch = batch_of({0, 1});
  const auto first = small_decoder(1);
  { CachedReference(first, dir.path()).sequence_logps(batch); }  // the destructor writes

  SECTION("its own file") {
    const auto second = small_decoder(2);
    CachedReference cache(second, dir.path());
    CHECK(at::equal(cache.sequence_logps(batch),
                    make_frozen_reference(second)->sequence_logps(batch)));
    CHECK(cache.misses() == 2);
  }
  SECTION("equal weights, another number of heads") {
    DecoderOptions options = first->options();
    options.num_attention_heads = 4;
    options.num_key_value_heads = 2;
    options.head_dim = 4;
    const auto second = std::make_shared<Decoder>(options);
    const at::NoGradGuard no_grad;
    for (std::size_t i = 0; i < first->named_parameters().size(); ++i) {
      second->named_parameters()[i].value.copy_(first->named_parameters()[i].value);
    }
    CachedReference cache(second, dir.path());
    cache.sequence_logps(batch);
    CHECK(cache.misses() == 2);
  }
  SECTION("a file that was renamed") {
    const auto second = small_decoder(2);
    const std::string from = CachedReference(first, dir.path()).path();
    const std::string to = CachedReference(second, dir.path()).path();
    std::filesystem::rename(from, to);
    CHECK_THROWS_TEXT(CachedReference(second, dir.path()), CheckpointError,
                      to +
                          ": expected metadata of format prefopt-reference-1, level sequence, "
                          "model " +
                          content_hash(*second) +
                          ", got other metadata; delete the file to compute it again");
  }
  SECTION("the level is part of the name") {
    CachedReference cache(first, dir.path(), CacheLevel::kToken);
    cache.token_logps(batch);
    CHECK(cache.misses() == 2);
  }
}

TEST_CASE("cached reference: new entries join those of the file", "[policy]") {
  const TempDir dir;
  const auto policy = small_decoder(1);
  { CachedReference(policy, dir.path()).sequence_logps(batch_of({0, 1})); }
  {
    CachedReference cache(policy, dir.path());
    cache.sequence_logps(batch_of({1, 2}));
    CHECK(cache.hits() == 1);
    CHECK(cache.misses() == 1);
  }
  CachedReference cache(policy, dir.path());
  cache.sequence_logps(batch_of({0, 1, 2}));
  CHECK(cache.hits() == 3);
}

TEST_CASE("cached reference: a broken file is refused by name", "[policy]") {
  const TempDir dir;
  const auto policy = small_decoder(1);
  std::string path;
  {
    CachedReference cache(policy, dir.path(), CacheLevel::kToken);
    cache.token_logps(batch_of({0, 1}));
    path = cache.path();
  }
  const std::string hint = "; delete the file to compute it again";
  const auto refuse = [&](const std::string& name, const at::Tensor& value,
                          const std::string& text) {
    const SafetensorsFile good = read_safetensors(path);
    write_safetensors(path, changed(path, name, value));
    CHECK_THROWS_TEXT(CachedReference(policy, dir.path(), CacheLevel::kToken), CheckpointError,
                      path + ": " + text + hint);
    write_safetensors(path, good);
  };
  refuse("keys", at::zeros({2, 39}, at::kByte), "expected keys [n, 40], got [2, 39]");
  refuse("keys", at::zeros({2, 40}, at::kByte), "expected each key once, got a key twice");
  refuse("keys", at::zeros({2, 40}), "expected keys of dtype Byte, got Float");
  refuse("sequence_logps", at::zeros({3}, at::kDouble), "expected sequence_logps [2], got [3]");
  refuse("sequence_logps", at::zeros({2}), "expected sequence_logps of dtype Double, got Float");
  refuse("offsets", torch::tensor({0, 3, 5}, at::kLong),
         "expected offsets that rise from 0 to 4, got others");
  refuse("offsets", torch::tensor({0, 9, 4}, at::kLong),
         "expected offsets that rise from 0 to 4, got others");
  refuse("offsets", torch::tensor({-1, 3, 4}, at::kLong),
         "expected offsets that rise from 0 to 4, got others");
  refuse("token_logps", at::zeros({4}, at::kInt), "expected token_logps of dtype Float, got Int");

  SafetensorsFile file = read_safetensors(path);
  file.tensors.back().first = "other";
  write_safetensors(path, file);
  CHECK_THROWS_AS(CachedReference(policy, dir.path(), CacheLevel::kToken), CheckpointError);
  file.tensors.pop_back();
  write_safetensors(path, file);
  CHECK_THROWS_TEXT(CachedReference(policy, dir.path(), CacheLevel::kToken), CheckpointError,
                    path + ": expected 4 tensors, got 3" + hint);

  std::ofstream(path) << "not safetensors";
  CHECK_THROWS_AS(CachedReference(policy, dir.path(), CacheLevel::kToken), CheckpointError);
}

TEST_CASE("references at a sampling temperature", "[policy]") {
  const TempDir dir;
  const auto policy = small_decoder(1);
  const auto frozen = make_frozen_reference(policy);
  const TokenBatch batch = batch_of({0, 1, 2, 3});
  SequenceLogpsOptions options;
  options.temperature = 0.5;
  const at::Tensor expected = sequence_logps(*policy, batch, options).token_logps.detach();
  const at::Tensor got = frozen->tempered_token_logps(batch, 0.5);
  CHECK(at::equal(got, expected));
  CHECK_FALSE(got.requires_grad());
  CHECK_FALSE(at::allclose(got, frozen->token_logps(batch)));
  CHECK(at::equal(frozen->tempered_token_logps(batch, 1), frozen->token_logps(batch)));

  const MovingReferenceOptions still{.rule = MovingRule::kHard};
  CHECK(at::equal(MovingReference(*policy, still).tempered_token_logps(batch, 0.5), expected));
  CHECK(at::equal(RandomPastReference(*policy, 2, 1).tempered_token_logps(batch, 0.5), expected));
  const auto other = make_frozen_reference(small_decoder(2));
  CombinedReference combined({{frozen, 0.25}, {other, 0.75}});
  CHECK(at::allclose(combined.tempered_token_logps(batch, 0.5),
                     expected * 0.25 + other->tempered_token_logps(batch, 0.5) * 0.75, 0, 1e-6));

  CachedReference cache(policy, dir.path(), CacheLevel::kToken);
  CHECK(at::equal(cache.tempered_token_logps(batch, 1), cache.token_logps(batch)));
  CHECK_THROWS_TEXT(cache.tempered_token_logps(batch, 0.5), ConfigError,
                    "cached reference: expected temperature 1, at which log-probs are kept, got "
                    "0.5; use the reference without a cache");
  class Given final : public Reference {
   public:
    at::Tensor sequence_logps(const TokenBatch&) override { return at::zeros({1}); }
    at::Tensor token_logps(const TokenBatch&) override { return at::ones({1}); }
  } given;
  CHECK(at::equal(given.tempered_token_logps(batch, 1), at::ones({1})));
  CHECK_THROWS_TEXT(given.tempered_token_logps(batch, 0.5), ConfigError,
                    "reference: expected temperature 1 of a reference without logits, got 0.5");
}

TEST_CASE("cached reference: misuse is refused", "[policy]") {
  const TempDir dir;
  const auto policy = small_decoder(1);
  CachedReference cache(policy, dir.path());
  CHECK_THROWS_TEXT(
      cache.token_logps(batch_of({0})), ConfigError,
      "cached reference: expected a cache of token level for token_logps, got sequence level");
  CHECK_THROWS_TEXT(CachedReference(nullptr, dir.path()), ConfigError,
                    "cached reference: expected a policy, got none");
  std::ofstream(dir.file("file")) << "x";
  CHECK_THROWS_TEXT(CachedReference(policy, dir.file("file/cache")), CheckpointError,
                    dir.file("file/cache") + ": expected to create a folder, got Not a directory");
}

}  // namespace prefopt::test_reference
