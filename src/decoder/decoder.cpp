// SPDX-License-Identifier: Apache-2.0
#include "prefopt/decoder/decoder.h"

#include <ATen/TensorOperators.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/full.h>
#include <ATen/ops/ones.h>
#include <ATen/ops/randn.h>
#include <ATen/ops/tensor.h>
#include <ATen/ops/zeros.h>
#include <c10/util/StringUtil.h>
#include <fmt/format.h>

#include <algorithm>
#include <map>
#include <optional>
#include <utility>

#include "core/file.h"
#include "core/mapped_file.h"
#include "core/one_thread.h"
#include "decoder/boundary_session.h"
#include "decoder/decoder_config.h"
#include "decoder/decoder_files.h"
#include "decoder/decoder_impl.h"
#include "decoder/device_session.h"
#include "decoder/families/family.h"
#include "decoder/model_shape.h"
#include "decoder/network.h"
#include "decoder/packed_layer.h"
#include "decoder/packed_session.h"
#include "decoder/router_load.h"
#include "kernels/block_tensor.h"
#include "math/sliced_weight.h"
#include "math/upload.h"
#include "math/wide_gradient.h"
#include "policy/decoding.h"
#include "policy/parameters.h"
#include "prefopt/error.h"

namespace prefopt {

using detail::copy_of;
using detail::Network;
using detail::network_of;
using detail::with_whole_weights;

Decoder::Decoder(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
Decoder::~Decoder() = default;

Decoder::Decoder(DecoderOptions options) : impl_(std::make_unique<Impl>()) {
  Network& network = impl_->network;
  network = network_of(detail::checked_decoder_options(std::move(options), "decoder"), "decoder");
  network.for_each_weight(
      [&](const std::string& name, at::Tensor& weight, const std::vector<std::int64_t>& shape) {
        const bool is_matrix = shape.size() == 2;
        const bool is_zero = name.ends_with(".bias") || network.spec.norm.adds_one;
        weight = is_matrix ? at::randn(shape) * network.options.initializer_range
                 : is_zero ? at::zeros(shape)
                           : at::ones(shape);
        weight.requires_grad_(true);
      });
  impl_->config = detail::make_decoder_config(network.options);
}

std::shared_ptr<Decoder> Decoder::load(const std::string& path, std::string_view dtype) {
  detail::DecoderReader reader = detail::DecoderReader::open(detail::followed(path), dtype);
  if (reader.has(detail::kScoreWeight)) {
    throw CheckpointError(fmt::format(
        "{}: expected a language model, got a reward model, with the tensor '{}'; prefopt score "
        "and prefopt eval read it, and the loss reward_bt trains it",
        path, detail::kScoreWeight));
  }
  return read(reader, path, /*with_head=*/true);
}

std::shared_ptr<Decoder> Decoder::read(detail::DecoderReader& reader, const std::string& path,
                                       bool with_head) {
  auto impl = std::make_unique<Impl>();
  impl->config = reader.config().json;
  impl->generation = reader.config().generation;
  impl->metadata = reader.metadata();
  impl->source = path;
  impl->blocks = reader.blocks();
  impl->load_note = reader.note();
  Network& network = impl->network;
  try {
    network = network_of(reader.config().options, path);
  } catch (const ConfigError& error) {
    throw CheckpointError(error.what());
  }
  if (!with_head) {
    reader.drop("lm_head.weight");
    network.spec.tied_head = true;
  }
  network.for_each_weight(
      [&](const std::string& name, at::Tensor& weight, const std::vector<std::int64_t>& shape) {
        weight = reader.take(name, shape);
      });
  reader.check_nothing_left(network.spec.tied_head ? network.embedding : at::Tensor(),
                            "model.embed_tokens.weight");
  std::shared_ptr<Decoder> decoder(new Decoder(std::move(impl)));
  decoder->set_requires_grad(true);
  return decoder;
}

namespace {

void check_ids(const at::Tensor& ids, const Network& network) {
  if (ids.scalar_type() != at::kLong) {
    throw DtypeError(
        fmt::format("decoder: expected int64 input_ids, got {}", c10::toString(ids.scalar_type())));
  }
  if (ids.device() != network.embedding.device()) {
    throw DeviceError(fmt::format("decoder: expected input_ids on {}, got {}",
                                  network.embedding.device().str(), ids.device().str()));
  }
  detail::check_token_ids(ids, network.options.vocab_size, "decoder");
}

void check_longest(const detail::ModelSpec& spec, std::int64_t tokens, std::string_view where) {
  const std::int64_t longest = spec.longest();
  if (longest == 0 || tokens <= longest) return;
  throw DataError(fmt::format(
      "{}: expected at most {} tokens, the context of a model with dynamic rotary scaling, got {}; "
      "beyond it the scaling would depend on other rows, so shorten them (data.max_length)",
      where, longest, tokens));
}

std::int64_t longest_in(const PackedTokens& tokens) {
  std::int64_t longest = 0;
  for (const PackedGroup& group : tokens.groups) {
    longest = std::max(longest, group.shared);
    for (const std::int64_t length : group.branches) {
      longest = std::max(longest, group.shared + length);
    }
  }
  return longest;
}

// Returns the places of the stream's `rows` among those that the last layer keeps.
at::Tensor places_among_scored(const PackedTokens& tokens) {
  // Every row has one, though those that are not kept are not asked for.
  std::vector<std::int64_t> place_of(static_cast<std::size_t>(tokens.input_ids.size(0)), 0);
  std::int64_t place = 0;
  for (const PackedGroup& group : tokens.groups) {
    std::int64_t end = group.begin + group.shared;
    for (const std::int64_t length : group.branches) end += length;
    for (std::int64_t row = group.begin + group.scored; row < end; ++row) {
      place_of[static_cast<std::size_t>(row)] = place++;
    }
  }
  return detail::uploaded(at::tensor(place_of), tokens.rows.device()).index_select(0, tokens.rows);
}

}  // namespace

PolicyOutput Decoder::forward(const TokenBatch& batch) {
  const Network network = with_whole_weights(impl_->seen(detail::MadeWeights::kAsStored));
  const at::Tensor& ids = batch.input_ids;
  if (ids.dim() != 2 || ids.numel() == 0) {
    throw ShapeError(fmt::format("decoder: expected input_ids [S, T] of at least one token, got {}",
                                 c10::str(ids.sizes())));
  }
  check_ids(ids, network);
  check_length(ids.size(1), "decoder");

  const at::Tensor lengths = batch.attention_mask.defined()
                                 ? batch.attention_mask.sum(1)
                                 : at::full({ids.size(0)}, ids.size(1), ids.options());
  const at::Tensor hidden = network.hidden_states(ids, lengths);
  return {.hidden = hidden.view({ids.size(0), ids.size(1), -1}), .logits = {}};
}

namespace {

/// Throws CheckpointError where a file that weights are read from was cut short.
void check_mapped_files() {
  const std::string why = detail::shrunk_file();
  if (why.empty()) return;
  throw CheckpointError(
      why + "; weights are read from the file while they are used, so it has to stay as it is");
}

}  // namespace

bool Decoder::packs() const { return true; }

at::Tensor Decoder::forward_packed(const PackedTokens& tokens) {
  return impl_->packed_states(tokens, /*has_last_tokens=*/false);
}

at::Tensor Decoder::Impl::packed_states(const PackedTokens& tokens, bool has_last_tokens) const {
  const OneThread one_thread;
  check_mapped_files();
  const Network used = seen(made_weights());
  check_ids(tokens.input_ids, used);
  check_longest(used.spec, longest_in(tokens), "decoder");
  auto* const record = detail::RouterRecord::current();
  const detail::Packing packing{checkpointing, has_last_tokens || record != nullptr};
  const auto all = detail::StreamPlan::make(used, tokens, packing, false);
  if (record != nullptr) {
    all->watch_router = [record, sequences = detail::sequences_of_rows(tokens)](
                            const at::Tensor& shares, const at::Tensor& chosen) {
      record->add(shares, chosen, sequences);
    };
  }
  // A record needs the rows that are not scored, too.
  const auto last_plan =
      record != nullptr ? all : detail::StreamPlan::make(used, tokens, packing, true);
  const auto wide = detail::at_least_float32(used.embedding.scalar_type());
  at::Tensor x = detail::embedded(used.embedding, tokens.input_ids, wide);
  x = x.to(used.stream_dtype());
  if (used.spec.embedding_scale != 1) x = x * used.spec.embedding_scale;
  const std::int64_t last = std::ssize(used.layers) - 1;
  for (std::int64_t i = 0; i <= last; ++i) {
    const auto held = detail::hold(used.layers[static_cast<std::size_t>(i)]);
    x = detail::packed_layer(x, used.unfused(static_cast<std::size_t>(i)), i,
                             i == last ? last_plan : all);
  }
  x = detail::rms_norm(x, detail::widened(used.norm, wide), used.spec.norm);
  return x.index_select(0, record != nullptr ? tokens.rows : places_among_scored(tokens));
}

std::int64_t Decoder::activation_bytes(std::int64_t rows, Checkpointing checkpointing) const {
  const Network& network = impl_->network;
  return rows * detail::kept_bytes_per_row(network, checkpointing, network.stream_dtype());
}

void Decoder::set_checkpointing(Checkpointing checkpointing) {
  impl_->checkpointing = checkpointing;
}

OutputHead Decoder::head() const {
  return {.weight = impl_->head_weight(impl_->made_weights()),
          .bias = {},
          .transform = impl_->network.spec.logits};
}

std::int64_t Decoder::vocab_size() const { return impl_->network.options.vocab_size; }

std::vector<NamedParameter> Decoder::named_parameters() const {
  std::vector<NamedParameter> parameters;
  impl_->network.for_each_weight(
      [&](const std::string& name, const at::Tensor& weight, const std::vector<std::int64_t>&) {
        parameters.push_back({name, weight});
      });
  impl_->parts.for_each_tensor([&](const std::string& name, const at::Tensor& weight) {
    parameters.push_back({name, weight});
  });
  return parameters;
}

std::string Decoder::config() const {
  DecoderOptions options = impl_->network.options;
  const auto& traits = detail::family_named(options.family, "decoder").traits;
  // Hashes from before the family was stored are those of its options.
  if (traits.told_by_options) options.family = DecoderOptions().family;
  return options_to_json(options);
}

std::shared_ptr<Policy> Decoder::frozen_copy() const { return frozen_decoder(); }

std::shared_ptr<Decoder> Decoder::frozen_decoder() const {
  auto copy = std::make_unique<Impl>(*impl_);
  detail::SlicedCopies sliced;
  copy->network.for_each_weight([&](const std::string&, at::Tensor& weight, const auto&) {
    weight = detail::is_sliced(weight) ? sliced.copy_of(weight) : copy_of(weight);
  });
  copy->parts.for_each_tensor(
      [](const std::string&, at::Tensor& weight) { weight = copy_of(weight); });
  return std::shared_ptr<Decoder>(new Decoder(std::move(copy)));
}

void Decoder::save(const std::string& directory) const {
  if (impl_->adapter) return save_adapter(directory);
  const detail::Family& family = detail::family_named(options().family, "decoder");
  std::vector<NamedParameter> weights = named_parameters();
  for (const auto& [name, weight] : weights) {
    if (const auto* blocks = kernels::blocks_of(weight)) {
      throw ConfigError(fmt::format(
          "{}: expected weights in a floating dtype to save, got '{}' in {} blocks; load the model "
          "in a dtype",
          directory, name, blocks->encoding));
    }
  }
  for (NamedParameter& weight : weights) weight.name = detail::name_in_file(family, weight.name);
  detail::write_decoder(directory, weights, impl_->metadata, impl_->config, impl_->generation);
}

std::unique_ptr<DecodeSession> Decoder::start_decoding(
    const std::vector<std::vector<std::int64_t>>& prompts) {
  check_mapped_files();
  detail::check_prompts(prompts, vocab_size());
  for (const auto& prompt : prompts) check_length(std::ssize(prompt), "start_decoding");
  const at::NoGradGuard no_grad;
  const auto start =
      [network = with_whole_weights(impl_->seen(impl_->made_weights()))](const auto& sequences) {
        return network.embedding.is_cpu() ? detail::make_packed_session(network, sequences)
                                          : detail::make_device_session(network, sequences);
      };
  const std::int64_t boundary = impl_->network.spec.rope_boundary();
  if (boundary == 0) return start(prompts);
  return detail::make_boundary_session(start, prompts, boundary);
}

const DecoderOptions& Decoder::options() const { return impl_->network.options; }

const std::string& Decoder::load_note() const { return impl_->load_note; }

std::string Decoder::generation_config() const {
  return impl_->generation.is_null() ? "" : detail::dump_json(impl_->generation, 2) + "\n";
}

void Decoder::check_length(std::int64_t tokens, std::string_view where) const {
  check_longest(impl_->network.spec, tokens, where);
}

void Decoder::to(at::ScalarType dtype) {
  impl_->network.for_each_weight(
      [&](const std::string&, at::Tensor& weight, const std::vector<std::int64_t>&) {
        if (const auto* blocks = kernels::blocks_of(weight); blocks && dtype != at::kFloat) {
          throw ConfigError(fmt::format(
              "decoder: expected float32 of a model in {} blocks, got {}; load it in that dtype",
              blocks->encoding, c10::toString(dtype)));
        }
        const bool is_kept = weight.scalar_type() == dtype;
        const at::Tensor numbers = is_kept ? weight.detach() : detail::whole(weight.detach());
        weight = numbers.to(dtype).requires_grad_(weight.requires_grad());
      });
  for (detail::LowRank& part : impl_->parts.low_rank) {
    for (at::Tensor* tensor : {&part.a, &part.b, &part.magnitude, &part.b_bias}) {
      if (!tensor->defined()) continue;
      const auto wide = detail::at_least_float32(dtype);
      *tensor = tensor->detach().to(wide).requires_grad_(tensor->requires_grad());
    }
  }
  for (detail::WholeWeight& weight : impl_->parts.whole) {
    weight.value = weight.value.detach().to(dtype).requires_grad_(weight.value.requires_grad());
  }
}

void Decoder::to(at::Device device) {
  const auto move = [&](const std::string&, at::Tensor& weight, const auto&...) {
    if (const auto* blocks = kernels::blocks_of(weight); blocks && !device.is_cpu()) {
      throw DeviceError(
          fmt::format("decoder: expected the cpu for a model in {} blocks, got {}; load it in a "
                      "dtype (model.base)",
                      blocks->encoding, device.str()));
    }
    const bool is_kept = weight.device() == device;
    const at::Tensor numbers = is_kept ? weight.detach() : detail::whole(weight.detach());
    weight = numbers.to(device).requires_grad_(weight.requires_grad());
  };
  impl_->network.for_each_weight(move);
  impl_->parts.for_each_tensor(move);
}

at::ScalarType parse_dtype(std::string_view name) {
  if (name == "float32") return at::kFloat;
  if (name == "float64") return at::kDouble;
  if (name == "bfloat16") return at::kBFloat16;
  if (name == "float16") return at::kHalf;
  throw ConfigError(
      fmt::format("dtype: expected 'float32', 'float64', 'bfloat16' or 'float16', got '{}'", name));
}

void Decoder::load_weights(const std::string& directory) {
  std::shared_ptr<Decoder> saved;
  if (adapter()) {
    saved = without_adapter();
    saved->load_adapter(directory);
  } else {
    saved = Decoder::load(directory);
  }
  std::map<std::string, at::Tensor> values;
  for (const auto& [name, value] : saved->named_parameters()) values[name] = value;
  detail::copy_parameters(named_parameters(), values, directory);
}

}  // namespace prefopt
