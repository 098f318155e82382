// SPDX-License-Identifier: Apache-2.0
#include <cmath>
#include <numeric>
#include <random>
#include <set>

#include "prefopt/decoder/decoder.h"
#include "prefopt/error.h"
#include "prefopt/losses/registry.h"
#include "prefopt/policy/moving_reference.h"
#include "prefopt/train/trainer.h"
#include "support/bigram_policy.h"
#include "support/catch.h"
#include "support/errors.h"
#include "support/temp_dir.h"
#include "train/metrics.h"

namespace prefopt {
namespace {

using namespace testing_support;

std::shared_ptr<Reference> frozen(const Policy& policy) {
  return make_frozen_reference(policy.frozen_copy());
}

TrainerOptions plain(double learning_rate = 0.1) {
  return {.optimizer = {.learning_rate = learning_rate,
                        .max_grad_norm = 0,
                        .schedule = Schedule::kConstant},
          .sampling = {.max_new_tokens = 3, .seed = 11}};
}

std::set<std::string> names(const Metrics& metrics) {
  std::set<std::string> result;
  for (const auto& item : metrics) result.insert(item.first);
  return result;
}

/// Gradient of -log pi(to | from) with respect to the logits of `from`.
at::Tensor nll_gradient(const BigramPolicy& policy, std::int64_t from, std::int64_t to) {
  auto gradient = torch::empty({kVocab}, torch::kDouble);
  for (std::int64_t v = 0; v < kVocab; ++v) {
    gradient[v] = std::exp(policy.logp(from, v)) - (v == to ? 1 : 0);
  }
  return gradient;
}

double largest_difference(const at::Tensor& a, const at::Tensor& b) {
  return (a - b).abs().max().item<double>();
}

TEST_CASE("the first AdamW step moves by its closed form", "[train]") {
  constexpr double kRate = 0.1;
  constexpr double kEpsilon = 0.25;
  constexpr double kDecay = 0.5;
  // Large, so that the norm matters: AdamW alone hardly sees the scale of a gradient.
  const double max_norm = GENERATE(0.0, 0.125, 1000.0);

  auto policy = std::make_shared<BigramPolicy>(1);
  const auto table = policy->table().detach().clone();
  const auto bias = policy->bias().detach().clone();
  const auto of_logits = nll_gradient(*policy, 0, 1);
  auto of_table = torch::zeros({kVocab, kVocab}, torch::kDouble);
  of_table[0] = of_logits;

  auto options = plain(kRate);
  options.optimizer.adam_epsilon = kEpsilon;
  options.optimizer.weight_decay = kDecay;
  options.optimizer.max_grad_norm = max_norm;
  Trainer trainer(policy, nullptr, make_loss(R"({"type": "sft"})"), options);
  const auto metrics = trainer.step({{.prompt = {0}, .chosen = {1}, .rejected = {}}});

  // The same gradient twice: in a row of the table and in the bias.
  const double norm = std::sqrt(2 * of_logits.square().sum().item<double>());
  CHECK(metric(metrics, "grad_norm") == Approx(norm).epsilon(1e-12));
  CHECK(metric(metrics, "learning_rate") == kRate);
  const double scale = max_norm > 0 ? std::min(1.0, max_norm / (norm + 1e-6)) : 1.0;
  const auto moved = [&](const at::Tensor& gradient) {
    return kRate * scale * gradient / (scale * gradient.abs() + kEpsilon);
  };
  const auto expected_table = table * (1 - kRate * kDecay) - moved(of_table);
  const auto expected_bias = bias - moved(of_logits);
  CHECK(largest_difference(policy->table().detach(), expected_table) < 1e-12);
  CHECK(largest_difference(policy->bias().detach(), expected_bias) < 1e-12);
  CHECK(trainer.steps_done() == 1);
}

TEST_CASE("the learning rate follows the schedule over the steps", "[train]") {
  auto options = plain(1e-3);
  options.optimizer.schedule = Schedule::kLinear;
  options.optimizer.warmup_steps = 2;
  options.total_steps = 4;
  Trainer trainer(std::make_shared<BigramPolicy>(1), nullptr, make_loss(R"({"type": "sft"})"),
                  options);
  std::vector<double> rates;
  for (int i = 0; i < 4; ++i) rates.push_back(metric(trainer.step(pairs()), "learning_rate"));
  CHECK(rates == std::vector<double>{5e-4, 1e-3, 1e-3, 5e-4});
}

TEST_CASE("a gradient does not depend on how the step is cut", "[train]") {
  const auto config = GENERATE(as<std::string>{}, R"({"type": "dpo"})", R"({"type": "rpo"})",
                               R"({"type": "ipo"})", R"({"type": "sft"})", R"({"type": "hypo"})");
  INFO(config);
  const BigramPolicy other(7);
  auto whole = std::make_shared<BigramPolicy>(3);
  Trainer reference_trainer(whole, frozen(other), make_loss(config), plain());
  const auto expected = reference_trainer.accumulate_gradients(pairs());
  REQUIRE(whole->table().grad().abs().max().item<double>() > 1e-3);

  struct Cut {
    std::int64_t pairs, tokens;
  };
  const auto cut = GENERATE(Cut{1, 0}, Cut{2, 0}, Cut{3, 0}, Cut{5, 0}, Cut{9, 0}, Cut{0, 1},
                            Cut{0, 9}, Cut{0, 17}, Cut{2, 17});
  INFO("micro_batch_size " << cut.pairs << ", micro_batch_tokens " << cut.tokens);
  auto options = plain();
  options.micro_batch_size = cut.pairs;
  options.micro_batch_tokens = cut.tokens;
  auto policy = std::make_shared<BigramPolicy>(3);
  Trainer trainer(policy, frozen(other), make_loss(config), options);
  const auto metrics = trainer.accumulate_gradients(pairs());

  CHECK(largest_difference(policy->table().grad(), whole->table().grad()) < 1e-12);
  CHECK(largest_difference(policy->bias().grad(), whole->bias().grad()) < 1e-12);
  REQUIRE(names(metrics) == names(expected));
  for (std::size_t i = 0; i < metrics.size(); ++i) {
    INFO(metrics[i].first);
    CHECK(metrics[i].second == Approx(expected[i].second).margin(1e-12).epsilon(1e-12));
  }
  const auto evaluated = trainer.evaluate(pairs());
  const auto expected_evaluation = reference_trainer.evaluate(pairs());
  CHECK(metric(evaluated, "loss") == Approx(metric(expected_evaluation, "loss")).epsilon(1e-12));
}

TEST_CASE("policy = reference gives log 2 at step 0", "[train]") {
  auto policy = std::make_shared<BigramPolicy>(3);
  Trainer trainer(policy, frozen(*policy), make_loss(R"({"type": "dpo"})"), plain());
  const std::vector<TokenRow> four(pairs().begin(), pairs().begin() + 4);
  const auto metrics = trainer.step(four);
  CHECK(metric(metrics, "loss") == std::log(2.0));
  CHECK(metric(metrics, "rewards/margins") == 0);
  CHECK(metric(metrics, "rewards/accuracies") == 0);
  CHECK(metric(trainer.evaluate(four), "loss") < std::log(2.0));
}

TEST_CASE("no gradient reaches the reference", "[train]") {
  const auto config = GENERATE(as<std::string>{}, R"({"type": "dpo"})", R"({"type": "hypo"})");
  auto policy = std::make_shared<BigramPolicy>(3);
  auto behind_reference = std::make_shared<BigramPolicy>(4);
  Trainer trainer(policy, make_frozen_reference(behind_reference), make_loss(config), plain());
  const auto before = behind_reference->table().detach().clone();
  trainer.step(pairs());
  CHECK_FALSE(behind_reference->table().grad().defined());
  CHECK_FALSE(behind_reference->bias().grad().defined());
  CHECK(torch::equal(behind_reference->table().detach(), before));
}

TEST_CASE("a hard update of the reference gives log 2 again", "[train]") {
  auto policy = std::make_shared<BigramPolicy>(3);
  const auto reference = std::make_shared<MovingReference>(
      *policy, MovingReferenceOptions{.rule = MovingRule::kHard, .update_steps = 2});
  Trainer trainer(policy, reference, make_loss(R"({"type": "dpo"})"), plain());
  const std::vector<TokenRow> four(pairs().begin(), pairs().begin() + 4);
  std::vector<double> losses;
  for (int i = 0; i < 4; ++i) losses.push_back(metric(trainer.step(four), "loss"));
  CHECK(losses[0] == std::log(2.0));
  CHECK(losses[1] < losses[0]);
  CHECK(losses[2] == std::log(2.0));
  CHECK(losses[3] < losses[2]);
  CHECK(metric(trainer.evaluate(four), "loss") == std::log(2.0));
  for (const auto& parameter : reference->policy()->named_parameters()) {
    CHECK_FALSE(parameter.value.grad().defined());
    CHECK_FALSE(parameter.value.requires_grad());
  }
}

/// Notes what the trainer tells it.
class ListeningReference final : public Reference {
 public:
  at::Tensor sequence_logps(const TokenBatch& batch) override {
    return torch::zeros({batch.sequences()}, torch::kDouble);
  }
  at::Tensor token_logps(const TokenBatch& batch) override {
    return torch::zeros({batch.completion_lens.sum().item<std::int64_t>()}, torch::kDouble);
  }
  void after_step(const Policy& policy, std::int64_t step) override {
    policies.insert(&policy);
    steps.push_back(step);
  }

