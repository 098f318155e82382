// SPDX-License-Identifier: Apache-2.0
#include "run/sample_table.h"

#include <ATen/core/grad_mode.h>

#include <algorithm>
#include <cstddef>
#include <string>
#include <utility>

#include "policy/parameters.h"
#include "prefopt/policy/sequence_kl.h"

namespace prefopt::detail {

SampleTable::SampleTable(const RowSource& source, SamplingOptions sampling, Size size)
    : source_(&source), sampling_(std::move(sampling)) {
  sampling_.max_new_tokens = size.tokens;
  sampling_.min_new_tokens = std::min(sampling_.min_new_tokens, size.tokens);
  for (const Tokens& prompt : source.sample_prompts()) {
    if (std::ssize(prompts_) == size.prompts) break;
    const bool known = std::find(prompts_.begin(), prompts_.end(), prompt) != prompts_.end();
    if (!known) prompts_.push_back(prompt);
  }
}

bool SampleTable::gives_kl(const Policy* reference) const {
  return reference != nullptr && follows_policy(sampling_) && !prompts_.empty();
}

SampleTable::Draw SampleTable::draw(std::int64_t step, Policy& policy, Policy* reference,
                                    bool with_reference) const {
  // Keys and values of all prompts at once could take any amount of memory.
  constexpr std::size_t kPart = 16;
  const at::NoGradGuard no_grad;
  Draw draw;
  double kl = 0;
  const bool shows_reference = with_reference && reference != nullptr;
  // Equal draws of one model need not be made twice.
  const bool is_one_model = shows_reference && have_equal_weights(policy, *reference);
  for (std::size_t first = 0; first < prompts_.size(); first += kPart) {
    const auto begin = prompts_.begin() + static_cast<std::ptrdiff_t>(first);
    const auto count = std::min(kPart, prompts_.size() - first);
    const std::vector<Tokens> prompts(begin, begin + static_cast<std::ptrdiff_t>(count));
    SamplingOptions sampling = sampling_;
    sampling.first_index += static_cast<std::int64_t>(first);
    const auto completions = sample(policy, prompts, sampling);
    for (std::size_t i = 0; i < count; ++i) {
      Json line = {{"step", step}, {"index", first + i}, {"prompt", source_->text_of(prompts[i])}};
      add_completion(line, "policy", completions[i]);
      draw.lines.push_back(std::move(line));
    }
    if (gives_kl(reference)) {
      const auto kls = kl_of(policy, *reference, prompts, completions);
      for (std::size_t i = 0; i < count; ++i) {
        draw.lines[first + i]["kl"] = kls[i];
        kl += kls[i];
      }
    }
    if (shows_reference) {
      const auto before = is_one_model ? completions : sample(*reference, prompts, sampling);
      for (std::size_t i = 0; i < count; ++i) {
        add_completion(draw.lines[first + i], "reference", before[i]);
      }
    }
  }
  if (gives_kl(reference)) draw.kl = kl / static_cast<double>(prompts_.size());
  return draw;
}

void SampleTable::add_completion(Json& line, const std::string& name,
                                 const Tokens& completion) const {
  line[name] = source_->text_of(completion);
  line[name + "_tokens"] = completion.size();
  line[name + "_ended"] = has_ended(completion, sampling_);
}

std::vector<double> SampleTable::kl_of(Policy& policy, Policy& reference,
                                       const std::vector<Tokens>& prompts,
                                       const std::vector<Tokens>& completions) {
  std::vector<TokenSequence> sequences;
  for (std::size_t i = 0; i < prompts.size(); ++i) {
    sequences.push_back({.prompt = prompts[i], .completion = completions[i]});
  }
  const auto batch = make_batch(sequences).to(policy.device());
  // sequence_kl takes its expectation under its second model.
  const auto kls = sequence_kl(reference, policy, batch).cpu();
  const double* first = kls.const_data_ptr<double>();
  return {first, first + kls.numel()};
}

}  // namespace prefopt::detail
