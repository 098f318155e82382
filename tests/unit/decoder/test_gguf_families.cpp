// SPDX-License-Identifier: Apache-2.0
#include <filesystem>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "prefopt/decoder/decoder.h"
#include "prefopt/decoder/gguf_export.h"
#include "prefopt/error.h"
#include "prefopt/files/gguf.h"
#include "prefopt/policy/sequence_logps.h"
#include "support/catch.h"
#include "support/errors.h"
#include "support/files.h"
#include "support/temp_dir.h"
#include "support/text_files.h"

namespace prefopt::test_gguf_families {
namespace {

using namespace testing_support;
using nlohmann::json;

const std::string kGgufFamilies = PREFOPT_TEST_DATA_DIR "/families/gguf/";

/// What transformers gave (tests/data/families/make_gguf.py).
const json& recorded() {
  static const json all = json::parse(bytes_of(kGgufFamilies + "expected.json"));
  return all;
}

std::vector<std::string> model_names() {
  std::vector<std::string> names;
  for (const auto& item : recorded()["models"].items()) names.push_back(item.key());
  return names;
}

double worst_difference_from(Decoder& decoder, const json& record) {
  using Tokens = std::vector<std::int64_t>;
  std::vector<TokenRow> rows;
  std::vector<double> expected;
  for (const json& row : recorded()["rows"]) {
    rows.push_back({.prompt = row["prompt"].get<Tokens>(),
                    .chosen = row["chosen"].get<Tokens>(),
                    .rejected = row["rejected"].get<Tokens>()});
  }
  for (const char* side : {"chosen", "rejected"}) {
    for (const json& row : record["logps"]) {
      for (const json& value : row[side]) expected.push_back(value);
    }
  }
  const at::NoGradGuard no_grad;
  const at::Tensor got = sequence_logps(decoder, make_pair_batch(rows)).token_logps;
  return (got.to(at::kDouble) - at::tensor(expected, at::kDouble)).abs().max().item<double>();
}

}  // namespace

TEST_CASE("families in GGUF: log-probs of the same model in transformers", "[decoder]") {
  const std::string name = GENERATE(from_range(model_names()));
  INFO(name);
  const json& record = recorded()["models"][name];
  const std::string path = kGgufFamilies + name + ".gguf";
  const auto decoder = Decoder::load(path, "float64");
  CHECK(decoder->options().family == record["model_type"]);
  // Numbers of the metadata and sums of norms are float32 there.
  CHECK(worst_difference_from(*decoder, record) < 1e-6);

  const TempDir dir;
  decoder->save(dir.path());
  const auto back = Decoder::load(dir.path());
  CHECK(back->config() == decoder->config());
  CHECK(worst_difference_from(*back, record) < 1e-6);
}

TEST_CASE("families in GGUF: an export is the file that the gguf package wrote", "[decoder]") {
  const std::string name = GENERATE(from_range(model_names()));
  INFO(name);
  const TempDir dir;
  const std::string path = dir.file("x.gguf");
  const auto decoder = Decoder::load(kGgufFamilies + name + ".gguf", "float64");
  export_gguf(*decoder, path, {.type = "F32"});

  const GgufFile expected = GgufFile::open(kGgufFamilies + name + ".gguf");
  const GgufFile got = GgufFile::open(path);
  const std::string prefix = expected.text("general.architecture") + ".";
  for (const std::string& key : expected.keys()) {
    // llama.cpp's converter writes these where they say nothing.
    const bool is_idle =
        (key == prefix + "attention.sliding_window" && expected.integer(key) == 0) ||
        (key == prefix + "rope.scaling.original_context_length" &&
         !expected.has(prefix + "rope.scaling.type") && name == "phi3-window");
    INFO(key);
    if (!is_idle) CHECK(got.encoded(key) == expected.encoded(key));
  }
  CHECK(got.tensors().size() == expected.tensors().size());
  for (const GgufTensor& tensor : expected.tensors()) {
    INFO(tensor.name);
    REQUIRE(got.find_tensor(tensor.name));
    CHECK(at::allclose(got.tensor(tensor.name, at::kDouble),
                       expected.tensor(tensor.name, at::kDouble), 1e-6, 1e-7));
  }
  const auto again = Decoder::load(path, "float64");
  CHECK(worst_difference_from(*again, recorded()["models"][name]) < 1e-6);
}

TEST_CASE("families in GGUF: what llama.cpp would compute otherwise is not written", "[decoder]") {
  struct Case {
    const char* family;
    json changes;
    const char* difference;
  };
  const auto [family, changes, difference] = GENERATE(values<Case>({
      {"smollm3", json::object(), "rotation false of layer 1 (true in the file)"},
      {"gemma2",
       {{"attn_logit_softcapping", nullptr}, {"query_pre_attn_scalar", 6}},
       "attn_logit_softcapping 0.0 of layer 0 (50.0 in the file)"},
      {"gemma2", json::object(),
       "scale of scores 0.3333333333333333 of layer 0 (0.4082482904638631 in the file)"},
      {"gemma3",
       {{"query_pre_attn_scalar", 6}},
       "window 0 of layer 1 (4 in the file), rope type \"linear\" of layer 1 (\"default\" in the "
       "file), rope theta 500.0 of layer 1 (50.0 in the file), rope factor 4.0 of layer 1 (none in "
       "the file)"},
      {"qwen3_moe",
       {{"norm_topk_prob", false}},
       "norm_topk_prob false of layer 0 (true in the file), experts 0 of layer 1 (3 in the file)"},
  }));
  INFO(family);
  const TempDir dir;
  const std::string folder = std::string(PREFOPT_TEST_DATA_DIR "/families/") + family;
  std::filesystem::copy(folder, dir.file("model"));
  json config = json::parse(bytes_of(folder + "/config.json"));
  config.update(changes);
  write_text(dir.file("model/config.json"), config.dump());
  const auto decoder = Decoder::load(dir.file("model"));
  const std::string path = dir.file("x.gguf");
  CHECK_THROWS_TEXT(export_gguf(*decoder, path, {}), ConfigError,
                    path + ": expected a model that a GGUF file can describe, got " + difference);
  CHECK_FALSE(std::filesystem::exists(path));
}

TEST_CASE("families in GGUF: what llama.cpp does not load is not written", "[decoder]") {
  struct Case {
    const char* family;
    bool attention_bias, tied;
    double rope_scaling;
    const char* what;
    std::int64_t head_dim = 0;
  };
  const auto [family, attention_bias, tied, rope_scaling, what, head_dim] = GENERATE(values<Case>({
      {"smollm3", true, true, 1, "'smollm3', got one with a bias of the output projection"},
      {"gemma2", false, false, 1,
       "'gemma2', got one with an output head that is not the embedding"},
      {"olmo2", false, true, 1, "'olmo2', got one with an output head that is the embedding"},
      {"olmo2", true, false, 1, "'olmo2', got one with biases of queries, keys and values"},
      {"qwen2", true, true, 8, "'qwen2', got one with Llama 3's rotary scaling"},
      {"phi3", false, true, 1,
       "'phi3', got one with heads that are not hidden_size / num_attention_heads wide", 4},
  }));
  INFO(what);
  const std::string name = family;
  DecoderOptions options{.family = name,
                         .vocab_size = 32,
                         .hidden_size = 16,
                         .intermediate_size = 16,
                         .num_hidden_layers = 2,
                         .num_attention_heads = 2,
                         .num_key_value_heads = 1,
                         .head_dim = head_dim,
                         .rope_scaling_factor = rope_scaling,
                         .attention_bias = attention_bias,
                         .attention_output_bias = attention_bias && name != "qwen2",
                         .qk_norm = name == "olmo2",
                         .tie_word_embeddings = tied};
  const TempDir dir;
  const std::string path = dir.file("x.gguf");
  CHECK_THROWS_TEXT(export_gguf(Decoder(options), path, {}), ConfigError,
                    path + ": expected a model that llama.cpp loads as " + what);
  CHECK_FALSE(std::filesystem::exists(path));
}

}  // namespace prefopt::test_gguf_families
