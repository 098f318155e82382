// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <cmath>
#include <map>

#include "prefopt/data/tokenizer.h"
#include "prefopt/decoder/decoder.h"
#include "prefopt/error.h"
#include "prefopt/policy/sampling.h"
#include "prefopt/policy/sequence_logps.h"
#include "support/catch.h"
#include "support/errors.h"

namespace prefopt::test_sampling {
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

/// Norm weights other than one, biases and adapters other than zero, so that a forgotten one shows.
std::shared_ptr<Decoder> decoder_of(DecoderOptions options, at::ScalarType dtype = at::kDouble,
                                    bool adapted = false) {
  torch::manual_seed(7);
  options.initializer_range = 0.4;
  auto decoder = std::make_shared<Decoder>(options);
  if (adapted) decoder->add_adapter({.r = 3, .lora_alpha = 4});
  const at::NoGradGuard no_grad;
  for (const auto& [name, value] : decoder->named_parameters()) {
    if (value.dim() == 1 || name.ends_with("lora_B.weight")) {
      value.add_(at::randn_like(value), 0.3);
    }
  }
  decoder->to(dtype);
  return decoder;
}

/// Every size differs from every other, heads are grouped, and a head is wider than its share.
DecoderOptions odd_options() {
  return {.vocab_size = 23,
          .hidden_size = 12,
          .intermediate_size = 10,
          .num_hidden_layers = 3,
          .num_attention_heads = 4,
          .num_key_value_heads = 2,
          .head_dim = 6,
          .rope_theta = 100};
}

struct Variant {
  std::string name;
  std::shared_ptr<Decoder> decoder;
};

std::vector<Variant> variants(at::ScalarType dtype) {
  DecoderOptions qwen = odd_options();
  qwen.qk_norm = true;
  qwen.attention_bias = true;
  qwen.attention_output_bias = true;
  qwen.tie_word_embeddings = false;
  DecoderOptions one_layer = odd_options();
  one_layer.num_hidden_layers = 1;
  one_layer.num_key_value_heads = 4;
  return {{"grouped queries", decoder_of(odd_options(), dtype)},
          {"q/k norms, biases, own head", decoder_of(qwen, dtype)},
          {"adapter", decoder_of(qwen, dtype, /*adapted=*/true)},
          {"one layer", decoder_of(one_layer, dtype)}};
}

/// Ragged, some of them equal, one the beginning of another.
Prompts ragged_prompts() {
  return {{1, 2, 3, 4, 5}, {6}, {7, 8}, {1, 2, 3, 4, 5}, {6}, {7, 8, 9, 10, 11, 12, 13}, {6}};
}

/// Argmax after argmax of whole forwards of one sequence.
std::vector<std::int64_t> greedy(Decoder& decoder, std::vector<std::int64_t> tokens,
                                 std::int64_t count) {
  const at::NoGradGuard no_grad;
  std::vector<std::int64_t> said;
  while (std::ssize(said) < count) {
    const at::Tensor ids = at::tensor(tokens, at::kLong).unsqueeze(0);
    const at::Tensor hidden = decoder
                                  .forward({.input_ids = ids,
                                            .attention_mask = at::ones_like(ids, at::kBool),
                                            .completion_mask = {},
                                            .completion_lens = {}})
                                  .hidden;
    const at::Tensor logits = decoder.head().weight.mv(hidden[0][-1]);
    said.push_back(logits.argmax().item<std::int64_t>());
    tokens.push_back(said.back());
  }
  return said;
}

/// Counts of each next token of one row of logits, in `draws` draws, against probabilities.
double chi_square(Policy& policy, SamplingOptions options, const std::vector<double>& expected,
                  std::int64_t draws) {
  options.max_new_tokens = draws / 100;
  const auto completions = sample(policy, Prompts(100, {0}), options);
  std::vector<double> counts(expected.size(), 0);
  for (const auto& completion : completions) {
    for (const auto token : completion) ++counts[static_cast<std::size_t>(token)];
  }
  double sum = 0;
  for (std::size_t i = 0; i < expected.size(); ++i) {
    if (expected[i] == 0) {
      CHECK(counts[i] == 0);
      continue;
    }
    const double mean = expected[i] * static_cast<double>(draws);
    sum += (counts[i] - mean) * (counts[i] - mean) / mean;
  }
  return sum;
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

TEST_CASE("sampling_probabilities: temperature", "[policy]") {
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

TEST_CASE("sampling_probabilities: top-k and top-p", "[policy]") {
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

TEST_CASE("sampling_probabilities: exactly k of equal logits stay, the first ones", "[policy]") {
  const auto got = row_of(sampling_probabilities(at::zeros({1, 6}), {.top_k = 2}));
  CHECK(got == std::vector<float>{0.5f, 0.5f, 0, 0, 0, 0});
}

TEST_CASE("sampling_probabilities: rows, dtypes and impossible tokens", "[policy]") {
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

TEST_CASE("sampling: wrong options and logits are refused", "[policy]") {
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
  CHECK_THROWS_TEXT(sample(policy, {{1}}, {.extra_eos_ids = {1, 4}}), ConfigError,
                    "sampling: expected extra_eos_ids below the vocabulary size 4, got 4");
  CHECK_THROWS_TEXT(sample(policy, {{1}}, {.extra_eos_ids = {-1}}), ConfigError,
                    "sampling: expected extra_eos_ids >= 0, got -1");
  CHECK_THROWS_TEXT(
      sample(policy, {{1}, {}}, {}), ShapeError,
      "start_decoding: expected at least one token in each prompt, got none in prompt 1");
  CHECK(sample(policy, {}, {}).empty());
}

TEST_CASE("sample: greedy equals the argmax of whole forwards", "[policy]") {
  const Prompts prompts = ragged_prompts();
  for (const auto& [name, decoder] : variants(at::kDouble)) {
    INFO(name);
    const auto got = sample(*decoder, prompts, {.max_new_tokens = 12, .temperature = 0});
    for (std::size_t s = 0; s < prompts.size(); ++s) {
      CHECK(got[s] == greedy(*decoder, prompts[s], 12));
    }
  }
}

TEST_CASE("sample: more tokens than there is room for at first", "[policy]") {
  const auto decoder = decoder_of(odd_options());
  const auto got = sample(*decoder, {{1, 2}, {3}}, {.max_new_tokens = 150, .temperature = 0});
  CHECK(got[0] == greedy(*decoder, {1, 2}, 150));
  CHECK(got[1] == greedy(*decoder, {3}, 150));
}

TEST_CASE("sample: sequences end at different times, and the others go on as before", "[policy]") {
  const Prompts prompts = ragged_prompts();
  for (const auto& [name, decoder] : variants(at::kDouble)) {
    Prompts endless;
    for (const auto& prompt : prompts) endless.push_back(greedy(*decoder, prompt, 9));
    // Among the tokens as end tokens are those that end some sequences early and others late.
    for (std::int64_t eos = 0; eos < decoder->vocab_size(); ++eos) {
      INFO(name << ", end token " << eos);
      const auto got =
          sample(*decoder, prompts, {.max_new_tokens = 9, .temperature = 0, .eos_id = eos});
      for (std::size_t s = 0; s < prompts.size(); ++s) {
        const auto end = std::find(endless[s].begin(), endless[s].end(), eos);
        CHECK(got[s] == std::vector<std::int64_t>(endless[s].begin(),
                                                  end == endless[s].end() ? end : end + 1));
      }
    }
  }
}

TEST_CASE("sample: any of several end tokens ends a completion", "[policy]") {
  MemorylessPolicy policy(four_logits()[0]);
  const SamplingOptions options{
      .max_new_tokens = 50, .eos_id = 3, .seed = 2, .extra_eos_ids = {1, 2}};
  std::map<std::int64_t, int> last;
  for (const auto& completion : sample(policy, Prompts(50, {0}), options)) {
    CHECK(std::all_of(completion.begin(), completion.end() - 1,
                      [](std::int64_t token) { return token == 0; }));
    ++last[completion.back()];
  }
  CHECK(last[1] > 0);
  CHECK(last[2] > 0);
  CHECK(last[3] > 0);
}

TEST_CASE("sample_with_logps: log-probs are those of sequence_logps", "[policy]") {
  const Prompts prompts = ragged_prompts();
  const std::vector<std::pair<at::ScalarType, double>> tolerances{{at::kDouble, 1e-12},
                                                                  {at::kFloat, 1e-5}};
  for (const auto& [dtype, tolerance] : tolerances) {
    for (const auto& [name, decoder] : variants(dtype)) {
      INFO(name << ", " << c10::toString(dtype));
      // Options that shape the draws leave the log-probs alone.
      const SamplingOptions options{
          .max_new_tokens = 10, .temperature = 0.7, .top_k = 9, .eos_id = 4, .seed = 5};
      const Samples samples = sample_with_logps(*decoder, prompts, options);
      CHECK(samples.completions == sample(*decoder, prompts, options));
      std::vector<TokenSequence> sequences;
      for (std::size_t s = 0; s < prompts.size(); ++s) {
        sequences.push_back({.prompt = prompts[s], .completion = samples.completions[s]});
      }
      TokenBatch batch = make_batch(sequences);
      batch.packed = nullptr;  // through the padded forward, which shares no code with a session
      const at::NoGradGuard no_grad;
      const at::Tensor expected = sequence_logps(*decoder, batch).token_logps.to(at::kDouble);
      std::int64_t row = 0;
      for (std::size_t s = 0; s < prompts.size(); ++s) {
        REQUIRE(samples.token_logps[s].size() == samples.completions[s].size());
        for (const double logp : samples.token_logps[s]) {
          CHECK(logp == Approx(expected[row++].item<double>()).margin(tolerance).epsilon(0));
        }
      }
      CHECK(row == expected.size(0));
    }
  }
}

TEST_CASE("sample_with_logps: of a policy that gives logits", "[policy]") {
  MemorylessPolicy policy(four_logits()[0]);
  const std::vector<double> probabilities{0.3, 0.1, 0.4, 0.2};
  const Samples samples =
      sample_with_logps(policy, Prompts(4, {0}), {.max_new_tokens = 20, .temperature = 3});
  for (std::size_t s = 0; s < 4; ++s) {
    for (std::size_t t = 0; t < 20; ++t) {
      const auto token = static_cast<std::size_t>(samples.completions[s][t]);
      CHECK(samples.token_logps[s][t] == Approx(std::log(probabilities[token])).epsilon(1e-14));
    }
  }
  CHECK(sample_with_logps(policy, {}, {}).completions.empty());
}

TEST_CASE("sample: weights of a low precision are widened", "[policy]") {
  for (const auto dtype : {at::kBFloat16, at::kHalf}) {
    INFO(c10::toString(dtype));
    const auto narrow = decoder_of(odd_options(), dtype, /*adapted=*/true);
    const auto wide = narrow->frozen_decoder();
    wide->to(at::kFloat);
    const SamplingOptions options{.max_new_tokens = 15, .seed = 9};
    CHECK(sample(*narrow, ragged_prompts(), options) == sample(*wide, ragged_prompts(), options));
  }
}

TEST_CASE("sample: draws follow the probabilities", "[policy]") {
  // Chi-square with n - 1 degrees of freedom: above the first bound in one of 1000 cases, below the
  // second in one of 1000 too, for draws that are too even. The seeds are fixed.
  MemorylessPolicy policy(four_logits()[0]);
  const double of_three = chi_square(policy, {.seed = 11}, {0.3, 0.1, 0.4, 0.2}, 20000);
  CHECK(of_three < 16.27);
  CHECK(of_three > 0.02);
  const double of_two =
      chi_square(policy, {.top_k = 3, .seed = 12}, {3.0 / 9, 0, 4.0 / 9, 2.0 / 9}, 20000);
  CHECK(of_two < 13.82);
  CHECK(of_two > 0.002);
  const double of_one =
      chi_square(policy, {.top_p = 0.6, .seed = 13}, {3.0 / 7, 0, 4.0 / 7, 0}, 20000);
  CHECK(of_one < 10.83);
  CHECK(of_one > 1.6e-6);
  // More tokens than weights of one sum: 99 degrees of freedom are left when tokens come together.

  MemorylessPolicy even(at::zeros({5000}));
  const auto completions = sample(even, Prompts(100, {0}), {.max_new_tokens = 200, .seed = 14});
  std::vector<double> counts(100, 0);
  for (const auto& completion : completions) {
    for (const auto token : completion) ++counts[static_cast<std::size_t>(token / 50)];
  }
  double sum = 0;
  for (const double count : counts) sum += (count - 200) * (count - 200) / 200;
  CHECK(sum < 148.2);
  CHECK(sum > 61.1);
}

TEST_CASE("sampling_probabilities: top-p among more tokens than are sorted at first", "[policy]") {
  // 700 tokens of weight 2 and 300 of weight 1, in turns: the heavy ones are 14/17 of the mass.
  std::vector<float> logits;
  for (int i = 0; i < 1000; ++i) logits.push_back(i % 10 < 7 ? std::log(2.0f) : 0.0f);
  const at::Tensor row = at::tensor(logits).unsqueeze(0);
  const auto kept = [&](SamplingOptions options) {
    return sampling_probabilities(row, options)[0].gt(0).sum().item<std::int64_t>();
  };
  CHECK(kept({.top_p = 2.5 / 1700}) == 2);
  CHECK(kept({.top_p = 1001.0 / 1700}) == 501);
  CHECK(kept({.top_p = 1401.5 / 1700}) == 702);
  CHECK(kept({.top_k = 900, .top_p = 0.9999}) == 900);
  CHECK(kept({.top_k = 30}) == 30);
  const at::Tensor half = sampling_probabilities(row, {.top_p = 1001.0 / 1700})[0];
  CHECK(half.max().item<float>() == Approx(1.0 / 501));
  CHECK(half[713].item<float>() > 0);  // the 501st heavy one
  CHECK(half[714].item<float>() == 0);
}

TEST_CASE("decode session: what is wrong is said", "[policy]") {
  const auto decoder = decoder_of(odd_options(), at::kFloat);
  const auto bare = std::make_shared<MemorylessPolicy>(at::zeros({23}));
  for (Policy* policy : {static_cast<Policy*>(decoder.get()), static_cast<Policy*>(bare.get())}) {
    const auto session = policy->start_decoding({{1, 2}, {3}, {4}});
    CHECK(session->prefill().sizes() == at::IntArrayRef({3, 23}));
    CHECK_THROWS_TEXT(session->append(at::tensor({1, 2}, at::kLong)), ShapeError,
                      "append: expected tokens [3], got [2]");
    CHECK_THROWS_TEXT(session->append(at::tensor({1, 2, 23}, at::kLong)), DataError,
                      "append: expected token ids in [0, 23), got 23");
    CHECK_THROWS_TEXT(session->keep({}), ShapeError,
                      "keep: expected at least one sequence, got none");
    CHECK_THROWS_TEXT(session->keep({0, 3}), DataError,
                      "keep: expected ascending places in [1, 3), got 3");
    CHECK_THROWS_TEXT(session->keep({1, 1}), DataError,
                      "keep: expected ascending places in [2, 3), got 1");
    session->keep({0, 2});
    CHECK(session->append(at::tensor({5, 6}, at::kLong)).sizes() == at::IntArrayRef({2, 23}));
  }
  CHECK_THROWS_TEXT(decoder->start_decoding({{1}, {23}}), DataError,
                    "start_decoding: expected token ids in [0, 23), got 23 in prompt 1");
  CHECK_THROWS_TEXT(decoder->start_decoding({{1}})->append(at::tensor({1}, at::kLong)), ConfigError,
                    "append: expected prefill to be called first, got append");
}

TEST_CASE("decode session: logits do not depend on the other sequences, bit for bit", "[policy]") {
  const auto decoder = decoder_of(odd_options(), at::kFloat);
  const Prompts prompts = ragged_prompts();
  const at::Tensor tokens = at::tensor({1, 2, 3, 4, 5, 6, 7}, at::kLong);
  const auto all = decoder->start_decoding(prompts);
  const at::Tensor first = all->prefill().clone();
  const at::Tensor second = all->append(tokens).clone();
  all->keep({1, 4, 6});
  const at::Tensor third = all->append(at::tensor({8, 9, 10}, at::kLong)).clone();
  for (const std::int64_t s : {1, 4, 5, 6}) {
    const auto alone = decoder->start_decoding({prompts[static_cast<std::size_t>(s)]});
    CHECK(at::equal(alone->prefill()[0], first[s]));
    CHECK(at::equal(alone->append(tokens.slice(0, s, s + 1))[0], second[s]));
    if (s == 4) CHECK(at::equal(alone->append(at::tensor({9}, at::kLong))[0], third[1]));
  }
}

TEST_CASE("decode session: long prompts go through in parts", "[policy]") {
  const auto decoder = decoder_of(odd_options(), at::kFloat);
  Prompts prompts{{}, {}, {3, 4}};
  for (std::int64_t i = 0; i < 2500; ++i) {
    prompts[0].push_back(i % 23);
    prompts[1].push_back(i % 19);
  }
  const at::Tensor all = decoder->start_decoding(prompts)->prefill();
  for (std::size_t s = 0; s < prompts.size(); ++s) {
    const at::Tensor alone = decoder->start_decoding({prompts[s]})->prefill();
    CHECK(at::equal(all[static_cast<std::int64_t>(s)], alone[0]));
  }
}

TEST_CASE("sample: a sample depends on seed and index, not on its neighbours", "[policy]") {
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

TEST_CASE("sample: the end token ends a completion and is kept", "[policy]") {
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

TEST_CASE("sample: no gradient is kept and none is switched off", "[policy]") {
  const auto decoder = small_decoder();
  sample(*decoder, {{1, 2}}, {.max_new_tokens = 3});
  for (const auto& [name, value] : decoder->named_parameters()) {
    CHECK(value.requires_grad());
    CHECK_FALSE(value.grad().defined());
  }
  CHECK(at::GradMode::is_enabled());
}

namespace {

/// Draws of `sample` for one prompt, by a literal reading of transformers' logits processors: in
/// the order RepetitionPenalty, MinNewTokensLength, then the greedy choice.
std::vector<std::int64_t> processed_greedily(Decoder& decoder, std::vector<std::int64_t> tokens,
                                             const SamplingOptions& options) {
  const at::NoGradGuard no_grad;
  std::vector<std::int64_t> drawn;
  while (std::ssize(drawn) < options.max_new_tokens) {
    const at::Tensor input_ids = at::tensor(tokens, at::kLong).unsqueeze(0);
    const at::Tensor hidden = decoder
                                  .forward({.input_ids = input_ids,
                                            .attention_mask = at::ones_like(input_ids, at::kBool),
                                            .completion_mask = {},
                                            .completion_lens = {}})
                                  .hidden;
    at::Tensor scores = decoder.head().weight.mv(hidden[0][-1]).unsqueeze(0);
    at::Tensor score = at::gather(scores, 1, input_ids);
    score = at::where(score < 0, score * options.repetition_penalty,
                      score / options.repetition_penalty);
    scores = scores.scatter(1, input_ids, score);
    if (std::ssize(drawn) < options.min_new_tokens) {
      for (const std::int64_t id : options.extra_eos_ids) scores[0][id] = -INFINITY;
      if (options.eos_id >= 0) scores[0][options.eos_id] = -INFINITY;
    }
    drawn.push_back(scores.argmax().item<std::int64_t>());
    tokens.push_back(drawn.back());
    if (is_end_token(drawn.back(), options)) break;
  }
  return drawn;
}

/// Text that comes after prompts of any kind: letter by letter, whatever was drawn.
std::shared_ptr<const Tokenizer> byte_tokenizer() { return std::make_shared<ByteTokenizer>(); }

/// Says the bytes of a text, one after another, however it is prompted with the first of them.
class RecitingPolicy final : public Policy {
 public:
  explicit RecitingPolicy(const std::string& text) {
    logits_ = at::zeros({vocab_size(), vocab_size()});
    for (std::size_t i = 0; i + 1 < text.size(); ++i) {
      logits_[static_cast<unsigned char>(text[i])][static_cast<unsigned char>(text[i + 1])] = 50;
    }
  }
  PolicyOutput forward(const TokenBatch& batch) override {
    return {.hidden = {}, .logits = torch::embedding(logits_, batch.input_ids)};
  }
  std::int64_t vocab_size() const override { return 259; }
  std::vector<NamedParameter> named_parameters() const override { return {}; }

 private:
  at::Tensor logits_;
};

}  // namespace

TEST_CASE("sample: penalty and least length are those of transformers", "[policy]") {
  const double penalty = GENERATE(1.0, 1.3, 0.6);
  const std::int64_t least = GENERATE(0, 4, 12);
  const auto decoder = decoder_of(odd_options());
  std::size_t longest = 0;
  for (const std::int64_t end : {3, 8, 15}) {
    const SamplingOptions options{.max_new_tokens = 12,
                                  .temperature = 0,
                                  .eos_id = end,
                                  .extra_eos_ids = {end + 1},
                                  .min_new_tokens = least,
                                  .repetition_penalty = penalty};
    const auto got = sample(*decoder, ragged_prompts(), options);
    for (std::size_t s = 0; s < got.size(); ++s) {
      INFO("penalty " << penalty << ", least " << least << ", prompt " << s);
      CHECK(got[s] == processed_greedily(*decoder, ragged_prompts()[s], options));
      CHECK(std::ssize(got[s]) >= least);
      longest = std::max(longest, got[s].size());
    }
  }
  CHECK(longest <= 12);
}

TEST_CASE("sample: a penalty acts once on each token of prompt and completion", "[policy]") {
  // Tokens 0 and 1 are in the prompt, 1 of them twice; logits of both signs.
  const std::vector<double> logits{1.5, -0.5, 0.25, -1};
  MemorylessPolicy policy(at::tensor(logits, at::kDouble));
  const SamplingOptions options{.max_new_tokens = 1, .repetition_penalty = 2};
  const std::vector<double> penalized{0.75, -1, 0.25, -1};
  double sum = 0;
  for (const double logit : penalized) sum += std::exp(logit);
  std::vector<double> counts(4, 0);
  const Samples samples = sample_with_logps(policy, Prompts(20000, {1, 0, 1}), options);
  for (const auto& completion : samples.completions) {
    ++counts[static_cast<std::size_t>(completion.front())];
  }
  double chi_square = 0;
  for (std::size_t i = 0; i < 4; ++i) {
    const double mean = 20000 * std::exp(penalized[i]) / sum;
    chi_square += (counts[i] - mean) * (counts[i] - mean) / mean;
  }
  CHECK(chi_square < 16.27);
  // Log-probs are those of the policy itself all the same.
  double whole = 0;
  for (const double logit : logits) whole += std::exp(logit);
  for (std::size_t s = 0; s < 50; ++s) {
    const auto token = static_cast<std::size_t>(samples.completions[s].front());
    CHECK(samples.token_logps[s].front() == Approx(logits[token] - std::log(whole)).epsilon(1e-12));
  }
}

TEST_CASE("sample: rules of logits leave a sample its seed and index alone", "[policy]") {
  const auto decoder = small_decoder();
  const Prompts prompts{{1, 2, 3}, {4}, {5, 6, 7, 8}, {4}};
  SamplingOptions options{
      .max_new_tokens = 20, .eos_id = 2, .seed = 3, .min_new_tokens = 5, .repetition_penalty = 1.4};
  const auto all = sample(*decoder, prompts, options);
  const int threads = at::get_num_threads();
  at::set_num_threads(1);
  CHECK(sample(*decoder, prompts, options) == all);
  at::set_num_threads(threads);
  for (std::size_t s = 0; s < prompts.size(); ++s) {
    SamplingOptions alone = options;
    alone.first_index = static_cast<std::int64_t>(s);
    CHECK(sample(*decoder, {prompts[s]}, alone).front() == all[s]);
  }
  options.repetition_penalty = 1;
  CHECK(sample(*decoder, prompts, options) != all);
}

TEST_CASE("sample: a stop string ends a completion with the token that completes it", "[policy]") {
  const std::string text = "abcdefgh";
  RecitingPolicy policy(text);
  SamplingOptions options{.max_new_tokens = 7, .temperature = 0, .tokenizer = byte_tokenizer()};
  const auto said = [&](const std::vector<std::string>& stop, const Prompts& prompts) {
    options.stop = stop;
    std::vector<std::string> texts;
    for (const auto& completion : sample(policy, prompts, options)) {
      texts.push_back(options.tokenizer->decode(completion));
      CHECK(has_ended(completion, options) == (std::ssize(completion) < 7));
    }
    return texts;
  };
  const Prompts from_a{{'a'}};
  using Texts = std::vector<std::string>;
  CHECK(said({}, from_a) == Texts{"bcdefgh"});
  CHECK(said({"de"}, from_a) == Texts{"bcde"});
  CHECK(said({"b"}, from_a) == Texts{"b"});
  CHECK(said({"fg", "cd"}, from_a) == Texts{"bcd"});
  CHECK(said({"ed", "B"}, from_a) == Texts{"bcdefgh"});
  // The prompt is no part of the text; others go on.
  CHECK(said({"ab"}, from_a) == Texts{"bcdefgh"});
  CHECK(said({"de"}, {{'a'}, {'d'}, {'c'}})[0] == "bcde");
  CHECK(said({"de"}, {{'a'}, {'d'}, {'c'}})[2] == "de");
  // Before the least length, too, which is about end tokens alone.
  options.min_new_tokens = 6;
  options.eos_id = 257;
  CHECK(said({"de"}, from_a) == Texts{"bcde"});
}

TEST_CASE("sample: a stop string of several bytes, and a completion that ends with it",
          "[policy]") {
  RecitingPolicy policy("aé!");
  const SamplingOptions options{
      .max_new_tokens = 3, .temperature = 0, .stop = {"é"}, .tokenizer = byte_tokenizer()};
  const auto completion = sample(policy, {{'a'}}, options).front();
  CHECK(options.tokenizer->decode(completion) == "é");
  CHECK(completion.size() == 2);
  CHECK(has_ended(completion, options));
  CHECK_FALSE(has_ended({completion[0]}, options));
  CHECK_FALSE(has_ended({}, options));
}

TEST_CASE("sampling: options of logits and texts that contradict are refused", "[policy]") {
  MemorylessPolicy policy(at::zeros({4}));
  const auto refuse = [&](const SamplingOptions& options, const std::string& text) {
    CHECK_THROWS_TEXT(sample(policy, {{1}}, options), ConfigError, "sampling: " + text);
  };
  refuse({.max_new_tokens = 3, .eos_id = 1, .min_new_tokens = 4},
         "expected min_new_tokens of at most max_new_tokens, 3, got 4");
  refuse({.min_new_tokens = -1}, "expected min_new_tokens >= 0, got -1");
  refuse({.min_new_tokens = 2},
         "expected an end token for min_new_tokens 2 to keep back, got none");
  refuse({.repetition_penalty = 0}, "expected repetition_penalty > 0, got 0");
  refuse({.stop = {"x", ""}}, "expected texts in stop, got an empty one");
  refuse({.stop = {"x"}}, "expected a tokenizer for the texts of stop, got none");
  CHECK_THROWS_TEXT((options_from_json<SamplingOptions>(
                        R"({"max_new_tokens": 3, "min_new_tokens": 4})", "sampling")),
                    ConfigError,
                    "sampling: expected min_new_tokens of at most max_new_tokens, 3, got 4");
}

TEST_CASE("sampling: whose distribution tokens are drawn from", "[policy]") {
  CHECK(follows_policy({}));
  // They end a completion, and change no draw.
  CHECK(follows_policy({.max_new_tokens = 3, .eos_id = 2, .stop = {"x"}}));
  CHECK_FALSE(follows_policy({.temperature = 0.7}));
  CHECK_FALSE(follows_policy({.top_k = 4}));
  CHECK_FALSE(follows_policy({.top_p = 0.9}));
  CHECK_FALSE(follows_policy({.min_new_tokens = 2}));
  CHECK_FALSE(follows_policy({.repetition_penalty = 1.1}));
}

TEST_CASE("sampling: options as JSON", "[policy]") {
  CHECK(
      options_to_json(SamplingOptions{}) ==
      R"({"max_new_tokens":64,"temperature":1.0,"top_k":0,"top_p":1.0,"eos_id":-1,"seed":0,"extra_eos_ids":[]})");
  // Later options are written where they are used.
  const SamplingOptions all{.min_new_tokens = 2, .repetition_penalty = 1.5, .stop = {"x\n"}};
  const std::string json = options_to_json(all);
  CHECK(
      json ==
      R"({"max_new_tokens":64,"temperature":1.0,"top_k":0,"top_p":1.0,"eos_id":-1,"seed":0,"extra_eos_ids":[],"min_new_tokens":2,"repetition_penalty":1.5,"stop":["x\n"]})");
  CHECK(options_to_json(options_from_json<SamplingOptions>(json, "sampling")) == json);
  CHECK(options_from_json<SamplingOptions>(R"({"stop_strings": ["a"]})", "sampling").stop ==
        std::vector<std::string>{"a"});
}

}  // namespace prefopt::test_sampling
