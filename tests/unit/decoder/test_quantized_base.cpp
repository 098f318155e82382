// SPDX-License-Identifier: Apache-2.0
#include <ATen/Context.h>
#include <ATen/ops/equal.h>
#include <ATen/ops/randn.h>

#include <memory>
#include <string>
#include <vector>

#include "kernels/block_tensor.h"
#include "prefopt/decoder/decoder.h"
#include "prefopt/decoder/gguf_export.h"
#include "prefopt/error.h"
#include "prefopt/losses/registry.h"
#include "prefopt/policy/reference.h"
#include "prefopt/policy/sampling.h"
#include "prefopt/policy/sequence_kl.h"
#include "prefopt/policy/sequence_logps.h"
#include "prefopt/train/trainer.h"
#include "support/catch.h"
#include "support/errors.h"
#include "support/model_logps.h"
#include "support/temp_dir.h"

namespace prefopt::test_quantized_base {
namespace {

using namespace testing_support;

/// The file of a Llama, whose queries and keys have rows in another order, with blocks of each kind
/// that the type leads to.
std::string gguf_file(const TempDir& dir, const std::string& type, bool tied) {
  at::manual_seed(3);
  const Decoder model({.vocab_size = 300,
                       .hidden_size = 256,
                       .intermediate_size = 288,
                       .num_hidden_layers = 2,
                       .num_attention_heads = 4,
                       .num_key_value_heads = 2,
                       .head_dim = 16,
                       .tie_word_embeddings = tied,
                       .initializer_range = 0.1});
  export_gguf(model, dir.file(type + ".gguf"), {.type = type});
  return dir.file(type + ".gguf");
}

TokenBatch pair_batch() {
  return make_pair_batch({{.prompt = {5, 9, 11, 40}, .chosen = {7, 8, 2}, .rejected = {6, 2}},
                          {.prompt = {5, 250}, .chosen = {299}, .rejected = {1, 0, 3, 2}}});
}

void add_adapter(Decoder& model, const LoraOptions& options) {
  at::manual_seed(11);
  model.add_adapter(options);
  const at::NoGradGuard no_grad;
  for (const auto& [name, value] : model.named_parameters()) {
    if (value.requires_grad()) value.add_(at::randn(value.sizes()), 0.02);
  }
}

std::vector<at::Tensor> gradients_of(Decoder& model, const TokenBatch& batch) {
  std::vector<at::Tensor> gradients{sequence_logps(model, batch).logps};
  gradients[0].sum().backward();
  for (const auto& [name, value] : model.named_parameters()) {
    if (value.requires_grad()) gradients.push_back(value.grad().clone());
  }
  return gradients;
}

void check_same_bits(const std::vector<at::Tensor>& got, const std::vector<at::Tensor>& expected) {
  REQUIRE(got.size() == expected.size());
  for (std::size_t i = 0; i < got.size(); ++i) CHECK(at::equal(got[i], expected[i]));
}

std::int64_t count_of_blocks(const Decoder& model) {
  std::int64_t count = 0;
  for (const auto& [name, value] : model.named_parameters()) {
    count += kernels::blocks_of(value) != nullptr ? 1 : 0;
  }
  return count;
}

}  // namespace

TEST_CASE("quantized base: the bits of the float32 model", "[decoder]") {
  const TempDir dir;
  const std::string type = GENERATE("Q8_0", "Q4_0", "Q4_K");
  const bool tied = GENERATE(true, false);
  INFO(type << (tied ? ", tied" : ""));
  const std::string path = gguf_file(dir, type, tied);
  const auto wide = Decoder::load(path);
  const auto base = Decoder::load(path, "quantized");
  CHECK(count_of_blocks(*wide) == 0);
  CHECK(count_of_blocks(*base) == (tied ? 15 : 16));

  const TokenBatch batch = pair_batch();
  {
    const at::NoGradGuard no_grad;
    CHECK(at::equal(sequence_logps(*base, batch).logps, sequence_logps(*wide, batch).logps));
    // Without packing, products are LibTorch's for the one.
    const at::Tensor hidden = base->forward(batch).hidden;
    CHECK(at::allclose(hidden, wide->forward(batch).hidden, 1e-4, 1e-5));
  }
  const SamplingOptions greedy{.max_new_tokens = 8, .temperature = 0};
  const std::vector<std::vector<std::int64_t>> prompts{{5, 9, 11}, {7}, {5, 9, 11}};
  CHECK(sample(*base, prompts, greedy) == sample(*wide, prompts, greedy));

  const LoraOptions lora{.r = 4, .use_dora = GENERATE(false, true)};
  add_adapter(*wide, lora);
  add_adapter(*base, lora);
  check_same_bits(gradients_of(*base, batch), gradients_of(*wide, batch));
  base->set_checkpointing(Checkpointing::kFull);
  for (const auto& [name, value] : base->named_parameters()) value.mutable_grad().reset();
  for (const auto& [name, value] : wide->named_parameters()) value.mutable_grad().reset();
  check_same_bits(gradients_of(*base, batch), gradients_of(*wide, batch));

  const at::Tensor kl = sequence_kl(*base, *base->without_adapter(), batch);
  CHECK(at::allclose(kl, sequence_kl(*wide, *wide->without_adapter(), batch), 1e-5, 1e-7));
  kl.sum().backward();

  // Merging is what makes numbers of blocks.
  const auto merged = base->merged_decoder();
  const at::NoGradGuard no_grad;
  CHECK(at::allclose(sequence_logps(*merged, batch).logps, sequence_logps(*wide, batch).logps, 1e-4,
                     1e-4));
}

TEST_CASE("quantized base: parts of the model that an adapter trains whole", "[decoder]") {
  const TempDir dir;
  const std::string path = gguf_file(dir, "Q8_0", true);
  const auto wide = Decoder::load(path);
  const auto base = Decoder::load(path, "quantized");
  const LoraOptions lora{
      .r = 2, .target_modules = {"q_proj", "embed_tokens"}, .modules_to_save = {"down_proj"}};
  add_adapter(*wide, lora);
  add_adapter(*base, lora);
  check_same_bits(gradients_of(*base, pair_batch()), gradients_of(*wide, pair_batch()));
}

TEST_CASE("quantized base: copies share the file's blocks", "[decoder]") {
  const TempDir dir;
  const auto base = Decoder::load(gguf_file(dir, "Q4_K", true), "quantized");
  const auto copy = base->frozen_decoder();
  const auto own = base->named_parameters(), theirs = copy->named_parameters();
  for (std::size_t i = 0; i < own.size(); ++i) {
    const auto* blocks = kernels::blocks_of(own[i].value);
    CHECK(blocks == kernels::blocks_of(theirs[i].value));
  }
  CHECK(content_hash(*base) == content_hash(*copy));
  CHECK(content_hash(*base) !=
        content_hash(*Decoder::load(gguf_file(dir, "Q8_0", true), "quantized")));
}

TEST_CASE("quantized base: what it cannot do is refused", "[decoder]") {
  const TempDir dir;
  const std::string path = gguf_file(dir, "Q4_K", true);
  const auto base = Decoder::load(path, "quantized");
  CHECK_THROWS_TEXT(
      Trainer(base, make_frozen_reference(base->frozen_copy()), make_loss(R"({"type": "dpo"})"),
              {}),
      ConfigError,
      "model.embed_tokens.weight: expected a weight in a floating dtype to train, got one in Q6_K "
      "blocks; train an adapter (model.use_lora), or load the model in float32 (model.base)");
  CHECK_THROWS_TEXT(
      sequence_logps(*base, pair_batch()).logps.sum().backward(), ConfigError,
      "linear_token_logps: expected a weight in a floating dtype to train, got one in "
      "Q6_K blocks; train an adapter (model.use_lora), or load the model in float32 "
      "(model.base)");
  CHECK_THROWS_TEXT(base->to(at::kBFloat16), ConfigError,
                    "decoder: expected float32 of a model in Q6_K blocks, got BFloat16; load it in "
                    "that dtype");
  CHECK_THROWS_TEXT(base->save(dir.file("saved")), ConfigError,
                    dir.file("saved") +
                        ": expected weights in a floating dtype to save, got "
                        "'model.embed_tokens.weight' in Q6_K blocks; load the model in a dtype");

  const std::string plain = gguf_file(dir, "F16", true);
  CHECK_THROWS_TEXT(Decoder::load(plain, "quantized"), CheckpointError,
                    plain + ": expected matrices in blocks to keep, got none; read it in a dtype");
  Decoder::load(plain)->save(dir.file("folder"));
  CHECK_THROWS_TEXT(
      Decoder::load(dir.file("folder"), "quantized"), CheckpointError,
      dir.file("folder") + ": expected a GGUF file to keep the blocks of, got a folder");
}

}  // namespace prefopt::test_quantized_base
