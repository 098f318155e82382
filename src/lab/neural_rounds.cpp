// SPDX-License-Identifier: Apache-2.0
#include "lab/neural_rounds.h"

#include <utility>

#include "online/rollout_rows.h"
#include "prefopt/data/tokenizer.h"
#include "prefopt/online/online_rows.h"
#include "prefopt/online/selection.h"
#include "prefopt/policy/reference.h"
#include "prefopt/train/trainer.h"

namespace prefopt::lab {
namespace {

using exact::Index;
using exact::Table;

Index prompt_of(const Rollout& rollout) { return rollout.prompt.front(); }

class TableRewards final : public RewardPreference {
 public:
  explicit TableRewards(Table rewards)
      : RewardPreference(/*temperature=*/0), rewards_(std::move(rewards)) {}

  std::vector<double> rewards(const std::vector<const Rollout*>& rollouts) override {
    std::vector<double> values;
    for (const Rollout* rollout : rollouts) {
      values.push_back(rewards_(string_of(rollout->completion), prompt_of(*rollout)));
    }
    return values;
  }

 private:
  Table rewards_;
};

class TableComparisons final : public Preference {
 public:
  explicit TableComparisons(exact::Preferences preferences)
      : preferences_(std::move(preferences)) {}

  std::vector<double> beats(const std::vector<Comparison>& comparisons) override {
    std::vector<double> answers;
    for (const auto& [first, second] : comparisons) {
      answers.push_back(preferences_(prompt_of(*first), string_of(first->completion),
                                     string_of(second->completion)));
    }
    return answers;
  }

 private:
  exact::Preferences preferences_;
};

/// The parts of a run that is no more than its rounds.
struct Run {
  Run(const Decoder& from, const NeuralRounds& of, std::uint64_t seed)
      : network(trainable_copy(from)),
        initial(from.frozen_copy()),
        reference(make_frozen_reference(initial)),
        rows(parts(of), row_options(of, seed), *network) {}

  OnlineParts parts(const NeuralRounds& of) const {
    OnlineParts parts{.tokenizer = std::make_shared<ByteTokenizer>(),
                      .prompts = {},
                      .sources = of.sources,
                      .feedback = of.feedback,
                      .selection = {},
                      .initial = initial,
                      .reference = reference};
    for (std::int64_t i = 0; i < of.copies * kPrompts; ++i) {
      parts.prompts.push_back({.ids = prompt_tokens(i % kPrompts), .text = {}});
    }
    if (const auto* objective = std::get_if<TokenObjective>(&of.loss)) {
      parts.objective = *objective;
      parts.selection = detail::rewards_alone();
    } else {
      SourceNames names;
      for (const SourceOptions& source : of.sources) names.push_back(source.name);
      parts.selection = make_selection(of.selection, names);
      parts.needs = std::get<Loss>(of.loss).requirements();
    }
    return parts;
  }

  static OnlineRowsOptions row_options(const NeuralRounds& of, std::uint64_t seed) {
    return {.rounds = of.rounds, .at_once = 1 << 10, .seed = static_cast<std::int64_t>(seed)};
  }

  std::unique_ptr<Trainer> trainer(const NeuralRounds& of) const {
    const TrainerOptions options{
        .optimizer = {.learning_rate = of.learning_rate,
                      .schedule = of.decays ? Schedule::kLinear : Schedule::kConstant},
        .total_steps = rows.most_steps()};
    return std::visit(
        [&](const auto& loss) {
          return std::make_unique<Trainer>(network, reference, loss, options);
        },
        of.loss);
  }

  std::shared_ptr<Decoder> network;
  std::shared_ptr<Policy> initial;
  std::shared_ptr<Reference> reference;
  OnlineRows rows;
};

}  // namespace

Index string_of(const std::vector<std::int64_t>& letters) {
  return kLetters * letters.at(0) + letters.at(1);
}

std::shared_ptr<Preference> rewarding(const Table& rewards) {
  return std::make_shared<TableRewards>(rewards);
}

std::shared_ptr<Preference> comparing(exact::Preferences preferences) {
  return std::make_shared<TableComparisons>(std::move(preferences));
}

SourceOptions writer(SourceKind from, std::string name, std::int64_t n) {
  return {.from = from, .name = std::move(name), .n = n, .sampling = {.max_new_tokens = 2}};
}

std::shared_ptr<Decoder> train_rounds(const Decoder& reference, const NeuralRounds& rounds,
                                      std::uint64_t seed,
                                      const std::function<void(int, Policy&)>& seen) {
  Run run(reference, rounds, seed);
  const auto trainer = run.trainer(rounds);
  if (seen) seen(0, *run.network);
  for (int round = 0; !run.rows.is_done();) {
    const StepRows step = run.rows.next(*run.network);
    if (!step.rows.empty()) {
      trainer->step(step.rows);
      run.rows.finish_step();
    }
    if (!step.rows.empty() && !step.ends_round) continue;
    ++round;
    if (seen) seen(round, *run.network);
  }
  return run.network;
}

std::vector<TokenRow> first_rows(const Decoder& reference, const NeuralRounds& rounds,
                                 std::uint64_t seed) {
  Run run(reference, rounds, seed);
  return run.rows.next(*run.network).rows;
}

}  // namespace prefopt::lab
