// SPDX-License-Identifier: Apache-2.0
#include "decoder/adapters/adapter_parts.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/zeros.h>
#include <fmt/format.h>

#include <algorithm>
#include <set>
#include <utility>

#include "decoder/families/family.h"

namespace prefopt::detail {
namespace {

/// Names of a network's modules, those of transformers.
class ModuleList {
 public:
  ModuleList(const Network& network, bool has_head)
      : family_(family_named(network.options.family, "adapter")) {
    Network all = has_head ? untied(network) : network;
    const std::int64_t vocab = all.options.vocab_size, hidden = all.options.hidden_size;
    add_adaptable("model.embed_tokens", ModuleKind::kEmbedding, vocab, hidden, false);
    std::size_t place = 0;
    for (std::size_t i = 0; i < all.layers.size(); ++i) {
      all.for_each_linear(i, [&](const LinearPlace& linear, Linear&) {
        add_adaptable(fmt::format("model.layers.{}.{}", i, linear.name), ModuleKind::kLinear,
                      linear.in, linear.out, linear.has_bias);
        adaptable_.back().place = place++;
      });
      others_.insert(in_file(fmt::format("model.layers.{}.mlp", i)) + ".act_fn");
    }
    if (has_head) add_adaptable("lm_head", ModuleKind::kHead, hidden, vocab, false);
    all.for_each_weight([&](const std::string& name, const at::Tensor& weight, const auto&) {
      weights_.push_back({name, weight});
      // Every module that the weight is in.
      std::string module = in_file(module_of(name));
      // In transformers the matrices of all experts are tensors of one module.
      if (const std::size_t at = module.find(".experts."); at != std::string::npos) {
        module.resize(at + std::string_view(".experts").size());
      }
      for (;;) {
        others_.insert(module);
        const std::size_t dot = module.rfind('.');
        if (dot == std::string::npos) break;
        module.resize(dot);
      }
    });
    others_.insert("model.rotary_emb");
    for (const AdaptableModule& module : adaptable_) others_.erase(module.name);
  }

  const std::vector<AdaptableModule>& adaptable() const { return adaptable_; }
  const std::set<std::string>& others() const { return others_; }
  /// All weights, by their names here.
  const std::vector<NamedParameter>& weights() const { return weights_; }

  static std::string module_of(const std::string& weight) {
    return weight.substr(0, weight.rfind('.'));
  }
  std::string in_file(const std::string& module) const {
    const std::string name = name_in_file(family_, module + ".weight");
    return module_of(name);
  }

 private:
  void add_adaptable(const std::string& module, ModuleKind kind, std::int64_t in, std::int64_t out,
                     bool has_bias) {
    adaptable_.push_back({.name = in_file(module),
                          .weight = module,
                          .kind = kind,
                          .in = in,
                          .out = out,
                          .has_bias = has_bias});
  }

  const Family& family_;
  std::vector<AdaptableModule> adaptable_;
  std::set<std::string> others_;
  std::vector<NamedParameter> weights_;
};

class Planner {
 public:
  Planner(const AdapterSite& site, const LoraRules& rules)
      : site_(site), rules_(rules), modules_(site.network, site.has_head) {
    const auto dtype = at_least_float32(site.network.embedding.scalar_type());
    like_ = at::TensorOptions(dtype).device(site.network.embedding.device());
  }

  AdapterParts run() {
    parts_.common_scale = rules_.common_scale();
    add_low_rank();
    add_whole();
    add_biases();
    check_names();
    const auto unties = [](const std::string& module) {
      return module == "model.embed_tokens" || module == "lm_head";
    };
    for (const LowRank& part : parts_.low_rank) touches_ends_ |= unties(part.module.weight);
    for (const WholeWeight& part : parts_.whole) {
      touches_ends_ |= unties(ModuleList::module_of(part.name));
    }
    parts_.unties = touches_ends_ && site_.has_head && site_.network.spec.tied_head;
    return std::move(parts_);
  }

 private:
  at::Tensor zeros(at::IntArrayRef shape) const { return at::zeros({}, like_).expand(shape); }

