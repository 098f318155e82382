// SPDX-License-Identifier: Apache-2.0
#include <fmt/format.h>

#include <cmath>
#include <optional>
#include <ostream>
#include <string>
#include <string_view>

#include "cli/candidates_file.h"
#include "cli/commands.h"
#include "cli/inputs.h"
#include "core/file.h"
#include "core/json.h"
#include "core/random.h"
#include "prefopt/error.h"
#include "prefopt/online/selection.h"
#include "prefopt/online/step_tree.h"
#include "prefopt/online/tree_search.h"

namespace prefopt::cli {
namespace {

using detail::Json;

/// Sums over prompts, of what a selection leaves out and of what it makes.
struct PairCounts {
  std::int64_t prompts = 0, empty_prompts = 0, rows = 0;
  SelectedRows left_out = {};

  void add(const SelectedRows& selected) {
    ++prompts;
    empty_prompts += selected.rows.empty() ? 1 : 0;
    rows += std::ssize(selected.rows);
    left_out.ties += selected.ties;
    left_out.identical += selected.identical;
    left_out.failed += selected.failed;
    left_out.unusable += selected.unusable;
    left_out.missing += selected.missing;
  }

  std::string summary() const {
    return fmt::format(
        "prefopt: pairs: {} rows of {} prompts; prompts without rows {}, ties {}, identical {}, "
        "failed {}, unusable {}, missing {}",
        rows, prompts, empty_prompts, left_out.ties, left_out.identical, left_out.failed,
        left_out.unusable, left_out.missing);
  }
};

void add_column(Json& json, const char* key, const std::optional<double>& value) {
  if (value) json[key] = *value;
}

Json json_of(const SelectedRow& row, const CandidatesLine& line) {
  const auto text = [&](std::int64_t place) {
    return line.rollouts[static_cast<std::size_t>(place)].text;
  };
  const bool is_pair = row.rejected >= 0;
  Json json{{"prompt", line.prompt}, {is_pair ? "chosen" : "completion", text(row.chosen)}};
  if (is_pair) json["rejected"] = text(row.rejected);
  add_column(json, "label_prob", row.label_prob);
  add_column(json, "chosen_win_rate", row.chosen_win_rate);
  add_column(json, "rejected_win_rate", row.rejected_win_rate);
  add_column(json, "advantage", row.advantage);
  add_column(json, "weight", row.weight);
  json[is_pair ? "chosen_index" : "index"] = row.chosen;
  if (is_pair) json["rejected_index"] = row.rejected;
  return json;
}

RaterOptions rater_options_of(const PairsArguments& arguments) {
  RaterOptions options{.missing_eos_penalty = arguments.missing_eos_penalty,
                       .length_penalty = arguments.length_penalty};
  if (arguments.unfinished == "loses") {
    options.unfinished = Unfinished::kLoses;
  } else if (arguments.unfinished != "as_judged") {
    throw ConfigError(
        fmt::format("--unfinished: expected as_judged or loses, got '{}'", arguments.unfinished));
  }
  return options;
}

/// Returns the name of an option given that rewards alone have, or an empty one.
std::string_view option_of_rewards(const PairsArguments& arguments) {
  const PairsArguments usual;
  if (arguments.missing_eos_penalty != usual.missing_eos_penalty) return "--missing-eos-penalty";
  if (arguments.length_penalty != usual.length_penalty) return "--length-penalty";
  return arguments.temperature != usual.temperature ? "--temperature" : "";
}

/// Returns the name of an option given that feedback has, or an empty one.
std::string_view option_of_feedback(const PairsArguments& arguments) {
  const bool is_usual = arguments.unfinished == PairsArguments().unfinished;
  return is_usual ? option_of_rewards(arguments) : "--unfinished";
}

/// Refuses a line that lacks what the selection or an option reads.
void check_line(const CandidatesLine& line, const Selection& selection,
                const PairsArguments& arguments) {
  const bool is_rated = !line.rewards.empty() || !line.beats.empty();
  if (!is_rated && selection.questions() != Questions::kNone) {
    throw DataError(
        fmt::format("{}: expected a key 'rewards' or 'beats', got a line without", line.where));
  }
  const std::string_view of_rewards = option_of_rewards(arguments);
  if (!of_rewards.empty() && !line.beats.empty()) {
    throw DataError(fmt::format("{}: expected a key 'rewards', which {} is about, got 'beats'",
                                line.where, of_rewards));
  }
  const bool reads_ends = arguments.missing_eos_penalty != 0 || arguments.unfinished != "as_judged";
  if (reads_ends && !line.has_ends) {
    throw DataError(
        fmt::format("{}: expected a key 'ended', which {} needs, got a line without", line.where,
                    arguments.missing_eos_penalty != 0 ? "--missing-eos-penalty" : "--unfinished"));
  }
  if (arguments.length_penalty != 0 && !line.has_lengths) {
    throw DataError(
        fmt::format("{}: expected a key 'token_logps', which --length-penalty needs, got a line "
                    "without",
                    line.where));
  }
}

/// Returns the rows of a tree's steps, by their tokens.
std::string rows_of_tree(const StepTree& tree, const Selection& selection, exact::Random& random,
                         PairCounts& counts) {
  class Silent final : public Preference {
   public:
    std::vector<double> beats(const std::vector<Comparison>& comparisons) override {
      return std::vector<double>(comparisons.size(), std::nan(""));
    }
  } silent;
  const std::vector<Rollout> steps = step_rollouts(tree);
  Rater rater(silent, steps);
  const SelectedRows selected = selection.select(rater, random);
  counts.add(selected);
  std::string rows;
  for (const SelectedRow& row : selected.rows) {
    const Rollout& chosen = steps[static_cast<std::size_t>(row.chosen)];
    Json json{{"prompt_ids", chosen.prompt},
              {"chosen_ids", chosen.completion},
              {"rejected_ids", steps[static_cast<std::size_t>(row.rejected)].completion}};
    add_column(json, "label_prob", row.label_prob);
    rows += detail::dump_json(json) + '\n';
  }
  return rows;
}

std::string rows_of_trees(const PairsArguments& arguments, const Selection& selection,
                          PairCounts& counts) {
  if (!selection.takes_steps()) {
    throw ConfigError(fmt::format(
        "--trees: expected a selection that pairs steps, 'siblings', got {}", selection.config()));
  }
  if (!option_of_feedback(arguments).empty()) {
    throw ConfigError(
        "--trees: expected no option of feedback, as trees are rated, got one; it would do "
        "nothing");
  }
  std::string rows;
  for (const StepTree& tree : load_trees(arguments.trees)) {
    exact::Random random(splitmix64(static_cast<std::uint64_t>(arguments.seed)) +
                         static_cast<std::uint64_t>(counts.prompts));
    rows += rows_of_tree(tree, selection, random, counts);
  }
  return rows;
}

void write_rows(const PairsArguments& arguments, const std::string& rows, const PairCounts& counts,
                std::ostream& out, std::ostream& err) {
  // All at once: an error leaves no half of a file.
  if (arguments.output.empty()) {
    out << rows;
  } else {
    detail::write_file<DataError>(arguments.output, rows);
  }
  err << counts.summary() << '\n';
}

}  // namespace

void run_pairs(const PairsArguments& arguments, std::ostream& out, std::ostream& err) {
  const auto selection = make_selection(read_json_argument(arguments.select), candidate_sources());
  const RaterOptions options = rater_options_of(arguments);
  PairCounts counts;
  if (!arguments.trees.empty()) {
    const std::string of_trees = rows_of_trees(arguments, *selection, counts);
    return write_rows(arguments, of_trees, counts, out, err);
  }
  const std::string_view of_feedback = option_of_feedback(arguments);
  if (!of_feedback.empty() && selection->questions() == Questions::kNone) {
    throw ConfigError(
        fmt::format("{}: expected a selection that asks for feedback, got {}; it would do nothing",
                    of_feedback, selection->config()));
  }
  std::string rows;
  read_candidates(arguments.candidates, [&](const CandidatesLine& line) {
    check_line(line, *selection, arguments);
    LinePreference preference(line, arguments.temperature);
    Rater rater(preference, line.rollouts, options);
    exact::Random random(splitmix64(static_cast<std::uint64_t>(arguments.seed)) +
                         static_cast<std::uint64_t>(counts.prompts));
    try {
      const SelectedRows selected = selection->select(rater, random);
      for (const SelectedRow& row : selected.rows) {
        rows += detail::dump_json(json_of(row, line)) + '\n';
      }
      counts.add(selected);
    } catch (const ConfigError& error) {
      throw ConfigError(fmt::format("{}: {}", line.where, error.what()));
    }
  });
  write_rows(arguments, rows, counts, out, err);
}

}  // namespace prefopt::cli
