// SPDX-License-Identifier: Apache-2.0

// 2405.00451 (MCTS-DPO), 2409.09345 (step-level Q-values) and plain DPO on the reasoning task, with
// a transformer that has learned from demonstrations with errors. All have as many sampled tokens
// for each prompt: the search has its budget, and plain DPO draws whole completions until it has
// drawn as many. All take as many steps of the same size. Each trained model answers held-out
// prompts itself, and chooses among five steps that the first model draws, by β log π / π_ref: the
// Q of 2409.09345, which is also the implicit process reward of 2412.01981 that any DPO model has.
// Control: a search whose ends are right or wrong by chance.

#include <ATen/core/grad_mode.h>
#include <ATen/ops/empty_like.h>
#include <fmt/format.h>

#include <algorithm>
#include <memory>

#include "lab/experiments.h"
#include "lab/neural_experiments.h"
#include "lab/neural_task.h"
#include "online/draw_seed.h"
#include "prefopt/data/tokenizer.h"
#include "prefopt/data/verifiable_task.h"
#include "prefopt/decoder/decoder.h"
#include "prefopt/exact/random.h"
#include "prefopt/losses/registry.h"
#include "prefopt/online/selection.h"
#include "prefopt/online/step_choice.h"
#include "prefopt/online/tree_search.h"
#include "prefopt/policy/reference.h"
#include "prefopt/train/trainer.h"

