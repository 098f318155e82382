// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "prefopt/export.h"
#include "prefopt/options.h"

namespace prefopt {

/// How a search chooses among the steps that follow a state.
enum class TreeRule {
  kPuct,  ///< largest Q + w p √N_parent / (1 + N) (MCTS-DPO, 2405.00451)
  kUct    ///< largest Q + w √(2 ln N_parent / N), steps without a visit first (2409.09345)
};

/// How the end of a path changes the values on it.
enum class BackUp {
  /// Q = r + γ V, V = Σ max(1, N) Q / Σ max(1, N) over the steps that follow (MCTS-DPO).
  kTransition,
  kMean  ///< N ← N + 1, Q ← Q + (R − Q) / N with the end's reward R (2409.09345)
};

struct StepTreeOptions {
  TreeRule rule = TreeRule::kPuct;
  double exploration = 1;      ///< w of the rule
  double prior_length = 1.25;  ///< λ of step_prior
  BackUp back_up = BackUp::kTransition;
  double discount = 1;  ///< γ of the transition

  PREFOPT_API void fields(FieldVisitor& v);
};

/// Returns Q + w p √N_parent / (1 + N), for w = 0 simply Q. Source: 2405.00451, section 2 (v2); the
/// number of the equation is not confirmed.
PREFOPT_API double puct(double q, double prior, std::int64_t visits, std::int64_t parent_visits,
                        double exploration);

/// Returns Q + w √(2 ln N_parent / N); infinite for N = 0. The paper's w is 1 (2409.09345, equation
/// not confirmed; the authors' code likewise).
PREFOPT_API double uct(double q, std::int64_t visits, std::int64_t parent_visits,
                       double exploration);

/// Returns exp(Σ log π / length^λ) of a step's tokens, in nats; the mean where λ = 1. The authors'
/// code of 2405.00451 has this with λ = 1.25, and the paper writes π / length^λ.
PREFOPT_API double step_prior(const std::vector<double>& token_logps, double length_power);

/// Returns max(½, 1 / (1 + N_l / max(1, N_w))), the probability that the label of two steps with
/// N_w and N_l visits is right: 1 less the smoothing of 2405.00451 (equation not confirmed). The
/// limit at ½ is of the authors' code; without it a loser that was visited more would flip the
/// pair.
PREFOPT_API double visit_label_prob(std::int64_t chosen_visits, std::int64_t rejected_visits);

/// A step, and the state after it. The first node of a tree is the prompt.
struct StepNode {
  std::int64_t parent = -1;
  std::int64_t depth = 0;  ///< steps from the prompt
  std::vector<std::int64_t> tokens = {};
  std::string text = {};                 ///< of the tokens
  std::vector<double> token_logps = {};  ///< of the policy, nats
  double prior = 1;
  bool is_end = false;    ///< nothing follows
  bool ended = false;     ///< its last token is an end token
  bool is_rated = false;  ///< an end whose reward was asked for
  double reward = 0;      ///< r, of the state; NaN: nobody could say
  std::int64_t visits = 0;
  double value = 0;  ///< Q
  std::vector<std::int64_t> children = {};
  bool is_dead = false;  ///< no rated end can be reached
};

/// A tree of steps that follow a prompt: the statistics of a Monte Carlo tree search, without the
/// model. Nodes are in the order in which they were added, so the same calls give the same tree.
class PREFOPT_API StepTree {
 public:
  /// Throws ShapeError for an empty prompt. `number` tells trees of one search apart.
  StepTree(std::vector<std::int64_t> prompt, std::string prompt_text, std::int64_t number = 0);
  /// Returns a tree of saved nodes. Throws DataError, led by `where`, for nodes that make no tree.
  static StepTree of_nodes(std::vector<std::int64_t> prompt, std::string prompt_text,
                           std::int64_t number, std::vector<StepNode> nodes,
                           const std::string& where);

  const std::vector<std::int64_t>& prompt() const { return prompt_; }
  const std::string& prompt_text() const { return prompt_text_; }
  std::int64_t number() const { return number_; }
  const std::vector<StepNode>& nodes() const { return nodes_; }
  const StepNode& node(std::int64_t place) const {
    return nodes_.at(static_cast<std::size_t>(place));
  }
  bool is_live() const { return !nodes_.front().is_dead; }

  /// Returns the tokens of all steps from the prompt to the state after a node.
  std::vector<std::int64_t> path_tokens(std::int64_t place) const;
  /// Returns the prompt's text and those of the steps.
  std::string context_text(std::int64_t place) const;
  /// Returns the prompt and those tokens.
  std::vector<std::int64_t> context(std::int64_t place) const;

  /// Returns the end, or the state without following steps, that the rule leads to from `from`
  /// through live nodes. Of equal scores the larger prior counts, then the first one.
  std::int64_t select(const StepTreeOptions& options, std::int64_t from = 0) const;
  /// Adds steps that follow a state; those with the tokens of one before are left out. Their
  /// parent, depth and prior are set. Returns how many were added.
  std::int64_t expand(std::int64_t place, std::vector<StepNode> steps,
                      const StepTreeOptions& options);
  /// Sets the reward of a state: of an end, or an estimate. NaN makes an end dead.
  void rate(std::int64_t place, double reward);
  /// Counts a visit of an end and moves the values on its path. A dead end only dies: states that
  /// lead to dead ends alone are dead too.
  void back_up(std::int64_t place, const StepTreeOptions& options);

  std::int64_t iterations() const { return iterations_; }
  void finish_iteration() { ++iterations_; }
  std::int64_t drawn_tokens() const { return drawn_tokens_; }
  void count_drawn(std::int64_t tokens) { drawn_tokens_ += tokens; }
  void set_progress(std::int64_t iterations, std::int64_t drawn_tokens);
  /// The options of the search that the tree is of, JSON; empty before its first iteration.
  const std::string& search() const { return search_; }
  void set_search(std::string options) { search_ = std::move(options); }

  /// Returns the nodes on the way to the best end: largest reward, of equal ones largest value of
  /// the first step that differs, then the first. Empty without a rated end.
  std::vector<std::int64_t> best_path() const;

 private:
  double score(const StepNode& child, const StepNode& parent, const StepTreeOptions& options) const;
  double mean_of_children(const StepNode& node) const;
  void spread_death(std::int64_t place);

  std::vector<std::int64_t> prompt_;
  std::string prompt_text_;
  std::int64_t number_;
  std::vector<StepNode> nodes_;
  std::int64_t iterations_ = 0;
  std::int64_t drawn_tokens_ = 0;
  std::string search_;
};

/// Writes trees as JSONL, one a line, in place of a file that is there. Throws DataError if it
/// cannot be written.
///
/// A line: `prompt`, `prompt_ids`, `number`, `search`, `iterations`, `drawn_tokens`, and `nodes`,
/// of which the first is the prompt. A node: `parent`, `ids`, `text`, `logps`, `prior`, `end`,
/// `ended`, `visits`, `value`, and `reward` (null: nobody could say; absent: not asked).
PREFOPT_API void save_trees(const std::vector<StepTree>& trees, const std::string& path);

/// Returns the trees of such a file, to the last bit. Throws DataError, led by file and line, for a
/// line that is no such object, an unknown key, and nodes that make no tree.
PREFOPT_API std::vector<StepTree> load_trees(const std::string& path);

}  // namespace prefopt
