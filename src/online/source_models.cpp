// SPDX-License-Identifier: Apache-2.0
#include "online/source_models.h"

#include <fmt/format.h>

#include <algorithm>

#include "online/draw_seed.h"
#include "prefopt/error.h"
#include "prefopt/policy/mixture_policy.h"

namespace prefopt::detail {
namespace {

/// A policy that its owner lends.
std::shared_ptr<Policy> borrowed(Policy& policy) {
  return {&policy, [](Policy*) {}};
}

void visit_tensors(StateVisitor& visitor, const std::string& prefix,
                   const std::vector<std::pair<std::string, at::Tensor>>& state) {
  for (const auto& [name, value] : state) visitor.tensor(prefix + name, value);
}

}  // namespace

SourceModels::SourceModels(const std::vector<SourceOptions>& sources, const Policy& policy,
                           std::shared_ptr<Policy> initial)
    : sources_(sources), initial_(std::move(initial)) {
  for (std::int64_t place = 0; place < std::ssize(sources_); ++place) {
    const SourceKind kind = source(place).from;
    const bool needs_initial = kind == SourceKind::kReference || kind == SourceKind::kMixture;
    if (needs_initial && !initial_) {
      throw ConfigError(
          fmt::format("online.sources[{}]: expected a model of the reference, got none", place));
    }
    if (kind == SourceKind::kLast && !last_) {
      last_.emplace(policy);
      present_.emplace(policy);
    }
    if (kind == SourceKind::kPast) past_.try_emplace(place, policy, source(place).keep);
    if (kind == SourceKind::kEma) {
      averages_.try_emplace(
          place, policy,
          MovingReferenceOptions{.alpha = 1 - source(place).decay, .update_steps = 1});
    }
  }
}

void SourceModels::start_round(Policy& policy) {
  if (last_) {
    std::swap(last_, present_);
    present_->take(policy);
  }
  for (auto& [place, past] : past_) past.add(policy);
}

void SourceModels::finish_step(const Policy& policy) {
  ++steps_;
  for (auto& [place, average] : averages_) average.after_step(policy, steps_);
}

void SourceModels::with_model(std::int64_t place, Policy& policy, std::int64_t round,
                              std::int64_t seed, const std::function<void(Policy& model)>& use) {
  switch (source(place).from) {
    case SourceKind::kPolicy:
    case SourceKind::kEnvironment:
    case SourceKind::kTree:
      return use(policy);
    case SourceKind::kReference:
      return use(*initial_);
    case SourceKind::kLast: {
      const BorrowedWeights weights(policy, *last_);
      return use(policy);
    }
    case SourceKind::kPast: {
      const PastWeights& past = past_.at(place);
      const BorrowedWeights weights(policy, past.at(past.pick(seed, round)));
      return use(policy);
    }
    case SourceKind::kEma:
      return use(*averages_.at(place).policy());
    case SourceKind::kMixture: {
      MixturePolicy mixture(borrowed(policy), initial_, source(place).weight);
      return use(mixture);
    }
    case SourceKind::kData:
    case SourceKind::kProgram:
    case SourceKind::kFile:
      break;
  }
  throw Error(fmt::format("online.sources[{}]: no model writes it", place));
}

void SourceModels::visit_state(StateVisitor& visitor) {
  if (last_) {
    visit_tensors(visitor, "last.", last_->state());
    visit_tensors(visitor, "present.", present_->state());
  }
  for (const auto& [place, past] : past_) {
    visit_tensors(visitor, fmt::format("past.{}.", place), past.state());
  }
  for (const auto& [place, average] : averages_) {
    visit_tensors(visitor, fmt::format("ema.{}.", place), average.state());
  }
  visitor.integer("online_steps", steps_);
}

}  // namespace prefopt::detail
