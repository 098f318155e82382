// SPDX-License-Identifier: Apache-2.0

// 2405.00451 (MCTS-DPO), 2409.09345 (step-level Q-values), 2412.01981 (implicit process rewards)
// and plain DPO on the reasoning task, with a transformer that has learned from demonstrations with
// errors. All have as many sampled tokens for each prompt: a search has its budget, and whole
// completions are drawn until they have as many. Plain DPO trains on pairs of these, the process
// reward model by `ce` on each of them and whether it is right. All take as many steps, over as
// many completions. Each trained model answers held-out prompts itself; chooses among five steps
// that the first model draws, by β log π / π_ref, the Q of 2409.09345 and process reward of
// 2412.01981; and has to find the first wrong step of wrong answers, by the least of these.
// Control: a search whose ends are right or wrong by chance.

#include <ATen/core/grad_mode.h>
#include <ATen/ops/empty_like.h>
#include <fmt/format.h>

#include <algorithm>
#include <memory>
#include <numeric>

#include "lab/experiments.h"
#include "lab/neural_experiments.h"
#include "lab/neural_task.h"
#include "lab/reasoning_steps.h"
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

namespace prefopt::lab::neural_reasoning {
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

std::vector<Tokens> encoded(const std::vector<std::string>& texts) {
  std::vector<Tokens> all;
  for (const std::string& text : texts) all.push_back(byte_tokens()->encode(text));
  return all;
}

bool is_right(const std::string& prompt, const Tokens& completion) {
  return VerifiableTask::is_right(prompt, byte_tokens()->decode(completion));
}

TreeSearchOptions search_options(const StepTreeOptions& tree) {
  return {.step_end = std::string(VerifiableTask::kSeparator),
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

std::vector<TokenRow> pairs_of(const std::vector<StepTree>& trees, std::string_view selection) {
  class Unasked final : public Preference {
   public:
    std::vector<double> beats(const std::vector<Comparison>& /*pairs*/) override { return {}; }
  } unasked;
  const auto select = make_selection(selection);
  std::vector<TokenRow> rows;
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
      rows.push_back(std::move(row));
    }
  }
  return rows;
}

struct Completion {
  std::size_t prompt;
  Tokens tokens;
  bool is_right;
};

/// Draws completions of each prompt until they have as many tokens as the search drew.
std::vector<Completion> draw_completions(Policy& policy, const std::vector<std::string>& prompts,
                                         const std::vector<std::int64_t>& tokens, int seed) {
  // Solutions of one digit are the shortest completions.
  const auto most =
      static_cast<std::size_t>(*std::max_element(tokens.begin(), tokens.end()) / 2 + 1);
  std::vector<Tokens> contexts;
  for (const std::string& prompt : prompts) {
    contexts.insert(contexts.end(), most, byte_tokens()->encode(prompt));
  }
  auto all = sample(policy, contexts, drawing(seed, kCompletionDraws));
  std::vector<Completion> drawn;
  for (std::size_t i = 0; i < prompts.size(); ++i) {
    std::int64_t used = 0;
    for (std::size_t k = i * most; used < tokens[i]; ++k) {
      used += std::ssize(all[k]);
      const bool right = is_right(prompts[i], all[k]);
      drawn.push_back({i, std::move(all[k]), right});
    }
  }
  return drawn;
}

/// Right completions of a prompt against wrong ones, each in one pair.
std::vector<TokenRow> pairs_of(const std::vector<Completion>& completions,
                               const std::vector<std::string>& prompts) {
  std::vector<std::vector<Tokens>> right(prompts.size()), wrong(prompts.size());
  for (const Completion& of : completions) {
    (of.is_right ? right : wrong)[of.prompt].push_back(of.tokens);
  }
  std::vector<TokenRow> rows;
  for (std::size_t i = 0; i < prompts.size(); ++i) {
    for (std::size_t k = 0; k < std::min(right[i].size(), wrong[i].size()); ++k) {
      rows.push_back({.prompt = byte_tokens()->encode(prompts[i]),
                      .chosen = std::move(right[i][k]),
                      .rejected = std::move(wrong[i][k])});
    }
  }
  return rows;
}

/// Every completion, and whether it is right.
std::vector<TokenRow> labelled(const std::vector<Completion>& completions,
                               const std::vector<std::string>& prompts) {
  std::vector<TokenRow> rows;
  for (const Completion& of : completions) {
    TokenRow row{
        .prompt = byte_tokens()->encode(prompts[of.prompt]), .chosen = of.tokens, .rejected = {}};
    row.columns[Column::kLabel] = of.is_right ? 1 : 0;
    rows.push_back(std::move(row));
  }
  return rows;
}

std::shared_ptr<Decoder> train_on(const Decoder& first, const std::vector<TokenRow>& rows,
                                  const std::string& loss, int seed, const Scale& scale) {
  constexpr std::int64_t kCompletions = 128;  // of a step
  auto model = trainable_copy(first);
  if (rows.empty()) return model;
  Trainer trainer(model, make_frozen_reference(first.frozen_copy()), make_loss(loss),
                  {.optimizer = {.learning_rate = 3e-4, .schedule = Schedule::kConstant},
                   .total_steps = scale.steps});
  const std::int64_t batch = kCompletions / (rows.front().rejected.empty() ? 1 : 2);
  Random random(stream(seed, kPairDraws));
  for (int step = 0; step < scale.steps; ++step) {
    std::vector<TokenRow> drawn;
    for (std::int64_t i = 0; i < batch; ++i) {
      drawn.push_back(rows[static_cast<std::size_t>(random.below(std::ssize(rows)))]);
    }
    trainer.step(drawn);
  }
  return model;
}

/// Share of held-out prompts that are answered rightly.
double success(const std::vector<std::string>& prompts, const std::vector<Tokens>& answers) {
  double right = 0;
  for (std::size_t i = 0; i < prompts.size(); ++i) {
    right += is_right(prompts[i], answers[i]) ? 1 : 0;
  }
  return right / static_cast<double>(prompts.size());
}

enum : std::size_t { kFirst, kPlainDpo, kProcess, kMctsDpo, kStepQ, kByChance, kArms };
const std::vector<std::string> kArmNames{
    "before",   "plain DPO",    "process rewards (ce)",
    "MCTS-DPO", "step-level Q", "control: MCTS-DPO, ends by chance"};
const std::vector<std::string> kMeasureNames{"by itself", "chooses steps of the first model",
                                             "finds the first wrong step"};
constexpr std::size_t kByItself = 0, kChoosing = kArms, kFinding = 2 * kArms;
constexpr std::size_t kRowCounts = 3 * kArms, kTokenRatio = 4 * kArms;

std::string loss_of(std::size_t arm) {
  if (arm == kProcess) return fmt::format(R"({{"type": "ce", "beta": {}}})", kBeta);
  const bool has_labels = arm == kMctsDpo || arm == kByChance;
  return fmt::format(R"({{"type": "dpo", "beta": {}, "use_label_probs": {}}})", kBeta, has_labels);
}

std::int64_t tokens_of(const std::vector<Completion>& completions) {
  std::int64_t sum = 0;
  for (const Completion& of : completions) sum += std::ssize(of.tokens);
  return sum;
}

/// The rows of each arm, and the tokens of completions over those of the search.
struct ArmRows {
  std::vector<std::vector<TokenRow>> rows;
  double token_ratio;
};

ArmRows draw_rows(Policy& first, const std::vector<std::string>& prompts, int seed) {
  const StepTreeOptions puct, uct{.rule = TreeRule::kUct, .back_up = BackUp::kMean};
  constexpr std::string_view kAll = R"({"type": "siblings"})";
  constexpr std::string_view kBest =
      R"({"type": "siblings", "points": "best_path", "labels": "hard"})";
  const auto trees = search_trees(first, prompts, puct, seed, false);
  std::vector<std::int64_t> tokens;
  for (const StepTree& tree : trees) tokens.push_back(tree.drawn_tokens());
  const auto completions = draw_completions(first, prompts, tokens, seed);

  ArmRows of{.rows = std::vector<std::vector<TokenRow>>(kArms),
             .token_ratio = static_cast<double>(tokens_of(completions)) /
                            static_cast<double>(
                                std::accumulate(tokens.begin(), tokens.end(), std::int64_t{0}))};
  of.rows[kPlainDpo] = pairs_of(completions, prompts);
  of.rows[kProcess] = labelled(completions, prompts);
  of.rows[kMctsDpo] = pairs_of(trees, kAll);
  of.rows[kStepQ] = pairs_of(search_trees(first, prompts, uct, seed, false), kBest);
  of.rows[kByChance] = pairs_of(search_trees(first, prompts, puct, seed, true), kAll);
  return of;
}

std::vector<Tokens> answers_by_choice(Policy& first, Policy& model,
                                      const std::vector<Tokens>& contexts, int seed) {
  const StepChoiceOptions choice{.step_end = std::string(VerifiableTask::kSeparator),
                                 .step_tokens = 2,
                                 .candidates = 5,
                                 .beta = kBeta};
  std::vector<Tokens> completions;
  for (auto& chosen :
       choose_steps(first, model, first, contexts, choice, drawing(seed, kTestDraws))) {
    completions.push_back(std::move(chosen.completion));
  }
  return completions;
}

/// Measure by measure and arm by arm; rows of each arm; tokens of completions over the search's.
std::vector<double> run_networks(int seed, const Scale& scale) {
  const auto first = imitate(seed, scale);
  const ArmRows of = draw_rows(*first, draw_prompts(seed, kPromptDraws, scale.prompts), seed);
  const auto held_out = draw_prompts(seed, kHeldOutPrompts, scale.held_out);
  const auto contexts = encoded(held_out);
  const auto wrong = wrong_answers(held_out, sample(*first, contexts, drawing(seed, kTestDraws)));

  std::vector<double> by_itself, choosing, finding, counts;
  for (std::size_t arm = 0; arm < kArms; ++arm) {
    const auto model = train_on(*first, of.rows[arm], loss_of(arm), seed, scale);
    by_itself.push_back(success(held_out, sample(*model, contexts, drawing(seed, kTestDraws))));
    choosing.push_back(success(held_out, answers_by_choice(*first, *model, contexts, seed)));
    finding.push_back(arm == kFirst ? found_by_logps(wrong, *first)
                                    : found_by_rewards(wrong, *model, *first));
    counts.push_back(static_cast<double>(of.rows[arm].size()));
  }
  std::vector<double> row;
  for (const auto* part : {&by_itself, &choosing, &finding, &counts}) {
    row.insert(row.end(), part->begin(), part->end());
  }
  row.push_back(of.token_ratio);
  return row;
}

}  // namespace

