// SPDX-License-Identifier: Apache-2.0
#include "prefopt/online/step_choice.h"

#include <ATen/core/grad_mode.h>
#include <fmt/format.h>

#include <algorithm>
#include <utility>

#include "online/draw_seed.h"
#include "online/step_sampling.h"
#include "prefopt/error.h"
#include "prefopt/policy/sequence_logps.h"

namespace prefopt {
namespace {

using Tokens = std::vector<std::int64_t>;

/// Returns the log-probs of each candidate's tokens. A call for each prompt, so that no other one
/// changes the order of its sums.
std::vector<std::vector<double>> logps_of(Policy& model, const Tokens& context,
                                          const std::vector<Tokens>& candidates) {
  const at::NoGradGuard no_grad;
  std::vector<TokenSequence> sequences;
  for (const Tokens& candidate : candidates) sequences.push_back({context, candidate});
  const at::Tensor all = sequence_logps(model, make_batch(sequences).to(model.device()))
                             .token_logps.cpu()
                             .to(at::kDouble);
  const double* next = all.const_data_ptr<double>();
  std::vector<std::vector<double>> logps;
  for (const Tokens& candidate : candidates) {
    logps.emplace_back(next, next + candidate.size());
    next += candidate.size();
  }
  return logps;
}

/// Appends the candidate of the largest Q.
void append_best(Policy& policy, Policy& reference, const Tokens& context,
                 const std::vector<Tokens>& candidates, double beta, ChosenSteps& chosen) {
  const auto logps = logps_of(policy, context, candidates);
  const auto ref_logps = logps_of(reference, context, candidates);
  std::size_t best = 0;
  double most = 0;
  for (std::size_t k = 0; k < candidates.size(); ++k) {
    const double q = step_q(logps[k], ref_logps[k], beta);
    if (k > 0 && q <= most) continue;
    best = k;
    most = q;
  }
  chosen.completion.insert(chosen.completion.end(), candidates[best].begin(),
                           candidates[best].end());
  chosen.step_ends.push_back(std::ssize(chosen.completion));
  chosen.qs.push_back(most);
}

}  // namespace

double step_q(std::span<const double> logps, std::span<const double> ref_logps, double beta) {
  if (logps.size() != ref_logps.size()) {
    throw ShapeError(
        fmt::format("step_q: expected as many reference log-probs as log-probs, {}, "
                    "got {}",
                    logps.size(), ref_logps.size()));
  }
  double sum = 0;
  for (std::size_t t = 0; t < logps.size(); ++t) sum += logps[t] - ref_logps[t];
  return beta * sum;
}

void StepChoiceOptions::fields(FieldVisitor& v) {
  v.text({"step_end", "Text that ends a step; empty: step_tokens alone does", {"separator"}},
         step_end);
  v.integer({"step_tokens", "Tokens of a step at most"}, step_tokens, Range::between(1, 1e9));
  v.integer({"candidates", "Steps to choose from"}, candidates, Range::between(1, 4096));
  v.real({"beta", "beta of the DPO loss that the policy was trained with"}, beta, Range::above(0));
}

std::vector<ChosenSteps> choose_steps(Policy& sampler, Policy& policy, Policy& reference,
                                      const std::vector<Tokens>& prompts,
                                      const StepChoiceOptions& options, SamplingOptions sampling) {
  checked(options, "step choice");
  if (policy.vocab_size() != sampler.vocab_size() ||
      reference.vocab_size() != sampler.vocab_size()) {
    throw ConfigError(fmt::format(
        "step choice: expected one vocabulary of sampler, policy and reference, got {}, {} and {} "
        "tokens",
        sampler.vocab_size(), policy.vocab_size(), reference.vocab_size()));
  }
  const SamplingOptions of_step =
      detail::step_sampling(sampling, options.step_end, options.step_tokens, "step choice");
  std::vector<ChosenSteps> chosen(prompts.size());
  std::vector<std::size_t> live(prompts.size());
  for (std::size_t i = 0; i < live.size(); ++i) live[i] = i;
  for (std::int64_t step = 0; !live.empty(); ++step) {
    std::vector<Tokens> contexts;
    SamplingOptions draws = of_step;
    for (const std::size_t i : live) {
      Tokens context = prompts[i];
      context.insert(context.end(), chosen[i].completion.begin(), chosen[i].completion.end());
      const auto number = sampling.first_index + static_cast<std::int64_t>(i);
      for (std::int64_t k = 0; k < options.candidates; ++k) {
        contexts.push_back(context);
        draws.indices.push_back(detail::draw_seed(number, {step, k}));
      }
    }
    std::vector<Tokens> drawn = sample(sampler, contexts, draws);
    const auto each = static_cast<std::size_t>(options.candidates);
    for (std::size_t row = 0; row < live.size(); ++row) {
      ChosenSteps& of = chosen[live[row]];
      const auto room = sampling.max_new_tokens - std::ssize(of.completion);
      std::vector<Tokens> candidates(drawn.begin() + static_cast<std::ptrdiff_t>(row * each),
                                     drawn.begin() + static_cast<std::ptrdiff_t>((row + 1) * each));
      for (Tokens& candidate : candidates) {
        candidate.resize(static_cast<std::size_t>(std::min(std::ssize(candidate), room)));
      }
      append_best(policy, reference, contexts[row * each], candidates, options.beta, of);
    }
    std::erase_if(live, [&](std::size_t i) {
      return std::ssize(chosen[i].completion) == sampling.max_new_tokens ||
             has_ended(chosen[i].completion, sampling);
    });
  }
  return chosen;
}

}  // namespace prefopt