  void add_low_rank() {
    const LoraOptions& options = rules_.options();
    for (const AdaptableModule& module : modules_.adaptable()) {
      if (!rules_.targets(module.name, module.kind)) continue;
      const bool is_embedding = module.kind == ModuleKind::kEmbedding;
      if (rules_.saves(module.name)) {
        rules_.fail("modules_to_save", "modules that are not targets as well",
                    "'" + module.name + "'");
      }
      if (is_embedding && options.lora_bias) {
        rules_.fail("lora_bias", "false with an embedding as target", "true");
      }
      const std::int64_t rank = rules_.rank_of(module.name);
      LowRank part{.module = module,
                   .scale = rules_.scale_of(module.name),
                   .a = zeros({rank, module.in}),
                   .b = zeros({module.out, rank}),
                   .magnitude = {},
                   .b_bias = {}};
      if (options.use_dora) part.magnitude = zeros({module.out});
      if (options.lora_bias) part.b_bias = zeros({module.out});
      parts_.low_rank.push_back(std::move(part));
    }
  }

  /// Whether a module or one around it is saved.
  bool is_saved(std::string module) const {
    for (;;) {
      if (rules_.saves(module)) return true;
      const std::size_t dot = module.rfind('.');
      if (dot == std::string::npos) return false;
      module.resize(dot);
    }
  }

  void add_whole() {
    if (rules_.options().modules_to_save.empty()) return;
    for (const auto& [name, weight] : modules_.weights()) {
      const std::string module = modules_.in_file(ModuleList::module_of(name));
      if (!is_saved(module)) continue;
      parts_.whole.push_back(
          {name, peft_key(module + name.substr(name.rfind('.'))), weight.detach()});
    }
  }

  void add_biases() {
    const LoraBias trained = rules_.options().bias;
    if (trained == LoraBias::kNone) return;
    for (const auto& [name, weight] : modules_.weights()) {
      if (!name.ends_with(".bias")) continue;
      const std::string here = ModuleList::module_of(name);
      const auto is_of = [&](const LowRank& part) { return part.module.weight == here; };
      const bool is_adapted = std::any_of(parts_.low_rank.begin(), parts_.low_rank.end(), is_of);
      if (trained == LoraBias::kLoraOnly && !is_adapted) continue;
      const std::string module = modules_.in_file(here);
      if (is_saved(module)) continue;
      parts_.whole.push_back(
          {name, peft_key(module + (is_adapted ? ".base_layer" : "") + ".bias"), weight.detach()});
    }
  }

  void check_names() const {
    for (const std::string& module : modules_.others()) {
      if (!rules_.targets(module, std::nullopt)) continue;
      rules_.fail("target_modules", "linear maps and embeddings only", "'" + module + "'");
    }
    std::vector<std::string> names(modules_.others().begin(), modules_.others().end());
    for (const AdaptableModule& module : modules_.adaptable()) names.push_back(module.name);
    for (const std::string& saved : rules_.options().modules_to_save) {
      const auto is_it = [&](const std::string& module) { return module.ends_with(saved); };
      if (std::any_of(names.begin(), names.end(), is_it)) continue;
      rules_.fail("modules_to_save", "ends of names of the model's modules", "'" + saved + "'");
    }
    if (parts_.low_rank.empty()) {
      rules_.fail("target_modules", "names of modules that the model has",
                  shown_text(rules_.options().target_modules.json));
    }
    if (!site_.is_training) return;
    const std::string unused = rules_.find_unused(names);
    if (unused.empty()) return;
    const std::size_t colon = unused.find(": ");
    rules_.fail(unused.substr(0, colon), "names of modules that the model has",
                unused.substr(colon + 2));
  }

