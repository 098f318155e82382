// SPDX-License-Identifier: Apache-2.0

// Who takes which part, and the order in which gradients are added up.

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "support/counting_ranks.h"
#include "support/rank_jobs.h"
#include "train/gradient_sum.h"
#include "train/rank_optimizer.h"
#include "train/shares.h"

namespace prefopt::over_ranks {
namespace {

TEST_CASE("ranks: one rank is one process, to the last bit", "[train]") {
  for (const std::string loss : {"dpo", "kto", "aot"}) {
    const auto alone = train(pair_job(torch::kFloat, named(loss)), nullptr, steady());
    for (const Sharding sharding : {Sharding::kNone, Sharding::kGradients}) {
      const auto one = train(pair_job(torch::kFloat, named(loss)),
                             one_process({.sharding = sharding}), steady());
      CHECK(same_weights(alone, one));
      CHECK(alone.metrics == one.metrics);
    }
  }
}

TEST_CASE("ranks: the order of a tree gives the same bits on 1, 2 and 4", "[train]") {
  const RanksOptions tree{.order = SumOrder::kTree};
  const ThreadRanks two(2, tree), four(4, tree);
  for (const std::string loss : {"dpo", "kto", "aot", "sft"}) {
    CAPTURE(loss);
    const auto make_jobs = [&](int size) {
      std::vector<Job> jobs;
      for (int r = 0; r < size; ++r) jobs.push_back(pair_job(torch::kFloat, named(loss)));
      return jobs;
    };
    const Outcome one = train(make_jobs(1)[0], one_process(tree), steady(), 3);
    for (const auto& [ranks, size] : {std::pair{&two, 2}, std::pair{&four, 4}}) {
      const auto jobs = make_jobs(size);
      for (const Outcome& outcome : ranks->results<Outcome>([&](const RanksPtr& rank) {
             return train(jobs[static_cast<std::size_t>(rank->rank())], rank, steady(), 3);
           })) {
        CHECK(same_weights(one, outcome));
        CHECK(worst_metric(one, outcome) <= 1e-6);
      }
    }
  }
}

TEST_CASE("ranks: float32 and bfloat16 weights stay near those of one process", "[train]") {
  const ThreadRanks ranks(3, {.bucket_mib = 1});
  check_against_one_process(
      ranks, 3, [] { return pair_job(torch::kFloat, named("dpo")); }, steady(), 2e-5, 3);
  // Gradients of bfloat16 weights are added up in float32: the masters differ by its rounding.
  const auto make_job = [] { return pair_job(torch::kBFloat16, named("dpo")); };
  std::vector<Job> jobs{make_job(), make_job(), make_job()};
  const auto gradients_of = [](const Job& job, const RanksPtr& one) {
    TrainerOptions options = steady();
    options.ranks = one;
    job.make_trainer(options)->accumulate_gradients(uneven_rows(0));
    std::vector<at::Tensor> gradients;
    for (const auto& [name, value] : job.policy->named_parameters()) {
      gradients.push_back(value.grad().clone());
    }
    return gradients;
  };
  const auto alone = gradients_of(make_job(), nullptr);
  for (const auto& together : ranks.results<std::vector<at::Tensor>>([&](const RanksPtr& one) {
         return gradients_of(jobs[static_cast<std::size_t>(one->rank())], one);
       })) {
    for (std::size_t i = 0; i < alone.size(); ++i) {
      CHECK(together[i].scalar_type() == torch::kFloat);
      CHECK(difference(alone[i], together[i]) <= 1e-4);
    }
  }
}

TEST_CASE("parts are dealt the longest first, or as the runs of a tree", "[train]") {
  CHECK(detail::deal_longest_first({1, 9, 5, 5, 3}, 2) == std::vector<int>{1, 0, 1, 1, 0});
  CHECK(detail::deal_longest_first({4, 4}, 3) == std::vector<int>{0, 1});
  CHECK(detail::deal_longest_first({}, 3).empty());
  CHECK(detail::deal_tree(7, 2) == std::vector<int>{0, 0, 0, 0, 1, 1, 1});
  CHECK(detail::deal_tree(5, 4) == std::vector<int>{0, 0, 1, 1, 2});
  CHECK(detail::deal_tree(2, 4) == std::vector<int>{0, 1});
}

TEST_CASE("gradients leave while others are still computed", "[train]") {
  using Counts = std::pair<int, int>;
  const ThreadRanks ranks(2, {.bucket_mib = 1});
  const auto counts = ranks.results<Counts>([](const RanksPtr& one) {
    const auto counted = std::make_shared<CountingRanks>(one);
    constexpr std::int64_t kNumbers = std::int64_t{1} << 18;  // two buckets
    at::Tensor first = torch::ones({kNumbers}, torch::kDouble).requires_grad_(true);
    at::Tensor second = torch::ones({kNumbers}, torch::kDouble).requires_grad_(true);
    detail::RankOptimizer optimizer({{"first", first}, {"second", second}}, {}, counted);
    detail::GradientSum sum(counted, optimizer.trained());
    optimizer.zero_grad();
    sum.begin_step(/*most_parts=*/1);
    const at::Tensor middle = first * 3;
    int sent_before_first = -1;
    middle.register_hook([&](const at::Tensor&) { sent_before_first = counted->sums; });
    sum.backward((middle * second).sum(), /*is_last=*/true);
    sum.finish();
    return Counts{sent_before_first, counted->sums};
  });
  for (const Counts& each : counts) CHECK(each == Counts{1, 2});
}

TEST_CASE("ranks: a step sends its buckets and a message", "[train]") {
  struct Case {
    std::string loss;
    int messages;
  };
  // The inputs of a loss that sees the whole step are one more.
  for (const Case& one_case : {Case{"dpo", 1}, Case{"kto", 2}}) {
    const std::vector<Job> jobs{pair_job(torch::kDouble, named(one_case.loss)),
                                pair_job(torch::kDouble, named(one_case.loss))};
    const auto counts = ThreadRanks(2).results<std::vector<int>>([&](const RanksPtr& one) {
      const auto counted = std::make_shared<CountingRanks>(one);
      TrainerOptions options = steady();
      options.ranks = counted;
      const auto trainer = jobs[static_cast<std::size_t>(one->rank())].make_trainer(options);
      trainer->step(uneven_rows(0));
      const std::vector<int> first{counted->sums, counted->gathers, counted->others};
      trainer->step(uneven_rows(1));
      return std::vector<int>{first[0], first[1], counted->sums - first[0],
                              counted->gathers - first[1], counted->others};
    });
    // In the first step all have to have memory.
    for (const auto& each : counts) {
      CHECK(each == std::vector<int>{1, one_case.messages + 1, 1, one_case.messages, 0});
    }
  }
}

}  // namespace
}  // namespace prefopt::over_ranks
