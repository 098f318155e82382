// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "prefopt/data/tokenizer.h"
#include "prefopt/error.h"
#include "prefopt/policy/value_search.h"
#include "support/catch.h"
#include "support/errors.h"

namespace prefopt::test_value_search {
namespace {

using Ids = std::vector<std::int64_t>;

/// Writes 'a', 'b' or the end token, alike, then after a letter always the end of a step.
class LetterPolicy final : public Policy {
 public:
  PolicyOutput forward(const TokenBatch& batch) override {
    const auto sequences = batch.input_ids.size(0), width = batch.input_ids.size(1);
    at::Tensor logits = at::full({sequences, width, 259}, -1e9, at::kDouble);
    const at::Tensor is_letter = batch.input_ids.ge('a').logical_and(batch.input_ids.le('z'));
    for (const std::int64_t id : {std::int64_t{'a'}, std::int64_t{'b'}, std::int64_t{257}}) {
      logits.select(2, id).masked_fill_(is_letter.logical_not(), 0);
    }
    logits.select(2, '.').masked_fill_(is_letter, 0);
    return {.hidden = {}, .logits = logits};
  }
  std::int64_t vocab_size() const override { return 259; }
  std::vector<NamedParameter> named_parameters() const override {
    return {{"none", at::zeros({1})}};
  }
};

/// The value of a state: one for each 'b' in it, less one for each 'a'.
class CountingValues final : public RewardPolicy {
 public:
  at::Tensor rewards(const std::vector<TokenSequence>&) override { return {}; }
  at::Tensor token_values(const TokenBatch& batch) override {
    // One completion token each, the last real one, which is not part of the state.
    const at::Tensor state = batch.attention_mask.logical_and(batch.completion_mask.logical_not());
    const auto count = [&](std::int64_t id) {
      return batch.input_ids.eq(id).logical_and(state).sum(1).to(at::kDouble);
    };
    return count('b') - count('a');
  }
  std::int64_t vocab_size() const override { return 259; }
  std::vector<NamedParameter> named_parameters() const override {
    return {{"none", at::zeros({1})}};
  }
};

ValueSearchOptions options_of(std::int64_t beams) {
  ValueSearchOptions options{.beams = beams, .step_end = "."};
  options.sampling.max_new_tokens = 8;
  options.sampling.eos_id = 257;
  options.sampling.tokenizer = std::make_shared<ByteTokenizer>();
  return options;
}

std::string text_of(const ValuedCompletion& completion) {
  return ByteTokenizer().decode(completion.completion);
}

TEST_CASE("value search: beams follow the values", "[policy]") {
  LetterPolicy policy;
  CountingValues values;
  const Ids prompt{'?'};
  const auto best = search_by_values(policy, values, prompt, options_of(6));
  REQUIRE_FALSE(best.empty());
  CHECK(best.size() <= 6);
  CHECK(text_of(best.front()) == "b.b.b.b.");
  CHECK(best.front().value == 4);
  CHECK_FALSE(best.front().ended);
  CHECK(std::is_sorted(best.begin(), best.end(),
                       [](const auto& a, const auto& b) { return a.value > b.value; }));
  for (const ValuedCompletion& each : best) {
    const std::string text = text_of(each);
    const auto bs = std::count(text.begin(), text.end(), 'b');
    CHECK(each.value == static_cast<double>(bs - std::count(text.begin(), text.end(), 'a')));
    CHECK(each.ended == (each.completion.back() == 257));
    // Equal beams are one.
    CHECK(std::count_if(best.begin(), best.end(), [&](const auto& other) {
            return other.completion == each.completion;
          }) == 1);
  }
  // The same draws again, others for another place.
  CHECK(search_by_values(policy, values, prompt, options_of(6)).front().completion ==
        best.front().completion);
}

TEST_CASE("value search: one beam is a sample, step by step", "[policy]") {
  LetterPolicy policy;
  CountingValues values;
  std::vector<std::string> texts;
  for (std::int64_t place = 0; place < 24; ++place) {
    const auto one = search_by_values(policy, values, {'?'}, options_of(1), place);
    REQUIRE(one.size() == 1);
    texts.push_back(text_of(one.front()));
  }
  // Nothing is preferred: completions that end at once, and those of both letters.
  CHECK(std::count(texts.begin(), texts.end(), "") > 0);
  const auto begins_with = [&](char letter) {
    return std::count_if(texts.begin(), texts.end(), [&](const std::string& text) {
      return !text.empty() && text.front() == letter;
    });
  };
  CHECK(begins_with('a') > 0);
  CHECK(begins_with('b') > 0);
}

TEST_CASE("value search: options that cannot be meant", "[policy]") {
  LetterPolicy policy;
  CountingValues values;
  const auto refused = [&](const ValueSearchOptions& options, const std::string& text) {
    CHECK_THROWS_TEXT(search_by_values(policy, values, {'?'}, options), ConfigError, text);
  };
  refused(options_of(0), "value search: expected at least one beam, got 0");
  ValueSearchOptions options = options_of(2);
  options.step_end = "";
  refused(options, "value search: expected a text that ends steps, got ''");
  options = options_of(2);
  options.sampling.stop = {"x"};
  refused(options, "value search: expected no stop strings but that of steps, got some");
}

}  // namespace
}  // namespace prefopt::test_value_search
