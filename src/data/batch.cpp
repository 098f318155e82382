// SPDX-License-Identifier: Apache-2.0
#include "prefopt/data/batch.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/tensor.h>
#include <ATen/ops/zeros.h>
#include <c10/util/Exception.h>
#include <c10/util/StringUtil.h>
#include <fmt/format.h>

#include <algorithm>
#include <map>
#include <utility>

#include "data/token_weights.h"
#include "math/upload.h"
#include "prefopt/error.h"

namespace prefopt {
namespace {

void check_part(std::span<const std::int64_t> ids, std::string_view where, std::string_view part,
                std::string_view holder, std::size_t index, std::string_view hint) {
  if (!ids.empty()) return;
  throw ShapeError(fmt::format("{}: expected a {} of at least one token in {} {}, got none{}",
                               where, part, holder, index, hint));
}

void check_weights(std::span<const double> weights, std::span<const std::int64_t> completion,
                   std::string_view where, std::string_view part, std::string_view holder,
                   std::size_t index) {
  if (weights.empty() || weights.size() == completion.size()) return;
  throw ShapeError(fmt::format("{}: expected {} weights of the {} in {} {}, one a token, got {}",
                               where, completion.size(), part, holder, index, weights.size()));
}

void check_mask(std::span<const std::uint8_t> mask, std::span<const std::int64_t> completion,
                std::string_view where, std::string_view part, std::string_view holder,
                std::size_t index) {
  if (mask.empty()) return;
  if (mask.size() != completion.size()) {
    throw ShapeError(fmt::format("{}: expected a mask of {} tokens of the {} in {} {}, got {}",
                                 where, completion.size(), part, holder, index, mask.size()));
  }
  if (counted_tokens(completion, mask) == 0) {
    throw ShapeError(
        fmt::format("{}: expected a {} of at least one token that counts in {} {}, got none", where,
                    part, holder, index));
  }
}

bool counts(std::span<const std::uint8_t> mask, std::size_t token) {
  return mask.empty() || mask[token] != 0;
}

constexpr std::string_view kPromptHint = "; nothing predicts the first completion token";

/// Lays sequences out in one stream, group after group.
class Packer {
 public:
  explicit Packer(const std::vector<TokenSequence>& sequences)
      : sequences_(sequences), token_rows_(sequences.size()) {}

  std::shared_ptr<const PackedTokens> pack() {
    for (const auto& group : groups_by_prompt()) add(group);
    std::vector<std::int64_t> token_rows;
    for (const auto& rows : token_rows_) {
      token_rows.insert(token_rows.end(), rows.begin(), rows.end());
    }
    return std::make_shared<PackedTokens>(PackedTokens{.groups = std::move(groups_),
                                                       .input_ids = at::tensor(ids_),
                                                       .positions = at::tensor(positions_),
                                                       .rows = at::tensor(rows_),
                                                       .targets = at::tensor(targets_),
                                                       .token_rows = at::tensor(token_rows)});
  }

 private:
  using Members = std::vector<std::size_t>;

  // In the order of the first sequence of each.
  std::vector<Members> groups_by_prompt() const {
    const auto before = [](std::span<const std::int64_t> a, std::span<const std::int64_t> b) {
      return std::lexicographical_compare(a.begin(), a.end(), b.begin(), b.end());
    };
    std::map<std::span<const std::int64_t>, std::size_t, decltype(before)> known(before);
    std::vector<Members> groups;
    for (std::size_t i = 0; i < sequences_.size(); ++i) {
      const auto [at, is_new] = known.emplace(sequences_[i].prompt, groups.size());
      if (is_new) groups.emplace_back();
      groups[at->second].push_back(i);
    }
    return groups;
  }

  std::int64_t token(std::size_t sequence, std::int64_t place) const {
    const auto& [prompt, completion, weights, mask] = sequences_[sequence];
    const std::int64_t prompts = std::ssize(prompt);
    return place < prompts ? prompt[static_cast<std::size_t>(place)]
                           : completion[static_cast<std::size_t>(place - prompts)];
  }
  // Without the last token.
  std::int64_t inputs(std::size_t sequence) const {
    return std::ssize(sequences_[sequence].prompt) + std::ssize(sequences_[sequence].completion) -
           1;
  }

