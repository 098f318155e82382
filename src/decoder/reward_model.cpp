// SPDX-License-Identifier: Apache-2.0
#include "prefopt/decoder/reward_model.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/randn.h>
#include <ATen/ops/tensor.h>
#include <fmt/format.h>

#include <filesystem>
#include <map>
#include <optional>
#include <span>
#include <system_error>
#include <utility>

#include "core/file.h"
#include "core/json.h"
#include "data/tokenizer_difference.h"
#include "decoder/adapters/adapter_config.h"
#include "decoder/decoder_config.h"
#include "decoder/decoder_files.h"
#include "decoder/decoder_impl.h"
#include "decoder/families/family.h"
#include "decoder/quantized_weight.h"
#include "decoder/score_head.h"
#include "math/wide_gradient.h"
#include "policy/parameters.h"
#include "prefopt/error.h"

namespace prefopt {

using detail::kScoreWeight;

namespace {

at::Tensor fresh_score(const DecoderOptions& options, at::ScalarType dtype) {
  const at::Tensor score = at::randn({1, options.hidden_size}) * options.initializer_range;
  return score.to(dtype);
}

DecoderOptions without_head(DecoderOptions options) {
  options.tie_word_embeddings = true;  // no weight of an output head
  return options;
}

/// `adapter_config.json` of a folder that holds an adapter and no model; null for others.
detail::Json adapter_config_of(const std::string& path) {
  const std::string file = path + "/adapter_config.json";
  std::error_code ignored;
  const bool is_adapter = std::filesystem::exists(file, ignored) &&
                          !std::filesystem::exists(path + "/config.json", ignored);
  if (!is_adapter) return nullptr;
  return detail::parse_json<CheckpointError>(detail::read_file<CheckpointError>(file), file);
}

/// Throws CheckpointError for an adapter that does not say what model it is of.
std::string named_base_of(const std::string& adapter) {
  const detail::Json base = detail::base_model_of(adapter);
  if (base.is_string() && !base.get<std::string>().empty()) return base;
  throw CheckpointError(
      fmt::format("{}/adapter_config.json: expected base_model_name_or_path to name the model's "
                  "folder, got {}",
                  adapter, detail::shown_json(base)));
}

/// A sequence up to the token whose hidden state is scored, and one more, which the stream of a
/// batch leaves out as it does the last token of any sequence.
class ScoredSequence {
 public:
  ScoredSequence(const TokenSequence& sequence, std::int64_t pad) : prompt_(sequence.prompt) {
    completion_.assign(sequence.completion.begin(), sequence.completion.end());
    if (pad >= 0) {
      while (!completion_.empty() && completion_.back() == pad) completion_.pop_back();
      if (completion_.empty()) {
        while (prompt_.size() > 1 && prompt_.back() == pad) {
          prompt_ = prompt_.first(prompt_.size() - 1);
        }
      }
    }
    mask_.assign(completion_.size(), 0);
    completion_.push_back(0);
    mask_.push_back(1);
  }

  TokenSequence view() const {
    return {.prompt = prompt_, .completion = completion_, .weights = {}, .mask = mask_};
  }

