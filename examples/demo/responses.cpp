// SPDX-License-Identifier: Apache-2.0
#include "responses.h"

#include <ATen/TensorOperators.h>
#include <ATen/core/grad_mode.h>
#include <fmt/format.h>

#include <chrono>
#include <nlohmann/json.hpp>
#include <string_view>
#include <utility>

#include "prefopt/data/batch.h"
#include "prefopt/data/chat.h"
#include "prefopt/data/dataset.h"
#include "prefopt/decoder/end_tokens.h"
#include "prefopt/error.h"
#include "prefopt/policy/sequence_logps.h"

namespace demo {

using namespace prefopt;

namespace {

// A model of another format would never end its turn.
void check_end_of_turn(const Tokenizer& tokenizer, std::string_view chat_format) {
  if (chat_end_of_turn(chat_format).empty() || !chat_end_ids(chat_format, tokenizer).empty())
    return;
  throw ConfigError(
      fmt::format("chat_format: expected a format whose end of turn is one token of {}, got '{}'",
                  tokenizer.name(), chat_format));
}

}  // namespace

Responder::Responder(const std::string& tokenizer, std::string chat_format,
                     SamplingOptions sampling)
    : tokenizer_name_(tokenizer),
      tokenizer_(make_tokenizer(tokenizer)),
      chat_format_(std::move(chat_format)),
      sampling_(std::move(sampling)) {
  check_end_of_turn(*tokenizer_, chat_format_);
}

void Responder::end_with(const Decoder& model) {
  sampling_ = with_end_tokens(sampling_, model, *tokenizer_, chat_format_);
}

Prompt Responder::make_prompt(std::string text) const {
  const std::vector<Message> messages{{.role = "user", .content = text}};
  return {
      .text = std::move(text),
      .ids = tokenizer_->encode(format_chat(chat_format_, messages, /*open_assistant_turn=*/true))};
}

Prompts Responder::read_prompts(const std::string& path) const {
  Prompts prompts;
  std::size_t row = 0;
  for_each_line(path, [&](std::int64_t line, std::string_view text) {
    const auto json = nlohmann::json::parse(text, nullptr, /*allow_exceptions=*/false);
    if (!json.is_object() || !json.contains("prompt") || !json["prompt"].is_string()) {
      throw DataError(
          fmt::format("{}:{}: expected {{\"prompt\": text}}, got {}", path, line, text));
    }
    const bool held_out = row++ % 4 == 3;
    (held_out ? prompts.held_out : prompts.train).push_back(make_prompt(json["prompt"]));
  });
  if (prompts.held_out.empty()) {
    throw DataError(fmt::format("{}: expected at least 4 prompts, got {}", path, row));
  }
  return prompts;
}

Response Responder::judge(const Prompt& prompt, Rollout rollout) const {
  Response response;
  response.text = tokenizer_->decode(rollout.completion);
  response.ended = rollout.ended;
  response.terms = reward_terms(prompt.text, response.text, response.ended);
  response.reward = response.terms.total();
  response.ids = std::move(rollout.completion);
  return response;
}

Responses Responder::respond(Policy& policy, std::span<const Prompt> prompts, std::int64_t samples,
                             std::int64_t seed, const Progress& progress) {
  const auto start = std::chrono::steady_clock::now();
  std::vector<std::vector<std::int64_t>> ids;
  for (const Prompt& prompt : prompts) ids.push_back(prompt.ids);
  RolloutOptions options{.samples_per_prompt = samples, .sampling = sampling_};
  options.sampling.seed = seed;
  Responses responses(prompts.size());
  for (Rollout& rollout : draw_rollouts(policy, ids, options, progress)) {
    const auto prompt = static_cast<std::size_t>(rollout.group);
    speed_.tokens += static_cast<double>(rollout.completion.size());
    responses[prompt].push_back(judge(prompts[prompt], std::move(rollout)));
  }
  speed_.seconds += std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  return responses;
}

Divergence Responder::divergence(Policy& policy, Policy& reference, std::span<const Prompt> prompts,
                                 std::int64_t seed) const {
  const at::NoGradGuard no_grad;
  SamplingOptions sampling = sampling_;
  sampling.temperature = 1;
  sampling.top_k = 0;
  sampling.top_p = 1;
  sampling.seed = seed;
  std::vector<std::vector<std::int64_t>> ids;
  for (const Prompt& prompt : prompts) ids.push_back(prompt.ids);
  const std::vector<Rollout> rollouts = draw_rollouts(policy, ids, {.sampling = sampling});

  std::vector<TokenSequence> sequences;
  double policy_logps = 0;
  double tokens = 0;
  for (const Rollout& rollout : rollouts) {
    sequences.push_back({rollout.prompt, rollout.completion});
    for (const double logp : rollout.token_logps) policy_logps += logp;
    tokens += static_cast<double>(rollout.completion.size());
  }
  const double reference_logps =
      sequence_logps(reference, make_batch(sequences)).logps.sum().item<double>();
  const double sum = policy_logps - reference_logps;
  return {.per_response = sum / static_cast<double>(ids.size()), .per_token = sum / tokens};
}

}  // namespace demo
