// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <cmath>
#include <map>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "decoder/gguf_decoder.h"
#include "prefopt/decoder/decoder.h"
#include "prefopt/error.h"
#include "prefopt/files/safetensors.h"
#include "prefopt/policy/sequence_logps.h"
#include "support/catch.h"
#include "support/errors.h"
#include "support/files.h"
#include "support/gguf_builder.h"
#include "support/temp_dir.h"
#include "unit/decoder/toy_family.h"

namespace prefopt::test_toy_family {
namespace {

using namespace testing_support;
using nlohmann::json;
using Tokens = std::vector<std::int64_t>;

const ToyFamily kToy;

DecoderOptions toy_options() {
  return {.family = "toy",
          .vocab_size = 11,
          .hidden_size = 12,
          .intermediate_size = 10,
          .num_hidden_layers = 2,
          .num_attention_heads = 4,
          .num_key_value_heads = 2,
          .head_dim = 6,
          .rope_theta = 100,
          .qk_norm = true,
          .initializer_range = 0.4};
}

std::shared_ptr<Decoder> make_toy(at::ScalarType dtype = at::kDouble) {
  torch::manual_seed(3);
  auto decoder = std::make_shared<Decoder>(toy_options());
  const at::NoGradGuard no_grad;
  for (const auto& [name, value] : decoder->named_parameters()) {
    if (value.dim() == 1) value.add_(at::randn_like(value), 0.2);
  }
  decoder->to(dtype);
  return decoder;
}

/// The model in plain operators on float64: logits [T, vocab] of one sequence.
class ToyByHand {
 public:
  explicit ToyByHand(const Decoder& decoder) {
    for (const auto& [name, value] : decoder.named_parameters()) weights_[name] = value.detach();
  }

  at::Tensor logits(const Tokens& tokens) const {
    const at::Tensor embedding = weights_.at("model.embed_tokens.weight");
    at::Tensor x = embedding.index_select(0, at::tensor(tokens, at::kLong)) * std::sqrt(12.0);
    for (int layer = 0; layer < 2; ++layer) {
      const std::string prefix = "model.layers." + std::to_string(layer) + ".";
      x = x + attend(norm(x, prefix + "input_layernorm"), prefix + "self_attn.");
      const at::Tensor normed = norm(x, prefix + "post_attention_layernorm");
      const at::Tensor gate = map(normed, prefix + "mlp.gate_proj");
      const at::Tensor gated = gate * gate.sigmoid() * map(normed, prefix + "mlp.up_proj");
      x = x + map(gated, prefix + "mlp.down_proj");
    }
    return 4 * (0.5 * norm(x, "model.norm").matmul(embedding.t()) / 4).tanh();
  }

 private:
  at::Tensor map(const at::Tensor& x, const std::string& name) const {
    const at::Tensor y = x.matmul(weights_.at(name + ".weight").t());
    const auto bias = weights_.find(name + ".bias");
    return bias == weights_.end() ? y : y + bias->second;
  }

  at::Tensor norm(const at::Tensor& x, const std::string& name) const {
    return x / (x.square().mean(-1, true) + 1e-5).sqrt() * weights_.at(name + ".weight");
  }

  // [heads, T, 6]
  at::Tensor heads(const at::Tensor& x, const std::string& name) const {
    return map(x, name).view({x.size(0), -1, 6}).transpose(0, 1);
  }

  static at::Tensor rotated(const at::Tensor& x) {
    const at::Tensor frequencies = at::pow(100.0, -at::arange(0, 6, 2, at::kDouble) / 6);
    const at::Tensor angles = at::arange(x.size(1), at::kDouble).unsqueeze(1) * frequencies;
    const at::Tensor a = x.slice(2, 0, 3), b = x.slice(2, 3, 6);
    return at::cat({a * angles.cos() - b * angles.sin(), b * angles.cos() + a * angles.sin()}, 2);
  }

  at::Tensor attend(const at::Tensor& x, const std::string& prefix) const {
    const at::Tensor q = rotated(norm(heads(x, prefix + "q_proj"), prefix + "q_norm"));
    const at::Tensor k = rotated(norm(heads(x, prefix + "k_proj"), prefix + "k_norm"));
    const at::Tensor later = at::ones({x.size(0), x.size(0)}, at::kBool).triu(1);
    const at::Tensor scores = 0.3 * q.matmul(k.repeat_interleave(2, 0).transpose(1, 2));
    const at::Tensor shares = scores.masked_fill(later, -1e30).softmax(2);
    const at::Tensor mixed = shares.matmul(heads(x, prefix + "v_proj").repeat_interleave(2, 0));
    return map(mixed.transpose(0, 1).reshape({x.size(0), -1}), prefix + "o_proj");
  }

