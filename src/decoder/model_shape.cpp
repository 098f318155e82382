// SPDX-License-Identifier: Apache-2.0
#include "decoder/model_shape.h"

#include <ATen/ops/zeros.h>

#include <utility>

#include "core/file.h"
#include "decoder/adapters/fused_targets.h"
#include "decoder/decoder_config.h"
#include "decoder/decoder_files.h"
#include "decoder/families/family.h"
#include "decoder/quantized_weight.h"
#include "prefopt/error.h"

namespace prefopt::detail {
namespace {

/// One number that stands for all of them.
at::Tensor without_memory(const std::vector<std::int64_t>& shape, at::ScalarType dtype) {
  return at::zeros({}, dtype).expand(shape).requires_grad_(true);
}

}  // namespace

Network network_of(DecoderOptions options, std::string_view where) {
  Network network;
  network.spec = family_named(options.family, where).spec(options, where);
  network.layers.resize(static_cast<std::size_t>(options.num_hidden_layers));
  network.options = std::move(options);
  return network;
}

ModelShape::ModelShape(const DecoderOptions& options, at::ScalarType dtype)
    : network_(network_of(checked_decoder_options(options, "decoder"), "decoder")) {
  network_.for_each_weight([&](const std::string&, at::Tensor& weight, const auto& shape) {
    weight = without_memory(shape, dtype);
  });
}

ModelShape ModelShape::read(const std::string& path, std::string_view dtype) {
  try {
    const GgufEncoding* quantizes = encoding_on_load(dtype);
    if (dtype != "keep" && dtype != "quantized") {
      const auto wanted = quantizes == nullptr ? parse_dtype(dtype) : at::kFloat;
      ModelShape shape(network_of(read_model_options(followed(path)), path));
      shape.network_.for_each_weight(
          [&](const std::string& name, at::Tensor& weight, const auto& sizes) {
            weight = without_memory(sizes, wanted);
            if (quantizes == nullptr || !can_be_blocks(name, sizes)) return;
            shape.blocks_[name] = {bytes_in_blocks(*quantizes, sizes)};
          });
      return shape;
    }
    const DecoderReader reader(followed(path), std::nullopt, dtype == "quantized");
    ModelShape shape(network_of(reader.config().options, path));
    shape.network_.for_each_weight(
        [&](const std::string& name, at::Tensor& weight, const auto& sizes) {
          weight = without_memory(sizes, reader.dtype_of(name));
          if (const std::int64_t bytes = reader.block_bytes(name); bytes > 0) {
            shape.blocks_[name] = {bytes, /*are_mapped=*/true};
          }
        });
    return shape;
  } catch (const ConfigError& error) {
    throw CheckpointError(error.what());
  }
}

void ModelShape::add_adapter(const LoraOptions& given) {
  const LoraOptions options = named_as_in(network_, checked(given, "lora"));
  adapter_ = plan_adapter({.network = network_, .has_head = true, .is_training = true},
                          LoraRules(options, "lora"));
  network_.for_each_weight(
      [](const std::string&, at::Tensor& weight, const auto&) { weight = weight.detach(); });
  adapter_->for_each_tensor([](const std::string&, at::Tensor& tensor) {
    tensor = tensor.detach().requires_grad_(true);
  });
}

Network ModelShape::seen() const {
  if (!adapter_) return network_;
  for (const LowRank& part : adapter_->low_rank) {
    if (part.module.kind == ModuleKind::kLinear && !part.magnitude.defined()) continue;
    throw ConfigError(fmt::format(
        "model.lora: expected low-rank products of linear maps, got {} on '{}'; a plan does not "
        "count what makes a whole matrix",
        part.magnitude.defined() ? "use_dora" : "an adapter", part.module.name));
  }
  return with_adapter(network_, *adapter_, MadeWeights::kWide);
}

ModelShape::WeightBytes ModelShape::weight_bytes() const {
  WeightBytes bytes;
  Network(network_).for_each_weight(
      [&](const std::string& name, const at::Tensor& weight, const auto&) {
        const auto blocks = blocks_.find(name);
        if (blocks == blocks_.end()) {
          bytes.all += static_cast<std::int64_t>(weight.nbytes());
          return;
        }
        bytes.all += blocks->second.bytes;
        if (blocks->second.are_mapped) bytes.mapped += blocks->second.bytes;
      });
  return bytes;
}

bool ModelShape::has_head_in_blocks() const {
  return blocks_.contains(network_.spec.tied_head ? "model.embed_tokens.weight" : "lm_head.weight");
}

std::vector<NamedParameter> ModelShape::parameters() const {
  std::vector<NamedParameter> parameters;
  const auto add = [&](const std::string& name, const at::Tensor& weight, const auto&...) {
    parameters.push_back({name, weight});
  };
  Network(network_).for_each_weight(add);
  if (adapter_) AdapterParts(*adapter_).for_each_tensor(add);
  return parameters;
}

}  // namespace prefopt::detail
