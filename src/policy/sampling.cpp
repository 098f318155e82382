// SPDX-License-Identifier: Apache-2.0
#include "prefopt/policy/sampling.h"

#include <ATen/core/grad_mode.h>
#include <ATen/ops/tensor.h>
#include <c10/util/StringUtil.h>
#include <fmt/format.h>

#include <algorithm>
#include <cstdint>
#include <random>
#include <string>
#include <string_view>
#include <utility>

#include "core/json.h"
#include "core/random.h"
#include "policy/logit_rules.h"
#include "policy/next_token.h"
#include "policy/sampling_checks.h"
#include "prefopt/data/tokenizer.h"
#include "prefopt/error.h"
#include "prefopt/logps/token_logps.h"

namespace prefopt {
namespace {

// One stream a prompt, so that a sample does not depend on its neighbours in the batch.
std::mt19937_64 stream_of(std::int64_t seed, std::int64_t index) {
  const std::uint64_t spread = splitmix64(static_cast<std::uint64_t>(seed));
  return std::mt19937_64(splitmix64(spread ^ static_cast<std::uint64_t>(index)));
}

// In [0, 1), all 53 bits; std::uniform_real_distribution differs between standard libraries.
double uniform(std::mt19937_64& stream) { return static_cast<double>(stream() >> 11) * 0x1.0p-53; }

void check_logits(const at::Tensor& logits) {
  if (logits.dim() != 2 || logits.size(1) == 0) {
    throw ShapeError(
        fmt::format("sampling: expected logits [S, vocab], got {}", c10::str(logits.sizes())));
  }
  if (!logits.is_floating_point()) {
    throw DtypeError(fmt::format("sampling: expected floating logits, got {}",
                                 c10::toString(logits.scalar_type())));
  }
}

// As draw_tokens reads them.
at::Tensor readable(const at::Tensor& logits) {
  check_logits(logits);
  const at::Tensor here = logits.detach().cpu();
  return here.to(here.scalar_type() == at::kDouble ? at::kDouble : at::kFloat).contiguous();
}

void check_end_token(std::string_view name, std::int64_t id, std::int64_t vocab_size) {
  if (id >= vocab_size) {
    throw ConfigError(fmt::format("sampling: expected {} below the vocabulary size {}, got {}",
                                  name, vocab_size, id));
  }
}

void check_together(const SamplingOptions& options) {
  if (options.min_new_tokens > options.max_new_tokens) {
    throw ConfigError(
        fmt::format("sampling: expected min_new_tokens of at most max_new_tokens, {}, got {}",
                    options.max_new_tokens, options.min_new_tokens));
  }
  for (const std::string& text : options.stop) {
    if (text.empty()) throw ConfigError("sampling: expected texts in stop, got an empty one");
  }
}

std::vector<std::int64_t> read_ids(const std::string& list) {
  const auto json = detail::parse_json<ConfigError>(list, "extra_eos_ids");
  const auto is_id = [](const detail::Json& id) {
    return id.is_number_integer() && id >= INT32_MIN && id <= INT32_MAX;
  };
  if (!json.is_array() || !std::all_of(json.begin(), json.end(), is_id)) {
    throw ConfigError(fmt::format("sampling: expected extra_eos_ids to be a list of ids, got {}",
                                  detail::shown_json(json)));
  }
  return json.get<std::vector<std::int64_t>>();
}

void check_end_tokens(const SamplingOptions& options, std::int64_t vocab_size) {
  check_end_token("eos_id", options.eos_id, vocab_size);
  for (const std::int64_t id : options.extra_eos_ids) {
    if (id < 0) {
      throw ConfigError(fmt::format("sampling: expected extra_eos_ids >= 0, got {}", id));
    }
    check_end_token("extra_eos_ids", id, vocab_size);
  }
}

void check_stop_strings(const SamplingOptions& options) {
  if (options.stop.empty()) return;
  if (!options.tokenizer) {
    throw ConfigError("sampling: expected a tokenizer for the texts of stop, got none");
  }
  for (const std::string& text : options.stop) {
    const std::int64_t control = options.tokenizer->find_control(text);
    if (control < 0 || !options.tokenizer->decode({control}).empty()) continue;
    throw ConfigError(fmt::format(
        "sampling: expected texts of stop that a completion can show, got '{}' with the special "
        "token {}; make it an end token",
        text, control));
  }
}

void check_for_model(const SamplingOptions& options, const Policy& policy) {
  checked(options, "sampling");
  check_end_tokens(options, policy.vocab_size());
  check_stop_strings(options);
  if (options.min_new_tokens > 0 && options.eos_id < 0 && options.extra_eos_ids.empty()) {
    throw ConfigError(
        fmt::format("sampling: expected an end token for min_new_tokens {} to keep back, got none",
                    options.min_new_tokens));
  }
}

/// One call of sample: what was drawn so far, and which sequences are unfinished.
class Sampler {
 public:
  Sampler(const std::vector<std::vector<std::int64_t>>& prompts, const SamplingOptions& options,
          bool with_logps)
      : options_(options), with_logps_(with_logps), rules_(prompts, options) {
    samples_.completions.resize(prompts.size());
    if (with_logps) samples_.token_logps.resize(prompts.size());
    for (std::size_t i = 0; i < prompts.size(); ++i) {
      const auto next = options.first_index + static_cast<std::int64_t>(i);
      streams_.push_back(
          stream_of(options.seed, options.indices.empty() ? next : options.indices[i]));
      live_.push_back(i);
    }
  }

