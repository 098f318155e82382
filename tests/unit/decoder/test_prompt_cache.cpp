// SPDX-License-Identifier: Apache-2.0
#include <cstring>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "prefopt/decoder/decoder.h"
#include "prefopt/decoder/prompt_cache.h"
#include "prefopt/error.h"
#include "prefopt/policy/sampling.h"
#include "support/catch.h"
#include "support/errors.h"
#include "train/optimizer.h"

namespace prefopt::test_prompt_cache {
namespace {

using Prompts = std::vector<std::vector<std::int64_t>>;

const Prompts& some_prompts() {
  static const Prompts prompts{{1, 2, 3, 4, 5}, {7, 8}, {1, 2, 3, 4, 5}, {9}};
  return prompts;
}

std::shared_ptr<Decoder> small_decoder(int seed = 5) {
  torch::manual_seed(seed);
  return std::make_shared<Decoder>(DecoderOptions{.vocab_size = 23,
                                                  .hidden_size = 16,
                                                  .intermediate_size = 20,
                                                  .num_hidden_layers = 2,
                                                  .num_attention_heads = 4,
                                                  .num_key_value_heads = 2,
                                                  .qk_norm = true,
                                                  .tie_word_embeddings = false,
                                                  .initializer_range = 0.4});
}

/// A cache of that size while it lives.
class CacheOf {
 public:
  explicit CacheOf(std::int64_t bytes) { set_prompt_cache(bytes); }
  ~CacheOf() { set_prompt_cache(0); }
  CacheOf(const CacheOf&) = delete;
  CacheOf& operator=(const CacheOf&) = delete;
};

/// Hits and misses of a call.
struct Use {
  std::int64_t hits, misses;
  bool operator==(const Use&) const = default;
};
std::ostream& operator<<(std::ostream& out, const Use& use) {
  return out << use.hits << " hits, " << use.misses << " misses";
}

Use use_of(const std::function<void()>& call) {
  const PromptCacheCounts before = prompt_cache_counts();
  call();
  const PromptCacheCounts after = prompt_cache_counts();
  return {after.hits - before.hits, after.misses - before.misses};
}

/// Logits after the prompts, and after a token more.
std::vector<at::Tensor> logits_of(Decoder& decoder, const Prompts& prompts = some_prompts()) {
  const auto session = decoder.start_decoding(prompts);
  const at::Tensor after_prompt = session->prefill();
  const at::Tensor tokens = at::arange(std::ssize(prompts));
  return {after_prompt, session->append(tokens)};
}

bool are_equal(const std::vector<at::Tensor>& a, const std::vector<at::Tensor>& b) {
  return at::equal(a[0], b[0]) && at::equal(a[1], b[1]);
}

/// The answer of a decoder without a cache.
std::vector<at::Tensor> fresh_logits_of(Decoder& decoder) {
  set_prompt_cache(0);
  return logits_of(decoder);
}

constexpr std::int64_t kMuch = 1 << 20;

}  // namespace

TEST_CASE("prompt cache: off unless asked for", "[decoder]") {
  const auto decoder = small_decoder();
  CHECK(use_of([&] { logits_of(*decoder), logits_of(*decoder); }) == Use{0, 0});
  CHECK(prompt_cache_counts().bytes == 0);
  CHECK_THROWS_TEXT(set_prompt_cache(-1), ConfigError,
                    "set_prompt_cache: expected bytes >= 0, got -1");
}

TEST_CASE("prompt cache: the same bits without the prompts' passes", "[decoder]") {
  const auto decoder = small_decoder();
  const auto expected = logits_of(*decoder);
  const CacheOf cache(kMuch);
  CHECK(use_of([&] { CHECK(are_equal(logits_of(*decoder), expected)); }) == Use{0, 3});
  CHECK(use_of([&] { CHECK(are_equal(logits_of(*decoder), expected)); }) == Use{3, 0});
  CHECK(use_of([&] {
          const auto some = logits_of(*decoder, {{7, 8}, {9, 9}});
          CHECK(at::equal(some[0][0], expected[0][1]));
        }) == Use{1, 1});
  // A session that begins again, and one whose logits are changed by its caller.
  const auto session = decoder->start_decoding(some_prompts());
  session->prefill().fill_(0);
  CHECK(at::equal(session->prefill(), expected[0]));
  const SamplingOptions options{.max_new_tokens = 6, .seed = 3};
  const auto sampled = sample(*decoder, some_prompts(), options);
  set_prompt_cache(0);
  CHECK(prompt_cache_counts().bytes == 0);
  CHECK(sample(*decoder, some_prompts(), options) == sampled);
}

TEST_CASE("prompt cache: a change of any weight is seen", "[decoder]") {
  const auto decoder = small_decoder();
  for (const auto& [name, value] : decoder->named_parameters()) {
    INFO(name);
    set_prompt_cache(kMuch);
    const auto before = logits_of(*decoder);
    {
      const at::NoGradGuard no_grad;
      value.mul_(1.5).add_(0.1);
    }
    std::vector<at::Tensor> after;
    CHECK(use_of([&] { after = logits_of(*decoder); }) == Use{0, 3});
    CHECK_FALSE(are_equal(after, before));
    CHECK(are_equal(after, fresh_logits_of(*decoder)));
  }
}

// The control of the case above: where no counter moves, what was kept is what is given.
TEST_CASE("prompt cache: a write that no version counter sees is not seen", "[decoder]") {
  const auto decoder = small_decoder();
  const CacheOf cache(kMuch);
  const auto before = logits_of(*decoder);
  const at::Tensor weight = decoder->named_parameters().front().value;
  weight.mutable_data_ptr<float>()[5 * 16] += 3;  // of token 5, which ends a prompt
  CHECK(are_equal(logits_of(*decoder), before));
  weight.unsafeGetTensorImpl()->bump_version();
  const auto after = logits_of(*decoder);
  CHECK_FALSE(are_equal(after, before));
  CHECK(are_equal(after, fresh_logits_of(*decoder)));
}

TEST_CASE("prompt cache: steps of every optimizer are seen", "[decoder]") {
  struct Case {
    OptimizerOptions options;
    at::ScalarType dtype;
  };
  const std::vector<Case> cases{
      {{.learning_rate = 0.1}, at::kFloat},
      {{.type = OptimizerType::kRmsprop, .learning_rate = 0.1}, at::kFloat},
      {{.type = OptimizerType::kAdafactor, .learning_rate = 0.1}, at::kFloat},
      {{.learning_rate = 0.1}, at::kBFloat16},
      {{.learning_rate = 0.1, .masters = Masters::kStochastic}, at::kBFloat16}};
  for (std::size_t i = 0; i < cases.size(); ++i) {
    for (const bool has_adapter : {false, true}) {
      INFO("case " << i << ", adapter " << has_adapter);
      const auto decoder = small_decoder();
      decoder->to(cases[i].dtype);
      decoder->set_requires_grad(true);
      if (has_adapter) decoder->add_adapter({.r = 2, .init_lora_weights = "false"});
      detail::Optimizer optimizer(decoder->named_parameters(), cases[i].options);
      set_prompt_cache(kMuch);
      for (int step = 0; step < 3; ++step) {
        logits_of(*decoder);
        optimizer.zero_grad();
        for (const auto& [name, value] : decoder->named_parameters()) {
          if (value.requires_grad()) value.mutable_grad() = at::randn_like(value);
        }
        optimizer.step(cases[i].options.learning_rate, 1);
        CHECK(use_of([&] { logits_of(*decoder); }) == Use{0, 3});
        const auto kept = logits_of(*decoder);
        CHECK(are_equal(kept, fresh_logits_of(*decoder)));
        set_prompt_cache(kMuch);
      }
    }
  }
  set_prompt_cache(0);
}

TEST_CASE("prompt cache: each model has its own", "[decoder]") {
  const auto decoder = small_decoder(), other = small_decoder(6);
  const auto expected = logits_of(*decoder), of_other = logits_of(*other);
  const CacheOf cache(kMuch);
  CHECK(are_equal(logits_of(*decoder), expected));
  CHECK(are_equal(logits_of(*other), of_other));
  CHECK(use_of([&] { CHECK(are_equal(logits_of(*decoder), expected)); }) == Use{3, 0});
  // The model under an adapter shares its weights, not its results.
  decoder->add_adapter({.r = 2, .init_lora_weights = "false"});
  const auto base = decoder->without_adapter();
  const auto adapted = logits_of(*decoder);
  CHECK_FALSE(are_equal(adapted, expected));
  CHECK(are_equal(logits_of(*base), expected));
  CHECK(use_of([&] { CHECK(are_equal(logits_of(*base), expected)); }) == Use{3, 0});
  CHECK(use_of([&] { CHECK(are_equal(logits_of(*decoder), adapted)); }) == Use{3, 0});
}

TEST_CASE("prompt cache: what belongs to no model any more is freed", "[decoder]") {
  const CacheOf cache(kMuch);
  const auto decoder = small_decoder();
  logits_of(*decoder);
  const std::int64_t of_one = prompt_cache_counts().bytes;
  {
    const auto other = small_decoder(6);
    logits_of(*other);
    CHECK(prompt_cache_counts().bytes == 2 * of_one);
  }
  logits_of(*decoder);
  CHECK(prompt_cache_counts().bytes == of_one);
}

TEST_CASE("prompt cache: the bytes are a bound, and the oldest use makes room", "[decoder]") {
  const auto decoder = small_decoder();
  // [layers, 2, kv heads, tokens, head_dim] and the logits, in float32.
  const std::int64_t of_token = 2 * 2 * 2 * 4 * 4, of_logits = 23 * 4;
  const CacheOf cache(2 * of_token + 2 * of_logits);
  const auto uses = [&](const Prompts& prompts) {
    const Use use = use_of([&] { logits_of(*decoder, prompts); });
    CHECK(prompt_cache_counts().bytes <= 2 * of_token + 2 * of_logits);
    return use;
  };
  CHECK(uses({{1}}) == Use{0, 1});
  CHECK(prompt_cache_counts().bytes == of_token + of_logits);
  CHECK(uses({{2}}) == Use{0, 1});
  CHECK(uses({{1}}) == Use{1, 0});
  CHECK(uses({{3}}) == Use{0, 1});  // in the place of 2
  CHECK(uses({{1}}) == Use{1, 0});
  CHECK(uses({{2}}) == Use{0, 1});
  CHECK(uses({{1, 2, 3, 4, 5, 6}}) == Use{0, 1});  // too large to be kept
  CHECK(uses({{1}}) == Use{1, 0});
}

}  // namespace prefopt::test_prompt_cache
