// SPDX-License-Identifier: Apache-2.0
#include "prefopt/online/step_tree.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <utility>

#include "prefopt/error.h"

namespace prefopt {

void StepTreeOptions::fields(FieldVisitor& v) {
  v.choice({"rule", "How a search chooses among steps"}, rule, {"puct", "uct"});
  v.real({"exploration", "w of the rule; 0: the largest Q"}, exploration, Range::at_least(0));
  v.real({"prior_length", "Power of a step's length that divides its log-prob in the prior"},
         prior_length, Range::at_least(0));
  v.choice({"back_up", "transition: Q = r + gamma V; mean: Q = mean of the ends' rewards"}, back_up,
           {"transition", "mean"});
  v.real({"discount", "gamma of the transition"}, discount, Range::between(0, 1));
}

double puct(double q, double prior, std::int64_t visits, std::int64_t parent_visits,
            double exploration) {
  const double spread = std::sqrt(static_cast<double>(parent_visits));
  return q + exploration * prior * spread / (1 + static_cast<double>(visits));
}

double uct(double q, std::int64_t visits, std::int64_t parent_visits, double exploration) {
  if (visits == 0) return std::numeric_limits<double>::infinity();
  const double logarithm = std::log(static_cast<double>(parent_visits));
  return q + exploration * std::sqrt(2 * logarithm / static_cast<double>(visits));
}

double step_prior(const std::vector<double>& token_logps, double length_power) {
  if (token_logps.empty()) return 1;
  const double sum = std::accumulate(token_logps.begin(), token_logps.end(), 0.0);
  return std::exp(sum / std::pow(static_cast<double>(token_logps.size()), length_power));
}

double visit_label_prob(std::int64_t chosen_visits, std::int64_t rejected_visits) {
  const auto chosen = static_cast<double>(std::max<std::int64_t>(1, chosen_visits));
  return std::max(0.5, 1 / (1 + static_cast<double>(rejected_visits) / chosen));
}

StepTree::StepTree(std::vector<std::int64_t> prompt, std::string prompt_text, std::int64_t number)
    : prompt_(std::move(prompt)), prompt_text_(std::move(prompt_text)), number_(number), nodes_(1) {
  if (prompt_.empty())
    throw ShapeError("StepTree: expected a prompt of at least one token, got none");
}

StepTree StepTree::of_nodes(std::vector<std::int64_t> prompt, std::string prompt_text,
                            std::int64_t number, std::vector<StepNode> nodes,
                            const std::string& where) {
  const auto refuse = [&](std::size_t place, std::string_view expected, std::int64_t got) {
    throw DataError(fmt::format("{}: expected {} of node {}, got {}", where, expected, place, got));
  };
  if (prompt.empty() || nodes.empty()) {
    throw DataError(fmt::format("{}: expected a prompt and its node, got none", where));
  }
  for (std::size_t i = 0; i < nodes.size(); ++i) {
    StepNode& node = nodes[i];
    if (i == 0 && node.parent != -1) refuse(i, "parent -1", node.parent);
    if (i == 0) continue;
    if (node.parent < 0 || node.parent >= static_cast<std::int64_t>(i)) {
      refuse(i, "a parent before it", node.parent);
    }
    StepNode& parent = nodes[static_cast<std::size_t>(node.parent)];
    if (parent.is_end) refuse(i, "a parent that is no end", node.parent);
    if (node.tokens.empty()) refuse(i, "at least one token", 0);
    node.depth = parent.depth + 1;
    parent.children.push_back(static_cast<std::int64_t>(i));
  }
  StepTree tree(std::move(prompt), std::move(prompt_text), number);
  tree.nodes_ = std::move(nodes);
  for (auto place = std::ssize(tree.nodes_) - 1; place >= 0; --place) {
    const StepNode& node = tree.node(place);
    if (node.is_end && node.is_rated && std::isnan(node.reward)) tree.spread_death(place);
  }
  return tree;
}

void StepTree::set_progress(std::int64_t iterations, std::int64_t drawn_tokens) {
  iterations_ = iterations;
  drawn_tokens_ = drawn_tokens;
}

std::vector<std::int64_t> StepTree::path_tokens(std::int64_t place) const {
  std::vector<const StepNode*> steps;
  for (; place > 0; place = node(place).parent) steps.push_back(&node(place));
  std::vector<std::int64_t> tokens;
  for (auto step = steps.rbegin(); step != steps.rend(); ++step) {
    tokens.insert(tokens.end(), (*step)->tokens.begin(), (*step)->tokens.end());
  }
  return tokens;
}

std::string StepTree::context_text(std::int64_t place) const {
  std::string text;
  for (; place > 0; place = node(place).parent) text.insert(0, node(place).text);
  return prompt_text_ + text;
}

std::vector<std::int64_t> StepTree::context(std::int64_t place) const {
  std::vector<std::int64_t> tokens = prompt_;
  const std::vector<std::int64_t> path = path_tokens(place);
  tokens.insert(tokens.end(), path.begin(), path.end());
  return tokens;
}

double StepTree::score(const StepNode& child, const StepNode& parent,
                       const StepTreeOptions& options) const {
  if (options.rule == TreeRule::kUct) {
    return uct(child.value, child.visits, parent.visits, options.exploration);
  }
  return puct(child.value, child.prior, child.visits, parent.visits, options.exploration);
}

std::int64_t StepTree::select(const StepTreeOptions& options, std::int64_t from) const {
  while (!node(from).children.empty()) {
    const StepNode& parent = node(from);
    std::int64_t best = -1;
    std::pair<double, double> most;
    for (const std::int64_t child : parent.children) {
      if (node(child).is_dead) continue;
      const std::pair of{score(node(child), parent, options), node(child).prior};
      if (best >= 0 && of <= most) continue;
      best = child;
      most = of;
    }
    if (best < 0) {
      throw Error(fmt::format("StepTree: expected a live step after node {}, got none", from));
    }
    from = best;
  }
  return from;
}

std::int64_t StepTree::expand(std::int64_t place, std::vector<StepNode> steps,
                              const StepTreeOptions& options) {
  const std::int64_t depth = node(place).depth;
  std::vector<std::int64_t> added;
  for (StepNode& step : steps) {
    const bool is_known = std::any_of(added.begin(), added.end(), [&](std::int64_t other) {
      return node(other).tokens == step.tokens;
    });
    if (is_known) continue;
    step.parent = place;
    step.depth = depth + 1;
    step.prior = step_prior(step.token_logps, options.prior_length);
    step.value = step.reward;
    added.push_back(std::ssize(nodes_));
    nodes_.push_back(std::move(step));
  }
  auto& children = nodes_.at(static_cast<std::size_t>(place)).children;
  children.insert(children.end(), added.begin(), added.end());
  return std::ssize(added);
}

void StepTree::rate(std::int64_t place, double reward) {
  StepNode& of = nodes_.at(static_cast<std::size_t>(place));
  of.reward = reward;
  of.is_rated = of.is_end;
  if (of.visits == 0 && !std::isnan(reward)) of.value = reward;
}

double StepTree::mean_of_children(const StepNode& parent) const {
  double sum = 0;
  double weights = 0;
  for (const std::int64_t child : parent.children) {
    if (node(child).is_dead) continue;
    const auto weight = static_cast<double>(std::max<std::int64_t>(1, node(child).visits));
    sum += weight * node(child).value;
    weights += weight;
  }
  return sum / weights;
}

void StepTree::back_up(std::int64_t place, const StepTreeOptions& options) {
  const double reward = node(place).reward;
  if (std::isnan(reward)) return spread_death(place);
  for (std::int64_t at = place; at >= 0; at = node(at).parent) {
    StepNode& of = nodes_[static_cast<std::size_t>(at)];
    ++of.visits;
    if (options.back_up == BackUp::kMean) {
      const double before = of.visits == 1 ? 0 : of.value;
      of.value = before + (reward - before) / static_cast<double>(of.visits);
    } else {
      of.value = of.is_end ? of.reward : of.reward + options.discount * mean_of_children(of);
    }
  }
}

void StepTree::spread_death(std::int64_t place) {
  for (; place >= 0; place = node(place).parent) {
    const auto& children = node(place).children;
    const bool has_life = std::any_of(children.begin(), children.end(),
                                      [&](std::int64_t child) { return !node(child).is_dead; });
    if (has_life) return;
    nodes_[static_cast<std::size_t>(place)].is_dead = true;
  }
}

std::vector<std::int64_t> StepTree::best_path() const {
  // Values on the way from the prompt, so that the first step that differs decides.
  const auto rank = [&](std::int64_t place) {
    std::vector<double> values;
    for (std::int64_t at = place; at > 0; at = node(at).parent) values.push_back(node(at).value);
    values.push_back(node(place).reward);
    std::reverse(values.begin(), values.end());
    return values;
  };
  std::int64_t best = -1;
  std::vector<double> most;
  for (std::int64_t place = 1; place < std::ssize(nodes_); ++place) {
    const StepNode& end = node(place);
    if (!end.is_end || !end.is_rated || std::isnan(end.reward)) continue;
    std::vector<double> of = rank(place);
    if (best >= 0 && of <= most) continue;
    best = place;
    most = std::move(of);
  }
  std::vector<std::int64_t> path;
  for (; best > 0; best = node(best).parent) path.push_back(best);
  std::reverse(path.begin(), path.end());
  return path;
}

}  // namespace prefopt
