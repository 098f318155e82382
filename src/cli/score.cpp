// SPDX-License-Identifier: Apache-2.0
#include <ATen/core/grad_mode.h>
#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <ostream>

#include "cli/commands.h"
#include "cli/inputs.h"
#include "cli/score_steps.h"
#include "core/json.h"
#include "policy/token_range.h"
#include "prefopt/decoder/decoder.h"
#include "prefopt/decoder/reward_model.h"
#include "prefopt/error.h"
#include "prefopt/evaluation/preferences.h"
#include "prefopt/policy/sequence_logps.h"

namespace prefopt::cli {
namespace {

using detail::Json;

// The token log-probs of consecutive sequences, cut apart again.
std::vector<std::vector<double>> split(const std::vector<double>& flat,
                                       const std::vector<double>& lens) {
  std::vector<std::vector<double>> lists;
  auto next = flat.begin();
  for (const double len : lens) {
    lists.emplace_back(next, next + static_cast<std::ptrdiff_t>(len));
    next += static_cast<std::ptrdiff_t>(len);
  }
  return lists;
}

/// The sign of a NaN says nothing.
double unsigned_nan(double value) { return std::isnan(value) ? std::abs(value) : value; }

/// Names a row where its place among the printed ones says no longer which it is: rows were
/// dropped, as asked, or are from several files.
void add_place(Json& line, const Dataset& dataset, std::size_t pair) {
  if (!dataset.file_of.empty()) line["file"] = dataset.files[dataset.file_of[pair]].path;
  if (!dataset.file_of.empty() || !dataset.report.dropped.empty()) {
    line["line"] = dataset.lines[pair];
  }
}

/// A reward model's rewards, in the same form.
void score_rewards(const ScoreArguments& arguments, std::ostream& out, std::ostream& err) {
  if (arguments.per_token) {
    throw ConfigError(
        "--per-token: expected a model with log-probs, got a reward model, which scores a whole "
        "text");
  }
  const auto tokenizer = load_tokenizer(arguments);
  const auto model = load_reward_model(arguments, *tokenizer, err);
  const RowMemory memory = row_memory(arguments);
  const Dataset dataset = read_pairs(
      arguments.data, *tokenizer,
      noted_row_options(arguments.rows, arguments.chat_format, memory, RowPart::kAll, err),
      {.context_length = model->body().options().max_position_embeddings}, memory, err);
  detail::check_token_range(dataset.pairs, model->vocab_size(), arguments.data);
  detail::check_row_lengths(dataset.pairs, *model, arguments.data);
  const std::vector<PairSums> rewards = pair_rewards(*model, dataset.pairs, arguments.batch);
  for (std::size_t i = 0; i < rewards.size(); ++i) {
    Json line{{"chosen_reward", rewards[i].chosen},
              {"rejected_reward", rewards[i].rejected},
              {"chosen_len", dataset.pairs[i].chosen.size()},
              {"rejected_len", dataset.pairs[i].rejected.size()}};
    add_place(line, dataset, i);
    out << line.dump() << '\n';
  }
}

/// Throws ConfigError for options of --rewards without it.
void check_no_rewards(const ScoreArguments& arguments) {
  const auto refuse = [](std::string_view option, bool is_given) {
    if (!is_given) return;
    throw ConfigError(
        fmt::format("{}: expected --rewards steps or tokens, which it is of, got none", option));
  };
  refuse("--candidates", !arguments.candidates.empty());
  refuse("--ref", !arguments.reference.empty());
  refuse("--beta", arguments.beta.has_value());
  refuse("--step-end", arguments.step_end.has_value());
  refuse("--aggregate", arguments.aggregate.has_value());
}

}  // namespace

void run_score(const ScoreArguments& arguments, std::ostream& out, std::ostream& err) {
  if (arguments.batch < 1) {
    throw ConfigError(fmt::format("--batch: expected at least 1, got {}", arguments.batch));
  }
  if (!arguments.rewards.empty()) return score_steps(arguments, out, err);
  check_no_rewards(arguments);
  if (names_reward_model(arguments)) {
    return score_rewards(arguments, out, err);
  }
  const auto tokenizer = load_tokenizer(arguments);
  const auto policy = load_model(arguments, err);
  const RowMemory memory = row_memory(arguments);
  const Dataset dataset = read_pairs(
      arguments.data, *tokenizer,
      noted_row_options(arguments.rows, arguments.chat_format, memory, RowPart::kAll, err),
      {.context_length = policy->options().max_position_embeddings}, memory, err);
  const std::vector<TokenRow>& pairs = dataset.pairs;
  detail::check_token_range(pairs, policy->vocab_size(), arguments.data);
  detail::check_row_lengths(pairs, *policy, arguments.data);

  const at::NoGradGuard no_grad;
  const auto batch_size = static_cast<std::size_t>(arguments.batch);
  for (std::size_t begin = 0; begin < pairs.size(); begin += batch_size) {
    const std::size_t count = std::min(batch_size, pairs.size() - begin);
    const std::vector<TokenRow> rows(pairs.begin() + static_cast<std::ptrdiff_t>(begin),
                                     pairs.begin() + static_cast<std::ptrdiff_t>(begin + count));
    const SequenceLogps logps = sequence_logps(*policy, make_pair_batch(rows).to(policy->device()));
    const auto sums = values(logps.logps);
    const auto tokens = split(values(logps.token_logps), values(logps.lens));
    for (std::size_t i = 0; i < count; ++i) {
      const std::size_t rejected = count + i;  // chosen sequences come first
      if (!std::isfinite(sums[i]) || !std::isfinite(sums[rejected])) {
        throw NonFiniteError(fmt::format(
            "{}: expected finite log-probs, got {} and {} in row {}; the model's "
            "weights may be broken",
            arguments.model, unsigned_nan(sums[i]), unsigned_nan(sums[rejected]), begin + i + 1));
      }
      Json line{{"chosen_logps", sums[i]},
                {"rejected_logps", sums[rejected]},
                {"chosen_len", tokens[i].size()},
                {"rejected_len", tokens[rejected].size()}};
      add_place(line, dataset, begin + i);
      if (arguments.per_token) {
        line["chosen_token_logps"] = tokens[i];
        line["rejected_token_logps"] = tokens[rejected];
      }
      out << line.dump() << '\n';
    }
  }
}

}  // namespace prefopt::cli
