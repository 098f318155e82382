// SPDX-License-Identifier: Apache-2.0
#include <ATen/Context.h>

#include <filesystem>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "prefopt/data/tokenizer.h"
#include "prefopt/decoder/decoder.h"
#include "prefopt/files/gguf.h"
#include "support/catch.h"
#include "support/cli.h"
#include "support/temp_dir.h"
#include "support/tiny_llama.h"

namespace export_gguf_test {
namespace {

using nlohmann::json;
using namespace prefopt;
using namespace prefopt::testing_support;

const std::string kData = PREFOPT_TEST_DATA_DIR "/";

/// A small model in a folder with a tokenizer and a template, an adapter for it, and rows.
class Scene {
 public:
  Scene() {
    at::manual_seed(3);
    Decoder decoder({.vocab_size = 720,
                     .hidden_size = 16,
                     .intermediate_size = 32,
                     .num_hidden_layers = 1,
                     .num_attention_heads = 2,
                     .num_key_value_heads = 1,
                     .initializer_range = 0.5,
                     .eos_token_id = 2});
    decoder.save(model);
    write_text(model + "/tokenizer.json", read_text(kData + "tokenizers/smollm2/tokenizer.json"));
    write_text(model + "/tokenizer_config.json",
               json{{"eos_token", "<|endoftext|>"}, {"chat_template", kTemplate}}.dump());
    decoder.add_adapter({.r = 2, .target_modules = {"q_proj", "down_proj"}});
    for (const auto& weight : decoder.trained_weights()) {
      const at::NoGradGuard no_grad;
      weight.lora_b.fill_(0.25);
    }
    decoder.save_adapter(adapter);
    write_text(rows, json{{"prompt", "Hello"}, {"chosen", " you"}, {"rejected", " 12"}}.dump());
  }

  CliResult exported(std::vector<std::string> arguments) const {
    arguments.insert(arguments.begin(), {"export", "--model", model, "--gguf", gguf});
    return run_cli(arguments);
  }
  std::string scores(std::vector<std::string> arguments) const {
    arguments.insert(arguments.begin(), {"score", "--data", rows, "--per-token", "--model"});
    const CliResult result = run_cli(arguments);
    INFO(result.err);
    REQUIRE(result.code == 0);
    return result.out;
  }

  static constexpr const char* kTemplate = "{{ messages[0]['content'] }}";
  TempDir folder;
  std::string model = folder.file("model");
  std::string adapter = folder.file("adapter");
  std::string rows = folder.file("rows.jsonl");
  std::string gguf = folder.file("mine.gguf");
};

TEST_CASE("prefopt export: a GGUF file is the model that was exported", "[cli]") {
  const Scene scene;
  const CliResult result = scene.exported({"--gguf-type", "F32"});
  INFO(result.err);
  REQUIRE(result.code == 0);
  CHECK(result.err == "prefopt: wrote " + scene.gguf + "\n");
  CHECK(scene.scores({scene.gguf}) == scene.scores({scene.model}));
  const GgufFile file = GgufFile::open(scene.gguf);
  CHECK(file.text("general.name") == "mine");
  CHECK(file.text("tokenizer.chat_template") == Scene::kTemplate);
  CHECK(file.integer("tokenizer.ggml.eos_token_id") == 0);  // of the tokenizer
  CHECK(file.integer("tokenizer.ggml.eot_token_id") == 2);  // of the model

  // And again, from the file.
  const std::string again = scene.folder.file("again.gguf");
  REQUIRE(run_cli({"export", "--model", scene.gguf, "--gguf", again, "--gguf-type", "F32"}).code ==
          0);
  const GgufFile copy = GgufFile::open(again);
  CHECK(copy.keys().size() == file.keys().size());
  for (const std::string& key : file.keys()) {
    INFO(key);
    if (key != "general.name") CHECK(copy.encoded(key) == file.encoded(key));
  }
  CHECK(scene.scores({again}) == scene.scores({scene.model}));
}

TEST_CASE("prefopt export: adapters are merged, or alone in a file", "[cli]") {
  const Scene scene;
  REQUIRE(scene.exported({"--gguf-type", "F32", "--adapter", scene.adapter}).code == 0);
  const auto merged = Decoder::load(scene.model);
  merged->load_adapter(scene.adapter);
  merged->merge_adapter();
  const auto weights = merged->named_parameters();
  const auto read = Decoder::load(scene.gguf)->named_parameters();
  REQUIRE(read.size() == weights.size());
  for (std::size_t i = 0; i < read.size(); ++i) {
    INFO(read[i].name);
    CHECK(at::allclose(read[i].value, weights[i].value, 1e-6, 1e-6));
  }
  const std::string alone = scene.folder.file("alone.gguf");
  const std::vector<std::string> arguments{
      "export", "--model", scene.model,   "--adapter", scene.adapter,
      "--gguf", alone,     "--gguf-type", "F32",       "--adapter-only"};
  REQUIRE(run_cli(arguments).code == 0);
  CHECK(GgufFile::open(alone).text("general.type") == "adapter");
  CHECK(GgufFile::open(alone).tensors().size() == 4);
}

TEST_CASE("prefopt export: what a GGUF file cannot be is refused", "[cli]") {
  const Scene scene;
  const std::vector<std::string> start{"export", "--model", scene.model};
  const auto refused = [&](std::vector<std::string> more, const std::string& text) {
    more.insert(more.begin(), start.begin(), start.end());
    check_cli_refused(more, 2, text);
  };
  refused({}, "export: expected --out or --gguf, got neither");
  refused({"--out", scene.folder.file("out"), "--gguf-type", "Q4_0"},
          "--gguf-type: expected --gguf, got --out, whose weights have --dtype, and Q4_0");
  refused({"--out", scene.folder.file("out"), "--gguf", scene.gguf},
          "export: expected --out or --gguf, got both");
  refused({"--out", scene.folder.file("out"), "--adapter-only"},
          "--adapter-only: expected --gguf, got --out; the adapter is a folder already");
  refused({"--gguf", scene.gguf, "--adapter-only"},
          "--adapter-only: expected an --adapter, got none");
  refused({"--gguf", scene.gguf, "--gguf-type", "Q9"},
          scene.gguf + ": expected type F32, F16, BF16, Q8_0, Q4_0 or Q4_K, got 'Q9'");
  refused({"--gguf", scene.rows}, "--gguf: expected a new file, got " + scene.rows);
  check_cli_refused(
      {"export", "--model", kData + "reward-models/llama", "--gguf", scene.gguf}, 2,
      "--gguf: expected a model that writes, got a reward model; export a folder (--out)");
  CHECK_FALSE(std::filesystem::exists(scene.gguf));
}

TEST_CASE("prefopt export: a GGUF file of a model of bytes says that it has no tokenizer",
          "[cli]") {
  const Scene scene;
  const std::string bytes = scene.folder.file("bytes");
  at::manual_seed(1);
  Decoder({.hidden_size = 16,
           .intermediate_size = 32,
           .num_hidden_layers = 1,
           .num_attention_heads = 2,
           .num_key_value_heads = 1})
      .save(bytes);
  const CliResult result = run_cli({"export", "--model", bytes, "--gguf", scene.gguf});
  REQUIRE(result.code == 0);
  CHECK(result.err == "prefopt: " + scene.gguf +
                          " has no tokenizer: llama.cpp has none for bytes\nprefopt: wrote " +
                          scene.gguf + "\n");
  CHECK(GgufFile::open(scene.gguf).text("tokenizer.ggml.model") == "none");
  CHECK(find_tokenizer(scene.gguf) == "byte");
}

}  // namespace
}  // namespace export_gguf_test
