// SPDX-License-Identifier: Apache-2.0
#include "prefopt/policy/guided_policy.h"

#include <ATen/core/grad_mode.h>
#include <fmt/format.h>

#include <cmath>
#include <utility>

#include "policy/summed_logits.h"
#include "prefopt/error.h"

namespace prefopt {
namespace {

void check_guide(const Guide& guide, std::size_t place, const Policy& base) {
  if (!guide.model) {
    throw ConfigError(fmt::format("guide {}: expected a model, got null", place));
  }
  if (guide.model->vocab_size() != base.vocab_size()) {
    throw ConfigError(
        fmt::format("guide {}: expected a model with the base's vocabulary of {} tokens, got {}",
                    place, base.vocab_size(), guide.model->vocab_size()));
  }
  if (!std::isfinite(guide.weight)) {
    throw ConfigError(
        fmt::format("guide {}: expected a finite weight, got {}", place, guide.weight));
  }
}

}  // namespace

GuidedPolicy::GuidedPolicy(std::shared_ptr<Policy> base, std::vector<Guide> guides)
    : base_(std::move(base)), guides_(std::move(guides)) {
  if (!base_) throw ConfigError("guided policy: expected a base model, got null");
  if (guides_.empty()) throw ConfigError("guided policy: expected a guide, got none");
  for (std::size_t i = 0; i < guides_.size(); ++i) check_guide(guides_[i], i, *base_);
  std::erase_if(guides_, [](const Guide& guide) { return guide.weight == 0; });
}

PolicyOutput GuidedPolicy::forward(const TokenBatch& batch) {
  const at::NoGradGuard no_grad;
  std::vector<at::Tensor> logits{detail::all_logits(*base_, batch)};
  if (guides_.empty()) return {.hidden = {}, .logits = logits.front()};
  std::vector<double> weights{1};
  for (const auto& [model, weight] : guides_) {
    logits.push_back(detail::all_logits(*model, batch));
    weights.push_back(weight);
  }
  return {.hidden = {}, .logits = detail::summed_logits(logits, weights)};
}

std::int64_t GuidedPolicy::vocab_size() const { return base_->vocab_size(); }

std::vector<NamedParameter> GuidedPolicy::named_parameters() const {
  std::vector<NamedParameter> parameters;
  const auto add = [&](const std::string& prefix, const Policy& model) {
    for (const auto& [name, value] : model.named_parameters()) {
      parameters.push_back({prefix + name, value.detach()});
    }
  };
  add("base.", *base_);
  for (std::size_t i = 0; i < guides_.size(); ++i) {
    add(fmt::format("guide{}.", i), *guides_[i].model);
  }
  return parameters;
}

std::string GuidedPolicy::config() const {
  // With the scales of adapters, which are no parameters.
  std::string text = "guided\n" + content_hash(*base_);
  for (const auto& [model, weight] : guides_) {
    text += fmt::format("\n{} {}", weight, content_hash(*model));
  }
  return text;
}

void GuidedPolicy::check_length(std::int64_t tokens, std::string_view where) const {
  base_->check_length(tokens, where);
  for (const Guide& guide : guides_) guide.model->check_length(tokens, where);
}

std::unique_ptr<DecodeSession> GuidedPolicy::start_decoding(
    const std::vector<std::vector<std::int64_t>>& prompts) {
  if (guides_.empty()) return base_->start_decoding(prompts);
  std::vector<std::unique_ptr<DecodeSession>> sessions;
  sessions.push_back(base_->start_decoding(prompts));
  std::vector<double> weights{1};
  for (const auto& [model, weight] : guides_) {
    sessions.push_back(model->start_decoding(prompts));
    weights.push_back(weight);
  }
  return detail::summed_session(std::move(sessions), std::move(weights));
}

}  // namespace prefopt
