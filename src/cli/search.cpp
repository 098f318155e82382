// SPDX-License-Identifier: Apache-2.0
#include <fmt/format.h>

#include <algorithm>
#include <filesystem>
#include <memory>
#include <ostream>
#include <string>
#include <system_error>
#include <utility>
#include <vector>

#include "cli/commands.h"
#include "cli/inputs.h"
#include "core/json.h"
#include "prefopt/data/prompts.h"
#include "prefopt/error.h"
#include "prefopt/online/feedback.h"
#include "prefopt/online/tree_search.h"
#include "prefopt/options.h"

namespace prefopt::cli {
namespace {

std::vector<StepTree> new_trees(const std::vector<prefopt::Prompt>& prompts) {
  std::vector<StepTree> trees;
  for (const prefopt::Prompt& prompt : prompts)
    trees.emplace_back(prompt.ids, prompt.text, std::ssize(trees));
  return trees;
}

/// Throws DataError for a file whose trees are not those of the prompts.
void check_prompts(const std::vector<StepTree>& trees, const std::vector<prefopt::Prompt>& prompts,
                   const std::string& path) {
  const bool is_same = std::equal(trees.begin(), trees.end(), prompts.begin(), prompts.end(),
                                  [](const StepTree& tree, const prefopt::Prompt& prompt) {
                                    return tree.prompt() == prompt.ids;
                                  });
  if (is_same) return;
  throw DataError(fmt::format(
      "{}: expected the trees of the {} prompts of --data, got others; name another --output", path,
      prompts.size()));
}

std::unique_ptr<Preference> reward_of(const SearchArguments& arguments) {
  const detail::Json options = {
      {"reward", detail::parse_json<ConfigError>(read_json_argument(arguments.reward), "--reward")},
      {"workers", arguments.workers}};
  return make_feedback(options_from_json<FeedbackOptions>(detail::dump_json(options), "--reward"));
}

}  // namespace

void run_search(const SearchArguments& arguments, std::ostream& err) {
  if (arguments.iterations < 0 || arguments.save_every < 1) {
    throw ConfigError(fmt::format(
        "search: expected --iterations of at least 0 and --save-every of at least 1, got {} and {}",
        arguments.iterations, arguments.save_every));
  }
  const auto tokenizer = load_tokenizer(arguments);
  const auto policy = load_model(arguments, err);
  SamplingOptions sampling{.max_new_tokens = arguments.max_new_tokens,
                           .temperature = arguments.temperature,
                           .top_k = arguments.top_k,
                           .top_p = arguments.top_p,
                           .seed = arguments.seed,
                           .stop = arguments.stop};
  sampling = with_end_tokens(checked(sampling, "search"), arguments.end_tokens, *policy, *tokenizer,
                             arguments.chat_format);
  const auto prompts =
      load_prompts(arguments.data, *tokenizer,
                   noted_row_options(arguments.rows, arguments.chat_format, row_memory(arguments),
                                     RowPart::kPrompts, err));
  const auto options =
      options_from_json<TreeSearchOptions>(read_json_argument(arguments.tree), "--tree");
  const auto feedback = reward_of(arguments);
  const TreeSearch search(
      options, sampling, tokenizer,
      [&](const std::vector<const Rollout*>& ends) { return feedback->rewards(ends); },
      options.self_evaluation.question.empty()
          ? StateValues()
          : self_evaluation(options.self_evaluation, tokenizer));

  std::error_code ignored;
  std::vector<StepTree> trees = std::filesystem::exists(arguments.output, ignored)
                                    ? load_trees(arguments.output)
                                    : new_trees(prompts);
  check_prompts(trees, prompts, arguments.output);
  try {
    search.check_search(trees);
  } catch (const ConfigError& error) {
    throw ConfigError(fmt::format("{}: {}", arguments.output, error.what()));
  }
  std::int64_t left = arguments.iterations == 0 ? options.iterations : arguments.iterations;
  const auto is_done = [&] {
    return std::all_of(trees.begin(), trees.end(),
                       [&](const StepTree& tree) { return search.is_done(tree); });
  };
  while (left > 0 && !is_done()) {
    const std::int64_t part = std::min(left, arguments.save_every);
    search.run(*policy, trees, part);
    save_trees(trees, arguments.output);
    left -= part;
  }
  std::int64_t iterations = 0;
  std::int64_t tokens = 0;
  for (const StepTree& tree : trees) {
    iterations += tree.iterations();
    tokens += tree.drawn_tokens();
  }
  err << fmt::format("prefopt: search: {} iterations of {} prompts, {} tokens drawn, {}\n",
                     iterations, trees.size(), tokens, is_done() ? "done" : "not done");
}

}  // namespace prefopt::cli
