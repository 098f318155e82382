// SPDX-License-Identifier: Apache-2.0
#include <cmath>
#include <complex>
#include <filesystem>
#include <fstream>
#include <map>
#include <nlohmann/json.hpp>
#include <numeric>
#include <sstream>

#include "prefopt/decoder/decoder.h"
#include "prefopt/error.h"
#include "prefopt/files/safetensors.h"
#include "prefopt/policy/sequence_logps.h"
#include "support/catch.h"
#include "support/errors.h"
#include "support/temp_dir.h"

namespace prefopt::test_decoder {
namespace {

using nlohmann::json;
using testing_support::TempDir;
using Tokens = std::vector<std::int64_t>;

const std::string kGolden = PREFOPT_TEST_DATA_DIR "/tiny-llama";

/// Every size differs from every other, heads are grouped, and a head is wider than its share.
DecoderOptions odd_options(bool tied = false) {
  return {.vocab_size = 11,
          .hidden_size = 12,
          .intermediate_size = 10,
          .num_hidden_layers = 2,
          .num_attention_heads = 4,
          .num_key_value_heads = 2,
          .head_dim = 6,
          .rope_theta = 100,
          .tie_word_embeddings = tied,
          .initializer_range = 0.4};
}

std::shared_ptr<Decoder> make_decoder(const DecoderOptions& options, at::ScalarType dtype,
                                      std::uint64_t seed = 1) {
  torch::manual_seed(seed);
  auto decoder = std::make_shared<Decoder>(options);
  // Norm weights other than one, so that a forgotten one shows.
  const at::NoGradGuard no_grad;
  for (const auto& [name, value] : decoder->named_parameters()) {
    if (value.dim() == 1) value.add_(at::randn_like(value), 0.2);
  }
  decoder->to(dtype);
  return decoder;
}

TokenBatch batch_of(const std::vector<Tokens>& sequences) {
  std::size_t longest = 0;
  for (const auto& tokens : sequences) longest = std::max(longest, tokens.size());
  const at::Tensor ids =
      at::zeros({std::ssize(sequences), static_cast<std::int64_t>(longest)}, at::kLong);
  const at::Tensor mask = at::zeros_like(ids, at::kBool);
  for (std::int64_t s = 0; s < std::ssize(sequences); ++s) {
    const auto& tokens = sequences[static_cast<std::size_t>(s)];
    ids[s].slice(0, 0, std::ssize(tokens)).copy_(at::tensor(tokens, at::kLong));
    mask[s].slice(0, 0, std::ssize(tokens)).fill_(true);
  }
  return {.input_ids = ids,
          .attention_mask = mask,
          .completion_mask = at::zeros_like(mask),
          .completion_lens = at::zeros({ids.size(0)}, at::kLong)};
}

/// [T, vocab] of one sequence.
at::Tensor logits_of(Decoder& decoder, const Tokens& tokens) {
  const at::NoGradGuard no_grad;
  return decoder.forward(batch_of({tokens})).hidden[0].matmul(decoder.head().weight.t());
}

/// A second opinion in plain loops over doubles. Rotary positions enter as the relative form: the
/// score of query i and key j is Re sum_m q_m conj(k_m) exp(i (i - j) theta_m), with the pairs
/// (m, m + D / 2) as complex numbers.
class LoopDecoder {
 public:
  explicit LoopDecoder(const Decoder& decoder) : options_(decoder.options()) {
    for (const auto& [name, value] : decoder.named_parameters()) {
      const at::Tensor wide = value.detach().to(at::kDouble).contiguous();
      const auto columns = static_cast<std::size_t>(wide.size(-1));
      const auto* data = wide.const_data_ptr<double>();
      Matrix& matrix = weights_[name];
      for (const auto* row = data; row != data + wide.numel(); row += columns) {
        matrix.emplace_back(row, row + columns);
      }
    }
  }

  std::vector<std::vector<double>> logits(const Tokens& tokens) const {
    std::vector<Vector> x;
    for (const auto token : tokens) {
      x.push_back(weight("model.embed_tokens")[static_cast<std::size_t>(token)]);
    }
    for (std::int64_t layer = 0; layer < options_.num_hidden_layers; ++layer) {
      const std::string prefix = "model.layers." + std::to_string(layer) + ".";
      attend(prefix, x);
      for (auto& token : x) {
        const Vector normed = norm(token, prefix + "post_attention_layernorm");
        Vector wide = times(weight(prefix + "mlp.gate_proj"), normed);
        const Vector up = times(weight(prefix + "mlp.up_proj"), normed);
        for (std::size_t i = 0; i < wide.size(); ++i) wide[i] *= up[i] / (1 + std::exp(-wide[i]));
        add(token, times(weight(prefix + "mlp.down_proj"), wide));
      }
    }
    std::vector<Vector> logits;
    for (const auto& token : x) {
      logits.push_back(
          times(weight(options_.tie_word_embeddings ? "model.embed_tokens" : "lm_head"),
                norm(token, "model.norm")));
    }
    return logits;
  }

 private:
  using Vector = std::vector<double>;
  using Matrix = std::vector<Vector>;

  const Matrix& weight(const std::string& name) const { return weights_.at(name + ".weight"); }

  static Vector times(const Matrix& matrix, const Vector& x) {
    Vector y;
    for (const auto& row : matrix) {
      y.push_back(std::inner_product(row.begin(), row.end(), x.begin(), 0.0));
    }
    return y;
  }

  static void add(Vector& x, const Vector& y) {
    for (std::size_t i = 0; i < x.size(); ++i) x[i] += y[i];
  }

  Vector norm(const Vector& x, const std::string& name) const {
    double squares = 0;
    for (const double value : x) squares += value * value;
    const double scale =
        1 / std::sqrt(squares / static_cast<double>(x.size()) + options_.rms_norm_eps);
    Vector y;
    for (std::size_t i = 0; i < x.size(); ++i) y.push_back(x[i] * scale * weight(name)[0][i]);
    return y;
  }