  /// Draws a token for each unfinished sequence, from its row of the logits.
  void draw(const at::Tensor& logits) {
    std::vector<double> shares;
    for (const std::size_t i : live_) shares.push_back(uniform(streams_[i]));
    tokens_ = detail::draw_tokens(rules_.apply(readable(logits), live_), options_, shares);
    if (with_logps_) add_logps(logits);
    for (std::size_t row = 0; row < live_.size(); ++row) {
      samples_.completions[live_[row]].push_back(tokens_[row]);
      rules_.add_token(live_[row], tokens_[row]);
    }
  }

  /// Drops the sequences that have ended. Returns the places of the others
  /// among the sequences so far.
  std::vector<std::int64_t> drop_finished() {
    std::vector<std::int64_t> places, tokens;
    std::vector<std::size_t> live;
    for (std::size_t row = 0; row < live_.size(); ++row) {
      if (has_ended(samples_.completions[live_[row]], options_)) continue;
      places.push_back(static_cast<std::int64_t>(row));
      tokens.push_back(tokens_[row]);
      live.push_back(live_[row]);
    }
    live_ = std::move(live);
    tokens_ = std::move(tokens);
    return places;
  }

  at::Tensor tokens() const { return at::tensor(tokens_, at::kLong); }
  Samples take() { return std::move(samples_); }

 private:
  void add_logps(const at::Tensor& logits) {
    const at::Tensor drawn =
        at::tensor(tokens_, at::TensorOptions(at::kLong).device(logits.device()));
    const at::Tensor logps =
        token_logps(logits, drawn,
                    {.by_products = {}, .transform = {}, .mask = {}, .dtype = at::kDouble})
            .logps.cpu();
    for (std::size_t row = 0; row < live_.size(); ++row) {
      samples_.token_logps[live_[row]].push_back(logps.const_data_ptr<double>()[row]);
    }
  }

