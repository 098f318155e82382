// SPDX-License-Identifier: Apache-2.0
#include "prefopt/policy/policy.h"

#include <ATen/TensorOperators.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/equal.h>
#include <ATen/ops/index.h>
#include <ATen/ops/linalg_vector_norm.h>
#include <ATen/ops/zeros.h>
#include <ATen/ops/zeros_like.h>
#include <c10/util/StringUtil.h>
#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <filesystem>
#include <map>
#include <system_error>
#include <typeinfo>
#include <utility>

#include "core/hash.h"
#include "kernels/block_tensor.h"
#include "math/sliced_weight.h"
#include "math/wide_gradient.h"
#include "policy/decoding.h"
#include "policy/output_head.h"
#include "policy/parameters.h"
#include "prefopt/error.h"
#include "prefopt/files/safetensors.h"

namespace prefopt {
namespace {

// Keeps nothing but the tokens: what works for any policy.
class FullForwardSession final : public DecodeSession {
 public:
  FullForwardSession(Policy& policy, std::vector<std::vector<std::int64_t>> sequences)
      : policy_(policy), sequences_(std::move(sequences)) {}

  at::Tensor prefill() override { return last_logits(); }

  at::Tensor append(const at::Tensor& tokens) override {
    detail::check_appended_tokens(tokens, std::ssize(sequences_), policy_.vocab_size());
    const at::Tensor ids = tokens.cpu();
    for (std::size_t s = 0; s < sequences_.size(); ++s) {
      sequences_[s].push_back(ids[static_cast<std::int64_t>(s)].item<std::int64_t>());
    }
    return last_logits();
  }

  void keep(const std::vector<std::int64_t>& sequences) override {
    detail::check_kept(sequences, std::ssize(sequences_));
    std::vector<std::vector<std::int64_t>> kept;
    for (const std::int64_t s : sequences) {
      kept.push_back(std::move(sequences_[static_cast<std::size_t>(s)]));
    }
    sequences_ = std::move(kept);
  }

 private:
  at::Tensor last_logits() {
    const at::NoGradGuard no_grad;
    const std::int64_t count = std::ssize(sequences_);
    std::size_t longest = 0;
    for (const auto& sequence : sequences_) longest = std::max(longest, sequence.size());
    const at::Tensor ids = at::zeros({count, static_cast<std::int64_t>(longest)}, at::kLong);
    const at::Tensor last = at::zeros({count}, at::kLong);
    for (std::int64_t s = 0; s < count; ++s) {
      const auto& sequence = sequences_[static_cast<std::size_t>(s)];
      std::copy(sequence.begin(), sequence.end(), ids[s].mutable_data_ptr<std::int64_t>());
      last[s] = std::ssize(sequence) - 1;
    }
    const at::Tensor positions = at::arange(static_cast<std::int64_t>(longest), at::kLong);
    const TokenBatch batch{.input_ids = ids,
                           .attention_mask = positions.le(last.unsqueeze(1)),
                           .completion_mask = at::zeros(ids.sizes(), at::kBool),
                           .completion_lens = at::zeros({count}, at::kLong)};
    const at::Device device = policy_.device();
    const PolicyOutput output = policy_.forward(batch.to(device));
    const at::Tensor& states = output.hidden.defined() ? output.hidden : output.logits;
    const at::Tensor rows = at::index(
        states, {at::arange(count, at::TensorOptions(at::kLong).device(device)), last.to(device)});
    return output.hidden.defined() ? detail::logits_of(policy_.head(), rows) : rows;
  }

