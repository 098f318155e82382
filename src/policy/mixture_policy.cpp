// SPDX-License-Identifier: Apache-2.0
#include "prefopt/policy/mixture_policy.h"

#include <ATen/core/grad_mode.h>
#include <fmt/format.h>

#include <utility>
#include <vector>

#include "policy/summed_logits.h"
#include "prefopt/error.h"

namespace prefopt {
namespace {

/// (1−w, w)
std::vector<double> shares(double weight_of_reference) {
  return {1 - weight_of_reference, weight_of_reference};
}

}  // namespace

MixturePolicy::MixturePolicy(std::shared_ptr<Policy> policy, std::shared_ptr<Policy> reference,
                             double reference_weight)
    : policy_(std::move(policy)),
      reference_(std::move(reference)),
      reference_weight_(reference_weight) {
  if (!policy_ || !reference_) {
    throw ConfigError(fmt::format("mixture: expected a policy and a reference, got no {}",
                                  policy_ ? "reference" : "policy"));
  }
  if (policy_->vocab_size() != reference_->vocab_size()) {
    throw ConfigError(fmt::format(
        "mixture: expected a reference with the policy's vocabulary of {} tokens, got {}",
        policy_->vocab_size(), reference_->vocab_size()));
  }
  if (!(reference_weight_ >= 0 && reference_weight_ <= 1)) {
    throw ConfigError(
        fmt::format("mixture: expected weight in [0, 1], got {}; it is the reference's share",
                    reference_weight_));
  }
}

Policy* MixturePolicy::sole_model() const {
  if (reference_weight_ == 0) return policy_.get();
  if (reference_weight_ == 1) return reference_.get();
  return nullptr;
}

PolicyOutput MixturePolicy::forward(const TokenBatch& batch) {
  const at::NoGradGuard no_grad;
  if (Policy* model = sole_model()) return model->forward(batch);
  return {.hidden = {},
          .logits = detail::summed_logits(
              {detail::all_logits(*policy_, batch), detail::all_logits(*reference_, batch)},
              shares(reference_weight_))};
}

bool MixturePolicy::packs() const {
  const Policy* model = sole_model();
  return model != nullptr && model->packs();
}

at::Tensor MixturePolicy::forward_packed(const PackedTokens& tokens) {
  const at::NoGradGuard no_grad;
  Policy* model = sole_model();
  return model != nullptr ? model->forward_packed(tokens) : Policy::forward_packed(tokens);
}

OutputHead MixturePolicy::head() const {
  const Policy* model = sole_model();
  if (model == nullptr) return {};
  OutputHead head = model->head();
  // A head that requires a gradient would give one to log-probs of detached states.
  if (head.weight.defined()) head.weight = head.weight.detach();
  if (head.bias.defined()) head.bias = head.bias.detach();
  return head;
}

std::int64_t MixturePolicy::vocab_size() const { return policy_->vocab_size(); }

std::vector<NamedParameter> MixturePolicy::named_parameters() const {
  std::vector<NamedParameter> parameters;
  for (const auto& [prefix, model] :
       {std::pair("policy.", policy_.get()), std::pair("reference.", reference_.get())}) {
    for (const auto& [name, value] : model->named_parameters()) {
      parameters.push_back({prefix + name, value.detach()});
    }
  }
  return parameters;
}

std::string MixturePolicy::config() const {
  // With the scales of adapters, which are no parameters.
  return fmt::format("mixture {}\n{}\n{}", reference_weight_, content_hash(*policy_),
                     content_hash(*reference_));
}

void MixturePolicy::check_length(std::int64_t tokens, std::string_view where) const {
  policy_->check_length(tokens, where);
  reference_->check_length(tokens, where);
}

std::unique_ptr<DecodeSession> MixturePolicy::start_decoding(
    const std::vector<std::vector<std::int64_t>>& prompts) {
  if (Policy* model = sole_model()) return model->start_decoding(prompts);
  std::vector<std::unique_ptr<DecodeSession>> sessions;
  sessions.push_back(policy_->start_decoding(prompts));
  sessions.push_back(reference_->start_decoding(prompts));
  return detail::summed_session(std::move(sessions), shares(reference_weight_));
}

}  // namespace prefopt
