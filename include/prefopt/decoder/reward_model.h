// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "prefopt/data/tokenizer.h"
#include "prefopt/decoder/decoder.h"
#include "prefopt/export.h"
#include "prefopt/policy/reward_policy.h"

namespace prefopt {

/// The treatment of a model without a score head.
enum class ScoreHead {
  kRequired,     ///< it is refused
  kFreshIfNone,  ///< it gets one, N(0, initializer_range^2) from LibTorch's default generator
};

/// A decoder with a score head in place of its output head, as transformers'
/// `…ForSequenceClassification` with one label: the reward is w · h, with w the `score.weight`
/// [1, hidden] and h the hidden state, after the last norm, of the last token that is not the pad
/// token of `config.json`; where that is an end token as well, of the token before it.
class PREFOPT_API RewardModel final : public RewardPolicy {
 public:
  /// Fresh weights, N(0, initializer_range^2), from LibTorch's default generator.
  explicit RewardModel(DecoderOptions options);

  /// Reads a folder or a GGUF file as Decoder::load does, in blocks or not, without its output
  /// head, or the folder of an adapter with the model that its `base_model_name_or_path` names. The
  /// score head of a GGUF file is llama.cpp's `cls.output.weight`, and is never in blocks. Throws
  /// CheckpointError as Decoder does, where `score.weight` is missing and required, and where there
  /// are several labels.
  static std::shared_ptr<RewardModel> load(const std::string& path, std::string_view dtype = "keep",
                                           ScoreHead head = ScoreHead::kRequired);

  /// Returns a reward model of a language model's weights without its adapter, which it shares, and
  /// a fresh score head.
  static std::shared_ptr<RewardModel> on(const Decoder& base);
  /// Returns a reward model of a language model's weights, which it shares, and an adapter with a
  /// score head. The weights are frozen in both.
  static std::shared_ptr<RewardModel> on(const Decoder& base, const std::string& adapter);
  /// Returns whether a folder holds an adapter on the weights that a policy has under its own, and
  /// in this dtype; weights in a GGUF file's blocks are as good as float32.
  static bool is_on(const std::string& path, std::string_view dtype, const Decoder& policy);

  /// In a packed stream, where sequences with equal prompts share them: on a CPU a reward is the
  /// same to the last bit, whatever is scored with it. Throws DataError for tokens outside the
  /// vocabulary or too many of them.
  at::Tensor rewards(const std::vector<TokenSequence>& sequences) override;
  using RewardPolicy::rewards;
  /// Returns w · h of the hidden state, after the last norm, that predicts each token.
  at::Tensor token_values(const TokenBatch& batch) override;
  /// Returns whether `rewards` takes sequences without padding.
  bool packs() const override;
  std::int64_t vocab_size() const override;
  std::vector<NamedParameter> named_parameters() const override;
  std::string config() const override;
  void check_length(std::int64_t tokens, std::string_view where) const override;
  std::shared_ptr<Policy> frozen_copy() const override;
  std::shared_ptr<RewardModel> frozen_model() const;
  std::vector<TrainedWeight> trained_weights() const override;
  /// Writes a Hugging Face folder that transformers loads as `…ForSequenceClassification`. A model
  /// with an adapter writes that and the score head, as PEFT does with `modules_to_save`.
  void save(const std::string& directory) const override;
  void load_weights(const std::string& directory) override;
  /// Cuts the layers' weights; the score head stays whole.
  void keep_slices(const std::shared_ptr<Ranks>& ranks) override;

  /// The layers below the head, which share this model's weights. Their output head is no part of
  /// it.
  Decoder& body() { return *body_; }
  const Decoder& body() const { return *body_; }
  /// Whether the score head began with this object.
  bool has_fresh_head() const { return has_fresh_head_; }
  /// -1: none, and the reward is that of the last token.
  std::int64_t pad_token() const;
  /// transformers takes one sequence at a time only of a model without a pad token.
  void set_pad_token(std::int64_t id);
  /// Sets the pad token of a model without one to the tokenizer's, else to its end token, as
  /// training does. The folder of an adapter does not say which it was.
  void complete_pad_token(const Tokenizer& tokenizer);

  /// As Decoder's; the score head is trained as well.
  void add_adapter(const LoraOptions& options);
  /// Reads an adapter that `save` or PEFT wrote, with its score head if that is there. Throws
  /// CheckpointError as Decoder's, and for one without a score head if this model's is fresh.
  void load_adapter(const std::string& directory);
  void to(at::ScalarType dtype);
  void to(at::Device device);

 private:
  RewardModel(std::shared_ptr<Decoder> body, at::Tensor score, bool has_fresh_head);

  std::shared_ptr<Decoder> body_;
  at::Tensor score_;  ///< [1, hidden]
  bool has_fresh_head_ = false;
};

/// Reads a reward model for texts of a policy, whose tokens it gets. Throws ConfigError where its
/// own tokenizer gives texts other tokens than the policy's, with both names and the difference, or
/// where it has fewer tokens; and what RewardModel::load throws. An adapter on the folder that
/// `policy` was loaded from shares its weights, where these are frozen and of this dtype.
PREFOPT_API std::shared_ptr<RewardModel> load_reward_model(const std::string& path,
                                                           const Tokenizer& tokenizer,
                                                           std::string_view dtype = "keep",
                                                           const Decoder* policy = nullptr);

/// Whether a folder says that it holds a `…ForSequenceClassification` model (`config.json`) or an
/// adapter of one (`adapter_config.json`, task SEQ_CLS), or a GGUF file has a score head; false
/// where none can be read, which loading it then explains.
PREFOPT_API bool is_reward_model(const std::string& path);

}  // namespace prefopt
