// SPDX-License-Identifier: Apache-2.0

// Searches with a small model: the same trees however they are cut, budgets, and what choosing
// among sampled steps does.

#include <algorithm>
#include <cmath>
#include <map>
#include <memory>
#include <set>
#include <string>
#include <vector>

#include "core/json.h"
#include "core/random.h"
#include "prefopt/data/tokenizer.h"
#include "prefopt/decoder/decoder.h"
#include "prefopt/error.h"
#include "prefopt/online/step_choice.h"
#include "prefopt/online/tree_search.h"
#include "prefopt/policy/sequence_logps.h"
#include "support/catch.h"
#include "support/errors.h"
#include "support/temp_dir.h"
#include "support/text_files.h"

namespace prefopt {
namespace {

using testing_support::read_text;
using Tokens = std::vector<std::int64_t>;

/// Of a few tokens, so that steps repeat and end often.
std::shared_ptr<Decoder> small_model(std::uint64_t seed) {
  torch::manual_seed(seed);
  return std::make_shared<Decoder>(DecoderOptions{.vocab_size = 259,
                                                  .hidden_size = 16,
                                                  .intermediate_size = 24,
                                                  .num_hidden_layers = 1,
                                                  .num_attention_heads = 2,
                                                  .num_key_value_heads = 1,
                                                  .max_position_embeddings = 64,
                                                  .initializer_range = 0.5});
}

/// As good as random, and the same for the same text.
double hash_reward(const Rollout& rollout) {
  std::uint64_t state = 7;
  for (const std::int64_t token : rollout.completion) {
    state = splitmix64(state ^ static_cast<std::uint64_t>(token));
  }
  return state % 2 == 0 ? 1 : -1;
}

std::vector<double> hash_rewards(const std::vector<const Rollout*>& ends) {
  std::vector<double> rewards;
  for (const Rollout* end : ends) rewards.push_back(hash_reward(*end));
  return rewards;
}

const std::shared_ptr<const Tokenizer>& bytes() {
  static const std::shared_ptr<const Tokenizer> tokenizer = std::make_shared<ByteTokenizer>();
  return tokenizer;
}

const TreeSearchOptions kSearch{.step_end = "",
                                .step_tokens = 2,
                                .breadth = 3,
                                .root_breadth = 4,
                                .max_depth = 3,
                                .iterations = 9};
const SamplingOptions kDrawing{.max_new_tokens = 7, .eos_id = 257, .seed = 5};

std::vector<StepTree> trees_of(const std::vector<std::int64_t>& numbers) {
  std::vector<StepTree> trees;
  for (const std::int64_t number : numbers) {
    trees.emplace_back(Tokens{65 + number, 66},
                       std::string(1, static_cast<char>('A' + number)) + "B", number);
  }
  return trees;
}

std::string saved(const std::vector<StepTree>& trees) {
  const testing_support::TempDir dir;
  save_trees(trees, dir.file("trees.jsonl"));
  return read_text(dir.file("trees.jsonl"));
}

TEST_CASE("a search is the same however it is cut and continued", "[online]") {
  const auto model = small_model(1);
  const TreeSearch search(kSearch, kDrawing, bytes(), hash_rewards);
  auto all = trees_of({0, 1, 2});
  search.run(*model, all, 100);
  const std::string expected = saved(all);
  for (const StepTree& tree : all) {
    CHECK(search.is_done(tree));
    CHECK(tree.iterations() == 9);
    CHECK(tree.node(0).visits == 9);
    CHECK(tree.node(0).children.size() <= 4);
  }
  // One after the other, a few steps at a time.
  std::string one_by_one;
  for (const std::int64_t number : {0, 1, 2}) {
    auto one = trees_of({number});
    search.run(*model, one, 100, /*at_once=*/2);
    one_by_one += saved(one);
  }
  CHECK(one_by_one == expected);
  // Stopped, saved and continued at each iteration.
  const testing_support::TempDir dir;
  const std::string path = dir.file("trees.jsonl");
  save_trees(trees_of({0, 1, 2}), path);
  for (int i = 0; i < 9; ++i) {
    auto part = load_trees(path);
    CHECK_FALSE(search.is_done(part.front()));
    search.run(*model, part, 1);
    save_trees(part, path);
  }
  CHECK(read_text(path) == expected);
  // Another seed is another search.
  SamplingOptions other = kDrawing;
  other.seed = 6;
  auto again = trees_of({0, 1, 2});
  TreeSearch(kSearch, other, bytes(), hash_rewards).run(*model, again, 100);
  CHECK(saved(again) != expected);
  // A larger budget continues a search, other options do not.
  TreeSearchOptions larger = kSearch;
  larger.iterations = 10;
  const TreeSearch longer(larger, kDrawing, bytes(), hash_rewards);
  longer.run(*model, all, 100);
  CHECK(all[0].iterations() == 10);
  CHECK_THROWS_TEXT(search.run(*model, again, 1), ConfigError,
                    "tree: expected a tree that was searched with the options " + search.config() +
                        ", got " + detail::shown_text(again[0].search()));
}

TEST_CASE("the steps of a tree are what the policy writes", "[online]") {
  const auto model = small_model(2);
  auto trees = trees_of({0, 1});
  TreeSearch(kSearch, kDrawing, bytes(), hash_rewards).run(*model, trees, 100);
  std::int64_t ends = 0;
  for (const StepTree& tree : trees) {
    std::int64_t tokens = 0;
    for (std::int64_t place = 1; place < std::ssize(tree.nodes()); ++place) {
      const StepNode& node = tree.node(place);
      tokens += std::ssize(node.tokens);
      const auto whole = std::ssize(tree.path_tokens(place));
      CHECK(whole <= 7);
      CHECK(node.depth <= 3);
      // A step has two tokens but where the completion ends, and the last one is the rest.
      const bool is_rest = node.depth == 3;
      CHECK(std::ssize(node.tokens) <= (is_rest ? 7 : 2));
      CHECK(node.ended == (node.tokens.back() == 257));
      CHECK(node.is_end == (node.ended || is_rest || whole == 7));
      CHECK(node.prior == step_prior(node.token_logps, 1.25));
      if (node.is_rated) {
        ++ends;
        Rollout end{.prompt = tree.prompt(), .completion = tree.path_tokens(place)};
        CHECK(node.reward == hash_reward(end));
        CHECK(node.value == node.reward);
      }
      const Tokens context = tree.context(node.parent);
      const at::Tensor logps = sequence_logps(*model, make_batch({{context, node.tokens}})).logps;
      double sum = 0;
      for (const double logp : node.token_logps) sum += logp;
      CHECK(sum == Approx(logps.item<double>()).epsilon(1e-4));
    }
    CHECK(tree.drawn_tokens() >= tokens);
    CHECK(tree.nodes().front().visits == tree.iterations());
    // A state's visits are those of the steps after it.
    for (const StepNode& node : tree.nodes()) {
      std::int64_t visits = 0;
      std::set<Tokens> steps;
      for (const std::int64_t child : node.children) {
        visits += tree.node(child).visits;
        steps.insert(tree.node(child).tokens);
      }
      CHECK(steps.size() == node.children.size());
      if (!node.is_end && node.visits > 0) CHECK(visits == node.visits);
    }
  }
  CHECK(ends > 2);
}

TEST_CASE("steps end with step_end", "[online]") {
  const auto model = small_model(3);
  TreeSearchOptions options = kSearch;
  // The byte that the model writes most often.
  std::map<std::int64_t, int> counts;
  for (const Tokens& drawn :
       sample(*model, std::vector<Tokens>(64, {65, 66}), {.max_new_tokens = 30, .seed = 1})) {
    for (const std::int64_t token : drawn) counts[token] += token < 128 ? 1 : 0;
  }
  const auto common =
      std::max_element(counts.begin(), counts.end(), [](const auto& a, const auto& b) {
        return a.second < b.second;
      })->first;
  options.step_end = std::string(1, static_cast<char>(common));
  options.step_tokens = 30;
  options.iterations = 20;
  SamplingOptions sampling = kDrawing;
  sampling.max_new_tokens = 40;
  auto trees = trees_of({0});
  TreeSearch(options, sampling, bytes(), hash_rewards).run(*model, trees, 100);
  std::int64_t separated = 0;
  for (const StepNode& node : trees[0].nodes()) {
    if (node.parent < 0 || node.depth == 3) continue;
    const auto found = std::find(node.tokens.begin(), node.tokens.end(), common);
    CHECK((found == node.tokens.end() || found == node.tokens.end() - 1));
    separated += found != node.tokens.end() ? 1 : 0;
  }
  CHECK(separated > 0);
}

TEST_CASE("a search keeps to its budget", "[online]") {
  const auto model = small_model(1);
  TreeSearchOptions options = kSearch;
  options.token_budget = 60;
  const TreeSearch search(options, kDrawing, bytes(), hash_rewards);
  auto trees = trees_of({0, 1});
  search.run(*model, trees, 100);
  for (const StepTree& tree : trees) {
    CHECK(search.is_done(tree));
    CHECK(tree.iterations() < 9);
    CHECK(tree.drawn_tokens() >= 60);
    CHECK(tree.drawn_tokens() < 60 + 4 * 2 + 3 * 2 + 3 * 7);
  }
  CHECK(kSearch.most_decision_points() == 1 + 4 + 4 * 3);
  CHECK(TreeSearchOptions{.max_depth = 5, .iterations = 2}.most_decision_points() == 10);
}

TEST_CASE("ends without a reward are left out of a search", "[online]") {
  const auto model = small_model(1);
  const auto rewards = [](const std::vector<const Rollout*>& ends) {
    return std::vector<double>(ends.size(), std::nan(""));
  };
  auto trees = trees_of({0});
  TreeSearchOptions options = kSearch;
  options.iterations = 1000;
  const TreeSearch search(options, kDrawing, bytes(), rewards);
  search.run(*model, trees, 1000);
  CHECK_FALSE(trees[0].is_live());
  CHECK(trees[0].iterations() < 1000);
  CHECK(trees[0].node(0).visits == 0);
  const auto few = [](const std::vector<const Rollout*>&) { return std::vector<double>{1, 2, 3}; };
  auto others = trees_of({0});
  CHECK_THROWS_TEXT(TreeSearch(kSearch, kDrawing, bytes(), few).run(*model, others, 1), DataError,
                    "tree: expected rewards of 1 ends, got 3");
  const auto infinite = [](const std::vector<const Rollout*>& ends) {
    return std::vector<double>(ends.size(), HUGE_VAL);
  };
  others = trees_of({0});
  CHECK_THROWS_TEXT(TreeSearch(kSearch, kDrawing, bytes(), infinite).run(*model, others, 1),
                    DataError, "tree: expected a finite reward, got inf");
}

TEST_CASE("options that a search cannot follow are refused", "[online]") {
  SamplingOptions sampling = kDrawing;
  sampling.min_new_tokens = 2;
  CHECK_THROWS_TEXT(TreeSearch(kSearch, sampling, bytes(), hash_rewards), ConfigError,
                    "tree: expected no min_new_tokens, as steps are drawn, got 2");
  sampling = kDrawing;
  sampling.stop = {"\n"};
  CHECK_THROWS_TEXT(TreeSearch({}, sampling, bytes(), hash_rewards), ConfigError,
                    "tree: expected a step_end that is no text of stop, got '␊'; it would end "
                    "every completion at its first step");
  CHECK_THROWS_TEXT(TreeSearch({.breadth = 1}, kDrawing, bytes(), hash_rewards), ConfigError,
                    "tree: expected breadth in [2, 4096], got 1");
  CHECK_THROWS_TEXT(self_evaluation({}, bytes()), ConfigError,
                    "self_evaluation: expected a question and two different answers, got an empty "
                    "or an equal one");
}

TEST_CASE("a policy's confidence is the share of its yes", "[online]") {
  const auto model = small_model(4);
  const StateValues values = self_evaluation({.question = "?", .yes = "y", .no = "no"}, bytes());
  Rollout state{.prompt = {65, 66}, .completion = {67}};
  state.prompt_text = "AB";
  state.text = "C";
  const auto logp = [&](const Tokens& answer) {
    return sequence_logps(*model, make_batch({{Tokens{65, 66, 67, '?'}, answer}}))
        .logps.item<double>();
  };
  const double yes = std::exp(logp({'y'}));
  const double no = std::exp(logp({'n', 'o'}));
  CHECK(values(*model, {&state})[0] == Approx(yes / (yes + no)).epsilon(1e-4));
  state.step.depth = 5;
  CHECK(values(*model, {&state})[0] == Approx(yes / (yes + no) / 2).epsilon(1e-4));
  // In a search the estimate is the reward of a state that is no end.
  auto trees = trees_of({0});
  TreeSearch(kSearch, kDrawing, bytes(), hash_rewards, values).run(*model, trees, 100);
  std::int64_t states = 0;
  for (const StepNode& node : trees[0].nodes()) {
    if (node.parent < 0 || node.is_end) continue;
    CHECK((node.reward > 0 && node.reward < 1));
    ++states;
  }
  CHECK(states > 3);
}

TEST_CASE("steps are chosen by their Q", "[online]") {
  const auto sampler = small_model(1);
  const auto policy = small_model(2);
  const auto reference = small_model(3);
  const std::vector<Tokens> prompts = {{65, 66}, {67}};
  const StepChoiceOptions options{.step_end = "", .step_tokens = 2, .candidates = 4, .beta = 0.2};
  const auto chosen = choose_steps(*sampler, *policy, *reference, prompts, options, kDrawing);
  REQUIRE(chosen.size() == 2);
  for (std::size_t i = 0; i < 2; ++i) {
    const ChosenSteps& of = chosen[i];
    CHECK(std::ssize(of.completion) <= 7);
    CHECK(of.step_ends.back() == std::ssize(of.completion));
    REQUIRE(of.qs.size() == of.step_ends.size());
    Tokens context = prompts[i];
    for (std::size_t step = 0; step < of.qs.size(); ++step) {
      const auto begin = of.completion.begin() + (step == 0 ? 0 : of.step_ends[step - 1]);
      const Tokens tokens(begin, of.completion.begin() + of.step_ends[step]);
      const auto logp = [&](Decoder& model) {
        return sequence_logps(model, make_batch({{context, tokens}})).logps.item<double>();
      };
      CHECK(of.qs[step] == Approx(0.2 * (logp(*policy) - logp(*reference))).margin(1e-4));
      context.insert(context.end(), tokens.begin(), tokens.end());
    }
  }
  // More candidates have a larger maximum, and the choice does not depend on the other prompts.
  const auto alone = choose_steps(*sampler, *policy, *reference, {prompts[0]}, options, kDrawing);
  CHECK(alone[0].completion == chosen[0].completion);
  StepChoiceOptions more = options;
  more.candidates = 64;
  const auto best = choose_steps(*sampler, *policy, *reference, prompts, more, kDrawing);
  CHECK(best[0].qs[0] > chosen[0].qs[0]);
  // Where the model is its reference all are equal: the first candidate is taken.
  StepChoiceOptions first = options;
  first.candidates = 1;
  CHECK(choose_steps(*sampler, *policy, *policy, prompts, options, kDrawing)[1].completion ==
        choose_steps(*sampler, *policy, *reference, prompts, first, kDrawing)[1].completion);
}

}  // namespace
}  // namespace prefopt