  const AdapterSite& site_;
  const LoraRules& rules_;
  ModuleList modules_;
  at::TensorOptions like_;
  AdapterParts parts_;
  bool touches_ends_ = false;
};

std::string bias_name(const LowRank& part) { return part.module.weight + ".bias"; }

TrainedWeight trained_weight(const LowRank& part, const at::Tensor& base) {
  const bool is_embedding = part.module.kind == ModuleKind::kEmbedding;
  TrainedWeight weight{.name = part.module.weight + ".weight",
                       .weight = base,
                       .lora_a = is_embedding ? part.b.t() : part.a,
                       .lora_b = is_embedding ? part.a.t() : part.b,
                       .lora_scale = part.scale};
  if (part.magnitude.defined()) weight.magnitude = part.magnitude.unsqueeze(is_embedding ? 0 : 1);
  return weight;
}

TrainedWeight trained_bias(const LowRank& part, const at::Tensor& base) {
  return {.name = bias_name(part),
          .weight = base,
          .lora_a = {},
          .lora_b = part.b_bias,
          .lora_scale = part.scale};
}

at::Tensor made(const TrainedWeight& weight, MadeWeights how) {
  const at::Tensor value = weight.value();
  const bool narrows = how == MadeWeights::kAsStored && weight.weight.defined();
  return narrows ? value.to(weight.weight.scalar_type()) : value;
}

/// Puts copies in the place of weights, and a head apart from the embedding where they differ.
Network with_whole_weights(const Network& base, const AdapterParts& parts) {
  Network network = parts.unties ? untied(base) : base;
  if (parts.whole.empty()) return network;
  std::map<std::string, at::Tensor> copies;
  for (const WholeWeight& copy : parts.whole) copies[copy.name] = copy.value;
  network.for_each_weight([&](const std::string& name, at::Tensor& weight, const auto&) {
    if (const auto copy = copies.find(name); copy != copies.end()) weight = copy->second;
  });
  return network;
}

void adapt(Linear& map, const LowRank& part, double common_scale, MadeWeights how) {
  if (part.b_bias.defined()) map.bias = made(trained_bias(part, map.bias), how);
  if (part.magnitude.defined()) {
    map.weight = made(trained_weight(part, map.weight), how);
    return;
  }
  map.lora_a = part.a;
  // Executors have one scale.
  map.lora_b = part.scale == common_scale ? part.b : part.b * (part.scale / common_scale);
}

const LowRank* find_kind(const AdapterParts& parts, ModuleKind kind) {
  const auto at = std::find_if(parts.low_rank.begin(), parts.low_rank.end(),
                               [&](const LowRank& part) { return part.module.kind == kind; });
  return at == parts.low_rank.end() ? nullptr : &*at;
}

at::Tensor head_of(const Network& network, const AdapterParts& parts, MadeWeights how) {
  const LowRank* part = find_kind(parts, ModuleKind::kHead);
  return part ? made(trained_weight(*part, network.head()), how) : network.head();
}

}  // namespace

AdapterParts plan_adapter(const AdapterSite& site, const LoraRules& rules) {
  return Planner(site, rules).run();
}

Network untied(Network network) {
  if (!network.spec.tied_head) return network;
  network.spec.tied_head = false;
  network.options.tie_word_embeddings = false;
  network.lm_head = network.embedding;
  return network;
}

Network with_adapter(const Network& base, const AdapterParts& parts, MadeWeights how) {
  Network network = with_whole_weights(base, parts);
  network.lora_scale = parts.common_scale;
  std::map<std::size_t, const LowRank*> linear;
  for (const LowRank& part : parts.low_rank) {
    if (part.module.kind == ModuleKind::kLinear) linear[part.module.place] = &part;
  }
  std::size_t place = 0;
  for (std::size_t i = 0; i < network.layers.size(); ++i) {
    network.for_each_linear(i, [&](const LinearPlace&, Linear& map) {
      const auto part = linear.find(place++);
      if (part != linear.end()) adapt(map, *part->second, parts.common_scale, how);
    });
  }
  if (find_kind(parts, ModuleKind::kHead) != nullptr)
    network.lm_head = head_of(network, parts, how);
  if (const LowRank* part = find_kind(parts, ModuleKind::kEmbedding)) {
    network.embedding = made(trained_weight(*part, network.embedding), how);
  }
  return network;
}

at::Tensor adapted_head(const Network& base, const AdapterParts& parts, MadeWeights how) {
  return head_of(with_whole_weights(base, parts), parts, how);
}

std::map<std::string, TrainedWeight> trained_weights(const Network& base,
                                                     const AdapterParts& parts) {
  std::map<std::string, TrainedWeight> trained;
  const Network network = with_whole_weights(base, parts);
  std::map<std::string, at::Tensor> weights;
  Network(network).for_each_weight([&](const std::string& name, const at::Tensor& weight,
                                       const auto&) { weights[name] = weight; });
  for (const WholeWeight& copy : parts.whole) {
    trained[copy.name] = {.name = copy.name, .weight = copy.value};
  }
  for (const LowRank& part : parts.low_rank) {
    const std::string name = part.module.weight + ".weight";
    trained[name] = trained_weight(part, weights.at(name));
    if (part.b_bias.defined()) {
      trained[bias_name(part)] = trained_bias(part, weights[bias_name(part)]);
    }
  }
  return trained;
}

}  // namespace prefopt::detail
