// SPDX-License-Identifier: Apache-2.0

// ZeRO: slices of state and gradients.

#include <filesystem>
#include <string>
#include <utility>
#include <vector>

#include "prefopt/error.h"
#include "support/errors.h"
#include "support/rank_jobs.h"
#include "support/temp_dir.h"
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
  for (const auto& one : refused(Sharding::kGradients, steady(), torch::kBFloat16)) {
    CHECK(thrown_text<ConfigError>(one) ==
          "distributed.sharding: expected none or optimizer with bfloat16 or float16 weights, got "
          "gradients; those of 'model.embed_tokens.weight' are added up in a float32 buffer of all "
          "weights");
  }
  for (const auto& one : refused(Sharding::kOptimizer, steady(), torch::kDouble)) {
    CHECK(thrown_text<ConfigError>(one) ==
          "trainer: expected sharding none for the gradients of a check, got slices of them");
  }
}

}  // namespace
}  // namespace prefopt::over_ranks
