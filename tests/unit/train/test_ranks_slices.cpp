// SPDX-License-Identifier: Apache-2.0

// ZeRO: slices of state and gradients.

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <filesystem>
#include <string>
#include <utility>
#include <vector>

#include "prefopt/error.h"
#include "support/errors.h"
#include "support/forwarding_ranks.h"
#include "support/rank_jobs.h"
#include "support/temp_dir.h"
#include "train/gradient_sum.h"
#include "train/rank_optimizer.h"

namespace prefopt::over_ranks {
namespace {

TEST_CASE("ranks: slices of state and gradients change no result", "[train]") {
  const auto optimizer = GENERATE(OptimizerType::kAdamW, OptimizerType::kRmsprop);
  for (const Sharding sharding : {Sharding::kOptimizer, Sharding::kGradients}) {
    for (const int size : {2, 3}) {
      const ThreadRanks ranks(size, {.sharding = sharding});
      TrainerOptions options = steady();
      options.optimizer.type = optimizer;
      CAPTURE(size);
      check_against_one_process(
          ranks, size, [] { return pair_job(torch::kDouble, named("dpo")); }, options, 1e-12, 3);
      check_against_one_process(
          ranks, size, [] { return pair_job(torch::kDouble, named("kto"), Adapter::kLora); },
          options, 1e-12, 2);
    }
  }
}

TEST_CASE("ranks: a slice of narrow state draws what the whole draws", "[train]") {
  const ThreadRanks ranks(3, {.sharding = Sharding::kOptimizer});
  at::manual_seed(4);
  const at::Tensor start = torch::randn({37, 5}, torch::kFloat);
  const at::Tensor gradient = torch::randn({37, 5}, torch::kFloat);
  const OptimizerOptions options{.state_dtype = StateDtype::kBFloat16,
                                 .masters = Masters::kStochastic};
  const auto stepped = [&](const RanksPtr& one) {
    at::Tensor value = start.to(torch::kBFloat16).requires_grad_(true);
    detail::RankOptimizer optimizer({{"w", value}}, options, one);
    for (int step = 0; step < 3; ++step) {
      optimizer.zero_grad();
      for (const auto& [whole, own] : optimizer.trained()) {
        own->add_gradient(
            gradient.view({-1}).narrow(0, own->first, own->value.numel()).view(own->value.sizes()));
      }
      optimizer.step(0.1, 1);
    }
    return value.detach();
  };
  const at::Tensor alone = stepped(one_process());
  for (const at::Tensor& together : ranks.results<at::Tensor>(stepped)) {
    CHECK(together.equal(alone));
  }
}

TEST_CASE("ranks: each keeps its share of the optimizer's state", "[train]") {
  const auto bytes_of = [](const RanksPtr& ranks) {
    at::Tensor matrix = torch::zeros({10, 7}, torch::kDouble).requires_grad_(true);
    at::Tensor vector = torch::zeros({5}, torch::kDouble).requires_grad_(true);
    detail::RankOptimizer optimizer({{"matrix", matrix}, {"vector", vector}}, {}, ranks);
    optimizer.zero_grad();
    for (const auto& [whole, own] : optimizer.trained()) {
      own->add_gradient(torch::ones_like(own->value));
    }
    optimizer.reserve_state();
    return optimizer.state_bytes();
  };
  CHECK(bytes_of(one_process()) == 2 * 8 * (70 + 5));
  // Slices of 18 and 2: the last rank has what is left.
  const auto bytes =
      ThreadRanks(4, {.sharding = Sharding::kOptimizer}).results<std::int64_t>(bytes_of);
  CHECK(bytes == std::vector<std::int64_t>{2 * 8 * (18 + 2), 2 * 8 * (18 + 2), 2 * 8 * (18 + 1),
                                           2 * 8 * 16});
}

using State = std::vector<std::pair<std::string, at::Tensor>>;

TEST_CASE("ranks: a state continues on other numbers of ranks and other slices", "[train]") {
  struct Leg {
    int size;
    Sharding sharding;
  };
  const std::vector<Leg> legs = {{2, Sharding::kOptimizer},
                                 {1, Sharding::kNone},
                                 {3, Sharding::kGradients},
                                 {2, Sharding::kNone}};
  const auto make_job = [] { return pair_job(torch::kDouble, named("bco_pair")); };
  const Outcome unbroken = train(make_job(), nullptr, steady(), static_cast<int>(legs.size()));

  State state;
  std::vector<at::Tensor> weights;
  for (std::size_t leg = 0; leg < legs.size(); ++leg) {
    std::vector<Job> jobs;
    for (int r = 0; r < legs[leg].size; ++r) {
      jobs.push_back(make_job());
      const at::NoGradGuard no_grad;
      const auto parameters = jobs.back().policy->named_parameters();
      for (std::size_t i = 0; i < weights.size(); ++i) parameters[i].value.copy_(weights[i]);
    }
    const ThreadRanks ranks(legs[leg].size, {.sharding = legs[leg].sharding});
    const auto states = ranks.results<State>([&](const RanksPtr& one) {
      TrainerOptions options = steady();
      options.ranks = one;
      const auto trainer = jobs[static_cast<std::size_t>(one->rank())].make_trainer(options);
      if (leg > 0) trainer->load_state(state);
      trainer->step(uneven_rows(static_cast<int>(leg)));
      State copies;
      for (const auto& [name, value] : trainer->state()) copies.emplace_back(name, value.clone());
      return copies;
    });
    for (const State& other : states) {
      REQUIRE(other.size() == states.front().size());
      for (std::size_t i = 0; i < other.size(); ++i) {
        CHECK(other[i].first == states.front()[i].first);
        CHECK(other[i].second.equal(states.front()[i].second));
      }
    }
    state = states.front();
    weights = weights_of(jobs.front());
  }
  for (std::size_t i = 0; i < weights.size(); ++i) {
    CHECK(difference(unbroken.weights[i], weights[i]) <= 1e-12);
  }
}

TEST_CASE("ranks: masters that lie in slices are saved whole, by the first rank", "[train]") {
  const auto make_job = [] { return pair_job(torch::kBFloat16, named("dpo")); };
  const auto saved_by = [&](const Job& job, const RanksPtr& ranks, const std::string& folder) {
    TrainerOptions options = steady();
    options.ranks = ranks;
    const auto trainer = job.make_trainer(options);
    trainer->step(uneven_rows(0));
    trainer->save_policy(folder);
  };
  TempDir folder;
  saved_by(make_job(), nullptr, folder.file("alone"));
  const std::vector<Job> jobs{make_job(), make_job()};
  const ThreadRanks ranks(2, {.sharding = Sharding::kOptimizer});
  ranks.run([&](const RanksPtr& one) {
    const auto rank = static_cast<std::size_t>(one->rank());
    saved_by(jobs[rank], one, folder.file("rank" + std::to_string(rank)));
  });
  CHECK_FALSE(std::filesystem::exists(folder.file("rank1")));
  const auto alone = Decoder::load(folder.file("alone"), "float32");
  const auto together = Decoder::load(folder.file("rank0"), "float32");
  const auto of_alone = alone->named_parameters(), of_together = together->named_parameters();
  for (std::size_t i = 0; i < of_alone.size(); ++i) {
    // The first step of AdamW is the sign of a gradient, almost.
    CHECK(difference(of_alone[i].value, of_together[i].value) <= 1e-4);
  }
}

TEST_CASE("ranks: the first one gathers a state, and writes it without the others", "[train]") {
  const std::vector<Job> jobs{pair_job(torch::kBFloat16, named("dpo")),
                              pair_job(torch::kBFloat16, named("dpo"))};
  TempDir folder;
  const ThreadRanks ranks(2, {.sharding = Sharding::kGradients});
  struct Result {
    State all, gathered;
  };
  const auto results = ranks.results<Result>([&](const RanksPtr& one) {
    TrainerOptions options = steady();
    options.ranks = one;
    const auto trainer = jobs[static_cast<std::size_t>(one->rank())].make_trainer(options);
    trainer->step(uneven_rows(0));
    Result result{trainer->state(), trainer->gather_state()};
    trainer->save_policy(folder.file("together"));
    if (one->rank() == 0) trainer->save_policy(folder.file("alone"), result.gathered);
    return result;
  });
  CHECK(results[1].gathered.empty());
  REQUIRE(results[0].gathered.size() == results[0].all.size());
  for (std::size_t i = 0; i < results[0].all.size(); ++i) {
    CHECK(results[0].gathered[i].first == results[0].all[i].first);
    CHECK(results[0].gathered[i].second.equal(results[0].all[i].second));
  }
  const auto together = Decoder::load(folder.file("together"), "float32")->named_parameters();
  const auto alone = Decoder::load(folder.file("alone"), "float32")->named_parameters();
  for (std::size_t i = 0; i < together.size(); ++i) {
    CHECK(alone[i].value.equal(together[i].value));
  }
  const auto trainer = jobs[0].make_trainer(steady());
  CHECK_THROWS_TEXT(trainer->save_policy(folder.file("none"), State()), CheckpointError,
                    "trainer: expected a gathered state with tensor "
                    "'optimizer.master.model.embed_tokens.weight', got none");
}

/// Ranks that look, each time a bucket leaves, how much memory gradients of whole parameters have.
class WeighingRanks final : public ForwardingRanks {
 public:
  using ForwardingRanks::ForwardingRanks;
  Wait begin_sum_scatter(const at::Tensor& own, const at::Tensor& all) override {
    most = std::max(most, bytes());
    ++sent;
    return ForwardingRanks::begin_sum_scatter(own, all);
  }
  std::size_t bytes() const {
    std::size_t sum = 0;
    for (const at::Tensor& parameter : parameters) {
      if (parameter.grad().defined()) sum += parameter.grad().storage().nbytes();
    }
    return sum;
  }