namespace prefopt::lab {
namespace {

using detail::draw_seed;
using exact::Random;
using Tokens = std::vector<std::int64_t>;

constexpr std::int64_t kStop = '.';  ///< token that ends a solution
constexpr std::int64_t kTerms = 5, kSolution = 2 * (kTerms - 1);
constexpr double kErrorRate = 0.2, kBeta = 0.1;
constexpr std::int64_t kTokens = 80;  ///< drawn for a prompt

/// How much of everything: a brief training learns the task only in part.
struct Scale {
  int supervised_steps, prompts, steps, held_out;
};
constexpr Scale kWholeScale{2500, 400, 150, 500}, kBriefScale{20, 6, 2, 6};

/// Users of random numbers.
enum : std::int64_t {
  kWeightDraws,
  kDemonstrations,
  kPromptDraws,
  kHeldOutPrompts,
  kSearchDraws,
  kCompletionDraws,
  kPairDraws,
  kChanceDraws,
  kTestDraws
};

std::uint64_t stream(int seed, std::int64_t user) {
  return static_cast<std::uint64_t>(draw_seed(seed, {user}));
}

const std::shared_ptr<const Tokenizer>& byte_tokens() {
  static const std::shared_ptr<const Tokenizer> tokenizer = std::make_shared<ByteTokenizer>();
  return tokenizer;
}

std::shared_ptr<Decoder> new_model(int seed) {
  constexpr double kInitial = 0.08;
  const at::NoGradGuard no_grad;
  auto model = std::make_shared<Decoder>(DecoderOptions{.vocab_size = byte_tokens()->vocab_size(),
                                                        .hidden_size = 64,
                                                        .intermediate_size = 128,
                                                        .num_hidden_layers = 2,
                                                        .num_attention_heads = 4,
                                                        .num_key_value_heads = 4,
                                                        .max_position_embeddings = 32});
  Random random(stream(seed, kWeightDraws));
  for (const NamedParameter& parameter : model->named_parameters()) {
    if (parameter.value.dim() < 2) continue;  // norms begin at 1
    at::Tensor weights = at::empty_like(parameter.value);
    std::generate_n(weights.data_ptr<float>(), weights.numel(),
                    [&] { return static_cast<float>(kInitial * random.normal()); });
    parameter.value.copy_(weights);
  }
  return model;
}

std::vector<std::string> draw_prompts(int seed, std::int64_t user, int count) {
  VerifiableTask task({.terms = kTerms, .seed = draw_seed(seed, {user})});
  std::vector<std::string> prompts;
  for (int i = 0; i < count; ++i) prompts.push_back(task.sample_prompt());
  return prompts;
}

/// Returns a model that imitates demonstrations with errors.
std::shared_ptr<Decoder> imitate(int seed, const Scale& scale) {
  constexpr int kBatch = 64;
  auto model = new_model(seed);
  VerifiableTask task(
      {.terms = kTerms, .error_rate = kErrorRate, .seed = draw_seed(seed, {kDemonstrations})});
  Trainer trainer(model, nullptr, make_loss(R"({"type": "sft", "reduction": "sum"})"),
                  {.optimizer = {.learning_rate = 3e-3,
                                 .schedule = Schedule::kLinear,
                                 .warmup_steps = std::min(50, scale.supervised_steps / 2)},
                   .total_steps = scale.supervised_steps});
  for (int step = 0; step < scale.supervised_steps; ++step) {
    std::vector<TokenRow> rows;
    for (int i = 0; i < kBatch; ++i) {
      const std::string prompt = task.sample_prompt();
      rows.push_back({.prompt = byte_tokens()->encode(prompt),
                      .chosen = byte_tokens()->encode(task.sample_solution(prompt)),
                      .rejected = {}});
    }
    trainer.step(rows);
  }
  return model;
}

SamplingOptions drawing(int seed, std::int64_t user) {
  return {.max_new_tokens = kSolution,
          .eos_id = kStop,
          .seed = draw_seed(seed, {user}),
          .tokenizer = byte_tokens()};
}

bool is_right(const std::string& prompt, const Tokens& completion) {
  return VerifiableTask::is_right(prompt, byte_tokens()->decode(completion));
}

/// Pairs, and the tokens that were drawn for them.
struct DrawnPairs {
  std::vector<TokenRow> rows;
  std::vector<std::int64_t> tokens = {};  ///< of each prompt
};

TreeSearchOptions search_options(const StepTreeOptions& tree) {
  return {.separator = std::string(VerifiableTask::kSeparator),
          .step_tokens = 2,
          .breadth = 2,
          .root_breadth = 4,
          .max_depth = kTerms - 1,
          .iterations = 1000,
          .token_budget = kTokens,
          .tree = tree};
}

std::vector<StepTree> search_trees(Policy& policy, const std::vector<std::string>& prompts,
                                   const StepTreeOptions& options, int seed, bool by_chance) {
  const auto rewards = [&](const std::vector<const Rollout*>& ends) {
    std::vector<double> all;
    for (const Rollout* end : ends) {
      std::int64_t chance = draw_seed(seed, {kChanceDraws});
      for (const auto* tokens : {&end->prompt, &end->completion}) {
        for (const std::int64_t token : *tokens) chance = draw_seed(chance, {token});
      }
      const bool right = by_chance ? chance % 2 == 0 : is_right(end->prompt_text, end->completion);
      all.push_back(right ? 1 : -1);
    }
    return all;
  };
  std::vector<StepTree> trees;
  for (const std::string& prompt : prompts) {
    trees.emplace_back(byte_tokens()->encode(prompt), prompt, std::ssize(trees));
  }
  const TreeSearchOptions search = search_options(options);
  TreeSearch(search, drawing(seed, kSearchDraws), byte_tokens(), rewards)
      .run(policy, trees, search.iterations, /*at_once=*/512);
  return trees;
}

DrawnPairs pairs_of_trees(const std::vector<StepTree>& trees, std::string_view selection) {
  class Unasked final : public Preference {
   public:
    std::vector<double> beats(const std::vector<Comparison>& /*pairs*/) override { return {}; }
  } unasked;
  const auto select = make_selection(selection);
  DrawnPairs drawn;
  for (const StepTree& tree : trees) {
    const std::vector<Rollout> steps = step_rollouts(tree);
    Rater rater(unasked, steps);
    Random random(0);
    for (const SelectedRow& pair : select->select(rater, random).rows) {
      const Rollout& chosen = steps[static_cast<std::size_t>(pair.chosen)];
      TokenRow row{.prompt = chosen.prompt,
                   .chosen = chosen.completion,
                   .rejected = steps[static_cast<std::size_t>(pair.rejected)].completion};
      if (pair.label_prob) row.columns[Column::kLabelProb] = *pair.label_prob;
      drawn.rows.push_back(std::move(row));
    }
    drawn.tokens.push_back(tree.drawn_tokens());
  }
  return drawn;
}

/// Right completions against wrong ones, each in one pair, of as many tokens as the search drew.
DrawnPairs pairs_of_completions(Policy& policy, const std::vector<std::string>& prompts,
                                const std::vector<std::int64_t>& tokens, int seed) {
  std::int64_t most = 0;
  for (const std::int64_t of : tokens) most = std::max(most, of);
  std::vector<Tokens> contexts;
  for (const std::string& prompt : prompts) {
    // Solutions of one digit are the shortest completions.
    contexts.insert(contexts.end(), static_cast<std::size_t>(most / 2 + 1),
                    byte_tokens()->encode(prompt));
  }
  const auto all = sample(policy, contexts, drawing(seed, kCompletionDraws));
  DrawnPairs drawn;
  for (std::size_t i = 0; i < prompts.size(); ++i) {
    std::vector<Tokens> right, wrong;
    std::int64_t used = 0;
    for (std::int64_t k = 0; used < tokens[i]; ++k) {
      const Tokens& completion =
          all[i * static_cast<std::size_t>(most / 2 + 1) + static_cast<std::size_t>(k)];
      used += std::ssize(completion);
      (is_right(prompts[i], completion) ? right : wrong).push_back(completion);
    }
    drawn.tokens.push_back(used);
    for (std::size_t k = 0; k < std::min(right.size(), wrong.size()); ++k) {
      drawn.rows.push_back({.prompt = byte_tokens()->encode(prompts[i]),
                            .chosen = std::move(right[k]),
                            .rejected = std::move(wrong[k])});
    }
  }
  return drawn;
}

std::shared_ptr<Decoder> train_on(const Decoder& first, const DrawnPairs& pairs, bool has_labels,
                                  int seed, const Scale& scale) {
  constexpr int kBatch = 64;
  auto model = trainable_copy(first);
  if (pairs.rows.empty()) return model;
  Trainer trainer(model, make_frozen_reference(first.frozen_copy()),
                  make_loss(fmt::format(R"({{"type": "dpo", "beta": {}, "use_label_probs": {}}})",
                                        kBeta, has_labels)),
                  {.optimizer = {.learning_rate = 3e-4, .schedule = Schedule::kConstant},
                   .total_steps = scale.steps});
  Random random(stream(seed, kPairDraws));
  for (int step = 0; step < scale.steps; ++step) {
    std::vector<TokenRow> rows;
    for (int i = 0; i < kBatch; ++i) {
      rows.push_back(pairs.rows[static_cast<std::size_t>(random.below(std::ssize(pairs.rows)))]);
    }
    trainer.step(rows);
  }
  return model;
}

/// Share of held-out prompts that are answered rightly.
double success(const std::vector<std::string>& prompts,
               const std::function<std::vector<Tokens>(const std::vector<Tokens>&)>& answer) {
  std::vector<Tokens> contexts;
  for (const std::string& prompt : prompts) contexts.push_back(byte_tokens()->encode(prompt));
  const std::vector<Tokens> answers = answer(contexts);
  double right = 0;
  for (std::size_t i = 0; i < prompts.size(); ++i)
    right += is_right(prompts[i], answers[i]) ? 1 : 0;
  return right / static_cast<double>(prompts.size());
}

enum : std::size_t { kFirst, kPlainDpo, kMctsDpo, kStepQ, kByChance, kArms };
const std::vector<std::string> kArmNames{"before", "plain DPO", "MCTS-DPO", "step-level Q",
                                         "control: MCTS-DPO, ends by chance"};
constexpr std::size_t kByItself = 0, kChoosing = kArms, kPairCounts = 2 * kArms;
constexpr std::size_t kTokenRatio = kPairCounts + kArms;

/// Success of each model by itself, then of steps of the first model that it chooses; pairs; tokens
/// of completions over those of the search.
std::vector<double> run_networks(int seed, const Scale& scale) {
  const auto first = imitate(seed, scale);
  const auto prompts = draw_prompts(seed, kPromptDraws, scale.prompts);
  const StepTreeOptions puct, uct{.rule = TreeRule::kUct, .back_up = BackUp::kMean};
  constexpr std::string_view kAll = R"({"type": "siblings"})";
  constexpr std::string_view kBest =
      R"({"type": "siblings", "points": "best_path", "labels": "hard"})";

  std::vector<DrawnPairs> pairs(kArms);
  pairs[kMctsDpo] = pairs_of_trees(search_trees(*first, prompts, puct, seed, false), kAll);
  pairs[kByChance] = pairs_of_trees(search_trees(*first, prompts, puct, seed, true), kAll);
  pairs[kStepQ] = pairs_of_trees(search_trees(*first, prompts, uct, seed, false), kBest);
  pairs[kPlainDpo] = pairs_of_completions(*first, prompts, pairs[kMctsDpo].tokens, seed);

  const auto held_out = draw_prompts(seed, kHeldOutPrompts, scale.held_out);
  const StepChoiceOptions choice{.separator = std::string(VerifiableTask::kSeparator),
                                 .step_tokens = 2,
                                 .candidates = 5,
                                 .beta = kBeta};
  std::vector<double> by_itself, choosing, counts;
  for (std::size_t arm = 0; arm < kArms; ++arm) {
    const bool has_labels = arm == kMctsDpo || arm == kByChance;
    const auto model = train_on(*first, pairs[arm], has_labels, seed, scale);
    by_itself.push_back(success(held_out, [&](const std::vector<Tokens>& contexts) {
      return sample(*model, contexts, drawing(seed, kTestDraws));
    }));
    choosing.push_back(success(held_out, [&](const std::vector<Tokens>& contexts) {
      std::vector<Tokens> completions;
      for (auto& chosen :
           choose_steps(*first, *model, *first, contexts, choice, drawing(seed, kTestDraws))) {
        completions.push_back(std::move(chosen.completion));
      }
      return completions;
    }));
    counts.push_back(static_cast<double>(pairs[arm].rows.size()));
  }
  double of_search = 0, of_completions = 0;
  for (std::size_t i = 0; i < prompts.size(); ++i) {
    of_search += static_cast<double>(pairs[kMctsDpo].tokens[i]);
    of_completions += static_cast<double>(pairs[kPlainDpo].tokens[i]);
  }
  std::vector<double> row = by_itself;
  row.insert(row.end(), choosing.begin(), choosing.end());
  row.insert(row.end(), counts.begin(), counts.end());
  row.push_back(of_completions / of_search);
  return row;
}

}  // namespace

Report neural_reasoning(const Settings& settings) {
  return neural_reasoning(settings, settings.quick ? Length::kBrief : Length::kWhole);
}

Report neural_reasoning(const Settings& settings, Length length) {
  const Scale& scale = length == Length::kWhole ? kWholeScale : kBriefScale;
  const auto by_seed =
      for_each_seed(settings.seeds, [&](int seed) { return run_networks(seed, scale); });
  Report report{.data = {{"neural-reasoning", {"model", "answers", "success", "low", "high"}}},
                .pictures = {{"neural-reasoning",
                              {.title = "Success at equal sampled tokens",
                               .x_label = "0: before, 1: plain DPO, 2: MCTS-DPO, 3: step-level Q, "
                                          "4: control",
                               .y_label = "share of held-out prompts"}}}};
  for (const bool chooses : {false, true}) {
    detail::Series series{.name = chooses ? "chooses steps of the first model" : "by itself",
                          .style = detail::Series::Style::kLineAndPoints};
    for (std::size_t arm = 0; arm < kArms; ++arm) {
      const Estimate at = mean(by_seed, (chooses ? kChoosing : kByItself) + arm);
      add_point(series, static_cast<double>(arm), at);
      report.data[0].rows.push_back({kArmNames[arm], series.name, at.value, at.low, at.high});
    }
    report.pictures[0].chart.series.push_back(std::move(series));
  }
  for (std::size_t arm = 1; arm < kArms; ++arm) {
    const Estimate count = mean(by_seed, kPairCounts + arm);
    report.data[0].rows.push_back({kArmNames[arm], "pairs", count.value, count.low, count.high});
  }
  const auto over_first = [&](std::size_t arm) {
    return mean_difference(by_seed, kByItself + arm, kByItself + kFirst);
  };
  report.verdicts = {
      within("tokens of plain DPO over those of the search", mean(by_seed, kTokenRatio), 1, 0.1),
      above("plain DPO's success less that before", over_first(kPlainDpo), 0),
      above("MCTS-DPO's success less that before", over_first(kMctsDpo), 0),
      above("MCTS-DPO's success less plain DPO's",
            mean_difference(by_seed, kByItself + kMctsDpo, kByItself + kPlainDpo), 0),
      above("steps chosen by step-level Q: success less that of the first of five",
            mean_difference(by_seed, kChoosing + kStepQ, kChoosing + kFirst), 0),
      above("steps chosen by MCTS-DPO less those chosen by plain DPO: success",
            mean_difference(by_seed, kChoosing + kMctsDpo, kChoosing + kPlainDpo), 0),
      below("control: ends by chance: success less that before", over_first(kByChance), 0.02)};
  return report;
}

}  // namespace prefopt::lab
