// SPDX-License-Identifier: Apache-2.0
#include <string>

#include "prefopt/decoder/gguf_export.h"
#include "prefopt/error.h"
#include "support/catch.h"
#include "support/errors.h"
#include "support/run_scene.h"

namespace prefopt {
namespace {

using namespace testing_support;

/// Options of a run that trains an adapter on a small model in a GGUF file of this type.
RunOptions adapter_options(const Scene& scene, const std::string& run, const std::string& type) {
  DecoderOptions shape = kTiny;
  shape.hidden_size = 32;
  shape.intermediate_size = 64;
  const std::string path = scene.file(type + ".gguf");
  at::manual_seed(2);
  export_gguf(Decoder(shape), path, {.type = type});
  RunOptions options = scene.evaluated(run, "dpo", /*steps=*/3, /*eval_every=*/3, /*save_every=*/3);
  options.model.path = path;
  options.model.tokenizer = "byte";
  options.model.decoder = {};
  options.model.use_lora = true;
  options.model.lora = {.r = 2};
  return options;
}

std::string trained_adapter(const RunOptions& options) {
  return read_text(run_training(options).checkpoint + "/adapter_model.safetensors");
}

}  // namespace

TEST_CASE("run: an adapter on a file's blocks is that on their values", "[run]") {
  const Scene scene;
  RunOptions wide = adapter_options(scene, "wide", "Q8_0");
  wide.model.base = "float32";
  const std::string expected = trained_adapter(wide);
  const RunOptions automatic = adapter_options(scene, "blocks", "Q8_0");
  CHECK(trained_adapter(automatic) == expected);
  CHECK(untimed(automatic.output_dir) == untimed(wide.output_dir));

  RunOptions narrow = adapter_options(scene, "bfloat16", "Q8_0");
  narrow.model.base = "bfloat16";
  CHECK(trained_adapter(narrow) != expected);
  // A file without blocks is read in the dtype.
  CHECK_NOTHROW(run_training(adapter_options(scene, "plain", "F16")));
}

TEST_CASE("run: a base that does not fit is refused", "[run]") {
  const Scene scene;
  const auto refused = [&](auto change, const std::string& text) {
    RunOptions options = adapter_options(scene, "refused", "Q8_0");
    options.model.base = "quantized";
    change(options);
    CHECK_THROWS_TEXT(run_training(options), ConfigError, text);
  };
  refused([](RunOptions& o) { o.model.base = "q4"; },
          "model.base: expected auto, float32, bfloat16 or quantized, got 'q4'");
  refused(
      [](RunOptions& o) {
        o.model.use_lora = false;
        o.model.lora = {};
      },
      "model.base: expected auto where all weights are trained, in model.dtype, got 'quantized'; "
      "model.use_lora trains an adapter on it");
  refused([](RunOptions& o) { o.model.dtype = "bfloat16"; },
          "model.base: expected auto or 'bfloat16', as model.dtype is, got 'quantized'");
}

}  // namespace prefopt
