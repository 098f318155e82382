// SPDX-License-Identifier: Apache-2.0
#include "prefopt/data/batch.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>
#include <c10/util/Exception.h>
#include <fmt/format.h>

#include <algorithm>

#include "prefopt/error.h"

namespace prefopt {
namespace {

void check_part(std::span<const std::int64_t> ids, std::string_view where, std::string_view part,
                std::string_view holder, std::size_t index, std::string_view hint) {
  if (!ids.empty()) return;
  throw ShapeError(fmt::format("{}: expected a {} of at least one token in {} {}, got none{}",
                               where, part, holder, index, hint));
}

constexpr std::string_view kPromptHint = "; nothing predicts the first completion token";

TokenBatch pad_right(const std::vector<TokenSequence>& sequences) {
  std::size_t longest = 0;
  for (const auto& [prompt, completion] : sequences) {
    longest = std::max(longest, prompt.size() + completion.size());
  }
  const auto count = static_cast<std::int64_t>(sequences.size());
  const auto width = static_cast<std::int64_t>(longest);
  TokenBatch batch{.input_ids = at::zeros({count, width}, at::kLong),
                   .attention_mask = at::zeros({count, width}, at::kBool),
                   .completion_mask = at::zeros({count, width}, at::kBool),
                   .completion_lens = at::empty({count}, at::kLong)};
  auto* ids = batch.input_ids.mutable_data_ptr<std::int64_t>();
  auto* attended = batch.attention_mask.mutable_data_ptr<bool>();
  auto* completed = batch.completion_mask.mutable_data_ptr<bool>();
  auto* lens = batch.completion_lens.mutable_data_ptr<std::int64_t>();
  for (const auto& [prompt, completion] : sequences) {
    const std::size_t tokens = prompt.size() + completion.size();
    std::copy(completion.begin(), completion.end(), std::copy(prompt.begin(), prompt.end(), ids));
    std::fill_n(attended, tokens, true);
    std::fill_n(completed + prompt.size(), completion.size(), true);
    *lens++ = static_cast<std::int64_t>(completion.size());
    ids += width;
    attended += width;
    completed += width;
  }
  return batch;
}

}  // namespace

TokenBatch TokenBatch::to(const at::Device& device) const {
  try {
    return {.input_ids = input_ids.to(device),
            .attention_mask = attention_mask.to(device),
            .completion_mask = completion_mask.to(device),
            .completion_lens = completion_lens};
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
  }
  return pad_right(sequences);
}

TokenBatch make_pair_batch(const std::vector<TokenPair>& pairs, bool with_rejected) {
  constexpr std::string_view kWhere = "make_pair_batch";
  if (pairs.empty()) throw ShapeError("make_pair_batch: expected at least one pair, got none");
  std::vector<TokenSequence> sequences;
  sequences.reserve(pairs.size() * (with_rejected ? 2 : 1));
  for (std::size_t i = 0; i < pairs.size(); ++i) {
    check_part(pairs[i].prompt, kWhere, "prompt", "pair", i, kPromptHint);
    check_part(pairs[i].chosen, kWhere, "chosen completion", "pair", i, "");
    sequences.push_back({pairs[i].prompt, pairs[i].chosen});
  }
  for (std::size_t i = 0; with_rejected && i < pairs.size(); ++i) {
    check_part(pairs[i].rejected, kWhere, "rejected completion", "pair", i,
               "; rows with one completion need with_rejected = false");
    sequences.push_back({pairs[i].prompt, pairs[i].rejected});
  }
  return pad_right(sequences);
}

}  // namespace prefopt
