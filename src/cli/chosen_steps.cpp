// SPDX-License-Identifier: Apache-2.0
#include "cli/chosen_steps.h"

#include <fmt/format.h>

#include <algorithm>
#include <memory>
#include <ostream>
#include <utility>

#include "cli/inputs.h"
#include "core/json.h"
#include "prefopt/error.h"
#include "prefopt/online/step_choice.h"

namespace prefopt::cli {

void check_step_choice(const GenerateArguments& arguments) {
  if (arguments.choose_steps < 0) {
    throw ConfigError(
        fmt::format("--choose-steps: expected at least 0, got {}", arguments.choose_steps));
  }
  const bool has_model = !arguments.q_model.empty();
  if (arguments.choose_steps > 0 && !has_model) {
    throw ConfigError("--choose-steps: expected a --q-model whose Q chooses, got none");
  }
  if (arguments.choose_steps == 0 && (has_model || !arguments.q_ref.empty())) {
    throw ConfigError("--q-model: expected --choose-steps above 0, got 0");
  }
  if (arguments.choose_steps == 0 && arguments.step_tokens) {
    throw ConfigError("--step-tokens: expected --choose-steps above 0, got 0");
  }
  if (arguments.choose_steps > 0 && (arguments.candidates || arguments.samples > 1)) {
    throw ConfigError(
        "--choose-steps: expected one completion a prompt, got --candidates or --samples");
  }
  if (arguments.choose_steps > 0 && !(arguments.guides.empty() && arguments.value.empty())) {
    throw ConfigError(
        "--choose-steps: expected steps of the model alone, chosen by Q, got --guide or --value");
  }
}

void print_chosen_steps(const GenerateArguments& arguments, Decoder& sampler,
                        const Tokenizer& tokenizer,
                        const std::vector<std::vector<std::int64_t>>& prompts,
                        const SamplingOptions& sampling, std::ostream& out, std::ostream& err) {
  constexpr std::size_t kAtOnce = 16;
  const auto load = [&](const std::string& path) {
    ModelArguments of = arguments;
    of.model = path;
    of.adapter.clear();
    check_same_tokens(tokenizer, path, !arguments.tokenizer.empty(), err);
    return load_model(of, err);
  };
  const std::shared_ptr<Decoder> model = load(arguments.q_model);
  const std::shared_ptr<Decoder> loaded = arguments.q_ref.empty() ? nullptr : load(arguments.q_ref);
  Decoder& reference = loaded ? *loaded : sampler;
  const StepChoiceOptions options{.step_end = arguments.step_end.value_or("\n"),
                                  .step_tokens = arguments.step_tokens.value_or(64),
                                  .candidates = arguments.choose_steps};
  SamplingOptions of_part = sampling;
  for (std::size_t first = 0; first < prompts.size(); first += kAtOnce) {
    const std::vector<std::vector<std::int64_t>> part(
        prompts.begin() + static_cast<std::ptrdiff_t>(first),
        prompts.begin() + static_cast<std::ptrdiff_t>(std::min(first + kAtOnce, prompts.size())));
    of_part.first_index = static_cast<std::int64_t>(first);
    const auto chosen = choose_steps(sampler, *model, reference, part, options, of_part);
    for (std::size_t i = 0; i < chosen.size(); ++i) {
      const std::string completion = tokenizer.decode_part(chosen[i].completion, part[i]);
      if (!arguments.json) {
        out << completion << '\n';
        continue;
      }
      const detail::Json line{{"prompt", tokenizer.decode(part[i])},
                              {"completion", completion},
                              {"ids", chosen[i].completion},
                              {"step_ends", chosen[i].step_ends},
                              {"qs", chosen[i].qs}};
      out << detail::dump_json(line) << '\n';
    }
  }
}

}  // namespace prefopt::cli
