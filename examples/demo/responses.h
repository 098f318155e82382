// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "prefopt/data/tokenizer.h"
#include "prefopt/decoder/decoder.h"
#include "prefopt/online/rollout.h"
#include "prefopt/policy/policy.h"
#include "prefopt/policy/sampling.h"
#include "reward.h"

namespace demo {

struct Prompt {
  std::string text;
  std::vector<std::int64_t> ids;  ///< with the chat format around it
};

struct Response {
  std::string text;
  std::vector<std::int64_t> ids;  ///< as they were drawn, the end token included
  bool ended = false;
  RewardTerms terms;
  double reward = 0;
};

/// Responses to each prompt.
using Responses = std::vector<std::vector<Response>>;

/// Prompts of a JSONL file: of each four in a row the last one is held out.
struct Prompts {
  std::vector<Prompt> train;
  std::vector<Prompt> held_out;
};

struct Speed {
  double tokens = 0;
  double seconds = 0;
  double per_second() const { return seconds > 0 ? tokens / seconds : 0; }
};

/// KL(policy ‖ reference), nats.
struct Divergence {
  double per_response = 0;
  double per_token = 0;
};

/// What lies between texts and a model: tokenizer, chat format, sampling, reward.
class Responder {
 public:
  using Progress = prefopt::RolloutProgress;

  /// `tokenizer`: what make_tokenizer takes.
  Responder(const std::string& tokenizer, std::string chat_format,
            prefopt::SamplingOptions sampling);

  /// Lets responses end in the end tokens of `model`, of the tokenizer and of the chat format,
  /// unless `sampling` names some.
  void end_with(const prefopt::Decoder& model);

  Prompts read_prompts(const std::string& path) const;

  /// `samples` judged responses a prompt. The draws depend on `seed` and on the place of a prompt.
  Responses respond(prefopt::Policy& policy, std::span<const Prompt> prompts, std::int64_t samples,
                    std::int64_t seed, const Progress& progress);

  /// Mean of log pi - log pi_ref over one response a prompt, drawn for this at temperature 1 from
  /// the whole vocabulary, as the policy's own distribution asks.
  Divergence divergence(prefopt::Policy& policy, prefopt::Policy& reference,
                        std::span<const Prompt> prompts, std::int64_t seed) const;

  /// What make_tokenizer takes.
  std::string tokenizer() const { return tokenizer_name_; }

  /// Of all calls of `respond` so far.
  const Speed& speed() const { return speed_; }

 private:
  Prompt make_prompt(std::string text) const;
  Response judge(const Prompt& prompt, prefopt::Rollout rollout) const;

  std::string tokenizer_name_;
  std::shared_ptr<const prefopt::Tokenizer> tokenizer_;
  std::string chat_format_;
  prefopt::SamplingOptions sampling_;
  Speed speed_;
};

}  // namespace demo
