// SPDX-License-Identifier: Apache-2.0
#include <ATen/TensorOperators.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/rand.h>
#include <ATen/ops/zeros.h>
#include <c10/util/StringUtil.h>
#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <filesystem>
#include <functional>
#include <initializer_list>
#include <map>
#include <memory>
#include <set>
#include <string_view>
#include <system_error>
#include <utility>

#include "core/file.h"
#include "core/json.h"
#include "core/text.h"
#include "decoder/decoder_config.h"
#include "decoder/decoder_impl.h"
#include "decoder/network.h"
#include "decoder/strict_config.h"
#include "prefopt/decoder/decoder.h"
#include "prefopt/error.h"
#include "prefopt/files/safetensors.h"

namespace prefopt {
namespace {

using detail::contains;
using detail::Json;

constexpr std::array kTargets =
    std::to_array<std::string_view>({"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj",
                                     "down_proj", "qkv_proj", "gate_up_proj"});

// Fields of PEFT's file that say where an adapter came from or how it is trained on.
constexpr std::array kAdapterHarmless = std::to_array<std::string_view>(
    {"auto_mapping", "base_model_name_or_path", "ensure_weight_tying", "eva_config",
     "inference_mode", "init_lora_weights", "lora_dropout", "megatron_core", "peft_version",
     "qalora_group_size", "revision", "task_type"});

/// PEFT's name of the score head.
constexpr const char* kAdapterScore = "base_model.model.score.weight";

double scale_of(const LoraOptions& options) {
  const auto rank = static_cast<double>(options.r);
  return options.lora_alpha / (options.use_rslora ? std::sqrt(rank) : rank);
}

std::string_view last_part(std::string_view name) { return name.substr(name.rfind('.') + 1); }

LoraOptions checked_adapter(LoraOptions options, std::string_view where) {
  options = checked(std::move(options), where);
  if (options.target_modules.empty()) {
    throw ConfigError(
        fmt::format("{}.target_modules: expected at least one name, got none", where));
  }
  for (const std::string& target : options.target_modules) {
    if (contains(kTargets, target)) continue;
    throw ConfigError(fmt::format("{}.target_modules: expected names of {}, got '{}'", where,
                                  fmt::join(kTargets, ", "), target));
  }
  return options;
}

// Puts fused matrices in place of their parts, where the model has those, and leaves out the parts
// of feed-forward that are experts, which take no adapter. Throws ConfigError for a target that the
// model does not have.
LoraOptions named_as_in(detail::Network& network, LoraOptions options) {
  std::set<std::string, std::less<>> present;
  bool has_experts = false;
  for (std::size_t i = 0; i < network.layers.size(); ++i) {
    network.for_each_linear(i, [&](const detail::LinearPlace& place, detail::Linear&) {
      present.emplace(last_part(place.name));
    });
    has_experts = has_experts || network.spec.layers[i].experts.count > 0;
  }
  std::vector<std::string>& targets = options.target_modules;
  const auto fuse = [&](std::initializer_list<std::string_view> parts, const char* whole) {
    const auto is_target = [&](std::string_view part) { return contains(targets, part); };
    if (!present.contains(whole) || !std::all_of(parts.begin(), parts.end(), is_target)) return;
    std::erase_if(targets, [&](const std::string& target) {
      return std::find(parts.begin(), parts.end(), target) != parts.end();
    });
    if (!contains(targets, whole)) targets.emplace_back(whole);
  };
  fuse({"q_proj", "k_proj", "v_proj"}, "qkv_proj");
  fuse({"gate_proj", "up_proj"}, "gate_up_proj");
  std::erase_if(targets, [&](const std::string& target) {
    constexpr std::array kOfExperts = {"gate_proj", "up_proj", "down_proj"};
    return has_experts && !present.contains(target) && contains(kOfExperts, target);
  });
  for (const std::string& target : targets) {
    if (present.contains(target)) continue;
    throw ConfigError(fmt::format("lora.target_modules: expected names of {}, got '{}'",
                                  fmt::join(present, ", "), target));
  }
  return options;
}

TrainedWeight trained_weight(std::string name, const detail::Linear& map, double scale) {
  return {.name = std::move(name),
          .weight = map.weight,
          .lora_a = map.lora_a,
          .lora_b = map.lora_b,
          .lora_scale = scale};
}

at::Tensor merged(const detail::Linear& map, double scale) {
  return trained_weight({}, map, scale).merged();
}

void remove_adapter(detail::Network& network) {
  detail::for_each_adapted(network,
                           [](std::size_t, const detail::LinearPlace&, detail::Linear& map) {
                             map.lora_a.reset();
                             map.lora_b.reset();
                           });
  network.lora_scale = 0;
}

// PEFT's initialization is irrelevant afterwards, unless it changed the weights under the adapter
// as well: then the adapter fits these and no others.
void check_initialization(const detail::StrictConfig& config) {
  const Json* value = config.find("init_lora_weights");
  if (!value || value->is_boolean()) return;
  constexpr std::array kPlain = std::to_array<std::string_view>({"gaussian", "eva", "orthogonal"});
  if (value->is_string() && contains(kPlain, value->get<std::string>())) return;
  throw CheckpointError(fmt::format(
      "{}: expected init_lora_weights that leave the model's weights as they are, got {}; convert "
      "the adapter in PEFT (save_pretrained with path_initial_model_for_weight_conversion), or "
      "merge it there",
      config.path(), detail::shown_json(*value)));
}

// PEFT's list for all models of its task SEQ_CLS.
bool is_score_head(const Json& modules) {
  return modules == Json::array({"score"}) || modules == Json::array({"classifier", "score"});
}

/// `with_score`: of a reward model, whose score head may be with the adapter.
LoraOptions read_adapter_config(const std::string& path, bool with_score) {
  const Json json =
      detail::parse_json<CheckpointError>(detail::read_file<CheckpointError>(path), path);
  const detail::StrictConfig config(json, path);
  const Json* kind = config.find("peft_type");
  if (!kind || *kind != "LORA") {
    config.fail(R"(peft_type to be "LORA")", kind ? detail::shown_json(*kind) : "none");
  }
  std::vector<std::string_view> understood = {"r", "lora_alpha", "use_rslora", "target_modules",
                                              "peft_type"};
  const Json* modules = config.find("modules_to_save");
  if (with_score && modules && is_score_head(*modules)) understood.push_back("modules_to_save");
  config.check({.understood = std::move(understood),
                .harmless = kAdapterHarmless,
                .required = {{"bias", "none"}}});
  check_initialization(config);
  for (const char* name : {"r", "lora_alpha", "target_modules"}) {
    if (!config.names(name)) config.fail(name, "none");
  }
  Json known = Json::object();
  for (const char* name : {"r", "lora_alpha", "use_rslora", "target_modules"}) {
    if (config.names(name)) known[name] = json[name];
  }
  try {
    return checked_adapter(options_from_json<LoraOptions>(known.dump(), path), path);
  } catch (const ConfigError& error) {
    throw CheckpointError(error.what());
  }
}

}  // namespace

void LoraOptions::fields(FieldVisitor& v) {
  v.integer({"r", "rank of the adapter", {"lora_r"}}, r, Range::between(1, 65536));
  v.real({"lora_alpha", "the adapter is scaled by lora_alpha / r"}, lora_alpha, Range::above(0));
  v.flag({"use_rslora", "scale by lora_alpha / sqrt(r) instead"}, use_rslora);
  v.texts({"target_modules", "linear maps that get an adapter", {"lora_target_modules"}},
          target_modules);
}

// Puts zeros where the adapter belongs, without memory: a file may name any rank.
void Decoder::place_adapter(const LoraOptions& options) {
  if (impl_->adapter) {
    throw ConfigError("decoder: expected a model without an adapter, got one that has an adapter");
  }
  detail::Network& network = impl_->network;
  const auto dtype = detail::at_least_float32(network.embedding.scalar_type());
  const auto like = at::TensorOptions(dtype).device(network.embedding.device());
  for (std::size_t i = 0; i < network.layers.size(); ++i) {
    network.for_each_linear(i, [&](const detail::LinearPlace& place, detail::Linear& map) {
      if (!contains(options.target_modules, last_part(place.name))) return;
      map.lora_a = at::zeros({}, like).expand({options.r, place.in});
      map.lora_b = at::zeros({}, like).expand({place.out, options.r});
    });
  }
  network.lora_scale = scale_of(options);
  impl_->adapter = options;
}

void Decoder::add_adapter(const LoraOptions& options) {
  place_adapter(named_as_in(impl_->network, checked_adapter(options, "lora")));
  const at::NoGradGuard no_grad;
  for_each_adapter_weight([](const std::string& name, at::Tensor& weight) {
    if (name.ends_with("lora_A.weight")) {
      const double bound = 1 / std::sqrt(static_cast<double>(weight.size(1)));
      weight = (at::rand(weight.sizes(), weight.options()) * 2 - 1) * bound;
    } else {
      weight = weight.contiguous();
    }
  });
  train_adapter_only();
}

void Decoder::train_adapter_only() {
  set_requires_grad(false);
  for_each_adapter_weight(
      [](const std::string&, at::Tensor& weight) { weight.requires_grad_(true); });
}

const std::optional<LoraOptions>& Decoder::adapter() const { return impl_->adapter; }

void Decoder::merge_adapter() {
  if (!impl_->adapter) {
    throw ConfigError("decoder: expected an adapter to merge, got a model without one");
  }
  detail::Network& network = impl_->network;
  detail::for_each_adapted(
      network, [&](std::size_t, const detail::LinearPlace&, detail::Linear& map) {
        // Another model may share the weights, so they are not written to.
        map.weight = merged(map, network.lora_scale).to(map.weight.scalar_type());
      });
  remove_adapter(network);
  impl_->adapter.reset();
  set_requires_grad(true);
}

std::shared_ptr<Decoder> Decoder::without_adapter() const {
  if (!impl_->adapter) {
    throw ConfigError("decoder: expected an adapter to leave out, got a model without one");
  }
  auto base = std::make_unique<Impl>(*impl_);
  remove_adapter(base->network);
  base->adapter.reset();
  return std::shared_ptr<Decoder>(new Decoder(std::move(base)));
}

std::vector<TrainedWeight> Decoder::trained_weights() const {
  detail::Network& network = impl_->network;
  std::map<std::string, detail::Linear> adapted;
  detail::for_each_adapted(
      network, [&](std::size_t i, const detail::LinearPlace& place, const detail::Linear& map) {
        adapted.emplace(fmt::format("model.layers.{}.{}.weight", i, place.name), map);
      });
  std::vector<TrainedWeight> weights;
  network.for_each_weight(
      [&](const std::string& name, const at::Tensor& weight, const std::vector<std::int64_t>&) {
        if (const auto found = adapted.find(name); found != adapted.end()) {
          weights.push_back(trained_weight(name, found->second, network.lora_scale));
        } else if (weight.requires_grad()) {
          weights.push_back({.name = name, .weight = weight});
        }
      });
  return weights;
}

std::shared_ptr<Policy> Decoder::merged_copy() const { return merged_decoder(); }

std::shared_ptr<Decoder> Decoder::merged_decoder() const {
  auto copy = std::make_unique<Impl>(*impl_);
  detail::Network& network = copy->network;
  detail::for_each_adapted(network,
                           [&](std::size_t, const detail::LinearPlace&, detail::Linear& map) {
                             map.weight = detail::copy_of(merged(map, network.lora_scale));
                           });
  network.for_each_weight(
      [](const std::string&, at::Tensor& weight, const std::vector<std::int64_t>&) {
        if (weight.requires_grad()) weight = detail::copy_of(weight);
      });
  remove_adapter(network);
  copy->adapter.reset();
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
  for_each_adapter_weight([&](const std::string& name, const at::Tensor& weight) {
    file.tensors.emplace_back(name, weight);
  });
  if (score.defined()) file.tensors.emplace_back(kAdapterScore, score.detach());
  write_safetensors(directory + "/adapter_model.safetensors", file);
  LoraOptions options = *impl_->adapter;
  std::sort(options.target_modules.begin(), options.target_modules.end());
  const Json base = impl_->source.empty() ? Json(nullptr) : Json(impl_->source);
  Json config = {{"base_model_name_or_path", base},
                 {"bias", "none"},
                 {"fan_in_fan_out", false},
                 {"inference_mode", true},
                 {"lora_alpha", options.lora_alpha},
                 {"lora_dropout", 0.0},
                 {"peft_type", "LORA"},
                 {"r", options.r},
                 {"target_modules", options.target_modules},
                 {"task_type", "CAUSAL_LM"},
                 {"use_rslora", options.use_rslora}};
  if (score.defined()) {
    config["task_type"] = "SEQ_CLS";
    config["modules_to_save"] = Json::array({"score"});
  }
  detail::write_file<CheckpointError>(directory + "/adapter_config.json",
                                      detail::dump_json(config, 2) + "\n");
}

void Decoder::load_adapter(const std::string& directory) { (void)read_adapter(directory, {}); }

at::Tensor Decoder::read_adapter(const std::string& given, const at::Tensor& score) {
  const std::string directory = detail::followed(given);
  const LoraOptions options =
      read_adapter_config(directory + "/adapter_config.json", score.defined());
  const std::string path = directory + "/adapter_model.safetensors";
  SafetensorsFile file = read_safetensors(path);
  std::map<std::string, at::Tensor> left;
  for (auto& [name, tensor] : file.tensors) left.emplace(name, std::move(tensor));
  // On separate handles, so that this model keeps no half of a foreign adapter.
  Decoder probe(std::make_unique<Impl>(*impl_));
  probe.place_adapter(options);
  const auto take = [&](const std::string& name, at::Tensor& weight) {
    const auto at = left.find(name);
    if (at == left.end()) {
      throw CheckpointError(
          fmt::format("{}: expected tensor '{}', got none of that name; is the adapter for another "
                      "model?",
                      path, name));
    }
    if (at->second.sizes() != weight.sizes() || !at->second.is_floating_point()) {
      throw CheckpointError(fmt::format(
          "{}: tensor '{}': expected shape {} of a floating dtype, got {} of {}; is the adapter "
          "for another model?",
          path, name, c10::str(weight.sizes()), c10::str(at->second.sizes()),
          c10::toString(at->second.scalar_type())));
    }
    weight = at->second.to(weight.options(), /*non_blocking=*/false, /*copy=*/true);
    left.erase(at);
  };
  probe.for_each_adapter_weight(take);
  at::Tensor head;
  if (score.defined() && left.contains(kAdapterScore)) {
    head = score;
    take(kAdapterScore, head);
  }
  if (!left.empty()) {
    throw CheckpointError(
        fmt::format("{}: expected the tensors of adapter_config.json's targets only, got '{}'; is "
                    "the adapter for another model?",
                    path, left.begin()->first));
  }
  impl_ = std::move(probe.impl_);
  train_adapter_only();
  return head;
}

}  // namespace prefopt
