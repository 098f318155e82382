// SPDX-License-Identifier: Apache-2.0
#include "cli/score_steps.h"

#include <fmt/format.h>

#include <Eigen/Core>
#include <algorithm>
#include <array>
#include <ostream>
#include <string_view>
#include <utility>
#include <vector>

#include "cli/candidates_file.h"
#include "cli/inputs.h"
#include "core/json.h"
#include "policy/token_range.h"
#include "prefopt/error.h"
#include "prefopt/objectives/steps.h"
#include "prefopt/online/implicit_reward.h"
#include "prefopt/policy/token_rewards.h"

namespace prefopt::cli {
namespace {

using detail::Json;
using Ids = std::vector<std::int64_t>;

constexpr std::array<std::string_view, 4> kAggregates = {"min", "mean", "last", "sum"};

StepAggregate aggregate_of(const ScoreArguments& arguments) {
  const std::string name = arguments.aggregate.value_or("min");
  const auto found = std::find(kAggregates.begin(), kAggregates.end(), name);
  if (found == kAggregates.end()) {
    throw ConfigError(fmt::format("--aggregate: expected min, mean, last or sum, got '{}'", name));
  }
  return static_cast<StepAggregate>(found - kAggregates.begin());
}

void check(const ScoreArguments& arguments) {
  if (arguments.rewards != "steps" && arguments.rewards != "tokens") {
    throw ConfigError(
        fmt::format("--rewards: expected steps or tokens, got '{}'", arguments.rewards));
  }
  if (arguments.reference.empty()) {
    throw ConfigError(
        "--ref: expected the reference that the model was trained with, as rewards are of both, "
        "got none");
  }
  if (arguments.beta && !(*arguments.beta > 0)) {
    throw ConfigError(fmt::format("--beta: expected more than 0, got {}", *arguments.beta));
  }
  const bool has_steps = arguments.rewards == "steps";
  if (arguments.step_end && !has_steps) {
    throw ConfigError("--step-end: expected --rewards steps, got tokens");
  }
  if (arguments.per_token) {
    throw ConfigError("--per-token: expected --rewards tokens in place of it, got both");
  }
  if (arguments.aggregate && arguments.candidates.empty()) {
    throw ConfigError("--aggregate: expected --candidates, which have one reward each, got rows");
  }
  if (names_reward_model(arguments)) {
    throw ConfigError(
        "--rewards: expected a model with log-probs, got a reward model, which scores a whole "
        "text");
  }
}

/// A model and its reference, as rewards of the parts of completions.
class StepScorer {
 public:
  StepScorer(const ScoreArguments& arguments, std::ostream& err)
      : arguments_(arguments),
        err_(err),
        tokenizer_(load_tokenizer(arguments)),
        model_(load_model(arguments, err)),
        reference_(
            Decoder::load(arguments.reference, dtype_for(arguments.reference, arguments.dtype))),
        memory_(row_memory(arguments)) {
    check_same_tokens(*tokenizer_, arguments.reference, !arguments.tokenizer.empty(), err);
  }

  void score_rows(std::ostream& out) const {
    const Dataset dataset =
        read_pairs(arguments_.data, *tokenizer_, options(),
                   {.context_length = model_->options().max_position_embeddings}, memory_, err_);
    check_rows(dataset.pairs, arguments_.data);
    for (std::size_t i = 0; i < dataset.pairs.size(); ++i) {
      const TokenRow& row = dataset.pairs[i];
      const auto of_tokens = token_rewards(
          {{.prompt = row.prompt, .completion = row.chosen, .mask = row.chosen_mask},
           {.prompt = row.prompt, .completion = row.rejected, .mask = row.rejected_mask}});
      Json line{{"chosen_rewards", rewards_of(row.chosen, row.chosen_mask, of_tokens[0])},
                {"rejected_rewards", rewards_of(row.rejected, row.rejected_mask, of_tokens[1])}};
      if (!dataset.report.dropped.empty()) line["line"] = dataset.lines[i];
      out << line.dump() << '\n';
    }
  }

