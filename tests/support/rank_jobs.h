// SPDX-License-Identifier: Apache-2.0
#pragma once

// Trainings that several ranks take together, compared with that of one process.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <functional>
#include <memory>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "math/wide_gradient.h"
#include "prefopt/decoder/decoder.h"
#include "prefopt/dist/ranks.h"
#include "prefopt/losses/registry.h"
#include "prefopt/policy/moving_reference.h"
#include "prefopt/policy/reference.h"
#include "prefopt/policy/reward_policy.h"
#include "prefopt/train/trainer.h"
#include "support/bigram_policy.h"
#include "support/catch.h"
#include "support/thread_ranks.h"

namespace prefopt::over_ranks {

using namespace testing_support;
using RanksPtr = std::shared_ptr<Ranks>;

/// Pairs of many lengths, with everything that any loss asks for.
inline std::vector<TokenRow> random_rows(std::int64_t count, std::uint64_t seed) {
  std::mt19937_64 rng(seed);
  const auto tokens = [&](std::uint64_t least, std::uint64_t most) {
    std::vector<std::int64_t> ids(least + rng() % (most - least + 1));
    for (auto& id : ids) id = 1 + static_cast<std::int64_t>(rng() % 28);
    return ids;
  };
  const auto share = [&] { return static_cast<double>(rng() % 100) / 100; };
  std::vector<TokenRow> rows;
  for (std::int64_t i = 0; i < count; ++i) {
    TokenRow row{.prompt = tokens(2, 9), .chosen = tokens(1, 12), .rejected = tokens(1, 12)};
    row.gold = tokens(1, 8);
    row.columns[Column::kLabel] = static_cast<double>(rng() % 2);
    row.columns[Column::kMargin] = 2 * share();
    row.columns[Column::kWeight] = 0.5 + share();
    row.columns[Column::kLabelProb] = share();
    row.columns[Column::kChosenWinRate] = 0.9;
    row.columns[Column::kRejectedWinRate] = 0.2;
    row.columns[Column::kAdvantage] = share() - 0.5;
    row.columns[Column::kFromReference] = static_cast<double>(rng() % 3);
    rows.push_back(std::move(row));
  }
  return rows;
}

/// A policy that one rank trains.
struct Job {
  std::shared_ptr<Policy> policy;
  std::shared_ptr<Reference> reference;
  std::function<std::unique_ptr<Trainer>(const TrainerOptions&)> make_trainer;
  std::shared_ptr<RewardPolicy> values = {};
};

inline DecoderOptions tiny_decoder() {
  return {.vocab_size = 31,
          .hidden_size = 16,
          .intermediate_size = 24,
          .num_hidden_layers = 2,
          .num_attention_heads = 2,
          .num_key_value_heads = 1,
          .initializer_range = 0.2};
}

enum class Adapter { kNone, kLora };

inline std::shared_ptr<Decoder> decoder(at::ScalarType dtype, Adapter adapter = Adapter::kNone) {
  at::manual_seed(3);
  auto policy = std::make_shared<Decoder>(tiny_decoder());
  policy->to(dtype);
  if (adapter == Adapter::kLora) policy->add_adapter({.r = 2, .init_lora_weights = "false"});
  return policy;
}

inline Job pair_job(const std::shared_ptr<Policy>& policy,
                    const std::shared_ptr<Reference>& reference, const std::string& loss) {
  return {policy, reference, [=](const TrainerOptions& options) {
            return std::make_unique<Trainer>(policy, reference, make_loss(loss), options);
          }};
}

inline Job pair_job(at::ScalarType dtype, const std::string& loss,
                    Adapter adapter = Adapter::kNone) {
  const auto policy = decoder(dtype, adapter);
  return pair_job(policy, make_frozen_reference(policy->frozen_copy()), loss);
}

inline TrainerOptions steady() {
  return {.optimizer = {.learning_rate = 1e-2,
                        .weight_decay = 0.1,
                        .max_grad_norm = 0.5,
                        .schedule = Schedule::kConstant},
          .micro_batch_size = 2,
          .sampling = {.max_new_tokens = 4, .seed = 5}};
}

struct Outcome {
  std::vector<Metrics> metrics;
  std::vector<at::Tensor> weights;
};

using Rows = std::function<std::vector<TokenRow>(int step)>;

inline std::vector<TokenRow> uneven_rows(int step) {
  return random_rows(7, 100 + static_cast<std::uint64_t>(step));
}

/// Weights in slices are gathered, so all ranks call it then.
inline std::vector<at::Tensor> weights_of(const Job& job) {
  std::vector<at::Tensor> weights;
  for (const auto& [name, value] : job.policy->named_parameters()) {
    weights.push_back(detail::whole(value.detach()).clone());
  }
  if (!job.values) return weights;
  for (const auto& [name, value] : job.values->named_parameters()) {
    weights.push_back(detail::whole(value.detach()).clone());
  }
  return weights;
}

/// Some steps and an evaluation.
inline Outcome train(const Job& job, const RanksPtr& ranks, TrainerOptions options, int steps = 2,
                     const Rows& rows = uneven_rows) {
  options.ranks = ranks;
  options.value_model = job.values;
  const auto trainer = job.make_trainer(options);
  Outcome outcome;
  for (int step = 0; step < steps; ++step) outcome.metrics.push_back(trainer->step(rows(step)));
  outcome.metrics.push_back(trainer->evaluate(rows(99)));
  outcome.weights = weights_of(job);
  return outcome;
}

inline double difference(const at::Tensor& a, const at::Tensor& b) {
  return ((a - b).abs().max() / (a.abs().max() + 1e-30)).item<double>();
}

inline double worst_weight(const Outcome& one, const Outcome& other) {
  double worst = 0;
  for (std::size_t i = 0; i < one.weights.size(); ++i) {
    worst = std::max(worst, difference(one.weights[i], other.weights[i]));
  }
  return worst;
}

inline double worst_metric(const Outcome& one, const Outcome& other) {
  double worst = 0;
  for (std::size_t i = 0; i < one.metrics.size(); ++i) {
    for (const auto& [name, value] : one.metrics[i]) {
      const double of_other = metric(other.metrics[i], name);
      worst = std::max(worst, std::abs(value - of_other) / std::max(1.0, std::abs(value)));
    }
  }
  return worst;
}

inline std::vector<std::vector<std::string>> names(const Outcome& outcome) {
  std::vector<std::vector<std::string>> all;
  for (const Metrics& metrics : outcome.metrics) {
    auto& some = all.emplace_back();
    for (const auto& [name, value] : metrics) {
      if (!name.starts_with("ranks/")) some.push_back(name);  // of several alone
    }
    std::sort(some.begin(), some.end());
  }
  return all;
}

inline bool same_weights(const Outcome& one, const Outcome& other) {
  for (std::size_t i = 0; i < one.weights.size(); ++i) {
    if (!one.weights[i].equal(other.weights[i])) return false;
  }
  return true;
}

/// Trains one job alone and one on each rank; fresh weights come from the process's generator, so
/// jobs are made here.
inline void check_against_one_process(const ThreadRanks& ranks, int size,
                                      const std::function<Job()>& make_job,
                                      const TrainerOptions& options, double tolerance,
                                      int steps = 2, const Rows& rows = uneven_rows) {
  std::vector<Job> jobs;
  for (int r = 0; r < size; ++r) jobs.push_back(make_job());
  const Outcome alone = train(make_job(), nullptr, options, steps, rows);
  const auto together = ranks.results<Outcome>([&](const RanksPtr& one) {
    return train(jobs[static_cast<std::size_t>(one->rank())], one, options, steps, rows);
  });
  for (const Outcome& outcome : together) {
    CHECK(worst_weight(alone, outcome) <= tolerance);
    CHECK(names(outcome) == names(alone));
    CHECK(worst_metric(alone, outcome) <= tolerance);
    CHECK(same_weights(outcome, together.front()));
    CHECK(outcome.metrics == together.front().metrics);
  }
}

inline std::string named(const std::string& loss) { return "{\"type\": \"" + loss + "\"}"; }

inline Job with_moving(Adapter adapter, const MovingReferenceOptions& options) {
  const auto policy = decoder(torch::kDouble, adapter);
  return pair_job(policy, std::make_shared<MovingReference>(*policy, options), named("dpo"));
}

/// KTO with a reference whose log-probs are kept in `file`.
inline Job with_cached(const std::string& file) {
  const auto policy = decoder(torch::kDouble);
  return pair_job(policy, std::make_shared<CachedReference>(policy->frozen_copy(), file),
                  named("kto"));
}

/// Rows of a bigram policy's tokens.
inline std::vector<TokenRow> bigram_rows(int step = 0) {
  auto rows = uneven_rows(step);
  for (TokenRow& row : rows) {
    for (auto* ids : {&row.prompt, &row.chosen, &row.rejected, &row.gold}) {
      for (auto& id : *ids) id %= kVocab;
    }
  }
  return rows;
}

}  // namespace prefopt::over_ranks
