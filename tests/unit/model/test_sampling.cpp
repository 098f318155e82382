// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <cmath>
#include <map>

#include "prefopt/error.h"
#include "prefopt/model/decoder.h"
#include "prefopt/model/sampling.h"
#include "support/catch.h"
#include "support/errors.h"

namespace prefopt {
namespace {

using Prompts = std::vector<std::vector<std::int64_t>>;

std::shared_ptr<Decoder> small_decoder() {
  torch::manual_seed(5);
  return std::make_shared<Decoder>(DecoderOptions{.vocab_size = 13,
                                                  .hidden_size = 16,
                                                  .intermediate_size = 24,
                                                  .num_hidden_layers = 2,
                                                  .num_attention_heads = 4,
                                                  .num_key_value_heads = 2,
                                                  .initializer_range = 0.5});
}

/// The same logits after every token; runs through the default session.
class MemorylessPolicy final : public Policy {
 public:
  explicit MemorylessPolicy(at::Tensor logits) : logits_(std::move(logits)) {}

  PolicyOutput forward(const TokenBatch& batch) override {
    return {.hidden = {},
            .logits = logits_.expand({batch.input_ids.size(0), batch.input_ids.size(1), -1})};
  }
  std::int64_t vocab_size() const override { return logits_.size(0); }
  std::vector<NamedParameter> named_parameters() const override { return {}; }

