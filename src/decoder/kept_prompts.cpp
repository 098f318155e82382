// SPDX-License-Identifier: Apache-2.0
#include "decoder/kept_prompts.h"

#include <c10/core/TensorImpl.h>
#include <fmt/format.h>

#include <algorithm>
#include <map>
#include <mutex>
#include <set>
#include <utility>

#include "prefopt/decoder/prompt_cache.h"
#include "prefopt/error.h"

namespace prefopt {
namespace detail {

// Weak references: they keep no weight alive, but its address from being used again.
class WeightStamp {
 public:
  explicit WeightStamp(const Network& network) : lora_scale_(network.lora_scale) {
    for (const at::Tensor& tensor : {network.embedding, network.norm, network.lm_head}) add(tensor);
    for (const Layer& layer : network.layers) {
      for_each_tensor(layer, [&](const at::Tensor& tensor) { add(tensor); });
      for (const Linear* fused : {&layer.qkv, &layer.gate_up}) add(*fused);
      add(layer.router);
      for (const Expert& expert : layer.experts) {
        for (const Linear* linear : {&expert.gate, &expert.up, &expert.down}) add(*linear);
      }
    }
  }

  bool has_versions() const { return has_versions_; }

  bool is_current() const {
    return std::all_of(seen_.begin(), seen_.end(), [](const Seen& seen) {
      const auto tensor = seen.tensor.lock();
      return tensor && tensor->version_counter().current_version() == seen.version;
    });
  }

  bool operator==(const WeightStamp& other) const {
    const auto is_same = [](const Seen& a, const Seen& b) {
      return a.tensor == b.tensor && a.version == b.version;
    };
    return lora_scale_ == other.lora_scale_ &&
           std::equal(seen_.begin(), seen_.end(), other.seen_.begin(), other.seen_.end(), is_same);
  }

 private:
  struct Seen {
    c10::weak_intrusive_ptr<c10::TensorImpl> tensor;
    std::uint32_t version;
  };

  void add(const Linear& linear) {
    for (const at::Tensor& tensor : {linear.weight, linear.bias, linear.lora_a, linear.lora_b}) {
      add(tensor);
    }
  }

  void add(const at::Tensor& tensor) {
    if (!tensor.defined()) return;
    has_versions_ = has_versions_ && !tensor.is_inference();
    if (!has_versions_) return;
    seen_.push_back({c10::weak_intrusive_ptr<c10::TensorImpl>(tensor.getIntrusivePtr()),
                     tensor.unsafeGetTensorImpl()->version_counter().current_version()});
  }

  double lora_scale_;
  std::vector<Seen> seen_;
  bool has_versions_ = true;
};

namespace {

using Tokens = std::vector<std::int64_t>;

std::int64_t bytes_of(const KeptPrompt& prompt) {
  return static_cast<std::int64_t>(prompt.keys_and_values.nbytes() + prompt.logits.nbytes());
}

/// The prompts of all models.
class PromptStore {
 public:
  static PromptStore& instance() {
    static PromptStore store;
    return store;
  }

  void set_limit(std::int64_t bytes) {
    const std::lock_guard lock(mutex_);
    limit_ = bytes;
    fit();
  }

  void add_room(std::int64_t bytes) {
    const std::lock_guard lock(mutex_);
    rooms_.insert(bytes);
  }

  void remove_room(std::int64_t bytes) {
    const std::lock_guard lock(mutex_);
    rooms_.erase(rooms_.find(bytes));
    fit();
  }

  void fit_now() {
    const std::lock_guard lock(mutex_);
    fit();
  }

  bool is_on() const {
    const std::lock_guard lock(mutex_);
    return limit() > 0;
  }

  PromptCacheCounts counts() const {
    const std::lock_guard lock(mutex_);
    return counts_;
  }

  KeptPrompt find(const WeightStamp& stamp, const Tokens& tokens) {
    const std::lock_guard lock(mutex_);
    drop_past();
    if (OfModel* model = model_of(stamp)) {
      if (const auto at = model->prompts.find(tokens); at != model->prompts.end()) {
        ++counts_.hits;
        at->second.last_use = ++uses_;
        return at->second.prompt;
      }
    }
    ++counts_.misses;
    return {};
  }