  const SamplingOptions& options_;
  bool with_logps_;
  detail::LogitRules rules_;
  Samples samples_;
  std::vector<std::mt19937_64> streams_;
  std::vector<std::size_t> live_;     // indices of prompts
  std::vector<std::int64_t> tokens_;  // the last one of each of them
};

Samples run(Policy& policy, const std::vector<std::vector<std::int64_t>>& prompts,
            const SamplingOptions& options, bool with_logps) {
  detail::check_sampling(options, policy, std::ssize(prompts));
  if (prompts.empty()) return {};
  const at::NoGradGuard no_grad;
  Sampler sampler(prompts, options, with_logps);
  const auto session = policy.start_decoding(prompts);
  auto sequences = std::ssize(prompts);
  at::Tensor logits = session->prefill();
  for (std::int64_t step = 1;; ++step) {
    sampler.draw(logits);
    if (step == options.max_new_tokens) break;
    const std::vector<std::int64_t> places = sampler.drop_finished();
    if (places.empty()) break;
    if (std::ssize(places) < sequences) session->keep(places);
    sequences = std::ssize(places);
    logits = session->append(sampler.tokens().to(logits.device()));
  }
  return sampler.take();
}

}  // namespace

void SamplingOptions::fields(FieldVisitor& v) {
  v.integer({"max_new_tokens", "longest completion, the end token included"}, max_new_tokens,
            Range::at_least(1));
  v.real({"temperature", "divides the logits; 0: the most likely token"}, temperature,
         Range::at_least(0));
  v.integer({"top_k", "only the k most likely tokens; 0: off"}, top_k, Range::at_least(0));
  v.real({"top_p", "only the most likely tokens that together reach p; 1: off"}, top_p,
         {.min = 0, .max = 1, .min_open = true});
  v.integer({"eos_id", "end token; -1: none"}, eos_id, Range::at_least(-1));
  v.integer({"seed", "of all draws"}, seed, Range::any());
  std::string list = detail::dump_json(detail::Json(extra_eos_ids));
  v.json({"extra_eos_ids", "further end tokens, a list of ids"}, list);
  extra_eos_ids = read_ids(list);
  // Texts from before these options lack them, and are the same without them.
  if (!v.writes() || min_new_tokens != 0) {
    v.integer({"min_new_tokens", "no end token before as many tokens"}, min_new_tokens,
              Range::at_least(0));
  }
  if (!v.writes() || repetition_penalty != 1) {
    v.real({"repetition_penalty",
            "divides positive logits of tokens that prompt or completion hold, multiplies others; "
            "1: off"},
           repetition_penalty, Range::above(0));
  }
  if (!v.writes() || !stop.empty()) {
    v.texts({"stop", "texts that end a completion", {"stop_strings"}}, stop);
  }
  check_together(*this);
}

bool is_end_token(std::int64_t token, const SamplingOptions& options) {
  const auto& extra = options.extra_eos_ids;
  return token == options.eos_id || std::find(extra.begin(), extra.end(), token) != extra.end();
}

bool has_ended(const std::vector<std::int64_t>& completion, const SamplingOptions& options) {
  if (completion.empty()) return false;
  if (is_end_token(completion.back(), options)) return true;
  if (options.stop.empty() || !options.tokenizer) return false;
  const std::string text = options.tokenizer->decode(completion);
  return std::any_of(options.stop.begin(), options.stop.end(),
                     [&](const std::string& stop) { return text.find(stop) != std::string::npos; });
}

bool follows_policy(const SamplingOptions& options) {
  return options.temperature == 1 && options.top_k == 0 && options.top_p == 1 &&
         options.min_new_tokens == 0 && options.repetition_penalty == 1;
}

namespace detail {

void check_sampling(const SamplingOptions& options, const Policy& policy, std::int64_t prompts) {
  check_for_model(options, policy);
  if (!options.indices.empty() && std::ssize(options.indices) != prompts) {
    throw ShapeError(fmt::format("sampling: expected an index of each of the {} prompts, got {}",
                                 prompts, options.indices.size()));
  }
}

void check_own_distribution(const SamplingOptions& options, std::string_view where,
                            std::string_view reason) {
  if (follows_policy(options)) return;
  std::string expected = "temperature 1, top_k 0, top_p 1";
  std::string got = fmt::format("temperature {}, top_k {}, top_p {}", options.temperature,
                                options.top_k, options.top_p);
  if (options.min_new_tokens != 0) {
    expected += ", min_new_tokens 0";
    got += fmt::format(", min_new_tokens {}", options.min_new_tokens);
  }
  if (options.repetition_penalty != 1) {
    expected += ", repetition_penalty 1";
    got += fmt::format(", repetition_penalty {}", options.repetition_penalty);
  }
  throw ConfigError(fmt::format("{}: expected samples of the policy itself ({}), got {}{}", where,
                                expected, got, reason));
}

}  // namespace detail

at::Tensor sampling_probabilities(const at::Tensor& logits, const SamplingOptions& options) {
  checked(options, "sampling");
  return detail::token_probabilities(readable(logits), options).to(logits.device());
}

std::vector<std::vector<std::int64_t>> sample(Policy& policy,
                                              const std::vector<std::vector<std::int64_t>>& prompts,
                                              const SamplingOptions& options) {
  return run(policy, prompts, options, /*with_logps=*/false).completions;
}

Samples sample_with_logps(Policy& policy, const std::vector<std::vector<std::int64_t>>& prompts,
                          const SamplingOptions& options) {
  return run(policy, prompts, options, /*with_logps=*/true);
}

}  // namespace prefopt
