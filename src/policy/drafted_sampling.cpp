// SPDX-License-Identifier: Apache-2.0
#include "prefopt/policy/drafted_sampling.h"

#include <ATen/core/grad_mode.h>
#include <fmt/format.h>

#include <algorithm>
#include <memory>

#include "policy/draft_session.h"
#include "policy/next_token.h"
#include "policy/sampling_checks.h"
#include "prefopt/error.h"

namespace prefopt {
namespace {

using Ids = std::vector<std::int64_t>;

// The longest end of a sequence that is looked for, and the shortest.
constexpr std::int64_t kLongestEnd = 4, kShortestEnd = 2;
// Rows of a pass up to which its time is mostly that of reading the weights.
constexpr std::int64_t kMostRows = 32;

/// Returns up to `most` tokens that followed the last place where the sequence had its present end.
Ids tokens_after_end(const Ids& sequence, std::int64_t most) {
  for (std::int64_t size = kLongestEnd; size >= kShortestEnd; --size) {
    if (std::ssize(sequence) <= size) continue;
    const auto end = sequence.end() - size;
    // The end itself is not a place to find.
    const auto at = std::find_end(sequence.begin(), sequence.end() - 1, end, sequence.end());
    if (at == sequence.end() - 1) continue;
    const auto first = at + size;
    return {first, first + std::min<std::int64_t>(most, sequence.end() - first)};
  }
  return {};
}

/// One call of sample_with_drafts: what was said so far, and which sequences are unfinished.
class DraftedSampler {
 public:
  DraftedSampler(detail::DraftSession& session, const std::vector<Ids>& prompts,
                 const SamplingOptions& options, std::int64_t draft_tokens)
      : session_(session),
        options_(options),
        draft_tokens_(draft_tokens),
        sequences_(prompts),
        completions_(prompts.size()) {
    for (std::size_t i = 0; i < prompts.size(); ++i) live_.push_back(i);
  }

  std::vector<Ids> run(DraftCounts& counts) {
    const Ids first = most_likely(session_.prefill());
    for (const std::size_t i : live_) add(i, first[i]);
    drop_finished();
    while (!live_.empty()) {
      const std::vector<Ids> drafts = draft();
      counts.accepted += accept(drafts);
      for (const Ids& of_sequence : drafts) counts.drafted += std::ssize(of_sequence);
      ++counts.passes;
      drop_finished();
    }
    return std::move(completions_);
  }

 private:
  Ids most_likely(const at::Tensor& logits) const {
    const std::vector<double> unused(static_cast<std::size_t>(logits.size(0)));
    return detail::draw_tokens(logits, options_, unused);
  }

  std::vector<Ids> draft() const {
    const std::int64_t room = std::max<std::int64_t>(kMostRows / std::ssize(live_) - 1, 0);
    std::vector<Ids> drafts;
    for (const std::size_t i : live_) {
      const std::int64_t left = options_.max_new_tokens - std::ssize(completions_[i]) - 1;
      drafts.push_back(tokens_after_end(sequences_[i], std::min({draft_tokens_, room, left})));
    }
    return drafts;
  }

  /// Returns how many drafted tokens are what the model says.
  std::int64_t accept(const std::vector<Ids>& drafts) {
    std::vector<Ids> appended;
    for (std::size_t row = 0; row < live_.size(); ++row) {
      Ids& tokens = appended.emplace_back(Ids{sequences_[live_[row]].back()});
      tokens.insert(tokens.end(), drafts[row].begin(), drafts[row].end());
    }
    const Ids said = most_likely(session_.append_all(appended));
    std::vector<std::int64_t> taken_back;
    std::int64_t accepted = 0, first = 0;
    for (std::size_t row = 0; row < live_.size(); ++row) {
      const std::int64_t kept = add_said(live_[row], drafts[row], said.data() + first);
      accepted += kept;
      taken_back.push_back(std::ssize(drafts[row]) - kept);
      first += std::ssize(appended[row]);
    }
    session_.take_back(taken_back);
    return accepted;
  }

  /// Adds what the model says after the last token, then after each drafted one that it said.
  std::int64_t add_said(std::size_t i, const Ids& draft, const std::int64_t* said) {
    std::int64_t kept = 0;
    add(i, said[0]);
    while (kept < std::ssize(draft) && draft[static_cast<std::size_t>(kept)] == said[kept] &&
           !is_finished(i)) {
      ++kept;
      add(i, said[kept]);
    }
    return kept;
  }

  void add(std::size_t i, std::int64_t token) {
    sequences_[i].push_back(token);
    completions_[i].push_back(token);
  }

  bool is_finished(std::size_t i) const {
    return std::ssize(completions_[i]) == options_.max_new_tokens ||
           has_ended(completions_[i], options_);
  }

  void drop_finished() {
    std::vector<std::int64_t> places;
    std::vector<std::size_t> live;
    for (std::size_t row = 0; row < live_.size(); ++row) {
      if (is_finished(live_[row])) continue;
      places.push_back(static_cast<std::int64_t>(row));
      live.push_back(live_[row]);
    }
    if (!live.empty() && live.size() < live_.size()) session_.keep(places);
    live_ = std::move(live);
  }

  detail::DraftSession& session_;
  const SamplingOptions& options_;
  std::int64_t draft_tokens_;
  std::vector<Ids> sequences_, completions_;  // with the prompts and without
  std::vector<std::size_t> live_;             // indices of prompts
};

void check_greedy(const SamplingOptions& options, std::int64_t draft_tokens) {
  if (draft_tokens < 1) {
    throw ConfigError(fmt::format("draft_tokens: expected at least 1 token, got {}", draft_tokens));
  }
  if (options.temperature != 0) {
    throw ConfigError(
        fmt::format("draft_tokens: expected greedy decoding (temperature 0), got temperature {}",
                    options.temperature));
  }
  if (options.repetition_penalty != 1 || options.min_new_tokens != 0) {
    throw ConfigError(fmt::format(
        "draft_tokens: expected repetition_penalty 1 and min_new_tokens 0, whose logits depend on "
        "the tokens before, got {} and {}",
        options.repetition_penalty, options.min_new_tokens));
  }
}

}  // namespace

std::vector<Ids> sample_with_drafts(Policy& policy, const std::vector<Ids>& prompts,
                                    const SamplingOptions& options, std::int64_t draft_tokens,
                                    DraftCounts* counts) {
  check_greedy(options, draft_tokens);
  detail::check_sampling(options, policy, std::ssize(prompts));
  if (prompts.empty()) return {};
  const at::NoGradGuard no_grad;
  const auto session = policy.start_decoding(prompts);
  auto* drafts = dynamic_cast<detail::DraftSession*>(session.get());
  if (drafts == nullptr) {
    throw ConfigError(
        "draft_tokens: expected a decoder on the CPU without dynamic rotary scaling, got a policy "
        "that decodes one token at a time");
  }
  DraftCounts unused;
  return DraftedSampler(*drafts, prompts, options, draft_tokens)
      .run(counts != nullptr ? *counts : unused);
}

}  // namespace prefopt
