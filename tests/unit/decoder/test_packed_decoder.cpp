// SPDX-License-Identifier: Apache-2.0
#include <random>

#include "prefopt/decoder/decoder.h"
#include "prefopt/error.h"
#include "prefopt/policy/reference.h"
#include "prefopt/policy/sequence_logps.h"
#include "support/catch.h"
#include "support/errors.h"

namespace prefopt::test_packed_decoder {
namespace {

using Tokens = std::vector<std::int64_t>;

/// Grouped heads, a head wider than its share, and every part that a family may add.
DecoderOptions odd_options() {
  return {.vocab_size = 13,
          .hidden_size = 12,
          .intermediate_size = 10,
          .num_hidden_layers = 3,
          .num_attention_heads = 4,
          .num_key_value_heads = 2,
          .head_dim = 6,
          .rope_theta = 100,
          .rope_scaling_factor = 8,
          .rope_original_max_position_embeddings = 32,
          .attention_bias = true,
          .attention_output_bias = true,
          .qk_norm = true,
          .tie_word_embeddings = true,
          .initializer_range = 0.4};
}

std::shared_ptr<Decoder> make_decoder(at::ScalarType dtype,
                                      DecoderOptions options = odd_options()) {
  torch::manual_seed(3);
  auto decoder = std::make_shared<Decoder>(options);
  const at::NoGradGuard no_grad;
  for (const auto& [name, value] : decoder->named_parameters()) {
    // Norms other than one and biases other than zero, so that a forgotten one shows.
    if (value.dim() == 1) value.add_(at::randn_like(value), 0.2);
  }
  decoder->to(dtype);
  return decoder;
}

void add_random_adapter(Decoder& decoder) {
  decoder.add_adapter({.r = 2,
                       .lora_alpha = 3,
                       .target_modules = {"q_proj", "v_proj", "o_proj", "gate_proj", "down_proj"}});
  const at::NoGradGuard no_grad;
  for (const auto& [name, value] : decoder.named_parameters()) {
    if (value.requires_grad()) value.normal_(0, 0.3);
  }
}

/// Shared completion beginnings, a chosen that begins rejected, equal completions, a prompt of one
/// token, two pairs with one prompt, lengths that differ.
std::vector<TokenRow> odd_pairs() {
  return {{.prompt = {1, 2, 3, 4}, .chosen = {5, 6, 7}, .rejected = {5, 6, 8, 9, 1}},
          {.prompt = {7}, .chosen = {2, 3}, .rejected = {2, 3, 4}},
          {.prompt = {4, 4, 9}, .chosen = {1}, .rejected = {12, 11, 10, 9, 8, 7}},
          {.prompt = {1, 2, 3, 4}, .chosen = {11}, .rejected = {5, 6}},
          {.prompt = {2, 2}, .chosen = {3, 1}, .rejected = {3, 1}}};
}

TokenBatch unshared(TokenBatch batch) {
  batch.packed.reset();
  return batch;
}

struct Scored {
  at::Tensor logps, token_logps;
  std::vector<at::Tensor> gradients;
};

/// Log-probs, and the gradients of their sum under a fixed random cotangent.
Scored score(Decoder& decoder, const TokenBatch& batch) {
  for (const auto& [name, value] : decoder.named_parameters()) value.mutable_grad().reset();
  const SequenceLogps result = sequence_logps(decoder, batch);
  torch::manual_seed(11);
  const at::Tensor cotangent = at::randn(result.logps.sizes(), at::kDouble);
  (result.logps * cotangent).sum().backward();
  Scored scored{result.logps.detach(), result.token_logps.detach(), {}};
  for (const auto& [name, value] : decoder.named_parameters()) {
    scored.gradients.push_back(value.grad().defined() ? value.grad().clone() : at::Tensor());
  }
  return scored;
}

double distance(const at::Tensor& a, const at::Tensor& b) {
  return ((a - b).abs().max() / b.abs().max().clamp_min(1e-300)).item<double>();
}

void check_equal(const Decoder& decoder, const Scored& shared, const Scored& plain, double most) {
  CHECK(distance(shared.logps, plain.logps) < most);
  CHECK(distance(shared.token_logps, plain.token_logps) < most);
  const auto parameters = decoder.named_parameters();
  for (std::size_t i = 0; i < parameters.size(); ++i) {
    INFO(parameters[i].name);
    REQUIRE(shared.gradients[i].defined() == plain.gradients[i].defined());
    if (plain.gradients[i].defined()) {
      CHECK(distance(shared.gradients[i], plain.gradients[i]) < most);
    }
  }
}

}  // namespace

TEST_CASE("packed decoder: shares beginnings and equals the padded forward", "[decoder]") {
  const TokenBatch batch = make_pair_batch(odd_pairs());
  REQUIRE(batch.packed->input_ids.size(0) < batch.attention_mask.sum().item<std::int64_t>());

  SECTION("float64") {
    const auto decoder = make_decoder(at::kDouble);
    check_equal(*decoder, score(*decoder, batch), score(*decoder, unshared(batch)), 1e-11);
  }
  SECTION("float32") {
    const auto decoder = make_decoder(at::kFloat);
    check_equal(*decoder, score(*decoder, batch), score(*decoder, unshared(batch)), 1e-5);
  }
  SECTION("with an adapter, whose gradients are the only ones") {
    const auto decoder = make_decoder(at::kDouble);
    add_random_adapter(*decoder);
    const Scored shared = score(*decoder, batch);
    check_equal(*decoder, shared, score(*decoder, unshared(batch)), 1e-11);
    for (std::size_t i = 0; i < shared.gradients.size(); ++i) {
      const auto parameter = decoder->named_parameters()[i];
      CHECK(shared.gradients[i].defined() == (parameter.name.find("lora") != std::string::npos));
    }
  }
  SECTION("without any of a family's additions, head apart") {
    const auto decoder = make_decoder(at::kDouble, {.vocab_size = 13,
                                                    .hidden_size = 8,
                                                    .intermediate_size = 10,
                                                    .num_hidden_layers = 1,
                                                    .num_attention_heads = 2,
                                                    .num_key_value_heads = 2,
                                                    .tie_word_embeddings = false,
                                                    .initializer_range = 0.4});
    check_equal(*decoder, score(*decoder, batch), score(*decoder, unshared(batch)), 1e-11);
  }
}

TEST_CASE("packed decoder: gradients agree with finite differences", "[decoder]") {
  const auto decoder = make_decoder(at::kDouble);
  const bool has_adapter = GENERATE(false, true);
  if (has_adapter) add_random_adapter(*decoder);
  const TokenBatch batch = make_pair_batch(odd_pairs());
  const Scored scored = score(*decoder, batch);
  torch::manual_seed(11);
  const at::Tensor cotangent = at::randn(scored.logps.sizes(), at::kDouble);
  const auto parameters = decoder->named_parameters();
  std::mt19937_64 rng(5);
  for (std::size_t i = 0; i < parameters.size(); ++i) {
    if (!parameters[i].value.requires_grad()) continue;
    const at::NoGradGuard no_grad;
    const at::Tensor flat = parameters[i].value.detach().view(-1);
    for (int tries = 0; tries < 2; ++tries) {
      const auto at = static_cast<std::int64_t>(rng() % static_cast<std::uint64_t>(flat.size(0)));
      INFO(parameters[i].name << " " << at);
      const double value = flat[at].item<double>();
      constexpr double kStep = 1e-5;
      const auto objective = [&](double moved) {
        flat[at].fill_(moved);
        return (sequence_logps(*decoder, batch).logps * cotangent).sum().item<double>();
      };
      const double numeric = (objective(value + kStep) - objective(value - kStep)) / (2 * kStep);
      flat[at].fill_(value);
      const double exact = scored.gradients[i].view(-1)[at].item<double>();
      CHECK(exact == Approx(numeric).epsilon(1e-6).margin(1e-7));
    }
  }
}

TEST_CASE("packed decoder: checkpointing changes memory and no bit", "[decoder]") {
  const auto decoder = make_decoder(at::kFloat);
  const TokenBatch batch = make_pair_batch(odd_pairs());
  const Scored kept = score(*decoder, batch);
  for (const auto level : {Checkpointing::kSelective, Checkpointing::kFull}) {
    decoder->set_checkpointing(level);
    const Scored again = score(*decoder, batch);
    CHECK(again.logps.equal(kept.logps));
    for (std::size_t i = 0; i < kept.gradients.size(); ++i) {
      CHECK(again.gradients[i].equal(kept.gradients[i]));
    }
  }
  const std::int64_t none = decoder->activation_bytes(100, Checkpointing::kNone);
  const std::int64_t selective = decoder->activation_bytes(100, Checkpointing::kSelective);
  // gate and up: 2 x 10 numbers a row and layer; full keeps 12 a row and layer.
  CHECK(none - selective == 100 * 3 * 20 * 4);
  CHECK(decoder->activation_bytes(100, Checkpointing::kFull) == 100 * 3 * 12 * 4);
}

TEST_CASE("packed decoder: weights of bfloat16 are widened, activations are float32", "[decoder]") {
  const auto narrow = make_decoder(at::kBFloat16);
  const auto wide = narrow->frozen_decoder();
  wide->to(at::kFloat);
  wide->set_requires_grad(true);
  const TokenBatch batch = make_pair_batch(odd_pairs());
  const Scored of_narrow = score(*narrow, batch);
  const Scored of_wide = score(*wide, batch);
  // The rotation is the same, and products see the same numbers.
  CHECK(distance(of_narrow.logps, of_wide.logps) < 1e-5);
  for (std::size_t i = 0; i < of_wide.gradients.size(); ++i) {
    CHECK(of_narrow.gradients[i].scalar_type() == at::kBFloat16);
    CHECK(distance(of_narrow.gradients[i].to(at::kFloat), of_wide.gradients[i]) < 8e-3);
  }
}

TEST_CASE("packed decoder: the same policy and reference give the same bits", "[decoder]") {
  const auto decoder = make_decoder(at::kFloat);
  const auto reference = make_frozen_reference(decoder->frozen_copy());
  const TokenBatch batch = make_pair_batch(odd_pairs());
  CHECK(sequence_logps(*decoder, batch).logps.detach().equal(reference->sequence_logps(batch)));
  add_random_adapter(*decoder);
  const auto base = make_frozen_reference(decoder->without_adapter());
  CHECK(base->sequence_logps(batch).equal(reference->sequence_logps(batch)));
  CHECK_FALSE(sequence_logps(*decoder, batch).logps.detach().equal(base->sequence_logps(batch)));
}

TEST_CASE("packed decoder: token ids out of range are refused", "[decoder]") {
  const auto decoder = make_decoder(at::kFloat);
  CHECK_THROWS_TEXT(
      decoder->forward_packed(
          *make_pair_batch({{.prompt = {1, 13}, .chosen = {1}, .rejected = {2}}}).packed),
      DataError, "decoder: expected token ids in [0, 13), got 13");
}

}  // namespace prefopt::test_packed_decoder