  double score(const Vector& q, std::size_t q_head, const Vector& k, std::size_t k_head,
               double distance) const {
    const auto dim = static_cast<std::size_t>(options_.head_dim);
    double sum = 0;
    for (std::size_t m = 0; m < dim / 2; ++m) {
      const std::complex<double> a(q[q_head * dim + m], q[q_head * dim + m + dim / 2]);
      const std::complex<double> b(k[k_head * dim + m], k[k_head * dim + m + dim / 2]);
      const double angle =
          distance * std::pow(options_.rope_theta, -2.0 * static_cast<double>(m) / dim);
      sum += (a * std::conj(b) * std::polar(1.0, angle)).real();
    }
    return sum / std::sqrt(static_cast<double>(dim));
  }

  void attend(const std::string& prefix, std::vector<Vector>& x) const {
    const auto dim = static_cast<std::size_t>(options_.head_dim);
    const auto heads = static_cast<std::size_t>(options_.num_attention_heads);
    const auto groups = heads / static_cast<std::size_t>(options_.num_key_value_heads);
    std::vector<Vector> q, k, v;
    for (const auto& token : x) {
      const Vector normed = norm(token, prefix + "input_layernorm");
      q.push_back(times(weight(prefix + "self_attn.q_proj"), normed));
      k.push_back(times(weight(prefix + "self_attn.k_proj"), normed));
      v.push_back(times(weight(prefix + "self_attn.v_proj"), normed));
    }
    for (std::size_t i = 0; i < x.size(); ++i) {
      Vector mixed(heads * dim, 0);
      for (std::size_t head = 0; head < heads; ++head) {
        Vector shares;
        double total = 0;
        for (std::size_t j = 0; j <= i; ++j) {
          shares.push_back(
              std::exp(score(q[i], head, k[j], head / groups, static_cast<double>(i - j))));
          total += shares.back();
        }
        for (std::size_t j = 0; j <= i; ++j) {
          for (std::size_t d = 0; d < dim; ++d) {
            mixed[head * dim + d] += shares[j] / total * v[j][head / groups * dim + d];
          }
        }
      }
      add(x[i], times(weight(prefix + "self_attn.o_proj"), mixed));
    }
  }

  DecoderOptions options_;
  std::map<std::string, Matrix> weights_;
};

std::string bytes_of(const std::string& path) {
  std::ifstream stream(path, std::ios::binary);
  std::ostringstream bytes;
  bytes << stream.rdbuf();
  return bytes.str();
}

json json_of(const std::string& path) { return json::parse(bytes_of(path)); }

void put(const std::string& path, const json& value) { std::ofstream(path) << value.dump(); }

/// A small checkpoint folder that a test may break.
class Checkpoint {
 public:
  explicit Checkpoint(const DecoderOptions& options = odd_options()) {
    make_decoder(options, at::kFloat)->save(dir_.path());
    config = json_of(config_path());
    weights = read_safetensors(weights_path());
  }

  std::shared_ptr<Decoder> load(std::string_view dtype = "keep") const {
    put(config_path(), config);
    write_safetensors(weights_path(), weights);
    return Decoder::load(dir_.path(), dtype);
  }

  at::Tensor& weight(const std::string& name) {
    for (auto& [found, tensor] : weights.tensors) {
      if (found == name) return tensor;
    }
    return weights.tensors.emplace_back(name, at::Tensor()).second;
  }

  const std::string& path() const { return dir_.path(); }
  std::string config_path() const { return dir_.file("config.json"); }
  std::string weights_path() const { return dir_.file("model.safetensors"); }

  json config;
  SafetensorsFile weights;