  std::set<const Policy*> policies;
  std::vector<std::int64_t> steps;
};

TEST_CASE("a reference hears of each update and of no skipped step", "[train]") {
  auto policy = std::make_shared<BigramPolicy>(3);
  const auto reference = std::make_shared<ListeningReference>();
  Trainer trainer(policy, reference, make_loss(R"({"type": "dpo"})"), plain());
  for (const bool poisoned : {false, true, true, false}) {
    policy->poisoned = poisoned;
    trainer.step(pairs());
  }
  trainer.evaluate(pairs());
  trainer.accumulate_gradients(pairs());
  CHECK(reference->steps == std::vector<std::int64_t>{1, 4});
  CHECK(reference->policies == std::set<const Policy*>{policy.get()});
}

TEST_CASE("the metrics of a DPO step agree with their definitions", "[train]") {
  constexpr double kBeta = 0.25;
  auto policy = std::make_shared<BigramPolicy>(3);
  const BigramPolicy reference(8);
  auto options = plain();
  options.micro_batch_size = 2;
  Trainer trainer(policy, frozen(reference), make_loss(R"({"type": "dpo", "beta": 0.25})"),
                  options);
  const auto metrics = trainer.evaluate(pairs());

  double loss = 0, chosen = 0, rejected = 0, ref_chosen = 0, ref_rejected = 0, wins = 0;
  double entropy = 0, chosen_logits = 0, rejected_logits = 0, hits = 0;
  double chosen_tokens = 0, rejected_tokens = 0;
  const auto add_tokens = [&](const TokenRow& pair, const std::vector<std::int64_t>& completion,
                              bool is_chosen) {
    auto from = pair.prompt.back();
    for (const auto to : completion) {
      double mean_logit = 0;
      bool best = true;
      for (std::int64_t v = 0; v < kVocab; ++v) {
        entropy -= std::exp(policy->logp(from, v)) * policy->logp(from, v);
        mean_logit += policy->logit(from, v) / kVocab;
        best = best && policy->logit(from, v) <= policy->logit(from, to);
      }
      (is_chosen ? chosen_logits : rejected_logits) += mean_logit;
      (is_chosen ? chosen_tokens : rejected_tokens) += 1;
      if (is_chosen && best) hits += 1;
      from = to;
    }
  };
  for (const auto& pair : pairs()) {
    const double w = policy->sum_logps(pair.prompt, pair.chosen);
    const double l = policy->sum_logps(pair.prompt, pair.rejected);
    const double ref_w = reference.sum_logps(pair.prompt, pair.chosen);
    const double ref_l = reference.sum_logps(pair.prompt, pair.rejected);
    loss += std::log1p(std::exp(-kBeta * ((w - ref_w) - (l - ref_l))));
    chosen += w, rejected += l, ref_chosen += ref_w, ref_rejected += ref_l;
    wins += w - ref_w > l - ref_l ? 1 : 0;
    add_tokens(pair, pair.chosen, true);
    add_tokens(pair, pair.rejected, false);
  }
  const double n = 5;
  const Metrics expected = {
      {"loss", loss / n},
      {"entropy", entropy / (chosen_tokens + rejected_tokens)},
      {"num_tokens", 0},
      {"rewards/chosen", kBeta * (chosen - ref_chosen) / n},
      {"rewards/rejected", kBeta * (rejected - ref_rejected) / n},
      {"rewards/accuracies", wins / n},
      {"rewards/margins", kBeta * (chosen - ref_chosen - rejected + ref_rejected) / n},
      {"logps/chosen", chosen / n},
      {"logps/rejected", rejected / n},
      {"logits/chosen", chosen_logits / chosen_tokens},
      {"logits/rejected", rejected_logits / rejected_tokens},
      {"mean_token_accuracy", hits / chosen_tokens},
      {"logps/ref_chosen", ref_chosen / n},
      {"logps/ref_rejected", ref_rejected / n},
      {"lengths/chosen", 13 / n},
      {"lengths/rejected", 13 / n},
  };
  REQUIRE(hits > 0);
  REQUIRE(wins > 0);
  REQUIRE(metrics.size() == expected.size());
  for (std::size_t i = 0; i < metrics.size(); ++i) {
    INFO(expected[i].first);
    CHECK(metrics[i].first == expected[i].first);
    CHECK(metrics[i].second == Approx(expected[i].second).epsilon(1e-12));
  }
}

TEST_CASE("tokens are counted over training steps, prompts with each completion", "[train]") {
  auto policy = std::make_shared<BigramPolicy>(3);
  Trainer trainer(policy, frozen(*policy), make_loss(R"({"type": "dpo"})"), plain());
  constexpr double kTokens = 2 * 9 + 13 + 13;
  CHECK(metric(trainer.accumulate_gradients(pairs()), "num_tokens") == kTokens);
  CHECK(metric(trainer.step(pairs()), "num_tokens") == kTokens);
  CHECK(metric(trainer.evaluate(pairs()), "num_tokens") == kTokens);
  CHECK(metric(trainer.step(pairs()), "num_tokens") == 2 * kTokens);
}

TEST_CASE("SFT sees chosen completions alone", "[train]") {
  auto policy = std::make_shared<BigramPolicy>(3);
  auto rows = pairs();
  if (GENERATE(false, true)) {
    for (auto& row : rows) row.rejected.clear();
  }
  double sum = 0;
  for (const auto& row : rows) sum += policy->sum_logps(row.prompt, row.chosen);
  Trainer trainer(policy, nullptr, make_loss(R"({"type": "sft"})"), plain());
  const auto first = trainer.step(rows);
  CHECK(metric(first, "loss") == Approx(-sum / 13).epsilon(1e-12));
  CHECK(metric(first, "num_tokens") == 9 + 13);
  CHECK(names(first) == std::set<std::string>{"loss", "grad_norm", "learning_rate", "entropy",
                                              "num_tokens", "logps/chosen", "logits/chosen",
                                              "mean_token_accuracy", "lengths/chosen"});
  for (int i = 0; i < 30; ++i) trainer.step(rows);
  CHECK(metric(trainer.evaluate(rows), "loss") < 0.7 * metric(first, "loss"));
}

TEST_CASE("a loss of several terms reports each, and they add up", "[train]") {
  const auto config = GENERATE(as<std::string>{}, R"({"type": "rpo"})", R"({"type": "hypo"})");
  INFO(config);
  const BigramPolicy other(7);
  auto options = plain();
  options.micro_batch_size = 2;
  Trainer trainer(std::make_shared<BigramPolicy>(3), frozen(other), make_loss(config), options);
  const auto metrics = trainer.evaluate(pairs());
  double sum = 0;
  int terms = 0;
  for (const auto& [name, value] : metrics) {
    if (name.rfind("loss/", 0) != 0) continue;
    sum += value;
    ++terms;
  }
  CHECK(terms >= 2);
  CHECK(sum == Approx(metric(metrics, "loss")).epsilon(1e-12));
}

/// The inputs of the last forward of a SampleProbe; a loss has no other way to tell.
PairLogps probed;

struct ProbeOptions {
  void fields(FieldVisitor&) {}
};

LossInfo info_of(const std::string& name) {
  LossInfo info;
  info.name = name;
  return info;
}

/// Mean log-prob of fresh samples.
struct SampleProbe {
  SampleSource source = SampleSource::kPolicy;
  std::int64_t samples = 2;

