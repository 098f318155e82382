// SPDX-License-Identifier: Apache-2.0
#include <ATen/Context.h>
#include <ATen/ops/equal.h>

#include <filesystem>
#include <fstream>
#include <memory>
#include <string>

#include "core/activation_file.h"
#include "decoder/model_shape.h"
#include "kernels/block_tensor.h"
#include "prefopt/decoder/decoder.h"
#include "prefopt/decoder/gguf_export.h"
#include "prefopt/error.h"
#include "prefopt/memory.h"
#include "prefopt/policy/sampling.h"
#include "prefopt/policy/sequence_logps.h"
#include "support/catch.h"
#include "support/errors.h"
#include "support/temp_dir.h"

namespace prefopt::test_quantize_on_load {
namespace {

using namespace testing_support;

Decoder model_of(std::int64_t hidden, bool tied) {
  at::manual_seed(4);
  return Decoder({.vocab_size = 300,
                  .hidden_size = hidden,
                  .intermediate_size = 512,
                  .num_hidden_layers = 2,
                  .num_attention_heads = 4,
                  .num_key_value_heads = 2,
                  .head_dim = 64,
                  .tie_word_embeddings = tied,
                  .initializer_range = 0.1});
}

TokenBatch small_batch() {
  return make_pair_batch({{.prompt = {5, 9, 11, 40}, .chosen = {7, 8, 2}, .rejected = {6, 2}}});
}

std::vector<at::Tensor> logps_and_gradients(Decoder& model) {
  std::vector<at::Tensor> tensors{sequence_logps(model, small_batch()).logps};
  tensors[0].sum().backward();
  for (const auto& [name, value] : model.named_parameters()) {
    if (!value.requires_grad()) continue;
    tensors.push_back(value.grad().clone());
    value.mutable_grad().reset();
  }
  return tensors;
}

#ifdef __linux__
/// Returns bytes of a line of /proc/self/status, as of "VmHWM".
std::int64_t status_bytes(const std::string& key) {
  std::ifstream status("/proc/self/status");
  for (std::string line; std::getline(status, line);) {
    if (line.starts_with(key + ":")) return std::stoll(line.substr(key.size() + 1)) * 1024;
  }
  return -1;
}

/// Returns the most memory over `work` beyond what there was, by the kernel's own mark.
template <class Work>
std::int64_t peak_of(const Work& work) {
  release_pooled_memory();
  std::ofstream("/proc/self/clear_refs") << "5";  // the mark begins at what there is now
  const std::int64_t before = status_bytes("VmRSS");
  work();
  return status_bytes("VmHWM") - before;
}
#endif

}  // namespace

TEST_CASE("quantize on load: the bits of an exported file of that type", "[decoder]") {
  const TempDir dir;
  const bool tied = GENERATE(true, false);
  const std::string encoding = GENERATE("q8_0", "q4_k");
  INFO(encoding << (tied ? ", tied" : ""));
  model_of(256, tied).save(dir.file("folder"));
  const auto loaded = Decoder::load(dir.file("folder"), encoding);
  std::int64_t blocks = 0, bytes = 0;
  for (const auto& [name, value] : loaded->named_parameters()) {
    if (const auto* stored = kernels::blocks_of(value)) {
      CHECK(stored->encoding == (encoding == "q8_0" ? "Q8_0" : "Q4_K"));
      ++blocks;
      bytes += static_cast<std::int64_t>(stored->bytes.nbytes());
    }
  }
  CHECK(blocks == (tied ? 15 : 16));
  // The plan knows their size without reading a weight.
  const auto shape = detail::ModelShape::read(dir.file("folder"), encoding);
  std::int64_t vectors = 0;
  for (const auto& [name, value] : loaded->named_parameters()) {
    if (!kernels::blocks_of(value)) vectors += static_cast<std::int64_t>(value.nbytes());
  }
  CHECK(shape.weight_bytes().all == bytes + vectors);
  CHECK(shape.weight_bytes().mapped == 0);
  CHECK(shape.has_head_in_blocks());

  // Q4_K files of other programs keep some matrices in more bits, so Q8_0 alone compares.
  if (encoding == "q4_k") return;
  export_gguf(model_of(256, tied), dir.file("q8.gguf"), {.type = "Q8_0"});
  const auto file = Decoder::load(dir.file("q8.gguf"), "quantized");
  const at::NoGradGuard no_grad;
  CHECK(at::equal(sequence_logps(*loaded, small_batch()).logps,
                  sequence_logps(*file, small_batch()).logps));
}

TEST_CASE("quantize on load: what cannot be is refused", "[decoder]") {
  const TempDir dir;
  model_of(96, true).save(dir.file("folder"));
  CHECK_NOTHROW(Decoder::load(dir.file("folder"), "q8_0"));
  CHECK_THROWS_TEXT(
      Decoder::load(dir.file("folder"), "q4_k"), DtypeError,
      dir.file("folder") +
          "/model.safetensors: tensor 'model.embed_tokens.weight': expected rows in blocks of 256 "
          "for Q4_K, got 96 values");
  const std::string path = dir.file("q8.gguf");
  export_gguf(model_of(96, true), path, {.type = "Q8_0"});
  CHECK_THROWS_TEXT(
      Decoder::load(path, "q8_0"), CheckpointError,
      path +
          ": expected a model in float dtypes to quantize, got matrices in blocks, which are "
          "kept as they are without it (model.base)");
}

TEST_CASE("activation file: layers compute the same bits", "[decoder]") {
  const TempDir dir;
  Decoder model = model_of(96, false);
  model.set_checkpointing(Checkpointing::kFull);
  const auto expected = logps_and_gradients(model);
  detail::activation_file() = std::make_shared<detail::ActivationFile>(dir.path(), "folder");
  const auto in_file = logps_and_gradients(model);
  const auto again = logps_and_gradients(model);  // on parts that were used before
  detail::activation_file().reset();
  REQUIRE(in_file.size() == expected.size());
  for (std::size_t i = 0; i < expected.size(); ++i) {
    CHECK(at::equal(in_file[i], expected[i]));
    CHECK(at::equal(again[i], expected[i]));
  }
}

TEST_CASE("quantized base: a file that was cut short is refused", "[decoder]") {
  const TempDir dir;
  const std::string path = dir.file("q8.gguf");
  export_gguf(model_of(96, true), path, {.type = "Q8_0"});
  const auto size = std::filesystem::file_size(path);
  const auto model = Decoder::load(path, "quantized");
  std::filesystem::resize_file(path, size - 32);
  const std::string text =
      path + ": expected " + std::to_string(size) + " bytes, as when it was mapped, got " +
      std::to_string(size - 32) +
      "; weights are read from the file while they are used, so it has to stay as it is";
  const at::NoGradGuard no_grad;
  CHECK_THROWS_TEXT(sequence_logps(*model, small_batch()), CheckpointError, text);
  CHECK_THROWS_TEXT(model->start_decoding({{1, 2}}), CheckpointError, text);
  std::filesystem::resize_file(path, size);
}

#ifdef __linux__
TEST_CASE("quantized base: there is never a float32 copy of a matrix", "[decoder]") {
  const TempDir dir;
  const std::string path = dir.file("q8.gguf");
  constexpr std::int64_t kVocab = 24576, kHidden = 1024;
  constexpr std::int64_t kFloats = kVocab * kHidden * 4;  // 96 MiB
  {
    at::manual_seed(1);
    export_gguf(Decoder({.vocab_size = kVocab,
                         .hidden_size = kHidden,
                         .intermediate_size = 64,
                         .num_hidden_layers = 1,
                         .num_attention_heads = 2,
                         .num_key_value_heads = 1,
                         .head_dim = 32,
                         .tie_word_embeddings = true}),
                path, {.type = "Q8_0"});
  }
  if (peak_of([] {}) > kFloats / 8) {
    WARN("the kernel does not reset its mark of the most memory");
    return;
  }
  const auto use = [&](const std::string& dtype) {
    return peak_of([&] {
      const auto model = Decoder::load(path, dtype);
      model->add_adapter({.r = 2});
      const auto reference = model->without_adapter();
      const SequenceLogpsOptions options{
          .by_products = {}, .reduction = {}, .budget_bytes = std::int64_t{4} << 20};
      sequence_logps(*model, small_batch(), options).logps.sum().backward();
      const at::NoGradGuard no_grad;
      sequence_logps(*reference, small_batch(), options);
      sample(*model, {{5, 9}, {7}}, {.max_new_tokens = 2});
    });
  };
  const std::int64_t in_blocks = use("quantized");
  // 26 MiB of the file's pages and what the kernels decode at once.
  CHECK(in_blocks < kFloats * 2 / 3);
  CHECK(use("float32") > kFloats);

  // Policy and reference read one mapping.
  const auto model = Decoder::load(path, "quantized");
  const auto copy = model->frozen_decoder();
  std::ifstream maps("/proc/self/maps");
  std::int64_t mappings = 0;
  for (std::string line; std::getline(maps, line);) mappings += line.ends_with(path) ? 1 : 0;
  CHECK(mappings == 1);
}
#endif

}  // namespace prefopt::test_quantize_on_load
