// SPDX-License-Identifier: Apache-2.0
// Steps of losses on tokens, against their formulas on log-probs of a bigram policy.

#include <cmath>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "prefopt/error.h"
#include "prefopt/objectives/token_loss.h"
#include "prefopt/policy/reward_policy.h"
#include "prefopt/train/trainer.h"
#include "support/bigram_policy.h"
#include "support/catch.h"
#include "support/errors.h"

namespace prefopt {
namespace {

using namespace testing_support;

TrainerOptions steady_steps() {
  return {.optimizer = {.learning_rate = 0.1, .max_grad_norm = 0, .schedule = Schedule::kConstant},
          .value_optimizer = {
              .learning_rate = 0.1, .max_grad_norm = 0, .schedule = Schedule::kConstant}};
}

/// The value of a state is a number of its last token.
class LastTokenValues final : public RewardPolicy {
 public:
  LastTokenValues() : table_(at::linspace(-0.5, 0.6, kVocab, at::kDouble).requires_grad_(true)) {}

  at::Tensor rewards(const std::vector<TokenSequence>&) override { return {}; }
  at::Tensor token_values(const TokenBatch& batch) override {
    const std::int64_t width = batch.input_ids.size(1) - 1;
    const at::Tensor before = batch.input_ids.narrow(1, 0, width);
    const at::Tensor counts = batch.completion_mask.narrow(1, 1, width);
    return table_.index_select(0, before.masked_select(counts));
  }
  std::int64_t vocab_size() const override { return kVocab; }
  std::vector<NamedParameter> named_parameters() const override { return {{"values", table_}}; }

  const at::Tensor& table() const { return table_; }
  double of(std::int64_t token) const { return table_.const_data_ptr<double>()[token]; }