  LossOutput forward(const PairLogps& logps) const {
    probed = logps;
    LossOutput out;
    out.loss = logps.sample_logps.sum() / logps.totals.pairs;
    return out;
  }
  LossRequirements requirements() const {
    return {.sample_source = source, .samples_per_prompt = samples};
  }
  static LossInfo info() { return info_of("sample_probe"); }
  ProbeOptions options() const { return {}; }
};

TEST_CASE("fresh samples come from the source that the loss names", "[train]") {
  // Each of the two can say one token only, whatever came before.
  const auto table = torch::zeros({kVocab, kVocab}, torch::kDouble);
  const auto says = [&](std::int64_t token) {
    auto bias = torch::full({kVocab}, -200.0, torch::kDouble);
    bias[token] = 0;
    auto policy = std::make_shared<BigramPolicy>(table, bias);
    policy->set_requires_grad(true);
    return policy;
  };
  const auto source = GENERATE(SampleSource::kPolicy, SampleSource::kReference);
  Trainer trainer(says(1), make_frozen_reference(says(2)), SampleProbe{source}, plain());
  const auto metrics = trainer.accumulate_gradients(pairs());

  REQUIRE(probed.sample_logps.sizes() == at::IntArrayRef({10}));
  REQUIRE(probed.ref_sample_logps.sizes() == at::IntArrayRef({10}));
  CHECK(probed.samples_per_prompt == 2);
  CHECK(torch::equal(probed.sample_lens, torch::full({10}, 3.0, torch::kDouble)));
  CHECK(probed.sample_logps.requires_grad());
  CHECK_FALSE(probed.ref_sample_logps.requires_grad());
  const double sampled = probed.sample_logps.sum().item<double>();
  CHECK(sampled == Approx(source == SampleSource::kPolicy ? 0 : 10 * 3 * -200.0).margin(1e-12));
  if (source == SampleSource::kPolicy) {
    CHECK(metric(metrics, "kl") == Approx(600).epsilon(1e-12));
  } else {
    CHECK_THROWS_AS(metric(metrics, "kl"), Error);
  }
}

TEST_CASE("a loss over the policy's own samples refuses another distribution", "[train]") {
  auto policy = std::make_shared<BigramPolicy>(3);
  auto options = plain(0);
  options.sampling.temperature = 0.5;
  CHECK_THROWS_TEXT(
      Trainer(policy, frozen(*policy), make_loss(R"({"type": "hypo"})"), options), ConfigError,
      "hypo: expected samples of the policy itself (temperature 1, top_k 0, top_p 1), got "
      "temperature 0.5, top_k 0, top_p 1; its gradient is an expectation under the policy");
  options.sampling = {.repetition_penalty = 1.5};
  CHECK_THROWS_TEXT(
      Trainer(policy, frozen(*policy), make_loss(R"({"type": "hypo"})"), options), ConfigError,
      "hypo: expected samples of the policy itself (temperature 1, top_k 0, top_p 1, "
      "repetition_penalty 1), got temperature 1, top_k 0, top_p 1, repetition_penalty 1.5; its "
      "gradient is an expectation under the policy");
}

TEST_CASE("samples differ between steps and pairs, and agree between cuts", "[train]") {
  const auto draw = [](std::int64_t micro, int steps) {
    auto options = plain(0);
    options.micro_batch_size = micro;
    auto policy = std::make_shared<BigramPolicy>(3);
    Trainer trainer(policy, frozen(*policy), SampleProbe{}, options);
    const std::vector<TokenRow> same(4, pairs()[0]);
    for (int i = 0; i < steps; ++i) trainer.step(same);
    return probed.sample_logps.detach();
  };
  const auto whole = draw(4, 1);
  CHECK_FALSE(torch::equal(whole.slice(0, 0, 4), whole.slice(0, 4, 8)));
  CHECK_FALSE(torch::equal(whole, draw(4, 2)));
  CHECK(torch::allclose(whole.slice(0, 6, 8), draw(1, 1), 0, 1e-12));
  CHECK(torch::allclose(whole.slice(0, 4, 8), draw(2, 1), 0, 1e-12));
}

/// A bigram policy next to a parameter whose means no machine has memory for.
class VastPolicy final : public Policy {
 public:
  explicit VastPolicy(std::shared_ptr<BigramPolicy> inner) : inner_(std::move(inner)) {}

