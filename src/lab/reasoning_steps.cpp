// SPDX-License-Identifier: Apache-2.0
#include "lab/reasoning_steps.h"

#include <ATen/core/grad_mode.h>
#include <fmt/format.h>

#include <algorithm>

#include "prefopt/data/tokenizer.h"
#include "prefopt/data/verifiable_task.h"
#include "prefopt/policy/sequence_logps.h"
#include "prefopt/policy/token_rewards.h"

namespace prefopt::lab {
namespace {

constexpr std::size_t kStepTokens = 2;  ///< a digit and what ends the step

bool is_whole(const std::string& prompt, std::string solution) {
  const std::string right = VerifiableTask::solve(prompt);
  if (solution.size() != right.size()) return false;
  solution[right.size() - kStepTokens] = right[right.size() - kStepTokens];
  return VerifiableTask::is_right(prompt, solution);
}

std::vector<TokenSequence> sequences_of(const WrongAnswers& wrong) {
  std::vector<TokenSequence> sequences;
  for (std::size_t i = 0; i < wrong.prompts.size(); ++i) {
    sequences.push_back({wrong.prompts[i], wrong.answers[i]});
  }
  return sequences;
}

std::size_t least_step(const std::vector<double>& of_tokens) {
  std::vector<double> of_steps(of_tokens.size() / kStepTokens);
  for (std::size_t t = 0; t < of_tokens.size(); ++t) of_steps[t / kStepTokens] += of_tokens[t];
  return static_cast<std::size_t>(std::min_element(of_steps.begin(), of_steps.end()) -
                                  of_steps.begin());
}

double found(const WrongAnswers& wrong, const std::vector<std::vector<double>>& of_tokens) {
  double sum = 0;
  for (std::size_t i = 0; i < of_tokens.size(); ++i) {
    sum += least_step(of_tokens[i]) == wrong.first_wrong[i] ? 1 : 0;
  }
  return sum / static_cast<double>(std::max<std::size_t>(of_tokens.size(), 1));
}

}  // namespace

std::size_t first_wrong_step(const std::string& prompt, const std::string& solution) {
  char sum = prompt[0];
  const std::size_t steps = solution.size() / kStepTokens;
  for (std::size_t k = 0; k < steps; ++k) {
    const std::string one_step = fmt::format("{}{}{}:", sum, prompt[2 * k + 1], prompt[2 * k + 2]);
    sum = solution[kStepTokens * k];
    if (VerifiableTask::solve(one_step)[0] != sum) return k;
  }
  return steps;
}

WrongAnswers wrong_answers(const std::vector<std::string>& prompts,
                           const std::vector<std::vector<std::int64_t>>& answers) {
  const ByteTokenizer tokenizer;
  WrongAnswers wrong;
  for (std::size_t i = 0; i < prompts.size(); ++i) {
    const std::string solution = tokenizer.decode(answers[i]);
    if (!is_whole(prompts[i], solution) || VerifiableTask::is_right(prompts[i], solution)) continue;
    wrong.prompts.push_back(tokenizer.encode(prompts[i]));
    wrong.answers.push_back(answers[i]);
    wrong.first_wrong.push_back(first_wrong_step(prompts[i], solution));
  }
  return wrong;
}

double found_by_rewards(const WrongAnswers& wrong, Policy& model, Policy& reference) {
  return found(wrong, implicit_token_rewards(model, reference, sequences_of(wrong), /*beta=*/1));
}

double found_by_logps(const WrongAnswers& wrong, Policy& model) {
  std::vector<std::vector<double>> of_tokens;
  for (const TokenSequence& sequence : sequences_of(wrong)) {
    const at::NoGradGuard no_grad;
    const at::Tensor logps =
        sequence_logps(model, make_batch({sequence})).token_logps.to(at::kDouble).contiguous();
    const double* first = logps.const_data_ptr<double>();
    of_tokens.emplace_back(first, first + logps.numel());
  }
  return found(wrong, of_tokens);
}

}  // namespace prefopt::lab
