// SPDX-License-Identifier: Apache-2.0
#include "prefopt/online/tree_search.h"

#include <ATen/core/grad_mode.h>
#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <utility>

#include "core/json.h"
#include "online/draw_seed.h"
#include "online/step_sampling.h"
#include "prefopt/error.h"
#include "prefopt/policy/sequence_logps.h"

namespace prefopt {

using detail::draw_seed;

namespace {

/// Returns P(first) / (P(first) + P(second)) of two completions. A call for each state, so that no
/// other state changes the order of its sums.
double share_of_first(Policy& policy, const std::vector<std::int64_t>& context,
                      const std::vector<std::int64_t>& first,
                      const std::vector<std::int64_t>& second) {
  const at::NoGradGuard no_grad;
  const TokenBatch batch = make_batch({{context, first}, {context, second}});
  const at::Tensor logps = sequence_logps(policy, batch.to(policy.device())).logps.cpu();
  const double* const of = logps.const_data_ptr<double>();
  return 1 / (1 + std::exp(of[1] - of[0]));
}

}  // namespace

void SelfEvaluationOptions::fields(FieldVisitor& v) {
  v.text({"question", "Text after the steps so far that asks whether they are right; empty: none"},
         question);
  v.text({"yes", "Answer whose probability is the estimate"}, yes);
  v.text({"no", "The other answer"}, no);
}

void TreeSearchOptions::fields(FieldVisitor& v) {
  v.text({"step_end", "Text that ends a step; empty: step_tokens alone does", {"separator"}},
         step_end);
  v.integer({"step_tokens", "Tokens of a step at most"}, step_tokens, Range::between(1, 1e9));
  v.integer({"breadth", "Steps that are drawn after a state"}, breadth, Range::between(2, 4096));
  v.integer({"root_breadth", "The same after the prompt; 0: breadth"}, root_breadth,
            Range::between(0, 4096));
  v.integer({"max_depth", "Steps of a path at most; the last one is the rest of the completion"},
            max_depth, Range::between(1, 1000));
  v.integer({"iterations", "Paths that a search follows to an end"}, iterations,
            Range::between(1, 1e9));
  v.integer({"token_budget", "Drawn tokens after which no path begins; 0: no budget"}, token_budget,
            Range::between(0, 1e15));
  tree.fields(v);
  v.group({"self_evaluation", "A question by which the policy rates states"}, self_evaluation);
}

std::int64_t TreeSearchOptions::most_decision_points() const {
  constexpr std::int64_t kMost = 1'000'000;
  std::int64_t states = 0;
  std::int64_t of_depth = 1;
  for (std::int64_t depth = 0; depth < max_depth && states < kMost; ++depth) {
    states += of_depth;
    of_depth = std::min(kMost, of_depth * breadth_at(depth));
  }
  // An iteration opens at most a state of each depth.
  const auto opened = static_cast<double>(iterations) * static_cast<double>(max_depth);
  return std::min(states, static_cast<std::int64_t>(std::min<double>(opened, kMost)));
}

struct TreeSearch::Descent {
  StepTree* tree;
  std::int64_t place;
};

TreeSearch::TreeSearch(const TreeSearchOptions& options, SamplingOptions sampling,
                       std::shared_ptr<const Tokenizer> tokenizer, EndRewards end_rewards,
                       StateValues state_values)
    : options_(checked(options, "tree")),
      sampling_(std::move(sampling)),
      tokenizer_(std::move(tokenizer)),
      end_rewards_(std::move(end_rewards)),
      state_values_(std::move(state_values)) {
  const SelfEvaluationOptions usual;
  const SelfEvaluationOptions& asks = options_.self_evaluation;
  if (asks.question.empty() && (asks.yes != usual.yes || asks.no != usual.no)) {
    throw ConfigError(
        "tree.self_evaluation: expected a question where its answers are given, got none");
  }
  sampling_.tokenizer = tokenizer_;
  step_sampling_ =
      detail::step_sampling(sampling_, options_.step_end, options_.step_tokens, "tree");
}

std::string TreeSearch::config() const {
  const TreeSearchOptions usual;
  TreeSearchOptions search = options_;
  search.iterations = usual.iterations;
  search.token_budget = usual.token_budget;
  const auto json = [](const auto& options) {
    return detail::parse_json<ConfigError>(options_to_json(options), "tree");
  };
  return detail::dump_json(detail::Json{{"tree", json(search)}, {"sampling", json(sampling_)}});
}

bool TreeSearch::is_done(const StepTree& tree) const {
  const std::int64_t budget = options_.token_budget;
  return tree.iterations() >= options_.iterations || !tree.is_live() ||
         (budget > 0 && tree.drawn_tokens() >= budget);
}

void TreeSearch::check_search(const std::vector<StepTree>& trees) const {
  const std::string search = config();
  for (const StepTree& tree : trees) {
    if (tree.search().empty() || tree.search() == search) continue;
    throw ConfigError(
        fmt::format("tree: expected a tree that was searched with the options {}, got {}", search,
                    detail::shown_text(tree.search())));
  }
}

void TreeSearch::run(Policy& policy, std::vector<StepTree>& trees, std::int64_t iterations,
                     std::int64_t at_once) const {
  if (at_once < 1) {
    throw ConfigError(fmt::format("tree: expected at_once of at least 1, got {}", at_once));
  }
  check_search(trees);
  for (StepTree& tree : trees) tree.set_search(config());
  for (std::int64_t i = 0; i < iterations; ++i) {
    std::vector<Descent> descents;
    for (StepTree& tree : trees) {
      if (!is_done(tree)) descents.push_back({&tree, tree.select(options_.tree)});
    }
    if (descents.empty()) return;
    iterate(policy, descents, at_once);
  }
}

/// Takes each tree to an end, level by level, so that all states of a level are one call.
void TreeSearch::iterate(Policy& policy, std::vector<Descent>& descents,
                         std::int64_t at_once) const {
  while (true) {
    std::vector<Descent*> open;
    for (Descent& descent : descents) {
      if (!descent.tree->node(descent.place).is_end) open.push_back(&descent);
    }
    if (open.empty()) break;
    expand(policy, open, at_once);
    if (state_values_) estimate(policy, open);
    for (Descent* descent : open) {
      descent->place = descent->tree->select(options_.tree, descent->place);
    }
  }
  rate_ends(descents);
  for (const Descent& descent : descents) {
    descent.tree->back_up(descent.place, options_.tree);
    descent.tree->finish_iteration();
  }
}

void TreeSearch::expand(Policy& policy, const std::vector<Descent*>& open,
                        std::int64_t at_once) const {
  struct Draw {
    std::size_t descent;
    std::int64_t number;
  };
  std::vector<std::vector<StepNode>> steps(open.size());
  for (const bool is_last : {false, true}) {
    std::vector<Draw> draws;
    for (std::size_t i = 0; i < open.size(); ++i) {
      const std::int64_t depth = open[i]->tree->node(open[i]->place).depth;
      if ((depth + 1 == options_.max_depth) != is_last) continue;
      for (std::int64_t k = 0; k < options_.breadth_at(depth); ++k) draws.push_back({i, k});
    }
    SamplingOptions sampling = is_last ? sampling_ : step_sampling_;
    for (std::size_t begin = 0; begin < draws.size(); begin += static_cast<std::size_t>(at_once)) {
      const std::size_t end = std::min(draws.size(), begin + static_cast<std::size_t>(at_once));
      std::vector<std::vector<std::int64_t>> contexts;
      sampling.indices.clear();
      for (std::size_t i = begin; i < end; ++i) {
        const Descent& of = *open[draws[i].descent];
        contexts.push_back(of.tree->context(of.place));
        sampling.indices.push_back(draw_seed(of.tree->number(), {of.place, draws[i].number}));
      }
      Samples drawn = sample_with_logps(policy, contexts, sampling);
      for (std::size_t i = begin; i < end; ++i) {
        const Descent& of = *open[draws[i].descent];
        of.tree->count_drawn(std::ssize(drawn.completions[i - begin]));
        steps[draws[i].descent].push_back(step_of(*of.tree, of.place,
                                                  std::move(drawn.completions[i - begin]),
                                                  std::move(drawn.token_logps[i - begin])));
      }
    }
  }
  for (std::size_t i = 0; i < open.size(); ++i) {
    open[i]->tree->expand(open[i]->place, std::move(steps[i]), options_.tree);
  }
}

/// A step has what is left of the completion's tokens, and is an end without any left.
StepNode TreeSearch::step_of(const StepTree& tree, std::int64_t place,
                             std::vector<std::int64_t> tokens, std::vector<double> logps) const {
  const std::int64_t before = std::ssize(tree.path_tokens(place));
  const std::int64_t room = sampling_.max_new_tokens - before;
  const auto kept = static_cast<std::size_t>(std::min(std::ssize(tokens), room));
  tokens.resize(kept);
  logps.resize(kept);
  StepNode step;
  step.ended = has_ended(tokens, sampling_);
  step.is_end = step.ended || static_cast<std::int64_t>(kept) == room ||
                tree.node(place).depth + 1 == options_.max_depth;
  step.text = tokenizer_->decode_part(tokens, tree.context(place));
  step.tokens = std::move(tokens);
  step.token_logps = std::move(logps);
  return step;
}

void TreeSearch::estimate(Policy& policy, const std::vector<Descent*>& open) const {
  std::vector<std::pair<StepTree*, std::int64_t>> states;
  std::vector<Rollout> rollouts;
  for (const Descent* descent : open) {
    for (const std::int64_t child : descent->tree->node(descent->place).children) {
      if (descent->tree->node(child).is_end) continue;
      states.emplace_back(descent->tree, child);
      rollouts.push_back(rollout_of(*descent->tree, child));
    }
  }
  if (states.empty()) return;
  std::vector<const Rollout*> asked;
  for (const Rollout& rollout : rollouts) asked.push_back(&rollout);
  const std::vector<double> values = state_values_(policy, asked);
  if (values.size() != states.size()) {
    throw DataError(
        fmt::format("tree: expected values of {} states, got {}", states.size(), values.size()));
  }
  for (std::size_t i = 0; i < states.size(); ++i) {
    if (!std::isfinite(values[i])) {
      throw DataError(fmt::format("tree: expected a finite value of a state, got {}", values[i]));
    }
    states[i].first->rate(states[i].second, values[i]);
  }
}

void TreeSearch::rate_ends(std::vector<Descent>& descents) const {
  std::vector<const Descent*> unrated;
  std::vector<Rollout> ends;
  for (const Descent& descent : descents) {
    if (descent.tree->node(descent.place).is_rated) continue;
    unrated.push_back(&descent);
    ends.push_back(rollout_of(*descent.tree, descent.place));
  }
  if (unrated.empty()) return;
  std::vector<const Rollout*> asked;
  for (const Rollout& end : ends) asked.push_back(&end);
  const std::vector<double> rewards = end_rewards_(asked);
  if (rewards.size() != unrated.size()) {
    throw DataError(
        fmt::format("tree: expected rewards of {} ends, got {}", unrated.size(), rewards.size()));
  }
  for (std::size_t i = 0; i < unrated.size(); ++i) {
    if (std::isinf(rewards[i])) {
      throw DataError(fmt::format("tree: expected a finite reward, got {}", rewards[i]));
    }
    unrated[i]->tree->rate(unrated[i]->place, rewards[i]);
  }
}

Rollout TreeSearch::rollout_of(const StepTree& tree, std::int64_t place) const {
  Rollout rollout{.prompt = tree.prompt(), .completion = tree.path_tokens(place)};
  rollout.ended = tree.node(place).ended;
  rollout.prompt_text = tree.prompt_text();
  rollout.text = completion_text(rollout.completion, *tokenizer_, sampling_, rollout.prompt);
  rollout.step = {
      .node = place, .parent = tree.node(place).parent, .depth = tree.node(place).depth};
  return rollout;
}

std::vector<Rollout> step_rollouts(const StepTree& tree) {
  const std::vector<std::int64_t> best = tree.best_path();
  std::vector<Rollout> rollouts;
  for (std::int64_t place = 1; place < std::ssize(tree.nodes()); ++place) {
    const StepNode& node = tree.node(place);
    Rollout rollout{.prompt = tree.context(node.parent), .completion = node.tokens};
    rollout.token_logps = node.token_logps;
    rollout.ended = node.ended;
    if (node.visits > 0) rollout.rewards = {node.value};
    rollout.prompt_text = tree.context_text(node.parent);
    rollout.text = node.text;
    rollout.step = {.node = place,
                    .parent = node.parent,
                    .depth = node.depth,
                    .visits = node.visits,
                    .value = node.value,
                    .is_dead = node.is_dead,
                    .is_best = std::find(best.begin(), best.end(), place) != best.end()};
    rollouts.push_back(std::move(rollout));
  }
  return rollouts;
}

StateValues self_evaluation(const SelfEvaluationOptions& options,
                            std::shared_ptr<const Tokenizer> tokenizer) {
  if (options.question.empty() || options.yes.empty() || options.no.empty() ||
      options.yes == options.no) {
    throw ConfigError(
        "self_evaluation: expected a question and two different answers, got an empty or an equal "
        "one");
  }
  return [options, tokenizer = std::move(tokenizer)](Policy& policy,
                                                     const std::vector<const Rollout*>& states) {
    std::vector<double> values;
    for (const Rollout* state : states) {
      const std::string before = state->prompt_text + state->text;
      std::vector<std::int64_t> context = state->prompt;
      context.insert(context.end(), state->completion.begin(), state->completion.end());
      const auto question =
          tokenizer->encode_part(options.question, {}, {.before = before, .is_last = false});
      context.insert(context.end(), question.begin(), question.end());
      const auto answer = [&](const std::string& text) {
        return tokenizer->encode_part(text, {}, {.before = before + options.question});
      };
      constexpr std::int64_t kFullDepths = 3;
      const double confidence =
          share_of_first(policy, context, answer(options.yes), answer(options.no));
      const auto divisor = std::max<std::int64_t>(state->step.depth - kFullDepths, 1);
      values.push_back(confidence / static_cast<double>(divisor));
    }
    return values;
  };
}

}  // namespace prefopt
