// SPDX-License-Identifier: Apache-2.0
#include "train/run_models.h"

#include <ATen/core/grad_mode.h>
#include <fmt/format.h>

#include <array>
#include <cstddef>
#include <map>
#include <string_view>
#include <utility>

#include "data/chat_writer.h"
#include "data/model_memory.h"
#include "data/tokenizer_difference.h"
#include "math/wide_gradient.h"
#include "prefopt/error.h"
#include "prefopt/model/end_tokens.h"
#include "prefopt/model/moving_reference.h"

namespace prefopt::detail {
namespace {

void add_adapter(const ModelOptions& options, Decoder& policy) {
  if (!options.adapter.empty()) {
    policy.load_adapter(options.adapter);
  } else if (options.use_lora) {
    policy.add_adapter(options.lora);
  }
}

/// The policy as it is now.
std::shared_ptr<Decoder> present_policy(const ReferenceOptions& options, const ModelOptions& model,
                                        const Decoder& policy) {
  if (options.moving) return policy.merged_decoder();
  // A fresh adapter changes nothing yet, so the model without it needs no further memory.
  const bool is_fresh_adapter = policy.adapter() && model.adapter.empty();
  return is_fresh_adapter && options.dtype.empty() ? policy.without_adapter()
                                                   : policy.frozen_decoder();
}

}  // namespace

ParameterCount count_parameters(const Decoder& policy) {
  ParameterCount count;
  for (const auto& [name, value] : policy.named_parameters()) {
    count.all += value.numel();
    if (value.requires_grad()) count.trained += value.numel();
  }
  return count;
}

std::shared_ptr<const Tokenizer> open_run_tokenizer(ModelOptions& options) {
  if (options.tokenizer.empty()) {
    options.tokenizer =
        options.path.empty() ? "byte" : find_tokenizer(options.path, options.adapter);
  }
  return open_tokenizer(options.tokenizer, options.path, options.adapter);
}

FolderFiles companions_of(const RunOptions& options, const Decoder& policy,
                          const Tokenizer& tokenizer, std::int64_t message_rows) {
  const std::string& asked = options.data.chat_format;
  const std::string format = chat_format_for_rows(asked, tokenizer);
  // A format that nobody chose and nothing used is not worth remembering.
  const bool chosen =
      asked != "auto" || !tokenizer.chat_format().empty() || !tokenizer.chat_template().empty();
  const bool remembers = format != "auto" && (chosen || message_rows > 0);
  FolderFiles files = model_companions(options.model.tokenizer, options.model.path,
                                       remembers ? format : "", row_memory(options.data));
  if (policy.adapter()) return files;
  const std::string generation =
      generation_config_with(policy, end_tokens(policy, tokenizer, remembers ? format : "plain"));
  if (!generation.empty()) files["generation_config.json"] = generation;
  return files;
}

std::shared_ptr<Decoder> make_policy(ModelOptions& options, const Tokenizer& tokenizer,
                                     const Note& note) {
  std::shared_ptr<Decoder> policy;
  if (options.path.empty()) {
    auto& shape = options.decoder;
    if (shape.vocab_size < tokenizer.vocab_size()) {
      throw ConfigError(
          fmt::format("model.decoder.vocab_size: expected at least the {} tokens of "
                      "the tokenizer '{}', got {}",
                      tokenizer.vocab_size(), tokenizer.name(), shape.vocab_size));
    }
    if (shape.bos_token_id < 0) shape.bos_token_id = tokenizer.bos_id();
    if (shape.eos_token_id < 0) shape.eos_token_id = tokenizer.eos_id();
    if (shape.pad_token_id < 0) shape.pad_token_id = tokenizer.pad_id();
    if (options.dtype == "keep") options.dtype = "float32";
    const auto dtype = parse_dtype(options.dtype);
    policy = std::make_shared<Decoder>(shape);
    policy->to(dtype);
  } else {
    policy = Decoder::load(options.path, options.dtype);
    options.decoder = policy->options();
    if (!policy->load_note().empty()) note("model: " + policy->load_note());
  }
  add_adapter(options, *policy);
  if (!options.path.empty() && !policy->adapter()) {
    // Writing to pages that are mapped from a file copies them one by one, in the first step.
    policy = policy->frozen_decoder();
    policy->set_requires_grad(true);
  }
  const auto size = count_parameters(*policy);
  note(fmt::format(
      "model: {} parameters, {}{}", size.all,
      options.path.empty() ? "fresh weights" : "from " + options.path,
      size.trained == size.all ? "" : fmt::format(", {} of them trained", size.trained)));
  return policy;
}

void set_checkpointing(LoopOptions& options, std::int64_t rows, Decoder& policy, const Note& note) {
  constexpr std::array kLevels{Checkpointing::kNone, Checkpointing::kSelective,
                               Checkpointing::kFull};
  constexpr std::array kChoices{CheckpointingChoice::kNone, CheckpointingChoice::kSelective,
                                CheckpointingChoice::kFull};
  const auto mib = [&](Checkpointing level) {
    return static_cast<double>(policy.activation_bytes(rows, level)) / (1 << 20);
  };
  std::size_t level = 0;
  if (options.checkpointing == CheckpointingChoice::kAutomatic) {
    const auto budget = static_cast<double>(options.activation_budget_mib);
    while (level + 1 < kLevels.size() && mib(kLevels[level]) > budget) ++level;
  } else {
    while (kChoices[level] != options.checkpointing) ++level;
  }
  options.checkpointing = kChoices[level];
  policy.set_checkpointing(kLevels[level]);
  constexpr std::array<std::string_view, 3> kNames{"none", "selective", "full"};
  note(fmt::format("checkpointing: {}, up to {:.0f} MiB kept for {} tokens", kNames[level],
                   mib(kLevels[level]), rows));
}

void check_reference(const ReferenceOptions& options) {
  if (options.moving && options.kind == ReferenceKind::kCached) {
    throw ConfigError(
        "reference: expected kind 'frozen' where moving is true, got 'cached'; a cache holds "
        "log-probs of one model");
  }
}

void check_reference_tokens(const ReferenceOptions& options, const Tokenizer& tokenizer, bool named,
                            const Note& note) {
  if (options.path.empty()) return;
  const std::string difference = tokenizer_difference(tokenizer, options.path);
  if (difference.empty()) return;
  if (named) {
    return note(fmt::format("reference: gets the tokens of {}, but by its own tokenizer {}",
                            tokenizer.name(), difference));
  }
  throw ConfigError(fmt::format(
      "reference.path: expected a model that tokenizes as {} does, got {}, by which {}; "
      "model.tokenizer names one for both",
      tokenizer.name(), options.path, difference));
}

std::shared_ptr<Reference> make_reference(const ReferenceOptions& options,
                                          const ModelOptions& model, const Decoder& policy,
                                          CacheLevel level) {
  const auto dtype = options.dtype.empty() ? model.dtype : options.dtype;
  std::shared_ptr<Policy> frozen;
  if (options.path.empty()) {
    const auto copy = present_policy(options, model, policy);
    if (!options.dtype.empty()) copy->to(parse_dtype(options.dtype));
    frozen = copy;
  } else {
    frozen = Decoder::load(options.path, dtype);
    if (frozen->vocab_size() != policy.vocab_size()) {
      throw ConfigError(
          fmt::format("reference.path: expected a model with the policy's vocabulary "
                      "of {} tokens, got {} with {}",
                      policy.vocab_size(), options.path, frozen->vocab_size()));
    }
  }
  if (options.moving) {
    return std::make_shared<MovingReference>(std::move(frozen), policy, options.update);
  }
  if (options.kind == ReferenceKind::kFrozen) return make_frozen_reference(std::move(frozen));
  return std::make_shared<CachedReference>(std::move(frozen), options.cache_dir, level);
}

void load_weights(const std::string& checkpoint, const Decoder& policy) {
  std::shared_ptr<Decoder> saved;
  if (policy.adapter()) {
    saved = policy.without_adapter();
    saved->load_adapter(checkpoint);
  } else {
    saved = Decoder::load(checkpoint);
  }
  std::map<std::string, at::Tensor> values;
  for (const auto& [name, value] : saved->named_parameters()) values[name] = value;
  const at::NoGradGuard no_grad;
  for (const auto& [name, own] : policy.named_parameters()) {
    if (!own.requires_grad()) continue;
    const at::Tensor& value = values[name];
    // Narrow weights are saved as their masters.
    if (!value.defined() || value.sizes() != own.sizes() ||
        !(value.scalar_type() == own.scalar_type() ||
          (is_narrow(own.scalar_type()) && value.scalar_type() == at::kFloat))) {
      throw CheckpointError(
          fmt::format("{}: expected weight '{}' as the run's model has it, got {}", checkpoint,
                      name, value.defined() ? "another shape or dtype" : "none"));
    }
    own.copy_(value);
  }
}

}  // namespace prefopt::detail