  std::map<std::string, at::Tensor> weights_;
};

}  // namespace

TEST_CASE("a family in one file: all executors compute its spec", "[decoder]") {
  const detail::AddedFamily added(kToy);
  const auto decoder = make_toy();
  const Tokens prompt{3, 1, 4}, completion{1, 5, 9, 2};
  Tokens all = prompt;
  all.insert(all.end(), completion.begin(), completion.end());
  const at::Tensor expected = ToyByHand(*decoder).logits(all);
  const at::Tensor logps = expected.log_softmax(1).slice(0, 2, 6);
  const at::Tensor wanted =
      logps.gather(1, at::tensor(completion, at::kLong).unsqueeze(1)).squeeze(1);
  const auto near = [](const at::Tensor& got, const at::Tensor& exact) {
    // Rotary angles are float32 in the decoder, as in transformers.
    CHECK((got - exact).abs().max().item<double>() < 3e-6);
  };

  TokenBatch batch = make_batch({{prompt, completion}});
  REQUIRE(batch.packed != nullptr);
  const auto gradients = [&] {
    std::vector<at::Tensor> of;
    const SequenceLogps out = sequence_logps(*decoder, batch);
    near(out.token_logps.detach(), wanted);
    out.logps.sum().backward();
    for (const auto& [name, value] : decoder->named_parameters()) {
      INFO(name);
      REQUIRE(value.grad().defined());
      of.push_back(value.grad().clone());
      value.mutable_grad().reset();
    }
    return of;
  };
  const std::vector<at::Tensor> packed = gradients();
  batch.packed = nullptr;
  const std::vector<at::Tensor> padded = gradients();
  for (std::size_t i = 0; i < packed.size(); ++i) {
    INFO(decoder->named_parameters()[i].name);
    CHECK(at::allclose(packed[i], padded[i], 1e-9, 1e-11));
  }

  const auto session = decoder->start_decoding({prompt});
  near(session->prefill()[0], expected[2]);
  near(session->append(at::tensor({1}, at::kLong))[0], expected[3]);
  near(session->append(at::tensor({5}, at::kLong))[0], expected[4]);
  CHECK(decoder->head().transform.softcap == 4);
}

TEST_CASE("a family in one file: its config, its names of tensors, its GGUF", "[decoder]") {
  const TempDir dir;
  std::string hash;
  {
    const detail::AddedFamily added(kToy);
    const auto decoder = make_toy(at::kFloat);
    CHECK(json::parse(decoder->config())["family"] == "toy");
    decoder->save(dir.path());
    const json config = json::parse(bytes_of(dir.file("config.json")));
    CHECK(config["model_type"] == "toy");
    CHECK(config["architectures"] == json({"ToyForCausalLM"}));
    std::size_t renamed = 0;
    for (const auto& [name, tensor] : read_safetensors(dir.file("model.safetensors")).tensors) {
      CHECK(name.find("gate_proj") == std::string::npos);
      renamed += name.find("mlp.w1") != std::string::npos ? 1 : 0;
    }
    CHECK(renamed == 4);  // a weight and a bias of two layers
    const auto back = Decoder::load(dir.path());
    CHECK(back->options().family == "toy");
    hash = content_hash(*decoder);
    CHECK(content_hash(*back) == hash);

    json other = config;
    other["final_logit_softcapping"] = 5;
    put(dir.file("config.json"), other.dump());
    CHECK_THROWS_TEXT(
        Decoder::load(dir.path()), CheckpointError,
        dir.file("config.json") + ": expected final_logit_softcapping to be 4, got 5");
    put(dir.file("config.json"), config.dump());

    GgufBuilder file;
    file.text("general.architecture", "toy")
        .integer("toy.block_count", 1)
        .integer("toy.context_length", 64)
        .integer("toy.embedding_length", 4)
        .integer("toy.feed_forward_length", 6)
        .integer("toy.attention.head_count", 2)
        .real("toy.attention.layer_norm_rms_epsilon", 1e-5F)
        .floats("token_embd.weight", {4, 5});
    put(dir.file("x.gguf"), file.bytes());
    const DecoderOptions options =
        detail::read_gguf_config(GgufFile::open(dir.file("x.gguf"))).options;
    CHECK(options.family == "toy");
    CHECK(options.qk_norm);

    DecoderOptions plain = toy_options();
    plain.qk_norm = false;
    CHECK_THROWS_TEXT(Decoder(plain), ConfigError,
                      "decoder: expected options that the family 'toy' has, got qk_norm false");
  }
  CHECK_THROWS_TEXT(
      Decoder::load(dir.path()), CheckpointError,
      dir.file("config.json") +
          R"(: expected model_type to be "llama", "mistral", "qwen2", "qwen3", )"
          R"("granite", "smollm3", "phi3", "gemma2", "gemma3_text", "olmo2", "olmo3", )"
          R"("mixtral" or "qwen3_moe", got "toy")");
}

TEST_CASE("a family in one file: what it costs", "[decoder]") {
  const std::string text = bytes_of(PREFOPT_TEST_DATA_DIR "/../unit/decoder/toy_family.h");
  const auto begin = text.find("class ToyFamily"), end = text.find("\n};", begin);
  REQUIRE(end != std::string::npos);
  CHECK(std::count(text.begin() + static_cast<std::ptrdiff_t>(begin),
                   text.begin() + static_cast<std::ptrdiff_t>(end), '\n') < 45);
}

}  // namespace prefopt::test_toy_family