  void score_candidates(std::ostream& out) const {
    const StepAggregate aggregate = aggregate_of(arguments_);
    DataOptions of_rows = options();
    read_candidates(arguments_.candidates, [&](const CandidatesLine& line) {
      if (!line.rewards.empty() || !line.beats.empty()) {
        throw DataError(fmt::format("{}: expected a line without '{}', got one with it", line.where,
                                    line.rewards.empty() ? "beats" : "rewards"));
      }
      std::vector<TokenRow> rows;
      for (const Rollout& rollout : line.rollouts) {
        rows.push_back(row_of(line, rollout, of_rows));
      }
      check_rows(rows, line.where);
      std::vector<TokenSequence> sequences;
      for (const TokenRow& row : rows) {
        sequences.push_back({.prompt = row.prompt, .completion = row.chosen});
      }
      const auto of_tokens = token_rewards(sequences);
      Json rewards = Json::array();
      Json of_steps = Json::array();
      for (std::size_t i = 0; i < rows.size(); ++i) {
        const auto steps = rewards_of(rows[i].chosen, {}, of_tokens[i]);
        of_steps.push_back(steps);
        rewards.push_back(aggregate_steps(array_of(steps), aggregate));
      }
      out << detail::dump_json(json_of(line, rewards, of_steps)) << '\n';
    });
  }

 private:
  static Eigen::ArrayXd array_of(const std::vector<double>& x) {
    return Eigen::Map<const Eigen::ArrayXd>(x.data(), static_cast<Eigen::Index>(x.size()));
  }

  DataOptions options() const {
    return noted_row_options(arguments_.rows, arguments_.chat_format, memory_, RowPart::kAll, err_);
  }

  void check_rows(const std::vector<TokenRow>& rows, const std::string& where) const {
    detail::check_token_range(rows, model_->vocab_size(), where);
    detail::check_row_lengths(rows, *model_, where);
    detail::check_row_lengths(rows, *reference_, where);
  }

  std::vector<std::vector<double>> token_rewards(
      const std::vector<TokenSequence>& sequences) const {
    return implicit_token_rewards(*model_, *reference_, sequences, arguments_.beta.value_or(0.05),
                                  arguments_.batch);
  }

  /// Rewards of steps, or those of tokens as they are. Tokens that do not count have none.
  std::vector<double> rewards_of(const Ids& completion, const TokenMask& mask,
                                 const std::vector<double>& of_tokens) const {
    if (arguments_.rewards == "tokens") return of_tokens;
    Eigen::ArrayXd each = Eigen::ArrayXd::Zero(std::ssize(completion));
    auto next = of_tokens.begin();
    for (std::size_t t = 0; t < completion.size(); ++t) {
      if (mask.empty() || mask[t] != 0) each[static_cast<Eigen::Index>(t)] = *next++;
    }
    const auto ends = step_ends_of(completion, *tokenizer_, arguments_.step_end.value_or("\n\n"));
    const Eigen::ArrayXd sums = step_sums(each, ends, "--rewards");
    return {sums.begin(), sums.end()};
  }

  /// A completion that has not ended gets no end token.
  TokenRow row_of(const CandidatesLine& line, const Rollout& rollout,
                  const DataOptions& options) const {
    PreferenceRow row;
    row.prompt = line.prompt;
    row.chosen = rollout.text;
    row.has_rejected = false;
    DataOptions of_row = options;
    of_row.add_eos = options.add_eos && rollout.ended;
    RowReport report;
    TokenRow tokens = tokenize_row(row, *tokenizer_, of_row, report);
    if (tokens.chosen.empty()) {
      throw DataError(
          fmt::format("{}: expected completions with a token, got an empty one", line.where));
    }
    return tokens;
  }

  static Json json_of(const CandidatesLine& line, const Json& rewards, const Json& of_steps) {
    Json completions = Json::array();
    Json logps = Json::array();
    Json ended = Json::array();
    Json sources = Json::array();
    bool has_sources = false;
    for (const Rollout& rollout : line.rollouts) {
      completions.push_back(rollout.text);
      logps.push_back(rollout.token_logps);
      ended.push_back(rollout.ended);
      sources.push_back(candidate_sources()[static_cast<std::size_t>(rollout.source)]);
      has_sources = has_sources || rollout.source != 0;
    }
    Json json{{"prompt", line.prompt},
              {"completions", completions},
              {"rewards", rewards},
              {"step_rewards", of_steps}};
    if (line.has_lengths) json["token_logps"] = logps;
    if (line.has_ends) json["ended"] = ended;
    if (has_sources) json["sources"] = sources;
    return json;
  }

  const ScoreArguments& arguments_;
  std::ostream& err_;
  std::shared_ptr<const Tokenizer> tokenizer_;
  std::shared_ptr<Decoder> model_, reference_;
  RowMemory memory_;
};

}  // namespace

void score_steps(const ScoreArguments& arguments, std::ostream& out, std::ostream& err) {
  check(arguments);
  const StepScorer scorer(arguments, err);
  if (arguments.candidates.empty()) {
    scorer.score_rows(out);
  } else {
    scorer.score_candidates(out);
  }
}

}  // namespace prefopt::cli
