// SPDX-License-Identifier: Apache-2.0

// Failures of one rank alone.

#include <exception>
#include <functional>
#include <new>
#include <string>
#include <vector>

#include "prefopt/error.h"
#include "support/errors.h"
#include "support/forwarding_ranks.h"
#include "support/rank_jobs.h"

namespace prefopt::over_ranks {
namespace {

/// A policy that fails on its rank in a forward pass.
class FailingPolicy final : public Policy {
 public:
  explicit FailingPolicy(std::uint64_t seed) : inner_(seed) {}
  PolicyOutput forward(const TokenBatch& batch) override {
    if (fail) fail();
    inner_.poisoned = poisoned;
    return inner_.forward(batch);
  }
  std::int64_t vocab_size() const override { return kVocab; }
  std::vector<NamedParameter> named_parameters() const override {
    return inner_.named_parameters();
  }

  std::function<void()> fail = {};
  bool poisoned = false;

 private:
  BigramPolicy inner_;
};

TEST_CASE("ranks: trouble on one ends the step on all, and the next one may go well", "[train]") {
  const std::string loss = GENERATE("dpo", "aot");
  const auto sharding = GENERATE(Sharding::kNone, Sharding::kGradients);
  CAPTURE(loss);
  const ThreadRanks ranks(3, {.sharding = sharding});
  struct Result {
    std::exception_ptr first, second;
    std::vector<at::Tensor> weights;
    double second_loss = 0;
  };
  const auto results = ranks.results<Result>([&](const RanksPtr& one) {
    Result result;
    const auto policy = std::make_shared<FailingPolicy>(9);
    TrainerOptions options = steady();
    options.ranks = one;
    Trainer trainer(policy, make_frozen_reference(std::make_shared<BigramPolicy>(8)),
                    make_loss(named(loss)), options);
    const auto step = [&](std::exception_ptr& thrown) {
      try {
        result.second_loss = metric(trainer.step(bigram_rows()), "loss");
      } catch (...) {
        thrown = std::current_exception();
      }
    };
    if (one->rank() == 1) policy->fail = [] { throw DataError("a broken row"); };
    step(result.first);
    policy->fail = nullptr;
    step(result.second);
    for (const auto& [name, value] : policy->named_parameters()) {
      result.weights.push_back(value.detach());
    }
    return result;
  });
  for (const Result& result : results) {
    CHECK(thrown_text<DataError>(result.first) == "rank 1: a broken row");
    CHECK(result.second == nullptr);
    CHECK(result.second_loss == results.front().second_loss);
    for (std::size_t i = 0; i < result.weights.size(); ++i) {
      CHECK(result.weights[i].equal(results.front().weights[i]));
    }
  }
}

TEST_CASE("ranks: memory that is short on one is said by all", "[train]") {
  const ThreadRanks ranks(2);
  const auto thrown = ranks.troubles([](const RanksPtr& one) {
    const auto policy = std::make_shared<FailingPolicy>(9);
    if (one->rank() == 1) policy->fail = [] { throw std::bad_alloc(); };
    TrainerOptions options = steady();
    options.ranks = one;
    Trainer trainer(policy, nullptr, make_loss(named("sft")), options);
    trainer.step(bigram_rows());
  });
  for (const auto& one : thrown) {
    const std::string text = thrown_text<Error>(one);
    CHECK(
        text.starts_with("rank 1: step 1: expected memory for 7 pairs in micro-batches of up to "
                         "2 pairs"));
  }
}

/// Ranks that look, each time something is sent, whether a parameter has a gradient.
class WatchingRanks final : public ForwardingRanks {
 public:
  using ForwardingRanks::ForwardingRanks;
  Wait begin_sum(const at::Tensor& values) override {
    look(values);
    return ForwardingRanks::begin_sum(values);
  }
  Wait begin_sum_scatter(const at::Tensor& own, const at::Tensor& all) override {
    look(all);
    return ForwardingRanks::begin_sum_scatter(own, all);
  }

  std::vector<at::Tensor> parameters;
  int sent = 0, with_gradients = 0;
  bool zeros_alone = true;

 private:
  void look(const at::Tensor& values) {
    ++sent;
    zeros_alone = zeros_alone && values.eq(0).all().item<bool>();
    for (const at::Tensor& parameter : parameters) with_gradients += parameter.grad().defined();
  }
};

TEST_CASE("ranks: one that is short of memory drops its gradients before it sends", "[train]") {
  const auto sharding = GENERATE(Sharding::kNone, Sharding::kGradients);
  const ThreadRanks ranks(2, {.sharding = sharding});
  struct Result {
    int sent = 0, with_gradients = 0;
    bool zeros_alone = false;
  };
  const auto results = ranks.results<Result>([](const RanksPtr& one) {
    const auto watching = std::make_shared<WatchingRanks>(one);
    const auto policy = std::make_shared<FailingPolicy>(9);
    for (const auto& [name, value] : policy->named_parameters()) {
      watching->parameters.push_back(value);
    }
    int passes = 0;
    if (one->rank() == 1) {
      policy->fail = [&] {
        // After a backward pass, which has left gradients of the first part.
        if (++passes == 2) throw std::bad_alloc();
      };
    }
    TrainerOptions options = steady();
    options.ranks = watching;
    Trainer trainer(policy, nullptr, make_loss(named("sft")), options);
    try {
      trainer.step(bigram_rows());
    } catch (const Error&) {
    }
    return Result{watching->sent, watching->with_gradients, watching->zeros_alone};
  });
  // In slices they leave in each backward pass.
  const int sent = sharding == Sharding::kNone ? 1 : 2;
  CHECK(results[0].sent == sent);
  CHECK(results[1].sent == sent);
  if (sharding == Sharding::kNone) {
    CHECK(results[1].with_gradients == 0);
    CHECK(results[1].zeros_alone);
  }
}

TEST_CASE("ranks: a loss that is not finite on one skips the step on all", "[train]") {
  const ThreadRanks ranks(2);
  struct Result {
    Metrics metrics;
    int reports = 0;
    bool moved = false;
  };
  const auto results = ranks.results<Result>([](const RanksPtr& one) {
    Result result;
    const auto policy = std::make_shared<FailingPolicy>(9);
    policy->poisoned = one->rank() == 1;
    TrainerOptions options = steady();
    options.ranks = one;
    options.on_non_finite = [&](const NonFiniteStep&) { ++result.reports; };
    Trainer trainer(policy, nullptr, make_loss(named("sft")), options);
    const at::Tensor before = policy->named_parameters()[0].value.detach().clone();
    result.metrics = trainer.step(bigram_rows());
    result.moved = !before.equal(policy->named_parameters()[0].value);
    return result;
  });
  for (const Result& result : results) {
    CHECK(metric(result.metrics, "skipped") == 1);
    CHECK_FALSE(result.moved);
  }
  CHECK(results[0].reports == 1);
  CHECK(results[1].reports == 0);
}

}  // namespace
}  // namespace prefopt::over_ranks
