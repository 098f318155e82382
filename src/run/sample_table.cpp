// SPDX-License-Identifier: Apache-2.0
#include "run/sample_table.h"

#include <ATen/core/grad_mode.h>

#include <algorithm>
#include <cstddef>
#include <limits>
#include <string>
#include <utility>

#include "policy/parameters.h"
#include "prefopt/error.h"
#include "prefopt/policy/sequence_kl.h"

namespace prefopt::detail {
namespace {

constexpr double kNaN = std::numeric_limits<double>::quiet_NaN();

}  // namespace

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
                                    bool with_reference, Meeting& meeting) const {
  // Keys and values of all prompts at once could take any amount of memory.
  constexpr std::int64_t kPart = 16;
  const at::NoGradGuard no_grad;
  const Portion own = portion_of(std::ssize(prompts_), *meeting.ranks());
  Json lines = Json::array();
  for (std::int64_t first = own.begin; first < own.end; first += kPart) {
    const std::int64_t end = std::min(first + kPart, own.end);
    for (Json& line : draw_part(first, end, policy, reference, with_reference)) {
      line["step"] = step;
      lines.push_back(std::move(line));
    }
  }
  Draw draw;
  double kl = 0;
  for (const std::string& of_rank : meeting.texts(dump_json(lines))) {
    for (Json& line : parse_json<Error>(of_rank, "samples")) {
      // JSON has no NaN.
      if (line.contains("kl")) kl += line["kl"].is_number() ? line["kl"].get<double>() : kNaN;
      draw.lines.push_back(std::move(line));
    }
  }
  if (gives_kl(reference)) draw.kl = kl / static_cast<double>(prompts_.size());
  return draw;
}

/// Returns the lines of the prompts at [first, end).
std::vector<Json> SampleTable::draw_part(std::int64_t first, std::int64_t end, Policy& policy,
                                         Policy* reference, bool with_reference) const {
  const std::vector<Tokens> prompts(prompts_.begin() + first, prompts_.begin() + end);
  SamplingOptions sampling = sampling_;
  sampling.first_index += first;
  const auto completions = sample(policy, prompts, sampling);
  std::vector<Json> lines;
  for (std::size_t i = 0; i < prompts.size(); ++i) {
    lines.push_back({{"step", 0},
                     {"index", first + static_cast<std::int64_t>(i)},
                     {"prompt", source_->text_of(prompts[i])}});
    add_completion(lines[i], "policy", completions[i]);
  }
  if (gives_kl(reference)) {
    const auto kls = kl_of(policy, *reference, prompts, completions);
    for (std::size_t i = 0; i < prompts.size(); ++i) lines[i]["kl"] = kls[i];
  }
  if (with_reference && reference != nullptr) {
    // Equal draws of one model need not be made twice.
    const bool is_one_model = have_equal_weights(policy, *reference);
    const auto before = is_one_model ? completions : sample(*reference, prompts, sampling);
    for (std::size_t i = 0; i < prompts.size(); ++i) {
      add_completion(lines[i], "reference", before[i]);
    }
  }
  return lines;
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