  void put(const std::shared_ptr<const WeightStamp>& stamp, const Tokens& tokens,
           const KeptPrompt& prompt) {
    const std::lock_guard lock(mutex_);
    drop_past();
    const std::int64_t bytes = bytes_of(prompt);
    if (bytes > limit() || !stamp->is_current()) return;
    make_room(bytes);
    OfModel* model = model_of(*stamp);
    if (model == nullptr) {
      models_.push_back({stamp, {}});
      model = &models_.back();
    }
    const bool is_new = model->prompts.insert_or_assign(tokens, Kept{prompt, ++uses_}).second;
    if (is_new) counts_.bytes += bytes;
  }

 private:
  struct Kept {
    KeptPrompt prompt;
    std::uint64_t last_use;
  };
  struct OfModel {
    std::shared_ptr<const WeightStamp> stamp;
    std::map<Tokens, Kept> prompts;
  };

  std::int64_t limit() const {
    return rooms_.empty() ? limit_ : std::max(limit_, *rooms_.rbegin());
  }

  void fit() {
    drop_past();
    make_room(0);
  }

  OfModel* model_of(const WeightStamp& stamp) {
    const auto at = std::find_if(models_.begin(), models_.end(),
                                 [&](const OfModel& model) { return *model.stamp == stamp; });
    return at == models_.end() ? nullptr : &*at;
  }

  /// Drops what belongs to weights that are no more.
  void drop_past() {
    std::erase_if(models_, [&](const OfModel& model) {
      if (model.stamp->is_current()) return false;
      for (const auto& [tokens, kept] : model.prompts) counts_.bytes -= bytes_of(kept.prompt);
      return true;
    });
  }

  void make_room(std::int64_t bytes) {
    while (counts_.bytes > 0 && counts_.bytes + bytes > limit()) drop_oldest();
  }

  void drop_oldest() {
    std::map<Tokens, Kept>* prompts = nullptr;
    std::map<Tokens, Kept>::iterator oldest;
    for (OfModel& model : models_) {
      for (auto at = model.prompts.begin(); at != model.prompts.end(); ++at) {
        if (prompts != nullptr && oldest->second.last_use < at->second.last_use) continue;
        prompts = &model.prompts;
        oldest = at;
      }
    }
    counts_.bytes -= bytes_of(oldest->second.prompt);
    prompts->erase(oldest);
    std::erase_if(models_, [](const OfModel& model) { return model.prompts.empty(); });
  }

  mutable std::mutex mutex_;
  std::int64_t limit_ = 0;
  std::multiset<std::int64_t> rooms_;
  std::uint64_t uses_ = 0;
  PromptCacheCounts counts_;
  std::vector<OfModel> models_;
};

}  // namespace

KeptPrompts KeptPrompts::of(const Network& network) {
  KeptPrompts kept;
  if (!PromptStore::instance().is_on()) return kept;
  auto stamp = std::make_shared<const WeightStamp>(network);
  if (stamp->has_versions()) kept.stamp_ = std::move(stamp);
  return kept;
}

KeptPrompt KeptPrompts::find(const Tokens& tokens) const {
  if (!stamp_ || !stamp_->is_current()) return {};
  return PromptStore::instance().find(*stamp_, tokens);
}

void KeptPrompts::put(const Tokens& tokens, const KeptPrompt& prompt) const {
  if (stamp_) PromptStore::instance().put(stamp_, tokens, prompt);
}

PromptRoom::PromptRoom(std::int64_t bytes) : bytes_(bytes) {
  PromptStore::instance().add_room(bytes);
}

PromptRoom::~PromptRoom() { PromptStore::instance().remove_room(bytes_); }

void drop_past_prompts() { PromptStore::instance().fit_now(); }

}  // namespace detail

void set_prompt_cache(std::int64_t bytes) {
  if (bytes < 0) {
    throw ConfigError(fmt::format("set_prompt_cache: expected bytes >= 0, got {}", bytes));
  }
  detail::PromptStore::instance().set_limit(bytes);
}

PromptCacheCounts prompt_cache_counts() { return detail::PromptStore::instance().counts(); }

}  // namespace prefopt