  std::int64_t common_beginning(const Members& members) const {
    std::int64_t common = inputs(members.front());
    for (const std::size_t s : members) {
      common = std::min(common, inputs(s));
      std::int64_t same = std::ssize(sequences_[s].prompt);
      while (same < common && token(s, same) == token(members.front(), same)) ++same;
      common = same;
    }
    return common;
  }

  void append(std::size_t sequence, std::int64_t from, std::int64_t to) {
    for (std::int64_t place = from; place < to; ++place) {
      ids_.push_back(token(sequence, place));
      positions_.push_back(place);
    }
  }

  void add(const Members& members) {
    const std::int64_t prompt = std::ssize(sequences_[members.front()].prompt);
    PackedGroup group{.begin = std::ssize(ids_),
                      .shared = common_beginning(members),
                      .scored = prompt - 1,
                      .branches = {}};
    append(members.front(), 0, group.shared);
    std::map<std::pair<std::int64_t, std::int64_t>, std::int64_t> known;
    for (const std::size_t s : members) {
      const std::int64_t branch = std::ssize(ids_);
      append(s, group.shared, inputs(s));
      group.branches.push_back(std::ssize(ids_) - branch);
      for (std::int64_t place = prompt; place <= inputs(s); ++place) {
        if (!counts(sequences_[s].mask, static_cast<std::size_t>(place - prompt))) continue;
        const bool is_shared = place <= group.shared;
        const std::int64_t row = (is_shared ? group.begin : branch - group.shared) + place - 1;
        const std::int64_t target = token(s, place);
        const std::int64_t next = std::ssize(rows_);
        const std::int64_t index =
            is_shared ? known.emplace(std::pair(row, target), next).first->second : next;
        if (index == next) {
          rows_.push_back(row);
          targets_.push_back(target);
        }
        token_rows_[s].push_back(index);
      }
    }
    groups_.push_back(std::move(group));
  }

