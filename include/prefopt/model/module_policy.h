// SPDX-License-Identifier: Apache-2.0
#pragma once

// Includes LibTorch's module headers: for programs that define models with them anyway.
#include <torch/nn/cloneable.h>
#include <torch/nn/module.h>

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "prefopt/error.h"
#include "prefopt/model/policy.h"

namespace prefopt {

/// A torch::nn module with `at::Tensor forward(input_ids, attention_mask)` that returns logits
/// [S, T, vocab]; modules that derive from torch::nn::Cloneable can serve as a reference.
///
/// The module is put into evaluation mode, as by TRL's `disable_dropout`: a policy that differs
/// from one call to the next could not be compared between two passes of a step, or with a
/// reference. `forward` throws ConfigError where it was put back into training mode.
template <class Module>
class ModulePolicy final : public Policy {
 public:
  ModulePolicy(std::shared_ptr<Module> module, std::int64_t vocab_size)
      : module_(std::move(module)), vocab_size_(vocab_size) {
    module_->eval();
  }

  PolicyOutput forward(const TokenBatch& batch) override {
    if (module_->is_training()) {
      throw ConfigError(
          "module policy: expected a module in evaluation mode, got one in training mode; dropout "
          "would make each pass another policy");
    }
    return {.hidden = {}, .logits = module_->forward(batch.input_ids, batch.attention_mask)};
  }
  std::int64_t vocab_size() const override { return vocab_size_; }
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
    auto copy = std::make_shared<ModulePolicy>(std::move(module), vocab_size_);
    copy->set_requires_grad(false);
    return copy;
  }

 private:
  std::shared_ptr<Module> module_;
  std::int64_t vocab_size_;
};

}  // namespace prefopt
