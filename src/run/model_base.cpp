// SPDX-License-Identifier: Apache-2.0
#include "run/model_base.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <array>
#include <string_view>
#include <utility>

#include "decoder/decoder_files.h"
#include "prefopt/device.h"
#include "prefopt/error.h"

namespace prefopt::detail {
namespace {

/// Returns model.quantize, which leaves nothing to model.base.
std::string quantized_as(const ModelOptions& options, bool is_under_adapter) {
  const auto refuse = [](std::string_view expected, const std::string& got) {
    throw ConfigError(fmt::format("model.quantize: expected {}, got {}", expected, got));
  };
  if (options.quantize != "q8_0" && options.quantize != "q4_k") {
    refuse("q8_0, q4_k or nothing", fmt::format("'{}'", options.quantize));
  }
  if (!is_under_adapter) {
    refuse("an adapter on weights in blocks, which are not trained (model.use_lora)",
           fmt::format("'{}' without one", options.quantize));
  }
  if (options.base != "auto") {
    refuse("model.base auto next to it", fmt::format("'{}'", options.base));
  }
  if (options.path.empty()) {
    refuse("a model of a file", fmt::format("'{}' of a fresh one", options.quantize));
  }
  if (!parse_device(options.device, "model.device").is_cpu()) {
    refuse("the cpu as model.device", fmt::format("'{}'", options.device));
  }
  return options.quantize;
}

bool leaves_dtype(std::string_view dtype) { return dtype == "float32" || dtype == "keep"; }

void check_dtype(std::string_view option, const std::string& dtype) {
  constexpr std::array<std::string_view, 5> kDtypes = {"float32", "float64", "bfloat16", "float16",
                                                       "keep"};
  if (std::find(kDtypes.begin(), kDtypes.end(), dtype) != kDtypes.end()) return;
  throw ConfigError(
      fmt::format("{}: expected {}, got '{}'", option, fmt::join(kDtypes, ", "), dtype));
}

}  // namespace

void check_dtypes(const ModelOptions& model, const ReferenceOptions& reference) {
  check_dtype("model.dtype", model.dtype);
  if (!reference.dtype.empty()) check_dtype("reference.dtype", reference.dtype);
}

std::string kept_weights(const ModelOptions& options) {
  const bool is_under_adapter = options.use_lora || !options.adapter.empty();
  if (!options.quantize.empty()) return quantized_as(options, is_under_adapter);
  if (options.base == "auto") {
    if (!is_under_adapter) return options.dtype;
    return kept_frozen(options.path, options.dtype, parse_device(options.device, "model.device"));
  }
  if (options.base != "quantized" && options.base != "float32" && options.base != "bfloat16") {
    throw ConfigError(fmt::format(
        "model.base: expected auto, float32, bfloat16 or quantized, got '{}'", options.base));
  }
  if (!is_under_adapter) {
    throw ConfigError(fmt::format(
        "model.base: expected auto where all weights are trained, in model.dtype, got '{}'; "
        "model.use_lora trains an adapter on it",
        options.base));
  }
  if (!leaves_dtype(options.dtype) && options.dtype != options.base) {
    throw ConfigError(fmt::format("model.base: expected auto or '{}', as model.dtype is, got '{}'",
                                  options.dtype, options.base));
  }
  return options.base;
}

std::string kept_frozen(const std::string& path, const std::string& dtype, at::Device device) {
  return leaves_dtype(dtype) && device.is_cpu() && has_blocks(path) ? "quantized" : dtype;
}

std::string kept_reference(const ReferenceOptions& options, const std::string& path,
                           const ModelOptions& model) {
  if (!options.dtype.empty()) return options.dtype;
  const bool moves = options.moving || options.rule != ReferenceRule::kFixed;
  if (moves) return model.dtype;
  return kept_frozen(path, model.dtype, parse_device(model.device, "model.device"));
}

ModelOptions with_numbers_for(const ReferenceOptions& reference, ModelOptions model) {
  const bool converts = reference.path.empty() && !reference.dtype.empty();
  if (converts && kept_weights(model) == "quantized") model.base = "float32";
  return model;
}

}  // namespace prefopt::detail