  PolicyOutput forward(const TokenBatch& batch) override {
    if (is_vast) vast_.mutable_grad() = torch::zeros({1}, torch::kDouble);
    return inner_->forward(batch);
  }
  std::int64_t vocab_size() const override { return inner_->vocab_size(); }
  std::vector<NamedParameter> named_parameters() const override {
    auto parameters = inner_->named_parameters();
    parameters.emplace_back("vast", vast_);
    return parameters;
  }
  std::shared_ptr<Policy> frozen_copy() const override { return inner_->frozen_copy(); }

  bool is_vast = true;

 private:
  std::shared_ptr<BigramPolicy> inner_;
  at::Tensor vast_ = torch::zeros({1}, torch::kDouble)
                         .expand({std::int64_t{1} << 56})
                         .detach()
                         .requires_grad_(true);
};

TEST_CASE("memory that AdamW cannot have ends a step before it changes anything", "[train]") {
  const bool is_narrow = GENERATE(false, true);
  auto options = plain();
  if (is_narrow) options.optimizer.state_dtype = StateDtype::kBFloat16;
  const auto inner = std::make_shared<BigramPolicy>(3);
  const auto policy = std::make_shared<VastPolicy>(inner);
  const auto alone = std::make_shared<BigramPolicy>(inner->table(), inner->bias());
  alone->table().requires_grad_(true);
  alone->bias().requires_grad_(true);
  Trainer trainer(policy, frozen(*policy), make_loss(R"({"type": "dpo"})"), options);
  Trainer expected(alone, frozen(*alone), make_loss(R"({"type": "dpo"})"), options);
  const auto table = inner->table().detach().clone();
  std::string text;
  try {
    trainer.step(pairs());
  } catch (const OutOfMemoryError& error) {
    text = error.what();
  }
  INFO(text);
  CHECK(text.starts_with(
      "step 1: expected memory for AdamW's means of all trained parameters, got '"));
  CHECK(text.ends_with(is_narrow ? " MiB; train an adapter (model.use_lora)"
                                 : " MiB; set optimizer.state_dtype to bfloat16, or train an "
                                   "adapter (model.use_lora)"));
  CHECK(trainer.steps_done() == 0);
  CHECK(trainer.tokens_seen() == 0);
  CHECK(torch::equal(inner->table().detach(), table));
  // Steps that can be taken are those of a trainer that never met it.
  policy->is_vast = false;
  for (int i = 0; i < 2; ++i) {
    CHECK(trainer.step(pairs()) == expected.step(pairs()));
    CHECK(torch::equal(inner->table(), alone->table()));
  }
}

TEST_CASE("a non-finite loss skips the update, the third in a row stops", "[train]") {
  auto policy = std::make_shared<BigramPolicy>(3);
  const auto reference = frozen(*policy);
  Trainer trainer(policy, reference, make_loss(R"({"type": "dpo"})"), plain());
  trainer.step(pairs());
  const auto table = policy->table().detach().clone();

  policy->poisoned = true;
  for (int i = 0; i < 2; ++i) {
    const auto metrics = trainer.step(pairs());
    CHECK(metric(metrics, "skipped") == 1);
    CHECK(std::isnan(metric(metrics, "loss")));
    CHECK(torch::equal(policy->table().detach(), table));
    CHECK_FALSE(policy->table().grad().defined());
  }

  policy->poisoned = false;  // one good step and the count starts again
  const auto good = trainer.step(pairs());
  CHECK(names(good).count("skipped") == 0);
  CHECK_FALSE(torch::equal(policy->table().detach(), table));

  policy->poisoned = true;
  trainer.step(pairs());
  trainer.step(pairs());
  CHECK_THROWS_TEXT(trainer.step(pairs()), NonFiniteError,
                    "step 7: expected a finite loss, got nan; this is step 3 in a row without an "
                    "update, try a lower learning rate");
}

/// Finite value, infinite slope: the square root at zero.
struct SteepLoss {
  LossOutput forward(const PairLogps& logps) const {
    LossOutput out;
    out.loss = (logps.chosen_logps - logps.chosen_logps.detach()).sum().sqrt();
    return out;
  }
  LossRequirements requirements() const { return {.inputs = kPairLogps}; }
  static LossInfo info() { return info_of("steep"); }
  ProbeOptions options() const { return {}; }
};

TEST_CASE("a non-finite gradient is told from a non-finite loss", "[train]") {
  auto policy = std::make_shared<BigramPolicy>(3);
  const auto table = policy->table().detach().clone();
  Trainer trainer(policy, nullptr, SteepLoss{}, plain());
  const auto metrics = trainer.step(pairs());
  CHECK(metric(metrics, "loss") == 0);
  CHECK(metric(metrics, "skipped") == 1);
  CHECK(torch::equal(policy->table().detach(), table));
  trainer.step(pairs());
  std::string text;
  try {
    trainer.step(pairs());
  } catch (const NonFiniteError& error) {
    text = error.what();
  }
  CHECK(text.rfind("step 3: expected a finite gradient norm, got ", 0) == 0);
}

struct DeafLoss {
  LossOutput forward(const PairLogps& logps) const {
    LossOutput out;
    out.loss = logps.chosen_logps.detach().sum();
    return out;
  }
  LossRequirements requirements() const { return {.inputs = kPairLogps}; }
  static LossInfo info() { return info_of("deaf"); }
  ProbeOptions options() const { return {}; }
};

/// Says that it keeps a mean, but not that it needs the whole step for it.
struct ForgetfulLoss {
  LossOutput forward(const PairLogps& logps) const {
    LossOutput out;
    out.loss = logps.chosen_logps.sum();
    return out;
  }
  LossRequirements requirements() const { return {.inputs = kPairLogps, .running_mean = true}; }
  static LossInfo info() { return info_of("forgetful"); }
  ProbeOptions options() const { return {}; }
};

struct VectorLoss {
  LossOutput forward(const PairLogps& logps) const {
    LossOutput out;
    out.loss = logps.chosen_logps;
    return out;
  }
  LossRequirements requirements() const { return {.inputs = kPairLogps}; }
  static LossInfo info() { return info_of("vector"); }
  ProbeOptions options() const { return {}; }
};

/// A reference without a model: zeros.
class ZeroReference final : public Reference {
 public:
  at::Tensor sequence_logps(const TokenBatch& batch) override {
    return torch::zeros({batch.sequences()}, torch::kDouble);
  }
  at::Tensor token_logps(const TokenBatch& batch) override {
    return torch::zeros({batch.completion_lens.sum().item<std::int64_t>()}, torch::kDouble);
  }
};

TEST_CASE("what a trainer cannot use is refused in one sentence", "[train]") {
  const auto sft = make_loss(R"({"type": "sft"})");
  const auto dpo = make_loss(R"({"type": "dpo"})");
  auto policy = std::make_shared<BigramPolicy>(3);

  CHECK_THROWS_TEXT(Trainer(nullptr, nullptr, sft, plain()), ConfigError,
                    "trainer: expected a policy, got null");
  CHECK_THROWS_TEXT(Trainer(policy, nullptr, dpo, plain()), ConfigError,
                    "dpo: expected a reference, got null; "
                    "make_frozen_reference(policy->frozen_copy()) makes one");
  CHECK_THROWS_TEXT(Trainer(policy, nullptr, sft, plain(-1)), ConfigError,
                    "optimizer: expected learning_rate >= 0, got -1");
  auto negative = plain();
  auto negative_part = plain();
  negative_part.evaluation_batch_size = -1;
  CHECK_THROWS_TEXT(Trainer(policy, nullptr, sft, negative_part), ConfigError,
                    "evaluation_batch_size: expected 0 or more, got -1; 0 means all rows at once");
  CHECK_THROWS_TEXT(Trainer(policy, nullptr, ForgetfulLoss{}, plain()), ConfigError,
                    "forgetful: expected whole_step in the requirements of a loss with "
                    "running_mean, got false; the mean would be of the last micro-batch alone");
  negative.micro_batch_size = -2;
  CHECK_THROWS_TEXT(Trainer(policy, nullptr, sft, negative), ConfigError,
                    "micro_batch_size: expected 0 or more, got -2; 0 means the whole step at once");
  CHECK_THROWS_TEXT(
      Trainer(policy, std::make_shared<ZeroReference>(), SampleProbe{SampleSource::kReference},
              plain()),
      ConfigError,
      "sample_probe: expected a reference that can be sampled, got one without a model behind it");
  CHECK_THROWS_TEXT(
      Trainer(policy, frozen(*policy), SampleProbe{SampleSource::kPolicy, 0}, plain()), ConfigError,
      "sample_probe: expected at least one fresh sample a prompt, got 0");

  Trainer trainer(policy, nullptr, sft, plain());
  CHECK_THROWS_TEXT(trainer.step({}), ShapeError, "trainer: expected at least one pair, got none");
  CHECK_THROWS_TEXT(
      trainer.step({pairs()[0], {.prompt = {0}, .chosen = {kVocab}, .rejected = {}}}), DataError,
      "trainer: expected token ids from 0 to 4, got 5 in the chosen completion of pair 1; were the "
      "ids made for another model?");

  auto linear = plain();
  linear.optimizer.schedule = Schedule::kLinear;
  CHECK_THROWS_TEXT(Trainer(policy, nullptr, sft, linear).step(pairs()), ConfigError,
                    "total_steps: expected the number of steps, at least 1, got 0; only the "
                    "constant schedule needs none");

  Trainer frozen_trainer(policy->frozen_copy(), nullptr, sft, plain());
  CHECK_NOTHROW(frozen_trainer.evaluate(pairs()));
  CHECK_THROWS_TEXT(frozen_trainer.step(pairs()), ConfigError,
                    "trainer: expected a policy with parameters that require a gradient, got none");

  CHECK_THROWS_TEXT(Trainer(policy, nullptr, DeafLoss{}, plain()).step(pairs()), ConfigError,
                    "deaf: expected a loss that depends on the policy's log-probs, got one without "
                    "a gradient");
  CHECK_THROWS_TEXT(Trainer(policy, nullptr, VectorLoss{}, plain()).step(pairs()), ShapeError,
                    "vector: expected a loss of one number, got 5");
}

TEST_CASE("a metric that is not there is an error that lists those that are", "[train]") {
  const Metrics metrics = {{"loss", 1}, {"kl", 2}};
  CHECK(metric(metrics, "kl") == 2);
  CHECK_THROWS_TEXT(metric(metrics, "reward"), Error,
                    "metric: expected one of loss, kl, got 'reward'");
}

TEST_CASE("a metric that is not a number has no sign", "[train]") {
  detail::StepMetrics metrics;
  metrics.add_total("loss", torch::full({}, -kNan, torch::kDouble));
  metrics.set("grad_norm", -kNan);
  for (const auto& [name, value] : metrics.finish()) {
    CAPTURE(name);
    CHECK(std::isnan(value));
    CHECK_FALSE(std::signbit(value));
  }
}

TEST_CASE("gradients of a check leave the trainer as it was", "[train]") {
  auto policy = std::make_shared<BigramPolicy>(3);
  const auto table = policy->table().detach().clone();
  Trainer trainer(policy, frozen(BigramPolicy(7)), make_loss(R"({"type": "dpo"})"), plain());
  const auto first = trainer.accumulate_gradients(pairs());
  const auto gradient = policy->table().grad().clone();
  const auto second = trainer.accumulate_gradients(pairs());
  CHECK(first == second);
  CHECK(torch::equal(policy->table().grad(), gradient));  // not added up
  CHECK(torch::equal(policy->table().detach(), table));
  CHECK(trainer.steps_done() == 0);
  CHECK(names(first).count("learning_rate") == 0);
  CHECK(&trainer.policy() == policy.get());
}

std::vector<TokenRow> many_rows() {
  std::mt19937_64 random(7);
  const auto tokens = [&](std::int64_t count) {
    std::vector<std::int64_t> ids;
    for (std::int64_t i = 0; i < count; ++i)
      ids.push_back(static_cast<std::int64_t>(random() % 41));
    return ids;
  };
  std::vector<TokenRow> rows;
  for (std::int64_t i = 0; i < 24; ++i) {
    rows.push_back(
        {.prompt = tokens(3 + i % 4), .chosen = tokens(5), .rejected = tokens(2 + i % 5)});
  }
  return rows;
}

std::shared_ptr<Decoder> small_decoder(at::ScalarType dtype, bool ties) {
  at::manual_seed(11);
  auto decoder = std::make_shared<Decoder>(DecoderOptions{.vocab_size = 41,
                                                          .hidden_size = 24,
                                                          .intermediate_size = 40,
                                                          .num_hidden_layers = 2,
                                                          .num_attention_heads = 2,
                                                          .num_key_value_heads = 1,
                                                          .attention_bias = true,
                                                          .attention_output_bias = true,
                                                          .qk_norm = true,
                                                          .tie_word_embeddings = ties,
                                                          .initializer_range = 0.2});
  decoder->to(at::kHalf);
  decoder->to(at::kBFloat16);  // numbers of both
  decoder->to(dtype);
  return decoder;
}

/// All gradients of a step in one row.
at::Tensor gradient_of(const std::shared_ptr<Decoder>& policy, const std::string& loss,
                       std::int64_t micro) {
  auto options = plain();
  options.micro_batch_size = micro;
  Trainer trainer(policy, make_frozen_reference(policy->frozen_copy()), make_loss(loss), options);
  trainer.accumulate_gradients(many_rows());
  std::vector<at::Tensor> all;
  for (const auto& [name, value] : policy->named_parameters()) {
    REQUIRE(value.grad().scalar_type() != at::kBFloat16);
    REQUIRE(value.grad().scalar_type() != at::kHalf);
    all.push_back(value.grad().to(at::kDouble).reshape(-1));
  }
  return at::cat(all);
}

TEST_CASE("cuts change no gradient of bfloat16 and float16 weights", "[train]") {
  const auto dtype = GENERATE(at::kBFloat16, at::kHalf);
  const bool ties = GENERATE(false, true);
  const auto loss = GENERATE(as<std::string>{}, R"({"type": "rpo"})", R"({"type": "tdpo"})",
                             R"({"type": "aot"})");
  CAPTURE(dtype, ties, loss);
  const auto policy = small_decoder(dtype, ties);
  const auto exact = gradient_of(small_decoder(at::kDouble, ties), loss, 0);
  const auto error = [&](std::int64_t micro) {
    return ((gradient_of(policy, loss, micro) - exact).norm() / exact.norm()).item<double>();
  };
  // The remainder is the rounding of float32 sums.
  for (const std::int64_t micro : {0, 1, 5}) CHECK(error(micro) < 5e-6);
}

TEST_CASE("a policy that autograd differentiates adds up in float32 as well", "[train]") {
  const BigramPolicy start(3);
  const auto policy = std::make_shared<BigramPolicy>(start.table().to(at::kBFloat16),
                                                     start.bias().to(at::kBFloat16));
  policy->set_requires_grad(true);
  const auto gradient_of_rows = [&](const std::vector<TokenRow>& rows, std::int64_t micro) {
    auto options = plain();
    options.micro_batch_size = micro;
    Trainer trainer(policy, nullptr, make_loss(R"({"type": "sft"})"), options);
    trainer.accumulate_gradients(rows);
    return policy->table().grad().to(at::kDouble);
  };
  std::vector<TokenRow> rows;
  for (int i = 0; i < 300; ++i) {
    rows.push_back({.prompt = {i % 5}, .chosen = {1 + i % 3}, .rejected = {}});
  }
  at::Tensor sum = at::zeros({kVocab, kVocab}, at::kDouble);
  for (const TokenRow& row : rows) sum += gradient_of_rows({row}, 0) / 300.0;
  const at::Tensor cut = gradient_of_rows(rows, 1);
  REQUIRE(policy->table().grad().scalar_type() == at::kFloat);
  // Each part is rounded, by another factor than here; their sum is not.
  CHECK(((cut - sum).norm() / sum.norm()).item<double>() < 2e-3);
}

TEST_CASE("masters of bfloat16 weights are what a policy is saved with", "[train]") {
  const TempDir dir;
  const auto masters = GENERATE(Masters::kFloat32, Masters::kStochastic);
  const auto policy = small_decoder(at::kBFloat16, false);
  auto options = plain(1e-5);
  options.optimizer.masters = masters;
  Trainer trainer(policy, make_frozen_reference(policy->frozen_copy()),
                  make_loss(R"({"type": "dpo"})"), options);
  for (int i = 0; i < 3; ++i) trainer.step(many_rows());
  trainer.save_policy(dir.file("saved"));
  const auto saved = Decoder::load(dir.file("saved"), "keep");
  const auto all = saved->named_parameters();
  const auto own = policy->named_parameters();
  REQUIRE(all.size() == own.size());
  const bool has_masters = masters == Masters::kFloat32;
  bool is_finer = false;
  for (std::size_t i = 0; i < all.size(); ++i) {
    INFO(own[i].name);
    CHECK(own[i].value.scalar_type() == at::kBFloat16);
    CHECK(all[i].value.scalar_type() == (has_masters ? at::kFloat : at::kBFloat16));
    CHECK(all[i].value.to(at::kBFloat16).equal(own[i].value));
    is_finer = is_finer || !all[i].value.to(at::kDouble).equal(own[i].value.to(at::kDouble));
  }
  CHECK(is_finer == has_masters);
  // Nothing happened to the policy itself.
  CHECK_NOTHROW(trainer.step(many_rows()));
}

TEST_CASE("a state from before there were masters is refused by name", "[train]") {
  const auto make = [](Masters masters) {
    const auto policy = small_decoder(at::kBFloat16, false);
    auto options = plain();
    options.optimizer.masters = masters;
    return std::make_unique<Trainer>(policy, nullptr, make_loss(R"({"type": "sft"})"), options);
  };
  const auto saved = make(Masters::kStochastic)->state();
  CHECK_THROWS_TEXT(
      make(Masters::kFloat32)->load_state(saved), CheckpointError,
      "trainer: expected float32 masters of bfloat16 or float16 weights, got a state without them, "
      "of a version that trained such weights themselves; start a new run whose model.path is that "
      "checkpoint");
}

}  // namespace
}  // namespace prefopt