 private:
  at::Tensor logits_;
};

std::vector<float> row_of(const at::Tensor& probabilities) {
  const auto* data = probabilities.const_data_ptr<float>();
  return {data, data + probabilities.size(1)};
}

/// log(1, 2, 3, 4) / 10 as logits: probabilities 0.1, 0.2, 0.3, 0.4 in another order.
at::Tensor four_logits() { return torch::tensor({{3.0, 1.0, 4.0, 2.0}}, at::kDouble).log(); }

}  // namespace

TEST_CASE("sampling_probabilities: temperature", "[model]") {
  const auto near = [](const std::vector<float>& got, const std::vector<double>& expected) {
    REQUIRE(got.size() == expected.size());
    for (std::size_t i = 0; i < got.size(); ++i) CHECK(got[i] == Approx(expected[i]).margin(1e-7));
  };
  near(row_of(sampling_probabilities(four_logits(), {})), {0.3, 0.1, 0.4, 0.2});
  // Half the temperature squares the weights: 9, 1, 16, 4 of 30.
  near(row_of(sampling_probabilities(four_logits(), {.temperature = 0.5})),
       {0.3, 1.0 / 30, 16.0 / 30, 4.0 / 30});
  near(row_of(sampling_probabilities(four_logits(), {.temperature = 0})), {0, 0, 1, 0});
  near(row_of(sampling_probabilities(torch::tensor({{1.0, 2.0, 2.0}}), {.temperature = 0})),
       {0, 1, 0});
  // So cold that logits / temperature overflows.
  near(row_of(sampling_probabilities(four_logits() * 1e5, {.temperature = 1e-308})), {0, 0, 1, 0});
}

TEST_CASE("sampling_probabilities: top-k and top-p", "[model]") {
  const auto near = [](SamplingOptions options, const std::vector<double>& expected) {
    const auto got = row_of(sampling_probabilities(four_logits(), options));
    for (std::size_t i = 0; i < got.size(); ++i) {
      CHECK(got[i] == Approx(expected[i]).margin(1e-7));
    }
  };
  near({.top_k = 1}, {0, 0, 1, 0});
  near({.top_k = 2}, {3.0 / 7, 0, 4.0 / 7, 0});
  near({.top_k = 3}, {3.0 / 9, 0, 4.0 / 9, 2.0 / 9});
  near({.top_k = 99}, {0.3, 0.1, 0.4, 0.2});
  near({.top_p = 1e-9}, {0, 0, 1, 0});
  near({.top_p = 0.39}, {0, 0, 1, 0});
  near({.top_p = 0.41}, {3.0 / 7, 0, 4.0 / 7, 0});
  near({.top_p = 0.69}, {3.0 / 7, 0, 4.0 / 7, 0});
  near({.top_p = 0.71}, {3.0 / 9, 0, 4.0 / 9, 2.0 / 9});
  near({.top_p = 0.95}, {0.3, 0.1, 0.4, 0.2});
  // Top-p works on what top-k left: 4/7 and 3/7.
  near({.top_k = 2, .top_p = 0.5}, {0, 0, 1, 0});
  near({.top_k = 2, .top_p = 0.6}, {3.0 / 7, 0, 4.0 / 7, 0});
}

TEST_CASE("sampling_probabilities: exactly k of equal logits stay, the first ones", "[model]") {
  const auto got = row_of(sampling_probabilities(at::zeros({1, 6}), {.top_k = 2}));
  CHECK(got == std::vector<float>{0.5f, 0.5f, 0, 0, 0, 0});
}

TEST_CASE("sampling_probabilities: rows, dtypes and impossible tokens", "[model]") {
  const at::Tensor logits = torch::tensor({{0.0f, -INFINITY, 0.0f}, {5.0f, 5.0f, 5.0f}});
  for (const auto dtype : {at::kFloat, at::kDouble, at::kBFloat16}) {
    const at::Tensor got = sampling_probabilities(logits.to(dtype), {.top_p = 0.999});
    CHECK(got.scalar_type() == at::kFloat);
    CHECK(got.sizes() == logits.sizes());
    CHECK(got[0][1].item<float>() == 0);
    CHECK(got[0][0].item<float>() == Approx(0.5));
    CHECK(got[1][2].item<float>() == Approx(1.0 / 3));
  }
}

TEST_CASE("sampling: wrong options and logits are refused", "[model]") {
  const at::Tensor logits = at::zeros({2, 3});
  const auto refuse = [&](SamplingOptions options, const std::string& text) {
    CHECK_THROWS_TEXT(sampling_probabilities(logits, options), ConfigError, "sampling: " + text);
  };
  refuse({.temperature = -1}, "expected temperature >= 0, got -1");
  refuse({.temperature = NAN}, "expected temperature >= 0, got nan");
  refuse({.top_k = -1}, "expected top_k >= 0, got -1");
  refuse({.top_p = 0}, "expected top_p in (0, 1], got 0");
  refuse({.top_p = 1.5}, "expected top_p in (0, 1], got 1.5");
  refuse({.max_new_tokens = 0}, "expected max_new_tokens >= 1, got 0");
  refuse({.eos_id = -2}, "expected eos_id >= -1, got -2");

  CHECK_THROWS_TEXT(sampling_probabilities(at::zeros({3}), {}), ShapeError,
                    "sampling: expected logits [S, vocab], got [3]");
  CHECK_THROWS_TEXT(sampling_probabilities(at::zeros({2, 3}, at::kLong), {}), DtypeError,
                    "sampling: expected floating logits, got Long");
  CHECK_THROWS_TEXT(sampling_probabilities(torch::tensor({{0.0f, 1.0f}, {0.0f, NAN}}), {}),
                    NonFiniteError,
                    "sampling: expected finite logits, got nan as the highest of sequence 1");
  CHECK_THROWS_TEXT(sampling_probabilities(torch::tensor({{0.0f, INFINITY}}), {.temperature = 0}),
                    NonFiniteError,
                    "sampling: expected finite logits, got inf as the highest of sequence 0");
  CHECK_THROWS_TEXT(sampling_probabilities(at::full({1, 2}, -INFINITY), {}), NonFiniteError,
                    "sampling: expected finite logits, got -inf as the highest of sequence 0");

  MemorylessPolicy policy(at::zeros({4}));
  CHECK_THROWS_TEXT(sample(policy, {{1}}, {.eos_id = 4}), ConfigError,
                    "sampling: expected eos_id below the vocabulary size 4, got 4");
  CHECK_THROWS_TEXT(
      sample(policy, {{1}, {}}, {}), ShapeError,
      "start_decoding: expected at least one token in each prompt, got none in prompt 1");
  CHECK(sample(policy, {}, {}).empty());
}

TEST_CASE("sample: greedy equals the argmax of whole forwards", "[model]") {
  const auto decoder = small_decoder();
  const Prompts prompts{{1, 2, 3, 4, 5}, {6}, {7, 8}};
  const auto got = sample(*decoder, prompts, {.max_new_tokens = 12, .temperature = 0});
  const at::NoGradGuard no_grad;
  for (std::size_t s = 0; s < prompts.size(); ++s) {
    std::vector<std::int64_t> tokens = prompts[s];
    for (int step = 0; step < 12; ++step) {
      const at::Tensor ids = at::tensor(tokens, at::kLong).unsqueeze(0);
      const at::Tensor hidden = decoder
                                    ->forward({.input_ids = ids,
                                               .attention_mask = at::ones_like(ids, at::kBool),
                                               .completion_mask = {},
                                               .completion_lens = {}})
                                    .hidden;
      const at::Tensor logits = decoder->head().weight.mv(hidden[0][-1]);
      tokens.push_back(logits.argmax().item<std::int64_t>());
    }
    tokens.erase(tokens.begin(), tokens.begin() + std::ssize(prompts[s]));
    CHECK(got[s] == tokens);
  }
}

TEST_CASE("sample: draws follow the probabilities", "[model]") {
  // Chi-square with 3 degrees of freedom: above 16.27 in one of 1000 cases. The seed is fixed.
  MemorylessPolicy policy(four_logits()[0]);
  const std::int64_t draws = 20000;
  const auto completions =
      sample(policy, Prompts(100, {0}), {.max_new_tokens = draws / 100, .seed = 11});
  std::vector<double> counts(4, 0);
  for (const auto& completion : completions) {
    for (const auto token : completion) ++counts[static_cast<std::size_t>(token)];
  }
  const std::vector<double> expected{0.3, 0.1, 0.4, 0.2};
  double chi_square = 0;
  for (std::size_t i = 0; i < 4; ++i) {
    const double mean = expected[i] * static_cast<double>(draws);
    chi_square += (counts[i] - mean) * (counts[i] - mean) / mean;
  }
  CHECK(chi_square < 16.27);
  CHECK(chi_square > 0.02);  // below in one of 1000 cases too: draws that are too even
}

TEST_CASE("sample: a sample depends on seed and index, not on its neighbours", "[model]") {
  const auto decoder = small_decoder();
  const Prompts prompts{{1, 2, 3}, {4}, {5, 6, 7, 8}, {4}};
  const SamplingOptions options{.max_new_tokens = 20, .seed = 3};
  const auto all = sample(*decoder, prompts, options);
  CHECK(sample(*decoder, prompts, options) == all);
  CHECK(all[1] != all[3]);

  SamplingOptions other = options;
  other.seed = 4;
  CHECK(sample(*decoder, prompts, other) != all);

  for (std::size_t s = 0; s < prompts.size(); ++s) {
    SamplingOptions alone = options;
    alone.first_index = static_cast<std::int64_t>(s);
    CHECK(sample(*decoder, {prompts[s]}, alone).front() == all[s]);
  }

  const int threads = at::get_num_threads();
  at::set_num_threads(1);
  CHECK(sample(*decoder, prompts, options) == all);
  at::set_num_threads(threads);
}

TEST_CASE("sample: the end token ends a completion and is kept", "[model]") {
  MemorylessPolicy policy(four_logits()[0]);
  const auto completions =
      sample(policy, Prompts(50, {0}), {.max_new_tokens = 8, .eos_id = 3, .seed = 1});
  std::map<bool, int> ended;
  for (const auto& completion : completions) {
    const auto first = std::find(completion.begin(), completion.end(), 3);
    const bool has_end = first != completion.end();
    ++ended[has_end];
    CHECK((has_end ? first + 1 == completion.end() : completion.size() == 8));
  }
  CHECK(ended[true] > 0);
  CHECK(ended[false] > 0);

  // When all have ended, nothing more is drawn.
  MemorylessPolicy ends(at::tensor({0.0f, 100.0f}));
  CHECK(sample(ends, {{0}, {0, 0}}, {.max_new_tokens = 1000, .eos_id = 1}) == Prompts{{1}, {1}});
}

TEST_CASE("sample: no gradient is kept and none is switched off", "[model]") {
  const auto decoder = small_decoder();
  sample(*decoder, {{1, 2}}, {.max_new_tokens = 3});
  for (const auto& [name, value] : decoder->named_parameters()) {
    CHECK(value.requires_grad());
    CHECK_FALSE(value.grad().defined());
  }
  CHECK(at::GradMode::is_enabled());
}

TEST_CASE("sampling: options as JSON", "[model]") {
  CHECK(options_to_json(SamplingOptions{}) ==
        R"({"max_new_tokens":64,"temperature":1.0,"top_k":0,"top_p":1.0,"eos_id":-1,"seed":0})");
}

}  // namespace prefopt