 private:
  TempDir dir_;
};

}  // namespace

TEST_CASE("decoder: equals plain loops over doubles", "[decoder]") {
  const bool tied = GENERATE(false, true);
  const auto decoder = make_decoder(odd_options(tied), at::kDouble);
  const Tokens tokens{3, 1, 4, 1, 5, 9, 2, 6, 10, 0};
  const at::Tensor got = logits_of(*decoder, tokens);
  const auto expected = LoopDecoder(*decoder).logits(tokens);
  for (std::size_t t = 0; t < tokens.size(); ++t) {
    for (std::size_t v = 0; v < 11; ++v) {
      // Rotary angles are float32 in the decoder, as in transformers.
      CHECK(got[static_cast<std::int64_t>(t)][static_cast<std::int64_t>(v)].item<double>() ==
            Approx(expected[t][v]).margin(2e-6));
    }
  }
}

TEST_CASE("decoder: narrower dtypes stay near float64", "[decoder]") {
  const Tokens tokens{3, 1, 4, 1, 5, 9, 2, 6};
  const at::Tensor exact = logits_of(*make_decoder(odd_options(), at::kDouble), tokens);
  const auto worst = [&](at::ScalarType dtype) {
    const at::Tensor got = logits_of(*make_decoder(odd_options(), dtype), tokens);
    CHECK(got.scalar_type() == dtype);
    return (got.to(at::kDouble) - exact).abs().max().item<double>();
  };
  CHECK(worst(at::kFloat) < 2e-5);
  CHECK(worst(at::kBFloat16) < 0.3);
  CHECK(worst(at::kHalf) < 0.05);
}

TEST_CASE("decoder: bfloat16 trains", "[decoder]") {
  const auto decoder = make_decoder(odd_options(), at::kBFloat16);
  const Tokens prompt{1, 2}, completion{3, 4, 5};
  const SequenceLogps out = sequence_logps(*decoder, make_batch({{prompt, completion}}));
  CHECK(out.token_logps.scalar_type() == at::kFloat);
  out.logps.sum().backward();
  for (const auto& [name, value] : decoder->named_parameters()) {
    INFO(name);
    REQUIRE(value.grad().defined());
    CHECK(value.grad().isfinite().all().item<bool>());
    CHECK(value.grad().abs().sum().item<float>() > 0);
  }
}

TEST_CASE("decoder: no position sees a later token", "[decoder]") {
  const auto decoder = make_decoder(odd_options(), at::kDouble);
  const at::Tensor before = logits_of(*decoder, {3, 1, 4, 1, 5, 9});
  const at::Tensor after = logits_of(*decoder, {3, 1, 4, 2, 5, 9});
  CHECK(at::allclose(before.slice(0, 0, 3), after.slice(0, 0, 3), 0, 1e-13));
  for (std::int64_t t = 3; t < 6; ++t) {
    CHECK((before[t] - after[t]).abs().max().item<double>() > 1e-3);
  }
}

TEST_CASE("decoder: padding and neighbours change nothing", "[decoder]") {
  const auto decoder = make_decoder(odd_options(), at::kDouble);
  const std::vector<Tokens> sequences{{3, 1, 4}, {1, 5, 9, 2, 6, 5}, {7}};
  const at::NoGradGuard no_grad;
  TokenBatch batch = batch_of(sequences);
  const at::Tensor together = decoder->forward(batch).hidden;
  for (std::size_t s = 0; s < sequences.size(); ++s) {
    const at::Tensor alone = decoder->forward(batch_of({sequences[s]})).hidden[0];
    CHECK(at::allclose(together[static_cast<std::int64_t>(s)].slice(0, 0, alone.size(0)), alone, 0,
                       1e-12));
  }
  // Other ids in the padding, too.
  batch.input_ids.masked_fill_(batch.attention_mask.logical_not(), 8);
  const at::Tensor refilled = decoder->forward(batch).hidden;
  CHECK(at::equal(refilled[0].slice(0, 0, 3), together[0].slice(0, 0, 3)));
}

TEST_CASE("decoder: gradients agree with finite differences", "[decoder]") {
  const bool tied = GENERATE(false, true);
  const auto decoder = make_decoder(odd_options(tied), at::kDouble);
  const Tokens prompt_a{1, 2, 3}, completion_a{4, 5}, prompt_b{6}, completion_b{7, 8, 9, 10};
  const TokenBatch batch = make_batch({{prompt_a, completion_a}, {prompt_b, completion_b}});
  const auto loss = [&] {
    return sequence_logps(*decoder, batch).logps.dot(at::tensor({0.7, -1.3}, at::kDouble));
  };
  loss().backward();
  const at::NoGradGuard no_grad;
  for (const auto& [name, value] : decoder->named_parameters()) {
    INFO(name);
    for (const std::int64_t index : {std::int64_t{5}, value.numel() / 2, value.numel() - 1}) {
      double* element = value.mutable_data_ptr<double>() + index;
      const double kept = *element;
      const double step = 1e-5;
      *element = kept + step;
      const double above = loss().item<double>();
      *element = kept - step;
      const double below = loss().item<double>();
      *element = kept;
      CHECK(value.grad().view(-1)[index].item<double>() ==
            Approx((above - below) / (2 * step)).epsilon(1e-6).margin(1e-8));
    }
  }
}

TEST_CASE("decoder: a graph does not change the numbers", "[decoder]") {
  // Else a policy and its frozen copy would not start at a log-ratio of exactly zero.
  for (const auto dtype : {at::kFloat, at::kDouble, at::kBFloat16}) {
    const auto decoder = make_decoder(odd_options(true), dtype);
    const auto copy = decoder->frozen_copy();
    const Tokens prompt_a{1, 2, 3}, completion_a{4, 5}, prompt_b{6}, completion_b{7, 8, 9, 10};
    const TokenBatch batch = make_batch({{prompt_a, completion_a}, {prompt_b, completion_b}});
    const SequenceLogps live = sequence_logps(*decoder, batch);
    const at::NoGradGuard no_grad;
    CHECK(at::equal(sequence_logps(*copy, batch).token_logps, live.token_logps));
  }
}

TEST_CASE("decoder: a session with a cache gives the logits of whole forwards", "[decoder]") {
  const auto [dtype, tolerance] =
      GENERATE(std::pair(at::kFloat, 1e-5), std::pair(at::kDouble, 1e-12));
  const auto decoder = make_decoder(odd_options(), dtype);
  std::vector<Tokens> sequences{{3, 1, 4, 1, 5}, {9}, {2, 6}};
  const auto session = decoder->start_decoding(sequences);
  at::Tensor got = session->prefill();
  // Far enough that the cache grows more than once.
  for (std::int64_t step = 0; step < 30; ++step) {
    for (std::size_t s = 0; s < sequences.size(); ++s) {
      const at::Tensor expected = logits_of(*decoder, sequences[s])[-1];
      CHECK((got[static_cast<std::int64_t>(s)] - expected).abs().max().item<double>() < tolerance);
    }
    const at::Tensor next =
        at::tensor({step % 11, (3 * step + 1) % 11, (7 * step) % 11}, at::kLong);
    for (std::size_t s = 0; s < sequences.size(); ++s) {
      sequences[s].push_back(next[static_cast<std::int64_t>(s)].item<std::int64_t>());
    }
    got = session->append(next);
    CHECK_FALSE(got.requires_grad());
  }
  // Prefill starts again.
  CHECK((session->prefill()[1] - logits_of(*decoder, {9})[-1]).abs().max().item<double>() <
        tolerance);
}

TEST_CASE("decoder: sessions and batches that do not fit are refused", "[decoder]") {
  const auto decoder = make_decoder(odd_options(), at::kFloat);
  CHECK_THROWS_TEXT(decoder->start_decoding({{1}, {11}}), DataError,
                    "start_decoding: expected token ids in [0, 11), got 11 in prompt 1");
  const auto session = decoder->start_decoding({{1}, {2}});
  CHECK_THROWS_TEXT(session->append(at::zeros({2}, at::kLong)), ConfigError,
                    "append: expected prefill to be called first, got append");
  session->prefill();
  CHECK_THROWS_TEXT(session->append(at::zeros({1}, at::kLong)), ShapeError,
                    "append: expected tokens [2], got [1]");

  const auto refuse = [&](const at::Tensor& ids, auto error, const std::string& text) {
    TokenBatch batch = batch_of({{1}});
    batch.input_ids = ids;
    CHECK_THROWS_TEXT(decoder->forward(batch), decltype(error), "decoder: expected " + text);
  };
  refuse(at::zeros({2, 3}), DtypeError(""), "int64 input_ids, got Float");
  refuse(at::zeros({3}, at::kLong), ShapeError(""),
         "input_ids [S, T] of at least one token, got [3]");
  refuse(at::zeros({0, 3}, at::kLong), ShapeError(""),
         "input_ids [S, T] of at least one token, got [0, 3]");
  refuse(at::full({1, 2}, 11, at::kLong), DataError(""), "token ids in [0, 11), got 11");
  refuse(at::zeros({1, 2}, at::kLong).to(at::kMeta), DeviceError(""), "input_ids on cpu, got meta");
}

TEST_CASE("decoder: fresh weights", "[decoder]") {
  torch::manual_seed(4);
  const Decoder decoder(DecoderOptions{.vocab_size = 300,
                                       .hidden_size = 64,
                                       .intermediate_size = 100,
                                       .num_hidden_layers = 1,
                                       .num_attention_heads = 4,
                                       .num_key_value_heads = 2,
                                       .initializer_range = 0.05});
  for (const auto& [name, value] : decoder.named_parameters()) {
    INFO(name);
    CHECK(value.requires_grad());
    CHECK(value.is_leaf());
    CHECK(value.scalar_type() == at::kFloat);
    if (value.dim() == 1) {
      CHECK(at::equal(value, at::ones_like(value)));
    } else {
      CHECK(value.std().item<double>() == Approx(0.05).epsilon(0.05));
      CHECK(value.mean().item<double>() == Approx(0).margin(0.003));
    }
  }
  CHECK(decoder.options().head_dim == 16);
  CHECK(decoder.named_parameters().size() == 11);
  CHECK(decoder.named_parameters()[0].name == "model.embed_tokens.weight");
  CHECK(decoder.named_parameters()[2].name == "model.layers.0.self_attn.k_proj.weight");
  CHECK(decoder.named_parameters()[2].value.sizes() == at::IntArrayRef({32, 64}));
  CHECK(decoder.named_parameters().back().name == "model.norm.weight");
  CHECK(Decoder(odd_options()).named_parameters().back().name == "lm_head.weight");
}

TEST_CASE("decoder: options that do not fit are refused", "[decoder]") {
  const auto refuse = [](auto&& change, const std::string& text) {
    DecoderOptions options = odd_options();
    change(options);
    CHECK_THROWS_TEXT(Decoder(options), ConfigError, "decoder: expected " + text);
  };
  refuse([](DecoderOptions& o) { o.vocab_size = 0; }, "vocab_size in [1, 1073741824], got 0");
  refuse(
      [](DecoderOptions& o) {
        o.hidden_size = 10;
        o.head_dim = 0;
      },
      "hidden_size to be a multiple of num_attention_heads, got 10 and 4");
  refuse([](DecoderOptions& o) { o.num_key_value_heads = 3; },
         "num_attention_heads to be a multiple of num_key_value_heads, got 4 and 3");
  refuse([](DecoderOptions& o) { o.head_dim = 5; },
         "an even head_dim, got 5; rotary positions turn pairs of numbers");
  refuse([](DecoderOptions& o) { o.head_dim = 0; },
         "an even head_dim, got 3; rotary positions turn pairs of numbers");
  refuse([](DecoderOptions& o) { o.rope_theta = 0; }, "rope_theta > 0, got 0");
  refuse([](DecoderOptions& o) { o.rope_scaling_factor = 0.5; },
         "rope_scaling_factor >= 1, got 0.5");
  refuse([](DecoderOptions& o) { o.rope_low_freq_factor = 4; },
         "rope_high_freq_factor above rope_low_freq_factor, got 4 and 4");
  refuse([](DecoderOptions& o) { o.attention_output_bias = true; },
         "attention_bias with attention_output_bias, got none");
  refuse([](DecoderOptions& o) { o.qk_norm = o.attention_bias = true; },
         "both attention biases or none with qk_norm, got one");
  CHECK_THROWS_TEXT(parse_dtype("fp16"), ConfigError,
                    "dtype: expected 'float32', 'float64', 'bfloat16' or 'float16', got 'fp16'");
  CHECK(parse_dtype("float32") == at::kFloat);
  CHECK(parse_dtype("float64") == at::kDouble);
  CHECK(parse_dtype("bfloat16") == at::kBFloat16);
  CHECK(parse_dtype("float16") == at::kHalf);
}

TEST_CASE("decoder: what is saved comes back", "[decoder]") {
  const bool tied = GENERATE(false, true);
  const TempDir dir;
  DecoderOptions options = odd_options(tied);
  options.bos_token_id = 7;
  options.eos_token_id = 8;
  const auto decoder = make_decoder(options, at::kFloat);
  decoder->save(dir.file("run/final"));
  const auto back = Decoder::load(dir.file("run/final"));
  CHECK(options_to_json(back->options()) == options_to_json(decoder->options()));
  REQUIRE(back->named_parameters().size() == decoder->named_parameters().size());
  for (std::size_t i = 0; i < back->named_parameters().size(); ++i) {
    const auto got = back->named_parameters()[i];
    CHECK(got.name == decoder->named_parameters()[i].name);
    CHECK(at::equal(got.value, decoder->named_parameters()[i].value));
    CHECK(got.value.requires_grad());
  }
  CHECK(content_hash(*back) == content_hash(*decoder));
  CHECK(Decoder::load(dir.file("run/final"), "float64")->head().weight.scalar_type() ==
        at::kDouble);

  decoder->to(at::kBFloat16);
  decoder->save(dir.file("narrow"));
  CHECK(json_of(dir.file("narrow/config.json"))["torch_dtype"] == "bfloat16");
  CHECK(Decoder::load(dir.file("narrow"))->head().weight.scalar_type() == at::kBFloat16);

  std::ofstream(dir.file("file")) << "x";
  CHECK_THROWS_TEXT(decoder->save(dir.file("file/x")), CheckpointError,
                    dir.file("file/x") + ": expected to create a folder, got Not a directory");
}

TEST_CASE("decoder: a fresh config is what transformers reads", "[decoder]") {
  const TempDir dir;
  DecoderOptions options = odd_options();
  options.eos_token_id = 8;
  make_decoder(options, at::kFloat)->save(dir.path());
  CHECK(json_of(dir.file("config.json")) == json::parse(R"({
      "architectures": ["LlamaForCausalLM"], "attention_bias": false, "attention_dropout": 0.0,
      "bos_token_id": null, "eos_token_id": 8, "head_dim": 6, "hidden_act": "silu",
      "hidden_size": 12, "initializer_range": 0.4, "intermediate_size": 10,
      "max_position_embeddings": 2048, "mlp_bias": false, "model_type": "llama",
      "num_attention_heads": 4, "num_hidden_layers": 2, "num_key_value_heads": 2,
      "pad_token_id": null, "pretraining_tp": 1, "rms_norm_eps": 1e-05,
      "rope_parameters": {"rope_theta": 100.0, "rope_type": "default"}, "rope_theta": 100.0,
      "tie_word_embeddings": false, "torch_dtype": "float32", "use_cache": true,
      "vocab_size": 11})"));
}

TEST_CASE("decoder: a folder of transformers is written as it was read", "[decoder]") {
  const TempDir dir;
  for (const std::string part : {"/policy", "/reference"}) {
    Decoder::load(kGolden + part)->save(dir.path());
    CHECK(bytes_of(dir.file("model.safetensors")) ==
          bytes_of(kGolden + part + "/model.safetensors"));
    CHECK(json_of(dir.file("config.json")) == json_of(kGolden + part + "/config.json"));
  }
}

TEST_CASE("decoder: token log-probs that transformers gives", "[decoder]") {
  // transformers takes the RMS in float32 even in a float64 model; this decoder does not.
  const auto [dtype, tolerance] = GENERATE(std::pair("float64", 1e-6), std::pair("float32", 1e-5));
  const auto policy = Decoder::load(kGolden + "/policy", dtype);
  const auto reference = Decoder::load(kGolden + "/reference", dtype);
  const json expected = json_of(kGolden + "/expected.json").at("pairs");
  std::ifstream lines(kGolden + "/pairs.jsonl");
  std::size_t rows = 0;
  for (std::string line; std::getline(lines, line); ++rows) {
    const json row = json::parse(line);
    const auto prompt = row.at("prompt_ids").get<Tokens>();
    const auto chosen = row.at("chosen_ids").get<Tokens>();
    const auto rejected = row.at("rejected_ids").get<Tokens>();
    const TokenBatch batch = make_batch({{prompt, chosen}, {prompt, rejected}});
    const at::NoGradGuard no_grad;
    const auto check = [&, limit = tolerance](Decoder& model, const std::string& prefix) {
      auto values = expected.at(rows).at(prefix + "chosen_logps").get<std::vector<double>>();
      const auto more = expected.at(rows).at(prefix + "rejected_logps").get<std::vector<double>>();
      values.insert(values.end(), more.begin(), more.end());
      const at::Tensor got = sequence_logps(model, batch).token_logps.to(at::kDouble);
      REQUIRE(got.size(0) == std::ssize(values));
      CHECK((got - at::tensor(values, at::kDouble)).abs().max().item<double>() < limit);
    };
    check(*policy, "");
    check(*reference, "ref_");
  }
  CHECK(rows == 6);
}

TEST_CASE("decoder: forms of config.json", "[decoder]") {
  Checkpoint checkpoint;
  const at::Tensor logits = logits_of(*checkpoint.load(), {1, 2, 3});
  const auto same = [&] { return at::equal(logits_of(*checkpoint.load(), {1, 2, 3}), logits); };

  SECTION("rope_theta before transformers 5") {
    checkpoint.config.erase("rope_parameters");
    CHECK(same());
    checkpoint.config["rope_scaling"] = nullptr;
    CHECK(same());
    checkpoint.config["rope_scaling"] = {{"type", "default"}};
    CHECK(same());
    checkpoint.config["rope_theta"] = 10000;
    CHECK_FALSE(same());
    checkpoint.config.erase("rope_theta");
    CHECK(checkpoint.load()->options().rope_theta == 10000);
  }
  SECTION("rope_parameters since transformers 5") {
    checkpoint.config.erase("rope_theta");
    CHECK(same());
  }
  SECTION("several end tokens are kept") {
    checkpoint.config["eos_token_id"] = {9, 10, 9};
    const auto decoder = checkpoint.load();
    CHECK(decoder->options().eos_token_id == 9);
    CHECK(decoder->options().extra_eos_token_ids == Tokens{10});
    CHECK(decoder->generation_config().empty());
    decoder->save(checkpoint.path());
    CHECK(json_of(checkpoint.config_path())["eos_token_id"] == json({9, 10, 9}));
  }
  SECTION("generation_config.json has end tokens too") {
    const std::string path = checkpoint.path() + "/generation_config.json";
    put(path, {{"eos_token_id", {3, 9}}, {"temperature", 0.6}});
    checkpoint.config["eos_token_id"] = 9;
    auto decoder = checkpoint.load();
    CHECK(decoder->options().eos_token_id == 9);
    CHECK(decoder->options().extra_eos_token_ids == Tokens{3});
    const TempDir copy;
    decoder->save(copy.path());
    CHECK(json_of(copy.file("generation_config.json")) == json_of(path));
    CHECK(Decoder::load(copy.path())->options().extra_eos_token_ids == Tokens{3});

    checkpoint.config["eos_token_id"] = nullptr;
    put(path, {{"eos_token_id", 4}});
    CHECK(checkpoint.load()->options().eos_token_id == 4);
    put(path, {{"eos_token_id", nullptr}});
    CHECK(checkpoint.load()->options().eos_token_id == -1);
    put(path, {{"eos_token_id", "</s>"}});
    CHECK_THROWS_TEXT(
        checkpoint.load(), CheckpointError,
        path + R"(: expected eos_token_id to be an id or a list of them, got "</s>")");
  }
  SECTION("fields at values that change nothing") {
    for (const auto& [name, value] : std::vector<std::pair<std::string, json>>{
             {"use_mrope", false},
             {"use_sliding_window", false},
             {"attention_dropout", 0.1},
             {"resid_pdrop", 0.1},
             {"residual_multiplier", 1.0},
             {"num_experts", 0},
             {"use_rope", true},
             {"of_a_later_version", nullptr},
             {"of_a_later_version", false},
             {"of_a_later_version", ""},
             {"of_a_later_version", json::array()},
             {"of_a_later_version", json::object()},
             {"rope_scaling", {{"rope_type", "default"}, {"factor", 1.0}}},
             {"rope_scaling", {{"type", "linear"}, {"factor", 1.0}}},
             {"rope_scaling", {{"rope_type", nullptr}, {"mrope_section", nullptr}}}}) {
      INFO(name << " " << value.dump());
      const json good = checkpoint.config;
      checkpoint.config[name] = value;
      CHECK(same());
      checkpoint.config = good;
    }
  }
  SECTION("a window that holds the rows") {
    checkpoint.config["model_type"] = "mistral";
    checkpoint.config["sliding_window"] = 3;
    CHECK(same());
    checkpoint.config["sliding_window"] = 2;
    CHECK_FALSE(same());
    checkpoint.config.erase("sliding_window");
    CHECK(checkpoint.load()->options().sliding_window == 4096);  // mistral's in transformers
  }
  SECTION("dynamic scaling, within the context") {
    checkpoint.config["rope_parameters"] = {{"rope_type", "dynamic"}, {"factor", 2.0}};
    checkpoint.config["max_position_embeddings"] = 3;
    CHECK(same());
    const auto decoder = checkpoint.load();
    CHECK_THROWS_TEXT(logits_of(*decoder, {1, 2, 3, 4}), DataError,
                      "decoder: expected at most 3 tokens, the context of a model with dynamic "
                      "rotary scaling, got 4; beyond it the scaling would depend on other rows, so "
                      "shorten them (data.max_length)");
    // The last token of a sequence is no input.
    const auto batch = make_batch({{.prompt = Tokens{1, 2}, .completion = Tokens{3}},
                                   {.prompt = Tokens{1, 2}, .completion = Tokens{3, 4, 5}}});
    CHECK_THROWS_AS(decoder->forward_packed(*batch.packed), DataError);
    CHECK_THROWS_AS(decoder->start_decoding({{1, 2, 3, 4}}), DataError);
    const auto session = decoder->start_decoding({{1, 2}, {1}});
    session->prefill();
    session->append(at::tensor({3, 2}, at::kLong));
    CHECK_THROWS_TEXT(session->append(at::tensor({3, 2}, at::kLong)), DataError,
                      "append: expected at most 3 tokens, the context of a model with dynamic "
                      "rotary scaling, got 4; fewer new tokens or a shorter prompt fit");
  }
  SECTION("heads of a width of their own need not divide the width") {
    CHECK(checkpoint.load()->options().hidden_size == 12);
    checkpoint.config["num_attention_heads"] = 10;
    CHECK_THROWS_TEXT(checkpoint.load(), CheckpointError,
                      checkpoint.weights_path() +
                          ": tensor 'model.layers.0.self_attn.q_proj.weight': expected shape [60, "
                          "12], got [24, 12]");
  }
  SECTION("mistral without a window") {
    checkpoint.config["model_type"] = "mistral";
    checkpoint.config["sliding_window"] = nullptr;
    CHECK(same());
  }
  SECTION("null is as good as absent") {
    checkpoint.config["pretraining_tp"] = nullptr;
    checkpoint.config["quantization_config"] = nullptr;
    checkpoint.config["mlp_bias"] = nullptr;
    CHECK(same());
  }
  SECTION("head_dim is the share of a head where it is not given") {
    Checkpoint golden;
    golden.config = json_of(kGolden + "/policy/config.json");
    golden.weights = read_safetensors(kGolden + "/policy/model.safetensors");
    for (const bool null : {true, false}) {
      if (null) golden.config["head_dim"] = nullptr;
      if (!null) golden.config.erase("head_dim");
      CHECK(golden.load()->options().head_dim == 16);
    }
  }
  SECTION("notes of no effect") {
    checkpoint.config["torch_dtype"] = "bfloat16";
    checkpoint.config["unsloth_version"] = "2025.1";
    checkpoint.config["layer_types"] = {"full_attention", "full_attention"};
    CHECK(same());
  }
}

TEST_CASE("decoder: a config that is not understood is refused by name", "[decoder]") {
  Checkpoint checkpoint;
  const auto refuse = [&](const std::string& field, const json& value, const std::string& text) {
    const json good = checkpoint.config;
    checkpoint.config[field] = value;
    CHECK_THROWS_TEXT(checkpoint.load(), CheckpointError,
                      checkpoint.config_path() + ": expected " + text);
    checkpoint.config = good;
  };
  refuse(
      "model_type", "gpt2",
      R"(model_type to be "llama", "mistral", "qwen2", "qwen3", "granite", "smollm3", "phi3", "gemma2", )"
      R"("gemma3_text", "olmo2", "olmo3", "mixtral" or "qwen3_moe", got "gpt2")");
  refuse(
      "model_type", nullptr,
      R"(model_type to be "llama", "mistral", "qwen2", "qwen3", "granite", "smollm3", "phi3", "gemma2", )"
      R"("gemma3_text", "olmo2", "olmo3", "mixtral" or "qwen3_moe", got none)");
  refuse("sliding_window", 3, "sliding_window to be null, got 3");
  refuse("use_mrope", true, "use_mrope to be false, got true");
  refuse("use_rope", false, "use_rope to be true, got false");
  refuse("is_causal", false, "is_causal to be true, got false");
  refuse("hidden_act", "gelu", R"(hidden_act to be "silu", got "gelu")");
  refuse("attention_bias", 1, "attention_bias to be true or false, got 1");
  refuse("mlp_bias", true, "mlp_bias to be false, got true");
  refuse("pretraining_tp", 2, "pretraining_tp to be 1, got 2");
  refuse("quantization_config", {{"bits", 4}}, R"(quantization_config to be null, got {"bits":4})");
  refuse("rope_interleaved", true, "rope_interleaved to be false, got true");
  refuse("partial_rotary_factor", 0.5, "partial_rotary_factor to be 1, got 0.5");
  refuse("rope_scaling", {{"rope_type", "llama3"}, {"factor", 8.0}},
         "rope_scaling with factor, low_freq_factor, high_freq_factor and "
         R"(original_max_position_embeddings, got {"factor":8.0,"rope_type":"llama3"})");
  refuse("rope_parameters", {{"rope_type", "ntk"}},
         R"(rope_parameters of rope_type "default", "linear", "llama3", "yarn", "dynamic" or )"
         R"("longrope", got {"rope_type":"ntk"})");
  refuse("rope_parameters", {{"rope_type", "linear"}},
         R"(rope_parameters with a number factor, got {"rope_type":"linear"})");
  refuse("rope_parameters", {{"rope_theta", 200.0}}, "one rope_theta, 100, got 200.0");
  refuse("rope_scaling", 2.0, "rope_scaling to be an object, got 2.0");
  checkpoint.config["model_type"] = "mistral";
  refuse("sliding_window", 0, "sliding_window of at least 1, got 0");
  checkpoint.config["sliding_window"] = nullptr;
  refuse("layer_types", {"full_attention", "sliding_attention"},
         "sliding_window with layer_types of sliding_attention, got none");
  checkpoint.config["sliding_window"] = 3;
  refuse("layer_types", {"full_attention", "sliding_attention"},
         R"(layer_types of sliding_attention only in mistral, got )"
         R"(["full_attention","sliding_attention"])");
  refuse("layer_types", {"full_attention", "chunked_attention"},
         R"(layer_types to hold "full_attention" and "sliding_attention" only, got )"
         R"(["full_attention","chunked_attention"])");
  refuse("layer_types", {"full_attention"}, "layer_types of 2 layers, got 1");
  checkpoint.config["model_type"] = "llama";
  checkpoint.config.erase("sliding_window");
  refuse("logit_scale", 2.0, "logit_scale to be 1, got 2.0");
  refuse("of_a_later_version", 2.0,
         "fields that this decoder understands, got 'of_a_later_version': 2.0");
  refuse("auto_map", {{"AutoModel", "x.py"}},
         R"(fields that this decoder understands, got 'auto_map': {"AutoModel":"x.py"})");
  refuse("vocab_size", nullptr, "vocab_size, got none");
  refuse("vocab_size", "11", R"(vocab_size to be a whole number, got "11")");
  refuse("vocab_size", 11.5, "vocab_size to be a whole number, got 11.5");
  refuse("vocab_size", 18446744073709551615u,
         "vocab_size to be a whole number, got 18446744073709551615");
  refuse("hidden_size", 0, "hidden_size of at least 1, got 0");
  refuse("intermediate_size", -4, "intermediate_size of at least 1, got -4");
  refuse("num_hidden_layers", 1'000'000'000, "num_hidden_layers in [1, 4096], got 1000000000");
  refuse("num_attention_heads", 5,
         "num_attention_heads to be a multiple of num_key_value_heads, got 5 and 2");
  refuse("num_key_value_heads", 3,
         "num_attention_heads to be a multiple of num_key_value_heads, got 4 and 3");
  refuse("rms_norm_eps", "1e-6", R"(rms_norm_eps to be a number, got "1e-6")");
  refuse("rms_norm_eps", 0, "rms_norm_eps > 0, got 0");
  refuse("tie_word_embeddings", 1, "tie_word_embeddings to be true or false, got 1");
  refuse("eos_token_id", json::array(), "eos_token_id to be a whole number, got []");

  checkpoint.config = json::array();
  CHECK_THROWS_TEXT(checkpoint.load(), CheckpointError,
                    checkpoint.config_path() + ": expected an object, got list");
  CHECK_THROWS_TEXT(Decoder::load(checkpoint.path(), "int8"), ConfigError,
                    "dtype: expected 'float32', 'float64', 'bfloat16' or 'float16', got 'int8'");
  std::filesystem::remove(checkpoint.config_path());
  CHECK_THROWS_TEXT(
      Decoder::load(checkpoint.path()), CheckpointError,
      checkpoint.config_path() + ": expected a readable file, got No such file or directory");
}

TEST_CASE("decoder: weights of several dtypes are computed as they are stored", "[decoder]") {
  Checkpoint checkpoint;
  const std::string up = "model.layers.1.mlp.up_proj.weight";
  const std::string norm = "model.layers.0.input_layernorm.weight";
  const auto dtype_of = [](const Decoder& decoder, const std::string& name) {
    for (const auto& parameter : decoder.named_parameters()) {
      if (parameter.name == name) return parameter.value.scalar_type();
    }
    throw std::runtime_error(name);
  };
  SECTION("norms in float32") {
    for (auto& [name, weight] : checkpoint.weights.tensors) {
      if (weight.dim() > 1) weight = weight.to(at::kBFloat16);
      if (weight.dim() == 1) weight = weight + 1e-3;  // a number that bfloat16 does not hold
    }
    const auto mixed = checkpoint.load();
    CHECK(dtype_of(*mixed, up) == at::kBFloat16);
    CHECK(dtype_of(*mixed, norm) == at::kFloat);
    CHECK(mixed->load_note().find("matrices 16 of BFloat16 and vectors 5 of Float") !=
          std::string::npos);
    const auto exact = checkpoint.load("float64");
    const auto near = [&](const at::Tensor& a, const at::Tensor& b, double tolerance) {
      CHECK((a.to(at::kDouble) - b.to(at::kDouble)).abs().max().item<double>() < tolerance);
    };
    const auto batch = make_batch({{.prompt = Tokens{1, 2}, .completion = Tokens{3, 4}}});
    const at::NoGradGuard no_grad;
    near(mixed->forward_packed(*batch.packed), exact->forward_packed(*batch.packed), 1e-4);
    near(mixed->start_decoding({{1, 2, 3}})->prefill(),
         exact->start_decoding({{1, 2, 3}})->prefill(), 1e-4);
    near(mixed->forward(batch).hidden, exact->forward(batch).hidden, 0.3);  // rounds to bfloat16

    const TempDir copy;
    mixed->save(copy.path());
    const auto back = Decoder::load(copy.path());
    CHECK(dtype_of(*back, norm) == at::kFloat);
    CHECK(at::equal(back->forward_packed(*batch.packed), mixed->forward_packed(*batch.packed)));
  }
  SECTION("matrices of two dtypes are widened") {
    checkpoint.weight(up) = checkpoint.weight(up).to(at::kBFloat16);
    const auto mixed = checkpoint.load();
    CHECK(dtype_of(*mixed, up) == at::kFloat);
    checkpoint.weight(up) = checkpoint.weight(up).to(at::kFloat);
    const auto plain = checkpoint.load();
    CHECK(at::equal(logits_of(*mixed, {1, 2, 3}), logits_of(*plain, {1, 2, 3})));
    CHECK(plain->load_note().empty());
    CHECK_FALSE(mixed->load_note().empty());
  }
}

TEST_CASE("decoder: weights that do not fit their config are refused by name", "[decoder]") {
  Checkpoint checkpoint;
  const std::string name = "model.layers.1.mlp.up_proj.weight";
  const auto refuse = [&](const std::string& text) {
    CHECK_THROWS_TEXT(checkpoint.load(), CheckpointError, checkpoint.weights_path() + ": " + text);
  };
  SECTION("missing") {
    checkpoint.config["num_hidden_layers"] = 3;
    refuse("expected tensor 'model.layers.2.self_attn.q_proj.weight', got none of that name");
  }
  SECTION("unexpected") {
    checkpoint.weight("model.layers.0.self_attn.q_proj.bias") = at::zeros({24});
    refuse(
        "expected the tensors of config.json's model only, got "
        "'model.layers.0.self_attn.q_proj.bias'");
  }
  SECTION("of a wrong shape") {
    checkpoint.weight(name) = checkpoint.weight(name).t();
    refuse("tensor '" + name + "': expected shape [10, 12], got [12, 10]");
  }
  SECTION("of a wrong dtype") {
    checkpoint.weight(name) = at::zeros({10, 12}, at::kInt);
    refuse("tensor '" + name + "': expected a floating dtype, got Int");
  }
  SECTION("no own head") {
    std::erase_if(checkpoint.weights.tensors,
                  [](const auto& item) { return item.first == "lm_head.weight"; });
    refuse(
        "expected tensor 'lm_head.weight', got none of that name; tie_word_embeddings in "
        "config.json is not true, which asks for its own head");
  }
  SECTION("rotary frequencies, which are computed anyway") {
    checkpoint.weight("model.layers.0.self_attn.rotary_emb.inv_freq") = at::zeros({3});
    CHECK_NOTHROW(checkpoint.load());
  }
  SECTION("its own head in a tied model") {
    Checkpoint tied(odd_options(/*tied=*/true));
    tied.weight("lm_head.weight") = tied.weight("model.embed_tokens.weight").clone();
    CHECK_NOTHROW(tied.load());
    CHECK_NOTHROW(tied.load("bfloat16"));
    tied.weight("lm_head.weight")[3][4] += 1;
    CHECK_THROWS_TEXT(tied.load(), CheckpointError,
                      tied.weights_path() +
                          ": tensor 'lm_head.weight': expected the bytes of "
                          "'model.embed_tokens.weight', as tie_word_embeddings says, got others");
  }
  SECTION("no file") {
    checkpoint.load();
    std::filesystem::remove(checkpoint.weights_path());
    CHECK_THROWS_TEXT(
        Decoder::load(checkpoint.path()), CheckpointError,
        checkpoint.weights_path() + ": expected a readable file, got No such file or directory");
  }
}

}  // namespace prefopt::test_decoder