 private:
  std::span<const std::int64_t> prompt_;
  std::vector<std::int64_t> completion_;
  std::vector<std::uint8_t> mask_;
};

}  // namespace

namespace detail {

at::Tensor token_scores(Decoder& body, const at::Tensor& score, const TokenBatch& batch) {
  at::Tensor states;
  if (body.packs() && batch.packed) {
    states = body.forward_packed(*batch.packed).index_select(0, batch.packed->token_rows);
  } else {
    // Token t is predicted at position t - 1.
    const at::Tensor hidden = body.forward(batch).hidden;
    states = hidden.narrow(1, 0, hidden.size(1) - 1).reshape({-1, hidden.size(2)});
    const at::Tensor places = batch.completion_mask.slice(1, 1).reshape(-1).nonzero().squeeze(1);
    states = states.index_select(0, places);
  }
  const at::Tensor weight = widened(score, states.scalar_type());
  return (states.to(at::kDouble) * weight.to(at::kDouble)).sum(1);
}

at::Tensor fresh_score_head(const Decoder& body) {
  const at::Tensor& weight = body.named_parameters().front().value;
  return fresh_score(body.options(), weight.scalar_type()).to(weight.device());
}

std::string path_of_weights(const std::string& path) {
  return adapter_config_of(path).is_object() ? named_base_of(path) : path;
}

}  // namespace detail

RewardModel::RewardModel(DecoderOptions options)
    : body_(std::make_shared<Decoder>(without_head(std::move(options)))), has_fresh_head_(true) {
  body_->impl_->has_head = false;
  score_ = fresh_score(body_->options(), at::kFloat).requires_grad_(true);
}

RewardModel::RewardModel(std::shared_ptr<Decoder> body, at::Tensor score, bool has_fresh_head)
    : body_(std::move(body)), score_(std::move(score)), has_fresh_head_(has_fresh_head) {
  body_->impl_->has_head = false;
}

std::shared_ptr<RewardModel> RewardModel::load(const std::string& path, std::string_view dtype,
                                               ScoreHead head) {
  if (const std::string base = detail::path_of_weights(path); base != path) {
    auto model = load(base, dtype, ScoreHead::kFreshIfNone);
    model->load_adapter(path);
    return model;
  }
  detail::DecoderReader reader = detail::DecoderReader::open(detail::followed(path), dtype);
  const bool is_fresh = !reader.has(kScoreWeight);
  if (is_fresh && head == ScoreHead::kRequired) {
    throw CheckpointError(fmt::format(
        "{}: expected a reward model, with the tensor '{}', got none of that name; prefopt train "
        "with the loss reward_bt makes one of a language model",
        path, kScoreWeight));
  }
  at::Tensor score;
  if (!is_fresh) {
    detail::check_one_label(reader.config(), path);
    score = reader.take(kScoreWeight, {1, reader.config().options.hidden_size});
  }
  auto body = Decoder::read(reader, path, /*with_head=*/false);
  if (is_fresh) {
    score = fresh_score(body->options(), body->named_parameters().front().value.scalar_type());
  }
  std::shared_ptr<RewardModel> model(new RewardModel(std::move(body), std::move(score), is_fresh));
  model->set_requires_grad(true);
  return model;
}

std::shared_ptr<RewardModel> RewardModel::on(const Decoder& base) {
  std::shared_ptr<Decoder> body = base.base();
  detail::Network& network = body->impl_->network;
  network.spec.tied_head = true;  // no output head
  network.lm_head.reset();
  at::Tensor score = fresh_score(body->options(), network.embedding.scalar_type());
  std::shared_ptr<RewardModel> model(
      new RewardModel(std::move(body), std::move(score), /*has_fresh_head=*/true));
  model->score_.requires_grad_(true);
  return model;
}

std::shared_ptr<RewardModel> RewardModel::on(const Decoder& base, const std::string& adapter) {
  auto model = on(base);
  model->load_adapter(adapter);
  return model;
}

at::Tensor RewardModel::rewards(const std::vector<TokenSequence>& sequences) {
  std::vector<ScoredSequence> scored;
  scored.reserve(sequences.size());
  for (const TokenSequence& sequence : sequences) scored.emplace_back(sequence, pad_token());
  std::vector<TokenSequence> views;
  for (const ScoredSequence& sequence : scored) views.push_back(sequence.view());
  const TokenBatch batch = make_batch(views).to(device());
  // The token that each sequence has one of too many is not in the stream.
  const at::Tensor states = body_->impl_->packed_states(*batch.packed, /*has_last_tokens=*/true)
                                .index_select(0, batch.packed->token_rows);
  // Each product by itself: a matrix product may add up otherwise for another number of rows.
  const at::Tensor weight = detail::widened(score_, states.scalar_type());
  return (states.to(at::kDouble) * weight.to(at::kDouble)).sum(1);
}

at::Tensor RewardModel::token_values(const TokenBatch& batch) {
  return detail::token_scores(*body_, score_, batch);
}

bool RewardModel::packs() const { return body_->packs(); }

std::int64_t RewardModel::vocab_size() const { return body_->vocab_size(); }

std::vector<NamedParameter> RewardModel::named_parameters() const {
  std::vector<NamedParameter> parameters = body_->named_parameters();
  parameters.push_back({kScoreWeight, score_});
  return parameters;
}

std::string RewardModel::config() const { return "reward model " + body_->config(); }

void RewardModel::check_length(std::int64_t tokens, std::string_view where) const {
  body_->check_length(tokens, where);
}

std::shared_ptr<Policy> RewardModel::frozen_copy() const { return frozen_model(); }

std::shared_ptr<RewardModel> RewardModel::frozen_model() const {
  return std::shared_ptr<RewardModel>(
      new RewardModel(body_->frozen_decoder(), detail::copy_of(score_), has_fresh_head_));
}

std::vector<TrainedWeight> RewardModel::trained_weights() const {
  std::vector<TrainedWeight> weights = body_->trained_weights();
  if (score_.requires_grad()) weights.push_back({.name = kScoreWeight, .weight = score_});
  return weights;
}

void RewardModel::save(const std::string& directory) const {
  if (body_->adapter()) return body_->write_adapter(directory, score_);
  const detail::Family& family = detail::family_named(body_->options().family, "reward model");
  std::vector<NamedParameter> weights = named_parameters();
  for (NamedParameter& weight : weights) weight.name = detail::name_in_file(family, weight.name);
  const Decoder::Impl& impl = *body_->impl_;
  detail::write_decoder(directory, weights, impl.metadata,
                        detail::make_reward_config(impl.config, family), impl.generation);
}

void RewardModel::load_weights(const std::string& directory) {
  std::shared_ptr<RewardModel> saved;
  if (body_->adapter()) {
    saved.reset(new RewardModel(body_->without_adapter(), score_, has_fresh_head_));
    saved->load_adapter(directory);
  } else {
    saved = RewardModel::load(directory);
  }
  std::map<std::string, at::Tensor> values;
  for (const auto& [name, value] : saved->named_parameters()) values[name] = value;
  detail::copy_parameters(named_parameters(), values, directory);
}

void RewardModel::keep_slices(const std::shared_ptr<Ranks>& ranks) { body_->keep_slices(ranks); }

std::int64_t RewardModel::pad_token() const { return body_->options().pad_token_id; }

void RewardModel::set_pad_token(std::int64_t id) {
  if (id < 0 || id >= vocab_size()) {
    throw ConfigError(
        fmt::format("reward model: expected a pad token in [0, {}), got {}", vocab_size(), id));
  }
  body_->impl_->network.options.pad_token_id = id;
  body_->impl_->config["pad_token_id"] = id;
}

void RewardModel::complete_pad_token(const Tokenizer& tokenizer) {
  if (pad_token() >= 0) return;
  const std::int64_t id = tokenizer.pad_id() >= 0 ? tokenizer.pad_id() : tokenizer.eos_id();
  if (id >= 0) set_pad_token(id);
}

void RewardModel::add_adapter(const LoraOptions& options) { body_->add_adapter(options); }

void RewardModel::load_adapter(const std::string& directory) {
  const at::Tensor score = body_->read_adapter(directory, score_);
  if (!score.defined() && has_fresh_head_) {
    throw CheckpointError(fmt::format(
        "{}: expected an adapter of a reward model, with a score head among modules_to_save, got "
        "none, and the model has none either",
        directory));
  }
  if (score.defined()) {
    score_ = score;
    has_fresh_head_ = false;
  }
  score_.requires_grad_(true);
}

void RewardModel::to(at::ScalarType dtype) {
  body_->to(dtype);
  score_ = score_.detach().to(dtype).requires_grad_(score_.requires_grad());
}

void RewardModel::to(at::Device device) {
  body_->to(device);
  score_ = score_.detach().to(device).requires_grad_(score_.requires_grad());
}

bool RewardModel::is_on(const std::string& path, std::string_view dtype, const Decoder& policy) {
  const Decoder::Impl& impl = *policy.impl_;
  if (!policy.adapter() || !adapter_config_of(path).is_object()) return false;
  // It scores in another thread than the one that gathers the policy's slices.
  if (detail::is_sliced(impl.network.embedding)) return false;
  std::error_code ignored;
  if (!std::filesystem::equivalent(named_base_of(path), impl.source, ignored)) return false;
  // Blocks of the file are its numbers, those that were made when it was loaded are others.
  if (impl.blocks != detail::BlockSource::kNone) {
    const bool takes_them = dtype == "keep" || dtype == "quantized" || dtype == "float32";
    return impl.blocks == detail::BlockSource::kFile && takes_them;
  }
  const char* key = impl.config.contains("dtype") ? "dtype" : "torch_dtype";
  const std::string stored = impl.config.value(key, std::string());
  // Numbers of blocks are float32.
  const std::string wanted = dtype == "keep"        ? stored
                             : dtype == "quantized" ? "float32"
                                                    : std::string(dtype);
  if (detail::encoding_on_load(wanted) != nullptr) return false;
  return !wanted.empty() && parse_dtype(wanted) == impl.network.embedding.scalar_type();
}

std::shared_ptr<RewardModel> load_reward_model(const std::string& path, const Tokenizer& tokenizer,
                                               std::string_view dtype, const Decoder* policy) {
  const std::string difference = detail::tokenizer_difference(tokenizer, path);
  if (!difference.empty()) {
    throw ConfigError(fmt::format(
        "{}: expected a reward model that tokenizes as the policy's {} does, got one by which {}",
        path, tokenizer.name(), difference));
  }
  const bool shares = policy != nullptr && RewardModel::is_on(path, dtype, *policy);
  auto model = shares ? RewardModel::on(*policy, path) : RewardModel::load(path, dtype);
  if (model->vocab_size() < tokenizer.vocab_size()) {
    throw ConfigError(fmt::format(
        "{}: expected a reward model of at least the {} tokens of the policy's tokenizer '{}', got "
        "one of {}",
        path, tokenizer.vocab_size(), tokenizer.name(), model->vocab_size()));
  }
  if (model->body().adapter()) model->complete_pad_token(tokenizer);
  return model;
}

bool is_reward_model(const std::string& path) {
  try {
    if (detail::is_gguf_file(path)) return detail::has_score_head(path);
    const detail::Json adapter = adapter_config_of(path);
    if (adapter.is_object()) return adapter.value("task_type", detail::Json()) == "SEQ_CLS";
    return detail::names_reward_model(path);
  } catch (const CheckpointError&) {
    return false;
  }
}

}  // namespace prefopt
