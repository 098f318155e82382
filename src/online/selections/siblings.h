// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <map>
#include <string_view>
#include <vector>

#include "online/selections/selection_of.h"
#include "prefopt/online/step_tree.h"

namespace prefopt::detail {

/// The decision points of a tree that give a pair.
enum class TreePoints { kAll, kBestPath };

/// How sure a pair of steps is.
enum class StepLabels { kHard, kVisits };

struct SiblingsOptions {
  TreePoints points = TreePoints::kAll;
  StepLabels labels = StepLabels::kVisits;
  double min_gap = 0;
  std::int64_t min_visits = 1;

  void fields(FieldVisitor& v) {
    v.choice({"points", "decision points: all of the tree, or those on the way to the best end"},
             points, {"all", "best_path"});
    v.choice({"labels",
              "visits: column label_prob = max(1/2, 1 / (1 + N_l / max(1, N_w))); hard: no column"},
             labels, {"hard", "visits"});
    v.real({"min_gap", "least difference of the values"}, min_gap, Range::at_least(0));
    v.integer({"min_visits", "visits of a step that is compared"}, min_visits, Range::at_least(0));
  }
};

/// At a decision point of a search, the step of the largest value against that of the smallest.
/// MCTS-DPO (2405.00451): all points, labels by visits. Step-level Q-values (2409.09345): the
/// points on the best path, hard labels. Equal values give no pair.
class SiblingsSelection final : public SelectionOf<SiblingsSelection, SiblingsOptions> {
 public:
  using SelectionOf::SelectionOf;
  static constexpr std::string_view kName = "siblings";
  static constexpr std::string_view kRows =
      "the best and the worst step at decision points of a tree";

  Questions questions() const override { return Questions::kNone; }
  bool takes_steps() const override { return true; }

  SelectedRows select(Rater& rater, exact::Random& /*random*/) const override {
    SelectedRows result;
    for (const auto& [parent, steps] : points_of(rater)) add_pair(rater, steps, result);
    return result;
  }

 private:
  using Places = std::vector<std::int64_t>;

  /// The steps that may be compared, by the node that they follow.
  std::map<std::int64_t, Places> points_of(const Rater& rater) const {
    std::map<std::int64_t, Places> points;
    std::map<std::int64_t, bool> is_on_path;
    for (std::int64_t i = 0; i < rater.size(); ++i) {
      const StepPlace& step = rater.rollout(i).step;
      if (step.node < 0) {
        throw ConfigError(
            "siblings: expected steps of a source 'tree', got a completion of another source");
      }
      if (step.is_best) is_on_path[step.parent] = true;
      if (!step.is_dead && step.visits >= options_.min_visits) points[step.parent].push_back(i);
    }
    if (options_.points == TreePoints::kBestPath) {
      std::erase_if(points, [&](const auto& point) { return !is_on_path.contains(point.first); });
    }
    return points;
  }

  void add_pair(const Rater& rater, const Places& steps, SelectedRows& result) const {
    const auto value = [&](std::int64_t place) { return rater.rollout(place).step.value; };
    std::int64_t best = steps.front();
    std::int64_t worst = steps.front();
    for (const std::int64_t place : steps) {
      if (value(place) > value(best)) best = place;
      if (value(place) < value(worst)) worst = place;
    }
    if (steps.size() < 2) return;
    if (value(best) == value(worst) || value(best) - value(worst) < options_.min_gap) {
      ++result.ties;
      return;
    }
    SelectedRow row{.chosen = best, .rejected = worst};
    if (options_.labels == StepLabels::kVisits) {
      row.label_prob =
          visit_label_prob(rater.rollout(best).step.visits, rater.rollout(worst).step.visits);
    }
    result.rows.push_back(row);
  }
};

}  // namespace prefopt::detail
