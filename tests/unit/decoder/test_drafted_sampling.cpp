// SPDX-License-Identifier: Apache-2.0
#include <memory>
#include <string>
#include <vector>

#include "policy/draft_session.h"
#include "prefopt/decoder/decoder.h"
#include "prefopt/error.h"
#include "prefopt/policy/drafted_sampling.h"
#include "prefopt/policy/mixture_policy.h"
#include "support/catch.h"
#include "support/errors.h"

namespace prefopt::test_drafted_sampling {
namespace {

using Ids = std::vector<std::int64_t>;
using Prompts = std::vector<Ids>;

std::shared_ptr<Decoder> drafting_decoder(at::ScalarType dtype = at::kFloat,
                                          std::int64_t window = 0) {
  torch::manual_seed(11);
  auto decoder =
      std::make_shared<Decoder>(DecoderOptions{.family = window > 0 ? "mistral" : "llama",
                                               .vocab_size = 19,
                                               .hidden_size = 16,
                                               .intermediate_size = 20,
                                               .num_hidden_layers = 2,
                                               .num_attention_heads = 4,
                                               .num_key_value_heads = 2,
                                               .tie_word_embeddings = false,
                                               .initializer_range = 0.5,
                                               .sliding_window = window});
  decoder->to(dtype);
  return decoder;
}

/// Texts that repeat themselves, and some that do not.
const Prompts& repetitive_prompts() {
  static const Prompts prompts{{1, 2, 3, 4, 5, 1, 2, 3, 4, 5, 1, 2, 3},
                               {7},
                               {9, 9, 9, 9, 9, 9},
                               {1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11},
                               {4, 4, 8, 4, 4, 8, 4, 4}};
  return prompts;
}

}  // namespace

TEST_CASE("drafts: the completions are those of plain greedy decoding", "[decoder]") {
  for (const auto dtype : {at::kFloat, at::kDouble, at::kBFloat16}) {
    for (const std::int64_t window : {0, 5}) {
      const auto decoder = drafting_decoder(dtype, window);
      for (const std::int64_t length : {1, 2, 3, 40}) {
        for (const std::int64_t end : {-1, 3}) {
          const SamplingOptions options{
              .max_new_tokens = length, .temperature = 0, .eos_id = end, .extra_eos_ids = {12}};
          const auto expected = sample(*decoder, repetitive_prompts(), options);
          for (const std::int64_t draft : {1, 4, 100}) {
            INFO(dtype << ", window " << window << ", " << length << " tokens, end " << end
                       << ", draft " << draft);
            DraftCounts counts;
            CHECK(sample_with_drafts(*decoder, repetitive_prompts(), options, draft, &counts) ==
                  expected);
            CHECK(counts.accepted <= counts.drafted);
          }
        }
      }
    }
  }
}

TEST_CASE("drafts: text that repeats itself takes fewer passes", "[decoder]") {
  const auto decoder = drafting_decoder();
  const SamplingOptions options{.max_new_tokens = 60, .temperature = 0};
  DraftCounts counts;
  const auto completions = sample_with_drafts(*decoder, {{9, 9, 9, 9}}, options, 8, &counts);
  REQUIRE(completions[0].size() == 60);
  // The first token is the prompt's; each pass gives one token and those that it accepts.
  CHECK(counts.passes + counts.accepted == 59);
  CHECK(counts.accepted > 10);
}

TEST_CASE("drafts: stop strings end a completion within a draft", "[decoder]") {
  const auto decoder = drafting_decoder();
  SamplingOptions options{.max_new_tokens = 60, .temperature = 0};
  const Ids whole = sample(*decoder, {{9, 9, 9, 9}}, options)[0];
  for (const std::size_t last : {0U, 5U, 30U, 41U}) {
    options.eos_id = whole[last];
    CHECK(sample_with_drafts(*decoder, {{9, 9, 9, 9}}, options, 8) ==
          sample(*decoder, {{9, 9, 9, 9}}, options));
  }
}

TEST_CASE("draft session: several tokens at once, and back", "[decoder]") {
  const auto decoder = drafting_decoder();
  const auto plain = decoder->start_decoding({{1, 2, 3}, {4}});
  plain->prefill();
  std::vector<at::Tensor> expected;
  for (const auto& [a, b] : std::vector<std::pair<int, int>>{{5, 6}, {7, 8}, {9, 10}}) {
    expected.push_back(plain->append(at::tensor({a, b}, at::kLong)).clone());
  }
  const auto session = decoder->start_decoding({{1, 2, 3}, {4}});
  auto* drafts = dynamic_cast<detail::DraftSession*>(session.get());
  REQUIRE(drafts != nullptr);
  CHECK_THROWS_TEXT(drafts->append_all({{1}, {2}}), ConfigError,
                    "append: expected prefill to be called first, got append");
  session->prefill();
  const at::Tensor first = drafts->append_all({{5, 11, 12, 13}, {6}}).clone();
  CHECK(at::equal(first[0], expected[0][0]));
  CHECK(at::equal(first[4], expected[0][1]));
  drafts->take_back({3, 0});
  const at::Tensor second = drafts->append_all({{7}, {8, 10}}).clone();
  CHECK(at::equal(second[0], expected[1][0]));
  CHECK(at::equal(second[1], expected[1][1]));
  CHECK(at::equal(second[2], expected[2][1]));
  session->keep({0});
  CHECK(at::equal(session->append(at::tensor({9}, at::kLong))[0], expected[2][0]));
  CHECK_THROWS_TEXT(drafts->append_all({{1}, {2}}), ShapeError,
                    "append: expected tokens of 1 sequences, got of 2");
  CHECK_THROWS_TEXT(drafts->append_all({{}}), ShapeError,
                    "append: expected tokens of each sequence, got none of sequence 0");
  CHECK_THROWS_TEXT(drafts->append_all({{1, 19}}), DataError,
                    "append: expected token ids in [0, 19), got 19");
  CHECK_THROWS_TEXT(drafts->take_back({4}), ShapeError,
                    "take_back: expected 0 to 3 tokens of sequence 0, got 4");
  CHECK_THROWS_TEXT(drafts->take_back({0, 0}), ShapeError,
                    "take_back: expected counts of 1 sequences, got of 2");
}

TEST_CASE("drafts: what they are not for is refused", "[decoder]") {
  const auto decoder = drafting_decoder();
  const auto with = [&](SamplingOptions options, std::int64_t draft_tokens) {
    return sample_with_drafts(*decoder, {{1, 2}}, options, draft_tokens);
  };
  CHECK_THROWS_TEXT(with({.temperature = 0}, 0), ConfigError,
                    "draft_tokens: expected at least 1 token, got 0");
  CHECK_THROWS_TEXT(with({.temperature = 0.7}, 4), ConfigError,
                    "draft_tokens: expected greedy decoding (temperature 0), got temperature 0.7");
  CHECK_THROWS_TEXT(
      with({.temperature = 0, .repetition_penalty = 1.5}, 4), ConfigError,
      "draft_tokens: expected repetition_penalty 1 and min_new_tokens 0, whose logits depend on "
      "the tokens before, got 1.5 and 0");
  CHECK_THROWS_TEXT(with({.temperature = 0, .eos_id = 19}, 4), ConfigError,
                    "sampling: expected eos_id below the vocabulary size 19, got 19");
  CHECK(sample_with_drafts(*decoder, {}, {.temperature = 0}, 4).empty());
  MixturePolicy mixture(decoder, decoder->frozen_copy(), 0.5);
  CHECK_THROWS_TEXT(sample_with_drafts(mixture, {{1, 2}}, {.temperature = 0}, 4), ConfigError,
                    "draft_tokens: expected a decoder on the CPU without dynamic rotary scaling, "
                    "got a policy that decodes one token at a time");
}

}  // namespace prefopt::test_drafted_sampling