Report run(const Settings& settings) {
  return run(settings, settings.quick ? Length::kBrief : Length::kWhole);
}

Report run(const Settings& settings, Length length) {
  const Scale& scale = length == Length::kWhole ? kWholeScale : kBriefScale;
  const auto by_seed =
      for_each_seed(settings.seeds, [&](int seed) { return run_networks(seed, scale); });
  Report report{.data = {{"neural-reasoning", {"model", "measure", "value", "low", "high"}}},
                .pictures = {{"neural-reasoning",
                              {.title = "Success at equal sampled tokens",
                               .x_label = "0: before, 1: plain DPO, 2: process rewards, 3: "
                                          "MCTS-DPO, 4: step-level Q, 5: control",
                               .y_label = "share of held-out prompts, or of wrong answers"}}}};
  for (std::size_t measure = 0; measure < kMeasureNames.size(); ++measure) {
    detail::Series series{.name = kMeasureNames[measure],
                          .style = detail::Series::Style::kLineAndPoints};
    for (std::size_t arm = 0; arm < kArms; ++arm) {
      const Estimate at = mean(by_seed, measure * kArms + arm);
      add_point(series, static_cast<double>(arm), at);
      report.data[0].rows.push_back({kArmNames[arm], series.name, at.value, at.low, at.high});
    }
    report.pictures[0].chart.series.push_back(std::move(series));
  }
  for (std::size_t arm = 1; arm < kArms; ++arm) {
    const Estimate count = mean(by_seed, kRowCounts + arm);
    report.data[0].rows.push_back({kArmNames[arm], "rows", count.value, count.low, count.high});
  }
  const auto over = [&](std::size_t measure, std::size_t arm, std::size_t other) {
    return mean_difference(by_seed, measure + arm, measure + other);
  };
  report.verdicts = {
      within("tokens of completions over those of the search", mean(by_seed, kTokenRatio), 1, 0.1),
      above("plain DPO's success less that before", over(kByItself, kPlainDpo, kFirst), 0),
      above("MCTS-DPO's success less that before", over(kByItself, kMctsDpo, kFirst), 0),
      above("MCTS-DPO's success less plain DPO's", over(kByItself, kMctsDpo, kPlainDpo), 0),
      above("steps chosen by step-level Q: success less that of the first of five",
            over(kChoosing, kStepQ, kFirst), 0),
      above("steps chosen by process rewards: the same", over(kChoosing, kProcess, kFirst), 0),
      above("steps chosen by MCTS-DPO less those chosen by plain DPO: success",
            over(kChoosing, kMctsDpo, kPlainDpo), 0),
      above("steps chosen by process rewards less those chosen by plain DPO: success",
            over(kChoosing, kProcess, kPlainDpo), 0),
      above("process rewards find the first wrong step more often than plain DPO on the same "
            "completions: by",
            over(kFinding, kProcess, kPlainDpo), 0),
      above("and more often than the first model's own log π: by", over(kFinding, kProcess, kFirst),
            0),
      above("control: more often than those of ends by chance: by",
            over(kFinding, kProcess, kByChance), 0),
      below("control: ends by chance: success less that before", over(kByItself, kByChance, kFirst),
            0.02)};
  return report;
}

}  // namespace prefopt::lab::neural_reasoning