  Policy& policy_;
  std::vector<std::vector<std::int64_t>> sequences_;
};

}  // namespace

namespace detail {

void check_token_ids(const at::Tensor& ids, std::int64_t vocab_size, std::string_view where) {
  if (!ids.is_cpu() || ids.numel() == 0) return;
  const at::Tensor flat = ids.contiguous().view(-1);
  const auto* values = flat.const_data_ptr<std::int64_t>();
  const auto* end = values + flat.numel();
  const auto* bad =
      std::find_if(values, end, [&](std::int64_t id) { return id < 0 || id >= vocab_size; });
  if (bad != end) {
    throw DataError(
        fmt::format("{}: expected token ids in [0, {}), got {}", where, vocab_size, *bad));
  }
}

void check_prompts(const std::vector<std::vector<std::int64_t>>& prompts, std::int64_t vocab_size) {
  if (prompts.empty()) throw ShapeError("start_decoding: expected at least one prompt, got none");
  for (std::size_t i = 0; i < prompts.size(); ++i) {
    if (prompts[i].empty()) {
      throw ShapeError(fmt::format(
          "start_decoding: expected at least one token in each prompt, got none in prompt {}", i));
    }
    for (std::int64_t id : prompts[i]) {
      if (id < 0 || id >= vocab_size) {
        throw DataError(
            fmt::format("start_decoding: expected token ids in [0, {}), got {} in prompt {}",
                        vocab_size, id, i));
      }
    }
  }
}

void check_appended_tokens(const at::Tensor& tokens, std::int64_t sequences,
                           std::int64_t vocab_size) {
  if (tokens.scalar_type() != at::kLong) {
    throw DtypeError(
        fmt::format("append: expected int64 tokens, got {}", c10::toString(tokens.scalar_type())));
  }
  if (tokens.dim() != 1 || tokens.size(0) != sequences) {
    throw ShapeError(
        fmt::format("append: expected tokens [{}], got {}", sequences, c10::str(tokens.sizes())));
  }
  check_token_ids(tokens, vocab_size, "append");
}

void check_appended_lists(const std::vector<std::vector<std::int64_t>>& tokens,
                          std::int64_t sequences, std::int64_t vocab_size) {
  if (std::ssize(tokens) != sequences) {
    throw ShapeError(fmt::format("append: expected tokens of {} sequences, got of {}", sequences,
                                 tokens.size()));
  }
  for (std::size_t i = 0; i < tokens.size(); ++i) {
    if (tokens[i].empty()) {
      throw ShapeError(
          fmt::format("append: expected tokens of each sequence, got none of sequence {}", i));
    }
    for (const std::int64_t id : tokens[i]) {
      if (id >= 0 && id < vocab_size) continue;
      throw DataError(fmt::format("append: expected token ids in [0, {}), got {}", vocab_size, id));
    }
  }
}

void check_kept(const std::vector<std::int64_t>& kept, std::int64_t sequences) {
  if (kept.empty()) throw ShapeError("keep: expected at least one sequence, got none");
  std::int64_t least = 0;
  for (const std::int64_t sequence : kept) {
    if (sequence < least || sequence >= sequences) {
      throw DataError(fmt::format("keep: expected ascending places in [{}, {}), got {}", least,
                                  sequences, sequence));
    }
    least = sequence + 1;
  }
}

}  // namespace detail

at::Tensor TrainedWeight::value() const {
  if (!lora_b.defined()) return detail::whole(weight);
  at::Tensor sum = weight.defined()
                       ? detail::whole(kernels::with_numbers(weight)).to(lora_b.scalar_type())
                       : at::zeros_like(lora_b);
  sum = lora_a.defined() ? sum.addmm(lora_b, lora_a, /*beta=*/1, lora_scale)
                         : sum.add(lora_b, lora_scale);
  if (!magnitude.defined()) return sum;
  const std::int64_t along = magnitude.size(1) == 1 ? 1 : 0;
  const at::Tensor lengths =
      at::linalg_vector_norm(sum.detach(), /*ord=*/2, /*dim=*/along, /*keepdim=*/true);
  return sum * (magnitude / lengths);
}

at::Tensor TrainedWeight::merged() const {
  const at::NoGradGuard no_grad;
  return value().detach();
}

at::Tensor Policy::forward_packed(const PackedTokens&) {
  throw ConfigError("policy: expected a policy that takes streams, got one without forward_packed");
}

void Policy::check_length(std::int64_t, std::string_view) const {}

std::shared_ptr<Policy> Policy::frozen_copy() const {
  throw ConfigError(
      "policy: expected a policy that can be copied as reference, got one without frozen_copy");
}

std::vector<TrainedWeight> Policy::trained_weights() const {
  std::vector<TrainedWeight> weights;
  for (const auto& [name, value] : named_parameters()) {
    if (value.requires_grad()) weights.push_back({.name = name, .weight = value});
  }
  return weights;
}

std::shared_ptr<Policy> Policy::merged_copy() const { return frozen_copy(); }

void Policy::load_weights(const std::string& directory) {
  throw ConfigError(fmt::format(
      "{}: expected a policy that reads its weights, got one without load_weights", directory));
}

void Policy::save(const std::string& directory) const {
  throw CheckpointError(directory +
                        ": expected a policy with its own format, got one that "
                        "cannot be saved");
}

std::unique_ptr<DecodeSession> Policy::start_decoding(
    const std::vector<std::vector<std::int64_t>>& prompts) {
  detail::check_prompts(prompts, vocab_size());
  return std::make_unique<FullForwardSession>(*this, prompts);
}

void Policy::keep_slices(const std::shared_ptr<Ranks>& /*ranks*/) {
  throw ConfigError(
      "distributed.sharding: expected none, optimizer or gradients for a policy that is no "
      "Decoder, got weights; nothing gathers its weights where they are read");
}

at::Device Policy::device() const {
  const auto parameters = named_parameters();
  return parameters.empty() ? at::Device(at::kCPU) : parameters.front().value.device();
}

void Policy::set_requires_grad(bool on) {
  for (auto& parameter : named_parameters()) parameter.value.requires_grad_(on);
}

namespace detail {

void save_parameters(const std::vector<NamedParameter>& parameters, const std::string& directory) {
  std::error_code error;
  std::filesystem::create_directories(directory, error);
  SafetensorsFile file;
  for (const auto& [name, value] : parameters) file.tensors.emplace_back(name, value.detach());
  write_safetensors(directory + "/model.safetensors", file);
}

void load_parameters(const std::vector<NamedParameter>& parameters, const std::string& directory) {
  const std::string path = directory + "/model.safetensors";
  const SafetensorsFile file = read_safetensors(path);
  copy_parameters(parameters, {file.tensors.begin(), file.tensors.end()}, path);
}

namespace {

// Lengths lead every part, so that no two lists can feed the same bytes.
void add_blocks(ContentHash& hash, const std::string& name, const kernels::StoredBlocks& blocks) {
  hash.update(fmt::format("{} {} {} [{}, {}] {} {}\n", name.size(), name, blocks.encoding,
                          blocks.rows, blocks.matrix.columns, blocks.bytes.numel(),
                          fmt::join(blocks.places, " ")));
  hash.update(blocks.bytes.const_data_ptr(), blocks.bytes.nbytes());
}

void add_tensors(ContentHash& hash, const std::vector<NamedParameter>& tensors) {
  HeldWeights held;  // until the next layer is
  for (const auto& [name, value] : tensors) {
    if (const kernels::StoredBlocks* blocks = kernels::blocks_of(value)) {
      add_blocks(hash, name, *blocks);
      continue;
    }
    held = HeldWeights(value);
    const at::Tensor bytes = value.detach().cpu().contiguous();
    hash.update(fmt::format("{} {} {} {} {}\n", name.size(), name,
                            c10::toString(bytes.scalar_type()), c10::str(bytes.sizes()),
                            bytes.nbytes()));
    hash.update(bytes.const_data_ptr(), bytes.nbytes());
  }
}

}  // namespace

std::string hash_of(const std::vector<NamedParameter>& tensors) {
  ContentHash hash;
  add_tensors(hash, tensors);
  return hash.hex();
}

void copy_parameters(const std::vector<NamedParameter>& parameters,
                     const std::map<std::string, at::Tensor>& values, const std::string& where) {
  const at::NoGradGuard no_grad;
  std::vector<std::pair<at::Tensor, at::Tensor>> copies;
  for (const auto& [name, own] : parameters) {
    if (!own.requires_grad()) continue;
    const auto found = values.find(name);
    const at::Tensor value = found == values.end() ? at::Tensor() : found->second;
    // Narrow weights are saved as their masters.
    if (!value.defined() || value.sizes() != own.sizes() ||
        !(value.scalar_type() == own.scalar_type() ||
          (is_narrow(own.scalar_type()) && value.scalar_type() == at::kFloat))) {
      throw CheckpointError(
          fmt::format("{}: expected weight '{}' as the run's model has it, got {}", where, name,
                      value.defined() ? "another shape or dtype" : "none"));
    }
    copies.emplace_back(own, value);
  }
  for (const auto& [own, value] : copies) assign(own, value);
}

namespace {

/// Returns the scales of adapters by weight, which are in none of their matrices.
std::map<std::string, double> adapter_scales(const Policy& policy) {
  std::map<std::string, double> scales;
  for (const TrainedWeight& weight : policy.trained_weights()) {
    if (weight.lora_a.defined()) scales[weight.name] = weight.lora_scale;
  }
  return scales;
}

}  // namespace

bool have_equal_weights(const Policy& a, const Policy& b) {
  const auto is_in_blocks = [](const at::Tensor& value) {
    return kernels::blocks_of(value) != nullptr;
  };
  const auto are_equal = [&](const NamedParameter& x, const NamedParameter& y) {
    const HeldWeights held_x(x.value), held_y(y.value);
    return x.name == y.name && x.value.device() == y.value.device() &&
           x.value.scalar_type() == y.value.scalar_type() && x.value.sizes() == y.value.sizes() &&
           (is_in_blocks(x.value) || is_in_blocks(y.value)
                ? kernels::blocks_of(x.value) == kernels::blocks_of(y.value)
                : at::equal(x.value, y.value));
  };
  const std::vector<NamedParameter> of_a = a.named_parameters(), of_b = b.named_parameters();
  const std::string config = a.config();
  const bool is_described = !config.empty() && !of_a.empty();
  return is_described && typeid(a) == typeid(b) && config == b.config() &&
         adapter_scales(a) == adapter_scales(b) &&
         std::equal(of_a.begin(), of_a.end(), of_b.begin(), of_b.end(), are_equal);
}

}  // namespace detail

std::string content_hash(const Policy& policy) {
  detail::ContentHash hash;
  const std::string config = policy.config();
  hash.update(fmt::format("{} {}", config.size(), config));
  detail::add_tensors(hash, policy.named_parameters());
  for (const auto& [name, scale] : detail::adapter_scales(policy)) {
    hash.update(fmt::format("scale {} {} {}\n", name.size(), name, scale));
  }
  return hash.hex();
}

}  // namespace prefopt
