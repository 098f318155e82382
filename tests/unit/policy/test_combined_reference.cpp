// SPDX-License-Identifier: Apache-2.0
#include <filesystem>
#include <limits>

#include "prefopt/error.h"
#include "prefopt/losses/registry.h"
#include "prefopt/policy/combined_reference.h"
#include "prefopt/policy/moving_reference.h"
#include "prefopt/train/trainer.h"
#include "support/bigram_policy.h"
#include "support/errors.h"
#include "support/temp_dir.h"

namespace prefopt::test_combined_reference {
namespace {

using namespace testing_support;

/// Log-probs that are given.
class GivenReference final : public Reference {
 public:
  explicit GivenReference(at::Tensor logps) : logps_(std::move(logps)) {}
  at::Tensor sequence_logps(const TokenBatch&) override { return logps_; }
  at::Tensor token_logps(const TokenBatch&) override { return logps_; }

 private:
  at::Tensor logps_;
};

std::shared_ptr<Reference> given(const at::Tensor& logps) {
  return std::make_shared<GivenReference>(logps);
}

std::shared_ptr<Reference> frozen_bigram(std::uint64_t seed) {
  return make_frozen_reference(std::make_shared<BigramPolicy>(seed));
}

TokenBatch weighted_batch() {
  TokenBatch batch = make_pair_batch(pairs());
  const auto tokens = batch.completion_lens.sum().item<std::int64_t>();
  batch.token_weights = at::linspace(0.5, 2, tokens, at::kDouble);
  return batch;
}

/// A trainer of a loss, against a combination of two references.
std::shared_ptr<Trainer> trainer_of(const std::string& loss, double second_weight = 0.25) {
  return std::make_shared<Trainer>(
      std::make_shared<BigramPolicy>(1),
      std::make_shared<CombinedReference>(std::vector<WeightedReference>{
          {frozen_bigram(2), 1 - second_weight}, {frozen_bigram(3), second_weight}}),
      make_loss(loss), TrainerOptions{.optimizer = {.schedule = Schedule::kConstant}});
}

TEST_CASE("combined reference: the sum by hand", "[policy]") {
  // hand.combined_reference of golden/online.json, numpy: weight 1/3 of the other.
  const double weight = 1.0 / 3;
  CombinedReference combined({{given(torch::tensor({-10.0, -12.5}, at::kDouble)), 1 - weight},
                              {given(torch::tensor({-9.0, -14.0}, at::kDouble)), weight}});
  const at::Tensor expected = torch::tensor({-9.666666666666668, -13.0}, at::kDouble);
  CHECK(at::allclose(combined.sequence_logps({}), expected, 0, 1e-14));
  CHECK(at::allclose(combined.token_logps({}), expected, 0, 1e-14));
}

TEST_CASE("combined reference: sequences and tokens are weighted sums", "[policy]") {
  const auto first = frozen_bigram(2);
  const auto second = frozen_bigram(3);
  CombinedReference combined({{first, 0.7}, {second, 0.3}});
  const TokenBatch batch = weighted_batch();
  CHECK(at::allclose(combined.sequence_logps(batch),
                     first->sequence_logps(batch) * 0.7 + second->sequence_logps(batch) * 0.3, 0,
                     1e-12));
  CHECK(at::allclose(combined.token_logps(batch),
                     first->token_logps(batch) * 0.7 + second->token_logps(batch) * 0.3, 0, 1e-12));
  // Weights of tokens go through the sum: the tokens of a sequence add up to it.
  CHECK((combined.token_logps(batch) * batch.token_weights).sum().item<double>() ==
        Approx(combined.sequence_logps(batch).sum().item<double>()).epsilon(1e-12));
  CHECK_FALSE(combined.sequence_logps(batch).requires_grad());
}

TEST_CASE("combined reference: with weights (1, 0) it is the first one, bit for bit", "[policy]") {
  const TokenBatch batch = weighted_batch();
  const auto first = frozen_bigram(2);
  // Whoever asked the other one would get NaN.
  const at::Tensor none = at::full({1}, kNan, at::kDouble);
  CombinedReference combined({{first, 1}, {given(none), 0}});
  CHECK(at::equal(combined.sequence_logps(batch), first->sequence_logps(batch)));
  CHECK(at::equal(combined.token_logps(batch), first->token_logps(batch)));
  CHECK(combined.is_normalized());
  // Float32 tokens stay float32.
  const at::Tensor narrow = at::randn({7}, at::kFloat);
  CombinedReference of_narrow({{given(none), 0}, {given(narrow), 1}});
  CHECK(of_narrow.token_logps({}).scalar_type() == at::kFloat);
  CHECK(at::equal(of_narrow.token_logps({}), narrow));
  CombinedReference mixed({{given(narrow), 0.5}, {given(narrow.to(at::kDouble)), 0.5}});
  CHECK(mixed.token_logps({}).scalar_type() == at::kDouble);
  CHECK_FALSE(mixed.is_normalized());
  CHECK_FALSE(CombinedReference({{first, 0.5}}).is_normalized());
}

TEST_CASE("combined reference: parts move, and their state has their place", "[policy]") {
  const auto policy = std::make_shared<BigramPolicy>(1);
  const auto last = std::make_shared<MovingReference>(
      *policy, MovingReferenceOptions{.rule = MovingRule::kHard, .update_steps = 1});
  CombinedReference combined({{frozen_bigram(2), 0.25}, {last, 0.75}});
  const TokenBatch batch = weighted_batch();
  const at::Tensor before = combined.sequence_logps(batch);
  policy->table().detach().mul_(1.5);
  combined.after_step(*policy, 1);
  CHECK_FALSE(at::equal(combined.sequence_logps(batch), before));
  CHECK(
      at::equal(last->sequence_logps(batch), make_frozen_reference(policy)->sequence_logps(batch)));
  const auto state = combined.state();
  REQUIRE(state.size() == 2);
  CHECK(state[0].first == "1.value.table");
  CHECK(state[1].first == "1.value.bias");
  CHECK(state[0].second.equal(policy->table()));
}

TEST_CASE("combined reference: caches are written", "[policy]") {
  const TempDir dir;
  const auto cache =
      std::make_shared<CachedReference>(std::make_shared<BigramPolicy>(2), dir.path());
  CombinedReference combined({{cache, 0.5}, {frozen_bigram(3), 0.5}});
  combined.sequence_logps(make_pair_batch(pairs()));
  combined.flush();
  CHECK(std::filesystem::exists(cache->path()));
}

TEST_CASE("combined reference: what makes no sum is refused", "[policy]") {
  const auto one = frozen_bigram(2);
  CHECK_THROWS_TEXT(CombinedReference({}), ConfigError,
                    "combined reference: expected at least one reference with a weight other than "
                    "0, got none");
  CHECK_THROWS_TEXT(CombinedReference({{one, 0}}), ConfigError,
                    "combined reference: expected at least one reference with a weight other than "
                    "0, got none");
  CHECK_THROWS_TEXT(CombinedReference({{one, 1}, {nullptr, 1}}), ConfigError,
                    "combined reference: expected a reference at place 1, got null");
  CHECK_THROWS_TEXT(CombinedReference({{one, std::numeric_limits<double>::infinity()}}),
                    ConfigError,
                    "combined reference: expected a finite weight at place 0, got inf");
  CombinedReference uneven({{given(at::zeros({2})), 1}, {given(at::zeros({3})), 1}});
  CHECK_THROWS_TEXT(uneven.sequence_logps({}), ShapeError,
                    "combined reference: expected log-probs [2], got [3]");
}

TEST_CASE("combined reference: losses that need more than differences refuse it", "[policy]") {
  CHECK_NOTHROW(trainer_of(R"({"type": "ipo", "length_normalized": false})")->step(pairs()));
  CHECK_NOTHROW(trainer_of(R"({"type": "kto"})", 0)->step(pairs()));
  const std::string unnormalized =
      ": expected a reference with the log-probs of a distribution, got a weighted sum of several; "
      "its loss needs more than differences within a prompt";
  CHECK_THROWS_TEXT(trainer_of(R"({"type": "kto"})"), ConfigError, "kto" + unnormalized);
  CHECK_THROWS_TEXT(trainer_of(R"({"type": "hypo"})"), ConfigError, "hypo" + unnormalized);
  CHECK_THROWS_TEXT(trainer_of(R"({"type": "tdpo"})"), ConfigError,
                    "tdpo: expected a reference with a model behind it, got one without; its loss "
                    "needs the reference's whole distribution");
}

TEST_CASE("combined reference: INPO's loss is that of its formula", "[policy]") {
  // 2407.00617 eq. 8 on one pair: (h − 1/(2η))² with h = Δ log π − τ/η Δ log π_0 − (1−τ/η) Δ log
  // π_t.
  const double eta = 0.2, share = 1.0 / 3;
  const BigramPolicy policy(1), initial(2), last(3);
  const TokenRow& row = pairs()[1];
  const auto difference = [&](const BigramPolicy& model) {
    return model.sum_logps(row.prompt, row.chosen) - model.sum_logps(row.prompt, row.rejected);
  };
  const double h =
      difference(policy) - share * difference(initial) - (1 - share) * difference(last);
  Trainer trainer(std::make_shared<BigramPolicy>(1),
                  std::make_shared<CombinedReference>(std::vector<WeightedReference>{
                      {frozen_bigram(2), share}, {frozen_bigram(3), 1 - share}}),
                  make_loss(R"({"type": "ipo", "beta": 0.2, "length_normalized": false})"),
                  {.optimizer = {.schedule = Schedule::kConstant}});
  CHECK(metric(trainer.evaluate({row}), "loss") ==
        Approx((h - 1 / (2 * eta)) * (h - 1 / (2 * eta))).epsilon(1e-12));
}

}  // namespace
}  // namespace prefopt::test_combined_reference