  std::vector<at::Tensor> parameters;
  std::size_t most = 0;
  int sent = 0;
};

/// Layers of 0.8 MB, more than the rest.
std::shared_ptr<Decoder> wide_decoder(at::ScalarType dtype) {
  at::manual_seed(5);
  auto policy = std::make_shared<Decoder>(DecoderOptions{.vocab_size = 31,
                                                         .hidden_size = 128,
                                                         .intermediate_size = 1200,
                                                         .num_hidden_layers = 8,
                                                         .num_attention_heads = 2,
                                                         .num_key_value_heads = 1,
                                                         .initializer_range = 0.05});
  policy->to(dtype);
  return policy;
}

TEST_CASE("ranks: whole gradients are alive for a bucket at a time", "[train]") {
  const auto dtype = GENERATE(torch::kBFloat16, torch::kFloat);
  CAPTURE(dtype);
  const std::vector<std::shared_ptr<Decoder>> policies{wide_decoder(dtype), wide_decoder(dtype)};
  struct Result {
    std::size_t most = 0, at_rest = 0, all = 0;
    int sent = 0;
  };
  const ThreadRanks ranks(2, {.sharding = Sharding::kGradients, .bucket_mib = 1});
  const auto results = ranks.results<Result>([&](const RanksPtr& one) {
    const auto weighing = std::make_shared<WeighingRanks>(one);
    const auto& policy = policies[static_cast<std::size_t>(one->rank())];
    Result result;
    for (const auto& [name, value] : policy->named_parameters()) {
      weighing->parameters.push_back(value);
      result.all += sizeof(float) * static_cast<std::size_t>(value.numel());
    }
    TrainerOptions options = steady();
    options.ranks = weighing;
    Trainer trainer(policy, nullptr, make_loss(named("sft")), options);
    trainer.step(uneven_rows(0));
    result.most = weighing->most;
    result.at_rest = weighing->bytes();
    result.sent = weighing->sent;
    return result;
  });
  for (const Result& result : results) {
    CHECK(result.sent >= 2 * 8);  // two parts of a rank, a bucket for each layer or so
    CHECK(result.most > 0);
    CHECK(result.most < result.all / 3);
    CHECK(result.at_rest == 0);
  }
}

TEST_CASE("ranks: gradients of bfloat16 weights are added up in float32 in slices", "[train]") {
  // Against slices of the state alone, which adds up micro-batches first.
  const auto masters = GENERATE(Masters::kFloat32, Masters::kStochastic);
  const auto adapter = GENERATE(Adapter::kNone, Adapter::kLora);
  TrainerOptions options = steady();
  options.optimizer.masters = masters;
  const auto trained = [&](Sharding sharding) {
    const std::vector<Job> jobs{pair_job(torch::kBFloat16, named("dpo"), adapter),
                                pair_job(torch::kBFloat16, named("dpo"), adapter)};
    const ThreadRanks ranks(2, {.sharding = sharding});
    return ranks.results<Metrics>([&](const RanksPtr& one) {
      TrainerOptions with_ranks = options;
      with_ranks.ranks = one;
      const auto trainer = jobs[static_cast<std::size_t>(one->rank())].make_trainer(with_ranks);
      return trainer->step(uneven_rows(0));
    });
  };
  const auto of_state = trained(Sharding::kOptimizer);
  const auto of_gradients = trained(Sharding::kGradients);
  CHECK(of_gradients[0] == of_gradients[1]);
  for (const auto& [name, value] : of_state[0]) {
    CAPTURE(name);
    CHECK(std::abs(metric(of_gradients[0], name) - value) <= 2e-6 * std::max(1.0, std::abs(value)));
  }
}

TEST_CASE("ranks: the gradient of a bfloat16 parameter by autograd alone is in its slice",
          "[train]") {
  // w is used by a product of autograd's, v is not used at all; sums are exact.
  const ThreadRanks ranks(2, {.sharding = Sharding::kGradients});
  const auto slices = ranks.results<at::Tensor>([](const RanksPtr& one) {
    const at::Tensor w = torch::ones({3, 2}, torch::kBFloat16).requires_grad_(true);
    const at::Tensor v = torch::ones({5}, torch::kBFloat16).requires_grad_(true);
    detail::RankOptimizer optimizer({{"w", w}, {"v", v}}, {}, one);
    optimizer.zero_grad();
    detail::GradientSum sum(one, optimizer.trained());
    sum.begin_step(2);
    for (int part = 0; part < 2; ++part) {
      sum.backward((w * (1 + one->rank() + 10 * part)).sum(), part == 1);
    }
    sum.finish();
    const auto trained = optimizer.trained();
    if (sum.present().find('1') == std::string::npos) throw Error("expected a gradient");
    for (const auto& each : trained) {
      if (each.whole->name == "w") return each.own->value.grad().clone();
    }
    throw Error("expected a parameter 'w'");
  });
  // 1 + 11 of rank 0 and 2 + 12 of rank 1.
  for (const at::Tensor& slice : slices) {
    CHECK(slice.scalar_type() == torch::kFloat);
    CHECK(slice.equal(torch::full({3}, 26.0, torch::kFloat)));
  }
}

TEST_CASE("ranks: what cannot be cut into slices is refused by name", "[train]") {
  const auto refused = [](Sharding sharding, const TrainerOptions& options, at::ScalarType dtype) {
    const std::vector<Job> jobs{pair_job(dtype, named("dpo")), pair_job(dtype, named("dpo"))};
    return ThreadRanks(2, {.sharding = sharding}).troubles([&](const RanksPtr& one) {
      TrainerOptions with_ranks = options;
      with_ranks.ranks = one;
      jobs[static_cast<std::size_t>(one->rank())]
          .make_trainer(with_ranks)
          ->accumulate_gradients(uneven_rows(0));
    });
  };
  TrainerOptions adafactor = steady();
  adafactor.optimizer.type = OptimizerType::kAdafactor;
  for (const auto& one : refused(Sharding::kOptimizer, adafactor, torch::kDouble)) {
    CHECK(thrown_text<ConfigError>(one) ==
          "distributed.sharding: expected none with optimizer adafactor, got slices; its rows and "
          "columns are means over whole matrices");
  }
  for (const auto& one : refused(Sharding::kOptimizer, steady(), torch::kDouble)) {
    CHECK(thrown_text<ConfigError>(one) ==
          "trainer: expected sharding none for the gradients of a check, got slices of them");
  }
}

}  // namespace
}  // namespace prefopt::over_ranks
