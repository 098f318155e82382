// SPDX-License-Identifier: Apache-2.0
#include <ATen/Context.h>

#include <filesystem>
#include <map>
#include <memory>
#include <string>

#include "decoder/families/family.h"
#include "decoder/gguf_decoder.h"
#include "prefopt/decoder/gguf_export.h"
#include "prefopt/error.h"
#include "prefopt/files/gguf.h"
#include "support/catch.h"
#include "support/errors.h"
#include "support/model_logps.h"
#include "support/temp_dir.h"

namespace prefopt::test_gguf_export {
namespace {

using namespace testing_support;

/// A decoder of `options` whose norms and biases are not their neutral values.
std::shared_ptr<Decoder> random_decoder(DecoderOptions options) {
  at::manual_seed(5);
  options.initializer_range = 0.3;
  auto decoder = std::make_shared<Decoder>(options);
  const at::NoGradGuard no_grad;
  for (const auto& [name, value] : decoder->named_parameters()) {
    if (value.dim() == 1) value.add_(at::randn(value.sizes()), 0.2);
  }
  return decoder;
}

void check_equal_models(const Decoder& got, const Decoder& expected) {
  const auto weights = got.named_parameters();
  const auto others = expected.named_parameters();
  REQUIRE(weights.size() == others.size());
  for (std::size_t i = 0; i < weights.size(); ++i) {
    INFO(weights[i].name);
    CHECK(weights[i].name == others[i].name);
    CHECK(at::equal(weights[i].value, others[i].value));
  }
}

/// One that llama.cpp does not know.
class UnknownFamily final : public detail::Family {
 public:
  UnknownFamily() : Family({.model_type = "unknown", .architecture = "UnknownForCausalLM"}) {}
  std::string misfit(const DecoderOptions&) const override { return ""; }
  void read(const detail::StrictConfig&, DecoderOptions&) const override {}
  void write(const DecoderOptions&, detail::Json&) const override {}
};

std::map<std::string, std::string> types_of(const std::string& path) {
  std::map<std::string, std::string> types;
  const GgufFile file = GgufFile::open(path);
  for (const GgufTensor& tensor : file.tensors()) types[tensor.name] = tensor.type;
  return types;
}

}  // namespace

TEST_CASE("gguf export: metadata and weights are those that the gguf package wrote", "[decoder]") {
  const std::string name = GENERATE("tiny-llama", "tiny-llama3", "tiny-qwen2", "tiny-qwen3");
  INFO(name);
  const TempDir dir;
  const std::string path = dir.file("x.gguf");
  const auto model = Decoder::load(kGgufModels + name + ".gguf");
  const GgufExportRemarks remarks = export_gguf(*model, path, {.type = "F32", .end_tokens = {2}});
  CHECK(remarks.left_end_tokens.empty());
  CHECK(remarks.other_types.empty());
  CHECK(remarks.ignored_window == 0);

  const GgufFile expected = GgufFile::open(kGgufModels + name + ".gguf");
  const GgufFile got = GgufFile::open(path);
  for (const std::string& key : expected.keys()) {
    if (key == "general.file_type") continue;
    INFO(key);
    CHECK(got.encoded(key) == expected.encoded(key));
  }
  CHECK(got.integer("general.file_type") == 0);
  CHECK(got.integer("general.quantization_version") == 2);
  REQUIRE(got.tensors().size() == expected.tensors().size());
  for (const GgufTensor& tensor : expected.tensors()) {
    INFO(tensor.name);
    if (tensor.name == detail::kGgufRopeFactors) {  // transformers computes them in float32
      CHECK(at::allclose(got.tensor(tensor.name), expected.tensor(tensor.name), 1e-4));
    } else {
      CHECK(at::equal(got.tensor(tensor.name), expected.tensor(tensor.name)));
    }
    CHECK(got.find_tensor(tensor.name)->type == "F32");
  }
  const auto again = Decoder::load(path);
  check_equal_models(*again, *model);
  CHECK(worst_difference(*again, name) < 1e-4);
}

TEST_CASE("gguf export: types of tensors, by their rows", "[decoder]") {
  const DecoderOptions sizes{.vocab_size = 64,
                             .hidden_size = 256,
                             .intermediate_size = 288,
                             .num_hidden_layers = 1,
                             .num_attention_heads = 4,
                             .num_key_value_heads = 2,
                             .head_dim = 10,
                             .tie_word_embeddings = false};
  const TempDir dir;
  std::vector<std::string> remarks;
  const auto types_with = [&](const Decoder& model, const std::string& type) {
    remarks = export_gguf(model, dir.file(type), {.type = type}).other_types;
    return types_of(dir.file(type));
  };
  const auto model = random_decoder(sizes);
  auto types = types_with(*model, "Q4_K");
  CHECK(types["token_embd.weight"] == "Q4_K");
  CHECK(types["output.weight"] == "Q6_K");
  CHECK(types["blk.0.attn_q.weight"] == "Q4_K");
  CHECK(types["blk.0.attn_output.weight"] == "F16");  // rows of 40
  CHECK(types["blk.0.ffn_down.weight"] == "Q5_0");    // rows of 288
  CHECK(types["blk.0.attn_norm.weight"] == "F32");
  CHECK(types["output_norm.weight"] == "F32");
  CHECK(
      remarks ==
      std::vector<std::string>{
          "blk.*.attn_output.weight: F16 in place of Q4_K, whose blocks of 256 do not fit rows of "
          "40",
          "blk.*.ffn_down.weight: Q5_0 in place of Q4_K, whose blocks of 256 do not fit rows of "
          "288"});
  types = types_with(*model, "Q4_0");
  CHECK(types["token_embd.weight"] == "Q4_0");
  CHECK(types["output.weight"] == "Q6_K");
  CHECK(types["blk.0.attn_output.weight"] == "F16");
  CHECK(types["blk.0.ffn_down.weight"] == "Q4_0");
  types = types_with(*model, "Q8_0");
  CHECK(types["output.weight"] == "Q8_0");
  CHECK(types["blk.0.attn_output.weight"] == "F16");
  types = types_with(*model, "BF16");
  CHECK(remarks.empty());
  CHECK(types["blk.0.attn_output.weight"] == "BF16");
  CHECK(types["blk.0.ffn_norm.weight"] == "F32");

  DecoderOptions narrow = sizes;
  narrow.hidden_size = 96;
  narrow.tie_word_embeddings = true;
  const auto tied = random_decoder(narrow);
  const std::string path = dir.file("tied.gguf");
  CHECK(
      export_gguf(*tied, path, {.type = "Q4_K"}).other_types ==
      std::vector<std::string>{
          "blk.*.attn_output.weight: F16 in place of Q4_K, whose blocks of 256 do not fit rows of "
          "40",
          "blk.*.ffn_down.weight: Q5_0 in place of Q4_K, whose blocks of 256 do not fit rows of "
          "288",
          "blk.*.attn_q.weight, blk.*.attn_k.weight, blk.*.attn_v.weight, blk.*.ffn_gate.weight, "
          "blk.*.ffn_up.weight: Q5_0 in place of Q4_K, whose blocks of 256 do not fit rows of 96",
          "token_embd.weight: Q8_0 in place of Q6_K, whose blocks of 256 do not fit rows of 96"});
  types = types_of(path);
  CHECK(types["token_embd.weight"] == "Q8_0");
  CHECK_FALSE(types.contains("output.weight"));
  CHECK(types["blk.0.attn_q.weight"] == "Q5_0");

  // The file read back has the decoded values, and near what was written.
  const auto read = Decoder::load(path)->named_parameters();
  const auto given = tied->named_parameters();
  for (std::size_t i = 0; i < read.size(); ++i) {
    INFO(read[i].name);
    const double error =
        ((read[i].value - given[i].value).norm() / given[i].value.norm()).item<double>();
    CHECK(error < 0.05);
    CHECK((error == 0) == (given[i].value.dim() == 1));
  }
}

TEST_CASE("gguf export: a Mistral is written as llama.cpp has it", "[decoder]") {
  const TempDir dir;
  DecoderOptions options{.family = "mistral",
                         .vocab_size = 32,
                         .hidden_size = 16,
                         .intermediate_size = 32,
                         .num_hidden_layers = 2,
                         .num_attention_heads = 4,
                         .num_key_value_heads = 2,
                         .head_dim = 8};
  options.sliding_window = 12;
  const auto model = random_decoder(options);
  CHECK(export_gguf(*model, dir.file("x.gguf"), {.type = "F32"}).ignored_window == 12);
  const GgufFile file = GgufFile::open(dir.file("x.gguf"));
  CHECK(file.text("general.architecture") == "llama");
  CHECK(file.integer("llama.attention.sliding_window") == 12);
  const at::Tensor rows = model->named_parameters()[1].value;  // q_proj
  REQUIRE(model->named_parameters()[1].name == "model.layers.0.self_attn.q_proj.weight");
  const at::Tensor stored = file.tensor("blk.0.attn_q.weight");
  for (const auto& [from, to] : {std::pair{0, 0}, {1, 2}, {4, 1}, {7, 7}, {9, 10}, {12, 9}}) {
    CHECK(at::equal(stored[to], rows[from]));  // halves of a head interleave
  }
  const auto again = Decoder::load(dir.file("x.gguf"));
  check_equal_models(*again, *model);
  CHECK(again->options().sliding_window == 12);
}

TEST_CASE("gguf export: an adapter alone, as llama.cpp adds it", "[decoder]") {
  const TempDir dir;
  const std::string path = dir.file("x.gguf");
  const auto model = random_decoder({.vocab_size = 32,
                                     .hidden_size = 16,
                                     .intermediate_size = 32,
                                     .num_hidden_layers = 1,
                                     .num_attention_heads = 2,
                                     .num_key_value_heads = 1});
  CHECK_THROWS_TEXT(export_gguf_adapter(*model, path, "x"), ConfigError,
                    path + ": expected a model with an adapter, got one without");
  model->add_adapter({.r = 3,
                      .lora_alpha = 5,
                      .use_rslora = true,
                      .target_modules = {"k_proj", "up_proj"},
                      .rank_pattern = R"({"up_proj": 2})",
                      .alpha_pattern = R"({"k_proj": 7})"});
  {
    const at::NoGradGuard no_grad;
    for (const TrainedWeight& weight : model->trained_weights()) {
      weight.lora_b.add_(at::randn(weight.lora_b.sizes()));
    }
  }
  CHECK_THROWS_TEXT(export_gguf(*model, path, {}), ConfigError,
                    path + ": expected a model without an adapter, got one with; merge it");
  CHECK_THROWS_TEXT(export_gguf_adapter(*model, path, "x", "Q8_0"), ConfigError,
                    path + ": expected type F32, F16 or BF16 of an adapter, got 'Q8_0'");
  export_gguf_adapter(*model, path, "mine");
  const GgufFile adapter = GgufFile::open(path);
  CHECK(adapter.text("general.type") == "adapter");
  CHECK(adapter.text("general.architecture") == "llama");
  CHECK(adapter.text("general.name") == "mine");
  CHECK(adapter.text("adapter.type") == "lora");
  CHECK(adapter.tensors().size() == 4);
  const double alpha = adapter.real("adapter.lora.alpha");
  export_gguf(*model->without_adapter(), dir.file("base.gguf"), {.type = "F32"});
  export_gguf(*model->merged_decoder(), dir.file("merged.gguf"), {.type = "F32"});
  const GgufFile base = GgufFile::open(dir.file("base.gguf"));
  const GgufFile merged = GgufFile::open(dir.file("merged.gguf"));
  for (const GgufTensor& tensor : base.tensors()) {
    INFO(tensor.name);
    at::Tensor sum = base.tensor(tensor.name);
    if (adapter.find_tensor(tensor.name + ".lora_a")) {
      const at::Tensor a = adapter.tensor(tensor.name + ".lora_a");
      const double scale = alpha / static_cast<double>(a.size(0));
      sum = sum + scale * adapter.tensor(tensor.name + ".lora_b").mm(a);
    }
    CHECK(at::allclose(sum, merged.tensor(tensor.name), 1e-5, 1e-6));
  }
  CHECK_FALSE(at::equal(base.tensor("blk.0.attn_k.weight"), merged.tensor("blk.0.attn_k.weight")));
}

TEST_CASE("gguf export: an adapter that llama.cpp would not add is refused", "[decoder]") {
  const TempDir dir;
  const std::string path = dir.file("x.gguf");
  struct Case {
    LoraOptions options;
    const char* weight;
  };
  for (const auto& [options, weight] : std::vector<Case>{
           {{.r = 2, .target_modules = {"q_proj"}, .use_dora = true},
            "model.layers.0.self_attn.q_proj.weight"},
           {{.r = 2, .target_modules = {"embed_tokens"}}, "model.embed_tokens.weight"},
           {{.r = 2, .target_modules = {"lm_head"}}, "lm_head.weight"},
           {{.r = 2, .target_modules = {"q_proj"}, .modules_to_save = {"model.norm"}},
            "model.norm.weight"}}) {
    const auto model = random_decoder({.vocab_size = 32,
                                       .hidden_size = 16,
                                       .intermediate_size = 32,
                                       .num_hidden_layers = 1,
                                       .num_attention_heads = 2,
                                       .num_key_value_heads = 1});
    model->add_adapter(options);
    CHECK_THROWS_TEXT(
        export_gguf_adapter(*model, path, "x"), ConfigError,
        path +
            ": expected an adapter of A and B on maps of layers, which is what llama.cpp adds, got "
            "one that trains '" +
            weight + "' in another way; merge it");
  }
}

TEST_CASE("gguf export: end tokens have three places", "[decoder]") {
  const TempDir dir;
  const auto model = random_decoder({.vocab_size = 32,
                                     .hidden_size = 16,
                                     .intermediate_size = 32,
                                     .num_hidden_layers = 1,
                                     .num_attention_heads = 2,
                                     .num_key_value_heads = 1,
                                     .bos_token_id = 1,
                                     .pad_token_id = 0});
  CHECK(export_gguf(*model, dir.file("x"), {.end_tokens = {7, 5, 7, 6, 9, 8}}).left_end_tokens ==
        std::vector<std::int64_t>{9, 8});
  const GgufFile file = GgufFile::open(dir.file("x"));
  CHECK(file.integer("tokenizer.ggml.eos_token_id") == 7);
  CHECK(file.integer("tokenizer.ggml.eot_token_id") == 5);
  CHECK(file.integer("tokenizer.ggml.eom_token_id") == 6);
  CHECK(file.integer("tokenizer.ggml.bos_token_id") == 1);
  CHECK(file.integer("tokenizer.ggml.padding_token_id") == 0);
  CHECK(file.text("tokenizer.ggml.model") == "none");
}

TEST_CASE("gguf export: what a file cannot say is refused, and no file is left", "[decoder]") {
  const TempDir dir;
  const std::string path = dir.file("x.gguf");
  DecoderOptions options{.vocab_size = 32,
                         .hidden_size = 16,
                         .intermediate_size = 32,
                         .num_hidden_layers = 1,
                         .num_attention_heads = 2,
                         .num_key_value_heads = 1};
  const auto model = random_decoder(options);
  CHECK_THROWS_TEXT(export_gguf(*model, path, {.type = "Q3_K"}), ConfigError,
                    path + ": expected type F32, F16, BF16, Q8_0, Q4_0 or Q4_K, got 'Q3_K'");
  {
    const at::NoGradGuard no_grad;
    model->named_parameters().front().value[3][1] = 1e6;
  }
  CHECK_THROWS_TEXT(export_gguf(*model, path, {.type = "F16"}), DtypeError,
                    path +
                        ": tensor 'token_embd.weight': expected values within [-65504, 65504], "
                        "which F16 holds, got 1000000");
  const UnknownFamily unknown;
  const detail::AddedFamily added(unknown);
  DecoderOptions other = options;
  other.family = "unknown";
  CHECK_THROWS_TEXT(
      export_gguf(*random_decoder(other), path, {}), ConfigError,
      path +
          ": expected a family that is written to GGUF files here (llama, mistral, "
          "qwen2, qwen3, granite, smollm3, phi3, gemma2, gemma3_text, olmo2, mixtral, "
          "qwen3_moe), got 'unknown'; export a folder (--out) for llama.cpp's "
          "converter");
  options.rope_scaling_factor = 8;
  options.rope_low_freq_factor = 2;
  CHECK_THROWS_TEXT(export_gguf(*random_decoder(options), path, {}), ConfigError,
                    path +
                        ": expected a model that a GGUF file can describe, got one whose file is "
                        "refused: " +
                        path +
                        ": expected tensor 'rope_freqs.weight' to be Llama 3's scaling by 8 over "
                        "8192 tokens, 4.681482597220152 at 3, got 8");
  CHECK(std::filesystem::is_empty(dir.path()));
}

}  // namespace prefopt::test_gguf_export
