// SPDX-License-Identifier: Apache-2.0
#pragma once

// Includes LibTorch's module headers: for programs that define models with them anyway.
#include <torch/nn/cloneable.h>
#include <torch/nn/module.h>

#include <concepts>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "prefopt/error.h"
#include "prefopt/policy/policy.h"

namespace prefopt {

/// A module whose last layer can be left to the library, which then never holds all logits:
/// `hidden(input_ids, attention_mask)` returns hidden states [S, T, H] and `head_weight()` the
/// output head [vocab, H].
template <class Module>
concept HasOutputHead = requires(Module& module, const at::Tensor& tensor) {
  { module.hidden(tensor, tensor) } -> std::convertible_to<at::Tensor>;
  { module.head_weight() } -> std::convertible_to<at::Tensor>;
};

/// A torch::nn module as a policy: one with `at::Tensor forward(input_ids, attention_mask)` that
/// returns logits [S, T, vocab], or one that HasOutputHead. Modules that derive from
/// torch::nn::Cloneable can serve as a reference. Weights are saved as `model.safetensors`.
///
/// The module is put into evaluation mode, as by TRL's `disable_dropout`: two passes of a step, or
/// policy and reference, cannot be compared if the policy differs from call to call. `forward`
/// throws ConfigError where the module was put back into training mode.
template <class Module>
class ModulePolicy final : public Policy {
 public:
  /// `config` tells modules apart that have the same parameters: a run is resumed, and log-probs
  /// are taken from a cache, with the same one only.
  ModulePolicy(std::shared_ptr<Module> module, std::int64_t vocab_size, std::string config = {})
      : module_(std::move(module)), vocab_size_(vocab_size), config_(std::move(config)) {
    module_->eval();
  }

  PolicyOutput forward(const TokenBatch& batch) override {
    if (module_->is_training()) {
      throw ConfigError(
          "module policy: expected a module in evaluation mode, got one in training mode; dropout "
          "would make each pass another policy");
    }
    if constexpr (HasOutputHead<Module>) {
      return {.hidden = module_->hidden(batch.input_ids, batch.attention_mask), .logits = {}};
    } else {
      return {.hidden = {}, .logits = module_->forward(batch.input_ids, batch.attention_mask)};
    }
  }
  OutputHead head() const override {
    if constexpr (HasOutputHead<Module>) return {.weight = module_->head_weight()};
    return {};
  }
  std::int64_t vocab_size() const override { return vocab_size_; }
  /// Returns the constructor's text, and a hash of the module's buffers.
  std::string config() const override {
    const std::vector<NamedParameter> of_buffers = buffers();
    return of_buffers.empty() ? config_ : config_ + "\nbuffers " + detail::hash_of(of_buffers);
  }
  std::vector<NamedParameter> named_parameters() const override {
    std::vector<NamedParameter> parameters;
    for (const auto& item : module_->named_parameters()) {
      parameters.push_back({item.key(), item.value()});
    }
    return parameters;
  }
  std::shared_ptr<Policy> frozen_copy() const override {
    std::shared_ptr<Module> module;
    try {
      module = std::dynamic_pointer_cast<Module>(module_->clone());
    } catch (const c10::Error&) {
      // torch::nn::Module::clone throws unless the module derives from Cloneable: refused below.
    }
    if (!module) {
      throw ConfigError(
          "module policy: expected a module that derives from torch::nn::Cloneable, got one that "
          "cannot be copied");
    }
    auto copy = std::make_shared<ModulePolicy>(std::move(module), vocab_size_, config_);
    copy->set_requires_grad(false);
    return copy;
  }
  void save(const std::string& directory) const override {
    std::vector<NamedParameter> tensors = named_parameters();
    const std::vector<NamedParameter> of_buffers = buffers();
    tensors.insert(tensors.end(), of_buffers.begin(), of_buffers.end());
    detail::save_parameters(tensors, directory);
  }
  void load_weights(const std::string& directory) override {
    detail::load_parameters(named_parameters(), directory);
  }

 private:
  std::vector<NamedParameter> buffers() const {
    std::vector<NamedParameter> tensors;
    for (const auto& item : module_->named_buffers()) tensors.push_back({item.key(), item.value()});
    return tensors;
  }

  std::shared_ptr<Module> module_;
  std::int64_t vocab_size_;
  std::string config_;
};

}  // namespace prefopt
