// SPDX-License-Identifier: Apache-2.0
#include "train/sample_table.h"

#include <ATen/core/grad_mode.h>

#include <algorithm>
#include <numeric>
#include <string>
#include <utility>

#include "prefopt/logps/sequence_kl.h"

namespace prefopt::detail {

SampleTable::SampleTable(const std::vector<TokenPair>& held_out,
                         std::shared_ptr<const Tokenizer> tokenizer, SamplingOptions sampling,
                         Size size)
    : tokenizer_(std::move(tokenizer)), sampling_(std::move(sampling)) {
  sampling_.max_new_tokens = size.tokens;
  for (const TokenPair& pair : held_out) {
    if (std::ssize(prompts_) == size.prompts) break;
    const bool known = std::find(prompts_.begin(), prompts_.end(), pair.prompt) != prompts_.end();
    if (!known) prompts_.push_back(pair.prompt);
  }
}

SampleTable::Draw SampleTable::draw(std::int64_t step, Policy& policy, Policy* reference,
                                    bool with_reference) const {
  Draw draw;
  if (prompts_.empty()) return draw;
  const at::NoGradGuard no_grad;
  const auto completions = sample(policy, prompts_, sampling_);
  for (std::size_t i = 0; i < prompts_.size(); ++i) {
    Json line = {{"step", step}, {"index", i}, {"prompt", tokenizer_->decode(prompts_[i])}};
    add_completion(line, "policy", completions[i]);
    draw.lines.push_back(std::move(line));
  }
  if (reference == nullptr) return draw;

  const bool are_own = sampling_.temperature == 1 && sampling_.top_k == 0 && sampling_.top_p == 1;
  if (are_own) {
    const auto kls = kl_of(policy, *reference, completions);
    for (std::size_t i = 0; i < kls.size(); ++i) draw.lines[i]["kl"] = kls[i];
    draw.kl = std::accumulate(kls.begin(), kls.end(), 0.0) / static_cast<double>(kls.size());
  }
  if (with_reference) {
    const auto before = sample(*reference, prompts_, sampling_);
    for (std::size_t i = 0; i < before.size(); ++i) {
      add_completion(draw.lines[i], "reference", before[i]);
    }
  }
  return draw;
}

void SampleTable::add_completion(Json& line, const std::string& name,
                                 const Tokens& completion) const {
  line[name] = tokenizer_->decode(completion);
  line[name + "_tokens"] = completion.size();
  line[name + "_ended"] = !completion.empty() && is_end_token(completion.back(), sampling_);
}

std::vector<double> SampleTable::kl_of(Policy& policy, Policy& reference,
                                       const std::vector<Tokens>& completions) const {
  std::vector<TokenSequence> sequences;
  for (std::size_t i = 0; i < prompts_.size(); ++i) {
    sequences.push_back({.prompt = prompts_[i], .completion = completions[i]});
  }
  const auto batch = make_batch(sequences).to(policy.device());
  // sequence_kl takes its expectation under its second model.
  const auto kls = sequence_kl(reference, policy, batch).cpu();
  const double* first = kls.const_data_ptr<double>();
  return {first, first + kls.numel()};
}

}  // namespace prefopt::detail
