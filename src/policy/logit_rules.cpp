// SPDX-License-Identifier: Apache-2.0
#include "policy/logit_rules.h"

#include <limits>

namespace prefopt::detail {

LogitRules::LogitRules(const std::vector<std::vector<std::int64_t>>& prompts,
                       const SamplingOptions& options)
    : penalizes_(options.repetition_penalty != 1),
      penalty_(options.repetition_penalty),
      min_new_tokens_(options.min_new_tokens),
      end_tokens_(options.extra_eos_ids),
      sequences_(prompts.size()) {
  if (options.eos_id >= 0) end_tokens_.push_back(options.eos_id);
  if (!penalizes_) return;
  for (std::size_t i = 0; i < prompts.size(); ++i) {
    sequences_[i].tokens.insert(prompts[i].begin(), prompts[i].end());
  }
}

void LogitRules::add_token(std::size_t sequence, std::int64_t token) {
  ++sequences_[sequence].drawn;
  if (penalizes_) sequences_[sequence].tokens.insert(token);
}

bool LogitRules::holds_back_end(const Sequence& sequence) const {
  return sequence.drawn < min_new_tokens_;
}

template <class T>
void LogitRules::apply_to(T* logits, const Sequence& sequence) const {
  // In the dtype of the logits, as a tensor of them takes a number.
  const auto penalty = static_cast<T>(penalty_);
  for (const std::int64_t token : sequence.tokens) {
    logits[token] = logits[token] < 0 ? logits[token] * penalty : logits[token] / penalty;
  }
  if (!holds_back_end(sequence)) return;
  for (const std::int64_t token : end_tokens_) logits[token] = -std::numeric_limits<T>::infinity();
}

at::Tensor LogitRules::apply(const at::Tensor& logits,
                             const std::vector<std::size_t>& sequences) const {
  // All sequences that are left have drawn as many tokens.
  if (!penalizes_ && !holds_back_end(sequences_[sequences.front()])) return logits;
  at::Tensor changed = logits.clone();
  for (std::size_t row = 0; row < sequences.size(); ++row) {
    const Sequence& sequence = sequences_[sequences[row]];
    const auto place = static_cast<std::int64_t>(row) * logits.size(1);
    if (logits.scalar_type() == at::kDouble) {
      apply_to(changed.mutable_data_ptr<double>() + place, sequence);
    } else {
      apply_to(changed.mutable_data_ptr<float>() + place, sequence);
    }
  }
  return changed;
}

}  // namespace prefopt::detail
