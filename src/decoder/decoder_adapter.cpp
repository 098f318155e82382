// SPDX-License-Identifier: Apache-2.0
#include <ATen/TensorOperators.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/rand.h>
#include <ATen/ops/randn.h>
#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <map>
#include <memory>
#include <system_error>
#include <utility>

#include "core/file.h"
#include "core/json.h"
#include "decoder/adapters/adapter_config.h"
#include "decoder/adapters/adapter_file.h"
#include "decoder/adapters/adapter_parts.h"
#include "decoder/adapters/fused_targets.h"
#include "decoder/adapters/lora_rules.h"
#include "decoder/decoder_impl.h"
#include "decoder/network.h"
#include "kernels/block_tensor.h"
#include "prefopt/decoder/decoder.h"
#include "prefopt/error.h"
#include "prefopt/files/safetensors.h"

namespace prefopt {
namespace {

using detail::AdapterParts;
using detail::Json;
using detail::LowRank;
using detail::ModuleKind;

/// PEFT's name of the score head.
constexpr const char* kAdapterScore = "base_model.model.score.weight";

enum class Initialization { kUniformAndZero, kGaussianAndZero, kUniform };

Initialization initialization_of(const LoraOptions& options, std::string_view where) {
  const Json given = detail::parse_json<ConfigError>(options.init_lora_weights,
                                                     fmt::format("{}.init_lora_weights", where));
  if (given == true) return Initialization::kUniformAndZero;
  if (given == "gaussian") return Initialization::kGaussianAndZero;
  if (given == false) return Initialization::kUniform;
  throw ConfigError(fmt::format(
      R"({}.init_lora_weights: expected true, false or "gaussian", got {}; of the others the )"
      "adapter alone would not tell what they did to the model's weights",
      where, detail::shown_json(given)));
}

// Drawn on the CPU: a seed makes the same adapter on every device.

at::Tensor uniform(const at::Tensor& like, std::int64_t inputs) {
  const double bound = 1 / std::sqrt(static_cast<double>(inputs));
  return ((at::rand(like.sizes(), like.scalar_type()) * 2 - 1) * bound).to(like.device());
}

at::Tensor gaussian(const at::Tensor& like) {
  return at::randn(like.sizes(), like.scalar_type()).to(like.device());
}

/// As PEFT's `reset_lora_parameters`.
void initialize(LowRank& part, Initialization how) {
  const std::int64_t rank = part.a.size(0);
  if (part.module.kind == ModuleKind::kEmbedding) {
    part.a = how == Initialization::kUniform ? gaussian(part.a) : part.a.contiguous();
    part.b = gaussian(part.b);
    return;
  }
  part.a = how == Initialization::kGaussianAndZero ? gaussian(part.a) / static_cast<double>(rank)
                                                   : uniform(part.a, part.module.in);
  const bool is_zero = how != Initialization::kUniform;
  part.b = is_zero ? part.b.contiguous() : uniform(part.b, rank);
  if (part.b_bias.defined()) {
    part.b_bias = is_zero ? part.b_bias.contiguous() : uniform(part.b_bias, rank);
  }
}

/// DoRA starts from the lengths that are there.
void initialize_lengths(const detail::Network& network, AdapterParts& parts) {
  const auto trained = detail::trained_weights(network, parts);
  for (LowRank& part : parts.low_rank) {
    if (!part.magnitude.defined()) continue;
    TrainedWeight weight = trained.at(part.module.weight + ".weight");
    weight.magnitude.reset();
    const int along = part.module.kind == ModuleKind::kEmbedding ? 0 : 1;
    part.magnitude = weight.merged().norm(2, along);
  }
}

/// Calls `read`, whose options are those of a file.
template <class Read>
at::Tensor with_errors_of_file(const Read& read) {
  try {
    return read();
  } catch (const ConfigError& error) {
    throw CheckpointError(error.what());
  }
}

void check_untied(const AdapterParts& parts, bool ties, const std::string& path) {
  if (!ties || !parts.unties) return;
  throw CheckpointError(
      fmt::format("{}: expected ensure_weight_tying false for an adapter of a tied embedding or "
                  "head, got true; "
                  "merge the adapter in PEFT",
                  path));
}

}  // namespace

detail::Network Decoder::Impl::seen(detail::MadeWeights made) const {
  return adapter ? detail::with_adapter(network, parts, made) : network;
}

at::Tensor Decoder::Impl::head_weight(detail::MadeWeights made) const {
  return adapter ? detail::adapted_head(network, parts, made) : network.head();
}

void Decoder::add_adapter(const LoraOptions& given) {
  check_no_adapter();
  const LoraOptions options = detail::named_as_in(impl_->network, checked(given, "lora"));
  const detail::LoraRules rules(options, "lora");
  const Initialization how = initialization_of(options, "lora");
  AdapterParts parts = detail::plan_adapter(
      {.network = impl_->network, .has_head = impl_->has_head, .is_training = true}, rules);
  const at::NoGradGuard no_grad;
  for (LowRank& part : parts.low_rank) initialize(part, how);
  initialize_lengths(impl_->network, parts);
  for (detail::WholeWeight& weight : parts.whole) {
    weight.value = detail::copy_of(kernels::with_numbers(weight.value));
  }
  place_adapter(options, std::move(parts));
}

void Decoder::check_no_adapter() const {
  if (!impl_->adapter) return;
  throw ConfigError("decoder: expected a model without an adapter, got one that has an adapter");
}

void Decoder::place_adapter(const LoraOptions& options, detail::AdapterParts parts) {
  impl_->adapter = options;
  impl_->parts = std::move(parts);
  set_requires_grad(false);
  impl_->parts.for_each_tensor(
      [](const std::string&, at::Tensor& tensor) { tensor.requires_grad_(true); });
}

const std::optional<LoraOptions>& Decoder::adapter() const { return impl_->adapter; }

void Decoder::put_merged(Impl& impl, bool keeps_dtype) {
  const at::NoGradGuard no_grad;
  std::map<std::string, TrainedWeight> trained = detail::trained_weights(impl.network, impl.parts);
  if (impl.parts.unties) {
    impl.network = detail::untied(std::move(impl.network));
    impl.config["tie_word_embeddings"] = false;
  }
  impl.network.for_each_weight([&](const std::string& name, at::Tensor& weight, const auto&) {
    const auto found = trained.find(name);
    if (found == trained.end()) return;
    // Another model may share the weights, so they are not written to.
    const at::Tensor merged = found->second.merged();
    weight = detail::copy_of(keeps_dtype ? merged.to(weight.scalar_type()) : merged);
    trained.erase(found);
  });
  if (!trained.empty()) {
    throw ConfigError(fmt::format(
        "decoder: expected maps with a bias to merge the adapter's lora_bias into, got one without "
        "'{}'",
        trained.begin()->first));
  }
  impl.adapter.reset();
  impl.parts = {};
}

void Decoder::merge_adapter() {
  if (!impl_->adapter) {
    throw ConfigError("decoder: expected an adapter to merge, got a model without one");
  }
  auto merged = std::make_unique<Impl>(*impl_);
  put_merged(*merged, /*keeps_dtype=*/true);
  impl_ = std::move(merged);
  set_requires_grad(true);
}

std::shared_ptr<Decoder> Decoder::without_adapter() const {
  if (!impl_->adapter) {
    throw ConfigError("decoder: expected an adapter to leave out, got a model without one");
  }
  return base();
}

std::shared_ptr<Decoder> Decoder::base() const {
  auto base = std::make_unique<Impl>(*impl_);
  base->adapter.reset();
  base->parts = {};
  return std::shared_ptr<Decoder>(new Decoder(std::move(base)));
}

std::shared_ptr<Decoder> Decoder::with_adapter(const std::string& directory) const {
  std::shared_ptr<Decoder> result = base();
  result->load_adapter(directory);
  return result;
}

std::shared_ptr<Decoder> Decoder::frozen_adapter_copy() const {
  if (!impl_->adapter) return frozen_decoder();
  std::shared_ptr<Decoder> copy(new Decoder(std::make_unique<Impl>(*impl_)));
  copy->impl_->parts.for_each_tensor(
      [](const std::string&, at::Tensor& tensor) { tensor = detail::copy_of(tensor); });
  return copy;
}

std::vector<TrainedWeight> Decoder::trained_weights() const {
  std::map<std::string, TrainedWeight> adapted;
  if (impl_->adapter) adapted = detail::trained_weights(impl_->network, impl_->parts);
  std::vector<TrainedWeight> weights;
  detail::Network network = impl_->parts.unties ? detail::untied(impl_->network) : impl_->network;
  network.for_each_weight([&](const std::string& name, const at::Tensor& weight, const auto&) {
    if (const auto found = adapted.find(name); found != adapted.end()) {
      weights.push_back(std::move(found->second));
      adapted.erase(found);
    } else if (weight.requires_grad()) {
      weights.push_back({.name = name, .weight = weight});
    }
  });
  for (auto& [name, weight] : adapted) weights.push_back(std::move(weight));
  return weights;
}

std::shared_ptr<Policy> Decoder::merged_copy() const { return merged_decoder(); }

std::shared_ptr<Decoder> Decoder::merged_decoder() const {
  auto copy = std::make_unique<Impl>(*impl_);
  detail::SlicedCopies sliced;
  copy->network.for_each_weight([&](const std::string&, at::Tensor& weight, const auto&) {
    if (!weight.requires_grad()) return;
    weight = detail::is_sliced(weight) ? sliced.copy_of(weight) : detail::copy_of(weight);
  });
  if (copy->adapter) put_merged(*copy, /*keeps_dtype=*/false);
  return std::shared_ptr<Decoder>(new Decoder(std::move(copy)));
}

void Decoder::save_adapter(const std::string& directory) const { write_adapter(directory, {}); }

void Decoder::write_adapter(const std::string& directory, const at::Tensor& score) const {
  if (!impl_->adapter) {
    throw ConfigError("decoder: expected an adapter to save, got a model without one");
  }
  std::error_code why;
  std::filesystem::create_directories(directory, why);
  if (why) {
    throw CheckpointError(
        fmt::format("{}: expected to create a folder, got {}", directory, why.message()));
  }
  SafetensorsFile file{.tensors = {}, .metadata = {{"format", "pt"}}};
  impl_->parts.for_each_tensor([&](const std::string& key, const at::Tensor& tensor) {
    file.tensors.emplace_back(key, tensor.detach());
  });
  if (score.defined()) file.tensors.emplace_back(kAdapterScore, score.detach());
  write_safetensors(directory + "/adapter_model.safetensors", file);
  const Json config = detail::adapter_config_json(*impl_->adapter, impl_->source, score.defined());
  detail::write_file<CheckpointError>(directory + "/adapter_config.json",
                                      detail::dump_json(config, 2) + "\n");
}

void Decoder::load_adapter(const std::string& directory) { (void)read_adapter(directory, {}); }

at::Tensor Decoder::read_adapter(const std::string& given, const at::Tensor& score) {
  check_no_adapter();
  return with_errors_of_file([&] {
    const detail::Network& network = impl_->network;
    const std::string directory = detail::followed(given);
    const std::string path = directory + "/adapter_config.json";
    detail::AdapterConfig config = detail::read_adapter_config(path, score.defined());
    const detail::LoraRules rules(config.options, path);
    AdapterParts parts = detail::plan_adapter(
        {.network = network, .has_head = impl_->has_head, .is_training = false}, rules);
    check_untied(parts, config.ties_weights, path);
    detail::AdapterFile file(directory + "/adapter_model.safetensors");
    parts.for_each_tensor(
        [&](const std::string& key, at::Tensor& tensor) { file.take(key, tensor); });
    at::Tensor head;
    if (score.defined() && file.has(kAdapterScore)) {
      head = score;
      file.take(kAdapterScore, head);
    }
    detail::undo_base_change(config.change, network, parts, config.options, path);
    file.check_nothing_left(
        network.embedding,
        impl_->has_head ? detail::head_under(config.change, network, parts) : detail::HeadUnder());
    place_adapter(config.options, std::move(parts));
    return head;
  });
}

}  // namespace prefopt