  const std::vector<TokenSequence>& sequences_;
  std::vector<PackedGroup> groups_;
  std::vector<std::int64_t> ids_, positions_, rows_, targets_;
  std::vector<std::vector<std::int64_t>> token_rows_;
};

std::shared_ptr<const PackedTokens> moved(const std::shared_ptr<const PackedTokens>& packed,
                                          const at::Device& device) {
  if (!packed || packed->input_ids.device() == device) return packed;
  return std::make_shared<PackedTokens>(
      PackedTokens{.groups = packed->groups,
                   .input_ids = detail::uploaded(packed->input_ids, device),
                   .positions = detail::uploaded(packed->positions, device),
                   .rows = detail::uploaded(packed->rows, device),
                   .targets = detail::uploaded(packed->targets, device),
                   .token_rows = detail::uploaded(packed->token_rows, device)});
}

// Undefined where no sequence has any.
at::Tensor weights_of(const std::vector<TokenSequence>& sequences) {
  const auto has_some = [](const TokenSequence& sequence) { return !sequence.weights.empty(); };
  if (std::none_of(sequences.begin(), sequences.end(), has_some)) return {};
  std::vector<double> weights;
  for (const TokenSequence& sequence : sequences) {
    for (std::size_t t = 0; t < sequence.completion.size(); ++t) {
      if (!counts(sequence.mask, t)) continue;
      weights.push_back(has_some(sequence) ? sequence.weights[t] : 1.0);
    }
  }
  return at::tensor(weights, at::kDouble);
}

TokenBatch lay_out(const std::vector<TokenSequence>& sequences) {
  std::size_t longest = 0;
  for (const auto& [prompt, completion, weights, mask] : sequences) {
    longest = std::max(longest, prompt.size() + completion.size());
  }
  const auto count = static_cast<std::int64_t>(sequences.size());
  const auto width = static_cast<std::int64_t>(longest);
  TokenBatch batch{.input_ids = at::zeros({count, width}, at::kLong),
                   .attention_mask = at::zeros({count, width}, at::kBool),
                   .completion_mask = at::zeros({count, width}, at::kBool),
                   .completion_lens = at::empty({count}, at::kLong),
                   .token_weights = weights_of(sequences),
                   .packed = Packer(sequences).pack()};
  auto* ids = batch.input_ids.mutable_data_ptr<std::int64_t>();
  auto* attended = batch.attention_mask.mutable_data_ptr<bool>();
  auto* completed = batch.completion_mask.mutable_data_ptr<bool>();
  auto* lens = batch.completion_lens.mutable_data_ptr<std::int64_t>();
  for (const auto& [prompt, completion, weights, mask] : sequences) {
    const std::size_t tokens = prompt.size() + completion.size();
    std::copy(completion.begin(), completion.end(), std::copy(prompt.begin(), prompt.end(), ids));
    std::fill_n(attended, tokens, true);
    for (std::size_t t = 0; t < completion.size(); ++t)
      completed[prompt.size() + t] = counts(mask, t);
    *lens++ = counted_tokens(completion, mask);
    ids += width;
    attended += width;
    completed += width;
  }
  return batch;
}

}  // namespace

std::int64_t counted_tokens(std::span<const std::int64_t> completion,
                            std::span<const std::uint8_t> mask) {
  return mask.empty() ? std::ssize(completion)
                      : std::ssize(mask) - std::count(mask.begin(), mask.end(), std::uint8_t{0});
}

TokenBatch TokenBatch::to(const at::Device& device) const {
  try {
    return {.input_ids = detail::uploaded(input_ids, device),
            .attention_mask = detail::uploaded(attention_mask, device),
            .completion_mask = detail::uploaded(completion_mask, device),
            .completion_lens = completion_lens,
            .token_weights =
                token_weights.defined() ? detail::uploaded(token_weights, device) : at::Tensor(),
            .packed = moved(packed, device)};
  } catch (const c10::OutOfMemoryError&) {
    throw;  // the device is usable; whoever chose the batch size has to know
  } catch (const c10::Error& error) {
    const std::string_view reason = error.what_without_backtrace();
    throw DeviceError(fmt::format("TokenBatch::to: expected a usable device, got {} ({})",
                                  device.str(), reason.substr(0, reason.find('\n'))));
  }
}

TokenBatch make_batch(const std::vector<TokenSequence>& sequences) {
  if (sequences.empty()) {
    throw ShapeError("make_batch: expected at least one sequence, got none");
  }
  for (std::size_t i = 0; i < sequences.size(); ++i) {
    check_part(sequences[i].prompt, "make_batch", "prompt", "sequence", i, kPromptHint);
    check_part(sequences[i].completion, "make_batch", "completion", "sequence", i, "");
    check_weights(sequences[i].weights, sequences[i].completion, "make_batch", "completion",
                  "sequence", i);
    check_mask(sequences[i].mask, sequences[i].completion, "make_batch", "completion", "sequence",
               i);
  }
  return lay_out(sequences);
}

void check_token_weights(const TokenBatch& batch, std::string_view where) {
  const at::Tensor& weights = batch.token_weights;
  if (!weights.defined()) return;
  const std::int64_t tokens = batch.completion_lens.sum().item<std::int64_t>();
  if (weights.dim() != 1 || weights.size(0) != tokens) {
    throw ShapeError(fmt::format("{}: expected token_weights [{}], got {}", where, tokens,
                                 c10::str(weights.sizes())));
  }
  if (weights.scalar_type() != at::kDouble) {
    throw DtypeError(fmt::format("{}: expected token_weights of dtype Double, got {}", where,
                                 c10::toString(weights.scalar_type())));
  }
}

TokenBatch select_sequences(const TokenBatch& batch, const std::vector<std::int64_t>& sequences) {
  for (const at::Tensor& tensor : {batch.input_ids, batch.attention_mask, batch.completion_mask,
                                   batch.completion_lens, batch.token_weights}) {
    if (!tensor.defined() || tensor.is_cpu()) continue;
    throw DeviceError(
        fmt::format("select_sequences: expected a batch on the CPU, got one on {}; "
                    "batch.to(at::kCPU) is one",
                    tensor.device().str()));
  }
  const std::int64_t width = batch.input_ids.size(1);
  const at::Tensor ids = batch.input_ids.contiguous();
  const at::Tensor attended = batch.attention_mask.contiguous();
  const at::Tensor completed = batch.completion_mask.contiguous();
  check_token_weights(batch, "select_sequences");
  const at::Tensor weights =
      batch.token_weights.defined() ? batch.token_weights.contiguous() : at::Tensor();
  const at::Tensor ends = batch.completion_lens.cumsum(0).contiguous();
  std::vector<std::vector<std::int64_t>> prompts(sequences.size()), completions(sequences.size());
  std::vector<TokenMask> masks(sequences.size());
  std::vector<std::vector<double>> weights_of_all(sequences.size());
  std::vector<TokenSequence> selected;
  for (std::size_t i = 0; i < sequences.size(); ++i) {
    for (std::int64_t at = sequences[i] * width; at < (sequences[i] + 1) * width; ++at) {
      if (!attended.const_data_ptr<bool>()[at]) continue;
      const bool is_counted = completed.const_data_ptr<bool>()[at];
      const bool is_prompt = !is_counted && completions[i].empty();
      (is_prompt ? prompts[i] : completions[i]).push_back(ids.const_data_ptr<std::int64_t>()[at]);
      if (!is_prompt) masks[i].push_back(is_counted ? 1 : 0);
    }
    selected.push_back({prompts[i], completions[i], {}, masks[i]});
    if (!weights.defined()) continue;
    const std::int64_t counted = counted_tokens(completions[i], masks[i]);
    const double* next = weights.const_data_ptr<double>() +
                         ends.const_data_ptr<std::int64_t>()[sequences[i]] - counted;
    for (const std::uint8_t is_counted : masks[i]) {
      weights_of_all[i].push_back(is_counted != 0 ? *next++ : 0.0);
    }
    selected.back().weights = weights_of_all[i];
  }
  return make_batch(selected);
}

TokenBatch make_pair_batch(const std::vector<TokenRow>& pairs, bool with_rejected, bool with_gold) {
  constexpr std::string_view kWhere = "make_pair_batch";
  if (pairs.empty()) throw ShapeError("make_pair_batch: expected at least one pair, got none");
  std::vector<TokenSequence> sequences;
  sequences.reserve(pairs.size() * (1 + (with_rejected ? 1 : 0) + (with_gold ? 1 : 0)));
  for (std::size_t i = 0; i < pairs.size(); ++i) {
    check_part(pairs[i].prompt, kWhere, "prompt", "pair", i, kPromptHint);
    check_part(pairs[i].chosen, kWhere, "chosen completion", "pair", i, "");
    check_weights(pairs[i].chosen_weights, pairs[i].chosen, kWhere, "chosen completion", "pair", i);
    check_mask(pairs[i].chosen_mask, pairs[i].chosen, kWhere, "chosen completion", "pair", i);
    sequences.push_back(
        {pairs[i].prompt, pairs[i].chosen, pairs[i].chosen_weights, pairs[i].chosen_mask});
  }
  for (std::size_t i = 0; with_rejected && i < pairs.size(); ++i) {
    check_part(pairs[i].rejected, kWhere, "rejected completion", "pair", i,
               "; rows with one completion need with_rejected = false");
    check_weights(pairs[i].rejected_weights, pairs[i].rejected, kWhere, "rejected completion",
                  "pair", i);
    check_mask(pairs[i].rejected_mask, pairs[i].rejected, kWhere, "rejected completion", "pair", i);
    sequences.push_back(
        {pairs[i].prompt, pairs[i].rejected, pairs[i].rejected_weights, pairs[i].rejected_mask});
  }
  for (std::size_t i = 0; with_gold && i < pairs.size(); ++i) {
    check_part(pairs[i].gold, kWhere, "gold completion", "pair", i, "");
    check_weights(pairs[i].gold_weights, pairs[i].gold, kWhere, "gold completion", "pair", i);
    check_mask(pairs[i].gold_mask, pairs[i].gold, kWhere, "gold completion", "pair", i);
    sequences.push_back(
        {pairs[i].prompt, pairs[i].gold, pairs[i].gold_weights, pairs[i].gold_mask});
  }
  return lay_out(sequences);
}

}  // namespace prefopt
