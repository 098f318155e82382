// SPDX-License-Identifier: Apache-2.0
#include <nlohmann/json.hpp>

#include "prefopt/decoder/decoder.h"
#include "support/catch.h"
#include "support/files.h"
#include "support/model_logps.h"
#include "support/temp_dir.h"

namespace prefopt::test_model_families {
namespace {

using namespace testing_support;

struct Model {
  std::string name, model_type;
};

}  // namespace

TEST_CASE("model families: log-probs that transformers gives, from GGUF and as a folder",
          "[decoder]") {
  const auto [name, model_type] =
      GENERATE(Model{"tiny-llama", "llama"}, Model{"tiny-llama3", "llama"},
               Model{"tiny-qwen2", "qwen2"}, Model{"tiny-qwen3", "qwen3"});
  INFO(name);
  const auto decoder = Decoder::load(kGgufModels + name + ".gguf");
  // transformers computed in float32, whose rounding is what is left in float64 here.
  CHECK(worst_difference(*Decoder::load(kGgufModels + name + ".gguf", "float64"), name) < 5e-5);
  CHECK(worst_difference(*decoder, name) < 1e-4);

  const TempDir dir;
  decoder->save(dir.path());
  CHECK(nlohmann::json::parse(bytes_of(dir.file("config.json")))["model_type"] == model_type);
  const auto back = Decoder::load(dir.path());
  CHECK(options_to_json(back->options()) == options_to_json(decoder->options()));
  CHECK(content_hash(*back) == content_hash(*decoder));
  CHECK(worst_difference(*back, name) < 1e-4);
}

}  // namespace prefopt::test_model_families