 private:
  at::Tensor table_;
};

/// Ragged rows with labels and steps, one with a token that does not count.
std::vector<TokenRow> token_rows() {
  std::vector<TokenRow> rows;
  const auto add = [&](std::vector<std::int64_t> completion, double label,
                       std::vector<std::int64_t> steps, TokenMask mask = {}) {
    TokenRow row{.prompt = {1, 0}, .chosen = std::move(completion), .rejected = {}};
    row.chosen_mask = std::move(mask);
    row.columns[Column::kLabel] = label;
    row.rollout.turns = std::move(steps);
    rows.push_back(std::move(row));
  };
  add({1, 2, 3}, 1, {0, 0, 1});
  add({4}, 0, {0});
  add({2, 2, 4, 1}, 0, {0, 1, 1}, {1, 0, 1, 1});
  add({3, 1}, 1, {0, 1});
  return rows;
}

struct Token {
  std::int64_t from, to;
  std::size_t row;
};

std::vector<Token> counted(const std::vector<TokenRow>& rows) {
  std::vector<Token> tokens;
  for (std::size_t i = 0; i < rows.size(); ++i) {
    std::int64_t from = rows[i].prompt.back();
    for (std::size_t t = 0; t < rows[i].chosen.size(); ++t) {
      const std::int64_t to = rows[i].chosen[t];
      if (rows[i].chosen_mask.empty() || rows[i].chosen_mask[t] != 0)
        tokens.push_back({from, to, i});
      from = to;
    }
  }
  return tokens;
}

double log_normalizer(const BigramPolicy& policy, std::int64_t from) {
  return policy.logit(from, 0) - policy.logp(from, 0);
}

/// mean (lambda r² − lp) from its definition.
double iqlearn_by_formula(const BigramPolicy& policy, const std::vector<TokenRow>& rows,
                          double lambda, double gamma) {
  const auto tokens = counted(rows);
  double sum = 0;
  for (std::size_t t = 0; t < tokens.size(); ++t) {
    const bool has_next = t + 1 < tokens.size() && tokens[t + 1].row == tokens[t].row;
    const double next = has_next ? log_normalizer(policy, tokens[t + 1].from) : 0;
    const double reward = policy.logit(tokens[t].from, tokens[t].to) - gamma * next;
    sum += lambda * reward * reward - policy.logp(tokens[t].from, tokens[t].to);
  }
  return sum / static_cast<double>(tokens.size());
}

/// Checks the gradient of a tensor by central differences of `value`.
void check_gradient_of(const at::Tensor& parameter, const std::function<double()>& value) {
  constexpr double kStep = 1e-6;
  double* const numbers = parameter.detach().data_ptr<double>();
  const at::Tensor gradient = parameter.grad().contiguous();
  for (std::int64_t i = 0; i < parameter.numel(); ++i) {
    CAPTURE(i);
    const double before = numbers[i];
    numbers[i] = before + kStep;
    const double above = value();
    numbers[i] = before - kStep;
    const double below = value();
    numbers[i] = before;
    CHECK(gradient.const_data_ptr<double>()[i] ==
          Approx((above - below) / (2 * kStep)).epsilon(1e-6).margin(1e-8));
  }
}

TEST_CASE("a step of iqlearn has the gradient of its definition", "[train]") {
  const auto rows = token_rows();
  auto policy = std::make_shared<BigramPolicy>(3);
  Trainer trainer(policy, nullptr,
                  make_token_loss(R"({"type": "iqlearn", "lambda": 0.3, "gamma": 0.8})"),
                  steady_steps());
  const Metrics metrics = trainer.accumulate_gradients(rows);
  const auto value = [&] { return iqlearn_by_formula(*policy, rows, 0.3, 0.8); };
  CHECK(metric(metrics, "loss") == Approx(value()).epsilon(1e-12));
  CHECK(metric(metrics, "loss/nll") + metric(metrics, "loss/rewards") ==
        Approx(metric(metrics, "loss")).epsilon(1e-12));
  check_gradient_of(policy->table(), value);
  check_gradient_of(policy->bias(), value);
}

/// Mean over rows of the mean over tokens of the squared residual, with the log-ratios to go of one
/// policy and, at the token itself, of another.
double oreo_by_formula(const BigramPolicy& own, const BigramPolicy& held, const BigramPolicy& ref,
                       const LastTokenValues& values, const std::vector<TokenRow>& rows,
                       double beta) {
  const auto tokens = counted(rows);
  double sum = 0;
  for (std::size_t t = 0; t < tokens.size(); ++t) {
    const auto ratio = [&](const BigramPolicy& policy, std::size_t at) {
      return policy.logp(tokens[at].from, tokens[at].to) - ref.logp(tokens[at].from, tokens[at].to);
    };
    double to_go = ratio(own, t);
    double length = 0;
    for (std::size_t s = 0; s < tokens.size(); ++s) {
      if (tokens[s].row != tokens[t].row) continue;
      ++length;
      if (s > t) to_go += ratio(held, s);
    }
    const double reward = rows[tokens[t].row].columns[Column::kLabel];
    const double error = values.of(tokens[t].from) - reward + beta * to_go;
    sum += error * error / length;
  }
  return sum / static_cast<double>(rows.size());
}

TEST_CASE("a step of oreo has the gradients of its equations", "[train]") {
  const auto rows = token_rows();
  auto policy = std::make_shared<BigramPolicy>(3);
  const auto held = std::make_shared<BigramPolicy>(3);
  const auto ref = std::make_shared<BigramPolicy>(4);
  const auto values = std::make_shared<LastTokenValues>();
  TrainerOptions options = steady_steps();
  options.value_model = values;
  Trainer trainer(policy, make_frozen_reference(ref),
                  make_token_loss(R"({"type": "oreo", "beta": 0.4, "alpha": 0})"), options);
  const Metrics metrics = trainer.accumulate_gradients(rows);
  const auto value = [&] { return oreo_by_formula(*policy, *held, *ref, *values, rows, 0.4); };
  CHECK(metric(metrics, "loss") == Approx(value()).epsilon(1e-12));
  check_gradient_of(policy->table(), value);
  check_gradient_of(values->table(), value);
  // The KL: that of the distributions at each state, in the mean over rows.
  Trainer with_kl(policy, make_frozen_reference(ref),
                  make_token_loss(R"({"type": "oreo", "beta": 0, "alpha": 0.7})"), options);
  with_kl.accumulate_gradients(rows);
  const auto kl = [&] {
    double sum = 0;
    for (const Token& token : counted(rows)) {
      double of_state = 0;
      for (std::int64_t v = 0; v < kVocab; ++v) {
        const double logp = policy->logp(token.from, v);
        of_state += std::exp(logp) * (logp - ref->logp(token.from, v));
      }
      const TokenRow& row = rows[token.row];
      sum += of_state / static_cast<double>(counted_tokens(row.chosen, row.chosen_mask));
    }
    return 0.7 * sum / static_cast<double>(rows.size());
  };
  check_gradient_of(policy->table(), kl);
}

TEST_CASE("losses on tokens do not depend on the cut of a step", "[train]") {
  const auto rows = token_rows();
  const std::string config =
      GENERATE(as<std::string>{}, R"({"type": "oreo", "level": "step"})",
               R"({"type": "oreo", "level": "response", "alpha": 0.2})", R"({"type": "iqlearn"})",
               R"({"type": "iqlearn", "own_samples": 0.5, "reduction": "sum"})");
  CAPTURE(config);
  const auto ref = std::make_shared<BigramPolicy>(4);
  const auto gradient_of = [&](std::int64_t micro) {
    auto policy = std::make_shared<BigramPolicy>(3);
    TrainerOptions options = steady_steps();
    options.micro_batch_size = micro;
    options.sampling.max_new_tokens = 3;
    const TokenLoss loss = make_token_loss(config);
    if (loss.needs().values) options.value_model = std::make_shared<LastTokenValues>();
    Trainer trainer(policy, make_frozen_reference(ref), loss, options);
    trainer.accumulate_gradients(rows);
    return policy->table().grad().clone();
  };
  const at::Tensor whole = gradient_of(0);
  CHECK(whole.abs().max().item<double>() > 0);
  for (const std::int64_t micro : {1, 2, 3}) {
    CHECK(at::allclose(gradient_of(micro), whole, 1e-11, 1e-14));
  }
}

TEST_CASE("own samples differ from step to step, and are alike in each evaluation", "[train]") {
  const auto rows = token_rows();
  auto policy = std::make_shared<BigramPolicy>(3);
  TrainerOptions options = steady_steps();
  options.sampling.max_new_tokens = 4;
  options.optimizer.learning_rate = 0;
  Trainer trainer(policy, nullptr, make_token_loss(R"({"type": "iqlearn", "own_samples": 0.5})"),
                  options);
  const auto rewards = [](const Metrics& metrics) { return metric(metrics, "loss/rewards"); };
  CHECK(rewards(trainer.evaluate(rows)) == rewards(trainer.evaluate(rows)));
  CHECK(rewards(trainer.step(rows)) != rewards(trainer.step(rows)));
}

TEST_CASE("trainers of losses on tokens refuse what does not fit", "[train]") {
  const auto policy = std::make_shared<BigramPolicy>(3);
  const auto reference = make_frozen_reference(std::make_shared<BigramPolicy>(4));
  const auto refused = [&](const std::string& config, const std::shared_ptr<Reference>& of,
                           const TrainerOptions& options, const std::string& text) {
    CHECK_THROWS_TEXT(Trainer(policy, of, make_token_loss(config), options), ConfigError, text);
  };
  TrainerOptions options = steady_steps();
  refused(R"({"type": "oreo"})", reference, options, "oreo: expected a value model, got null");
  options.value_model = std::make_shared<LastTokenValues>();
  refused(
      R"({"type": "oreo"})", nullptr, options,
      "oreo: expected a reference, got null; make_frozen_reference(policy->frozen_copy()) makes "
      "one");
  refused(R"({"type": "iqlearn"})", nullptr, options, "iqlearn: expected no value model, got one");
  options = steady_steps();
  options.temperature = 0.5;
  refused(R"({"type": "iqlearn"})", nullptr, options,
          "iqlearn: expected temperature 1, as its rows were drawn at none, got 0.5");
  options = steady_steps();
  options.value_pretrain_steps = 2;
  refused(R"({"type": "iqlearn"})", nullptr, options,
          "iqlearn: expected value_pretrain_steps 0 without values, got 2");

  options = steady_steps();
  options.value_model = std::make_shared<LastTokenValues>();
  Trainer trainer(policy, reference, make_token_loss(R"({"type": "oreo", "level": "step"})"),
                  options);
  auto rows = token_rows();
  rows[1].rollout.turns.clear();
  CHECK_THROWS_TEXT(trainer.step(rows), ShapeError,
                    "oreo: expected steps of the 1 tokens that count in row 1, got 0");
  rows = token_rows();
  rows[2].columns = {};
  CHECK_THROWS_TEXT(trainer.step(rows), DataError, "oreo: expected a label in row 2, got none");
  rows = token_rows();
  rows[0].chosen_weights = {1, 2, 3};
  CHECK_THROWS_TEXT(trainer.step(rows), ShapeError,
                    "oreo: expected rows without weights of tokens, got some in row 0");
}

}  // namespace
}  // namespace prefopt
