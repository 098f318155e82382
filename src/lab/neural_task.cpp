// SPDX-License-Identifier: Apache-2.0
#include "lab/neural_task.h"

#include <ATen/core/grad_mode.h>
#include <ATen/ops/empty_like.h>

#include <algorithm>
#include <cmath>
#include <utility>

#include "prefopt/error.h"
#include "prefopt/exact/measures.h"
#include "prefopt/exact/minimize.h"
#include "prefopt/losses/registry.h"
#include "prefopt/policy/reference.h"
#include "prefopt/policy/sequence_logps.h"
#include "prefopt/train/trainer.h"

namespace prefopt::lab {
namespace {

using namespace exact;

constexpr double kInitializerRange = 0.1;
constexpr double kLeast = 1e-7;  ///< probability of anything else that float32 can tell from none

// Streams of random numbers of one seed, so that no two uses share one.
enum class Stream : std::uint64_t { kTask, kWeights, kSupervised, kBatches, kPairs };

Random random_of(std::uint64_t seed, Stream stream) {
  return Random(16 * seed + static_cast<std::uint64_t>(stream));
}

bool is_covered(Index string) { return string / kLetters == 0 || string % kLetters == 0; }

}  // namespace

std::shared_ptr<Decoder> trainable_copy(const Decoder& network) {
  const at::NoGradGuard no_grad;
  auto copy = std::make_shared<Decoder>(network.options());
  const auto from = network.named_parameters(), to = copy->named_parameters();
  for (std::size_t i = 0; i < to.size(); ++i) to[i].value.copy_(from[i].value);
  return copy;
}

Table covered_strings() {
  Table covered = Table::Zero(kStrings, kPrompts);
  for (Index y = 0; y < kStrings; ++y) {
    if (is_covered(y)) covered.row(y) = 1;
  }
  return covered;
}

Table all_strings() { return Table::Ones(kStrings, kPrompts); }

NeuralTask::NeuralTask(std::uint64_t seed, double disappointment) {
  Random random = random_of(seed, Stream::kTask);
  constexpr Index kPlaces = 2, kPerPrompt = kPlaces * kLetters, kUncovered = kPerPrompt * kPrompts;
  features = Eigen::MatrixXd::Zero(kStrings * kPrompts, kUncovered + 1);
  for (Index x = 0; x < kPrompts; ++x) {
    for (Index y = 0; y < kStrings; ++y) {
      const Index row = kStrings * x + y;
      features(row, kPerPrompt * x + y / kLetters) = 1;
      features(row, kPerPrompt * x + kLetters + y % kLetters) = 1;
      if (!is_covered(y)) features(row, kUncovered) = 1;
    }
  }
  Eigen::VectorXd values = random.normals(kUncovered + 1, 1).matrix();
  for (Index place = 0; place < kPlaces * kPrompts; ++place) {
    auto letters = values.segment(kLetters * place, kLetters);
    std::iter_swap(letters.begin(), std::min_element(letters.begin(), letters.end()));
  }
  values[kUncovered] = -disappointment;
  rewards = (features * values).reshaped(kStrings, kPrompts).array();
}

Language language_of(const Policy& policy) {
  return policy.vocab_size() == kLetters ? Language::kClosed : Language::kOpen;
}

std::vector<std::int64_t> prompt_tokens(Index prompt) { return {prompt, (prompt + 1) % kLetters}; }

std::vector<std::int64_t> string_tokens(Index string, Language language) {
  std::vector<std::int64_t> tokens{string / kLetters, string % kLetters};
  if (language == Language::kOpen) tokens.push_back(kEnd);
  return tokens;
}

std::vector<TokenRow> token_pairs(const Pairs& pairs, Language language) {
  if (pairs.weights.size() > 0 && (pairs.weights != pairs.weights[0]).any()) {
    throw ShapeError("token_pairs: expected pairs of one weight, got several; draw a batch");
  }
  std::vector<TokenRow> rows;
  for (std::size_t i = 0; i < pairs.prompts.size(); ++i) {
    rows.push_back({.prompt = prompt_tokens(pairs.prompts[i]),
                    .chosen = string_tokens(pairs.chosen[i], language),
                    .rejected = string_tokens(pairs.rejected[i], language)});
  }
  return rows;
}

Table Answers::strings() const { return log_softmax(outcomes.topRows(kStrings)); }

Answers answers(Policy& policy) {
  const at::NoGradGuard no_grad;
  std::vector<std::vector<std::int64_t>> prompts, strings;
  for (Index x = 0; x < kPrompts; ++x) prompts.push_back(prompt_tokens(x));
  for (Index y = 0; y < kStrings; ++y) strings.push_back(string_tokens(y, language_of(policy)));
  std::vector<TokenSequence> sequences;
  for (const auto& prompt : prompts) {
    for (const auto& string : strings) sequences.push_back({prompt, string});
  }
  const at::Tensor sums = sequence_logps(policy, make_batch(sequences)).logps.contiguous();
  Table outcomes(kStrings + 1, kPrompts);
  outcomes.topRows(kStrings) = Eigen::Map<const Table>(sums.data_ptr<double>(), kStrings, kPrompts);
  outcomes.row(kStrings) = (1 - outcomes.topRows(kStrings).exp().colwise().sum()).max(kLeast).log();
  return {outcomes};
}

Table with_anything_else(const Table& rewards) {
  Table all(kStrings + 1, kPrompts);
  all << rewards, rewards.colwise().minCoeff();
  return all;
}

Table best_table(const std::string& loss, const Table& ref, const Eigen::MatrixXd& features,
                 const Pairs& pairs) {
  const SoftmaxPolicy policy = SoftmaxPolicy::log_linear(ref, features);
  const Objective objective(ExactLoss(loss), policy, ref, pairs);
  const Minimum found =
      minimize(objective, Eigen::VectorXd::Zero(policy.parameters()), {.gradient_tolerance = 1e-9});
  return policy.logps(found.theta);
}

std::shared_ptr<Decoder> fresh_network(Language language, std::uint64_t seed) {
  const at::NoGradGuard no_grad;
  const std::int64_t vocabulary = language == Language::kOpen ? kEnd + 1 : kLetters;
  auto network = std::make_shared<Decoder>(DecoderOptions{.vocab_size = vocabulary,
                                                          .hidden_size = 32,
                                                          .intermediate_size = 64,
                                                          .num_hidden_layers = 2,
                                                          .num_attention_heads = 2,
                                                          .num_key_value_heads = 2,
                                                          .max_position_embeddings = 16});
  Random random = random_of(seed, Stream::kWeights);
  for (const NamedParameter& parameter : network->named_parameters()) {
    if (parameter.value.dim() < 2) continue;  // norms begin at 1
    at::Tensor weights = at::empty_like(parameter.value);
    std::generate_n(weights.data_ptr<float>(), weights.numel(),
                    [&] { return static_cast<float>(kInitializerRange * random.normal()); });
    parameter.value.copy_(weights);
  }
  return network;
}

std::shared_ptr<Decoder> supervised_network(Language language, const Table& target,
                                            std::uint64_t seed) {
  constexpr int kSteps = 300, kBatch = 256;
  auto network = fresh_network(language, seed);
  Trainer trainer(
      network, nullptr, make_loss(R"({"type": "sft", "reduction": "sum"})"),
      {.optimizer = {.learning_rate = 1e-2, .warmup_steps = 10}, .total_steps = kSteps});
  Random random = random_of(seed, Stream::kSupervised);
  for (int step = 0; step < kSteps; ++step) {
    std::vector<TokenRow> rows;
    for (Index i = 0; i < kBatch; ++i) {
      const Index x = i % kPrompts;
      rows.push_back({.prompt = prompt_tokens(x),
                      .chosen = string_tokens(random.index(target.col(x).exp()), language),
                      .rejected = {}});
    }
    trainer.step(rows);
  }
  return network;
}

Random pair_random(std::uint64_t seed) { return random_of(seed, Stream::kPairs); }

std::shared_ptr<Decoder> train_network(const Decoder& reference, const Pairs& pairs,
                                       const NeuralTraining& training, std::uint64_t seed,
                                       const std::function<void(int, Policy&)>& seen) {
  auto network = trainable_copy(reference);
  const Language language = language_of(reference);
  const bool ends = language == Language::kOpen;
  TrainerOptions options{
      .optimizer = {.learning_rate = training.learning_rate,
                    .schedule = training.decays ? Schedule::kLinear : Schedule::kConstant},
      .total_steps = training.steps,
      .sampling = {.max_new_tokens = ends ? 6 : 2,
                   .eos_id = ends ? kEnd : -1,
                   .seed = static_cast<std::int64_t>(seed)}};
  Trainer trainer(network, make_frozen_reference(reference.frozen_copy()), make_loss(training.loss),
                  std::move(options));
  Random random = random_of(seed, Stream::kBatches);
  if (seen) seen(0, *network);
  for (int step = 1; step <= training.steps; ++step) {
    trainer.step(
        token_pairs(training.batch > 0 ? sample(pairs, training.batch, random) : pairs, language));
    if (seen) seen(step, *network);
  }
  return network;
}

}  // namespace prefopt::lab
