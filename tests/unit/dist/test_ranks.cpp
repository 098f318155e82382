// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <functional>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#include "prefopt/dist/launch.h"
#include "prefopt/dist/ranks.h"
#include "prefopt/error.h"
#include "support/catch.h"
#include "support/errors.h"
#include "support/thread_ranks.h"

namespace prefopt {
namespace {

using testing_support::ThreadRanks;
using testing_support::thrown_text;
using RanksPtr = std::shared_ptr<Ranks>;
using Tensors = std::vector<at::Tensor>;

Tensors on_each(int size, const std::function<at::Tensor(const RanksPtr&)>& work) {
  return ThreadRanks(size).results<at::Tensor>(work);
}

TEST_CASE("ranks add up in place, whatever the dtype and the strides", "[dist]") {
  const int size = GENERATE(1, 2, 3);
  const auto dtype = GENERATE(torch::kDouble, torch::kFloat, torch::kBFloat16, torch::kLong);
  const int total = size * (size - 1) / 2;
  const auto sums = on_each(size, [&](const RanksPtr& ranks) {
    const at::Tensor dense = torch::full({2, 3}, ranks->rank(), dtype);
    const at::Tensor turned = torch::full({3, 2}, 10 * ranks->rank(), dtype).t();
    ranks->sum({dense, turned});
    return torch::cat({dense, turned});
  });
  for (const at::Tensor& sum : sums) {
    CHECK(sum.narrow(0, 0, 2).equal(torch::full({2, 3}, total, dtype)));
    CHECK(sum.narrow(0, 2, 2).equal(torch::full({2, 3}, 10 * total, dtype)));
  }
}

TEST_CASE("ranks gather one shape, or rows that each has a number of", "[dist]") {
  const auto same = on_each(3, [](const RanksPtr& ranks) {
    return ranks->gather(torch::full({2}, ranks->rank(), torch::kDouble));
  });
  for (const at::Tensor& all : same) {
    CHECK(all.equal(torch::tensor({{0., 0.}, {1., 1.}, {2., 2.}}, torch::kDouble)));
  }
  // Rank r has 2 − r rows.
  const auto rows = on_each(3, [](const RanksPtr& ranks) {
    return ranks->gather_rows(torch::full({2 - ranks->rank(), 1}, ranks->rank(), torch::kFloat));
  });
  for (const at::Tensor& all : rows) {
    CHECK(all.equal(torch::tensor({{0.F}, {0.F}, {1.F}}, torch::kFloat)));
  }
}

TEST_CASE("ranks broadcast the first one's numbers and scatter a sum", "[dist]") {
  const auto numbers = on_each(3, [](const RanksPtr& ranks) {
    at::Tensor values = torch::full({4}, ranks->rank() + 5, torch::kDouble);
    ranks->broadcast(values);
    return values;
  });
  for (const at::Tensor& values : numbers) CHECK(values.equal(torch::full({4}, 5, torch::kDouble)));

  for (const int size : {1, 3}) {
    const auto slices = on_each(size, [&](const RanksPtr& ranks) {
      at::Tensor own = torch::zeros({2}, torch::kDouble);
      const at::Tensor all = torch::arange(2 * size, torch::kDouble) * (ranks->rank() + 1);
      ranks->begin_sum_scatter(own, all.view({size, 2}))();
      ranks->barrier();
      return own;
    });
    const int times = size * (size + 1) / 2;
    CHECK(torch::cat(slices).equal(torch::arange(2 * size, torch::kDouble) * times));
  }
}

TEST_CASE("texts of all ranks arrive whole, whatever their length", "[dist]") {
  const std::string short_one("b\0c", 3);
  // The first message has room for 4088 bytes.
  for (const std::size_t length : {0, 1, 4087, 4088, 4089, 10'000}) {
    const std::string long_one(length, 'x');
    const auto all = ThreadRanks(3).results<std::vector<std::string>>([&](const RanksPtr& ranks) {
      return ranks->gather_text(ranks->rank() == 1 ? long_one : short_one);
    });
    for (const auto& texts : all) {
      CHECK(texts == std::vector<std::string>{short_one, long_one, short_one});
    }
  }
}

TEST_CASE("ranks agree where all of them do", "[dist]") {
  const auto answers = ThreadRanks(2).results<std::vector<int>>([](const RanksPtr& ranks) {
    return std::vector<int>{ranks->agree(true), ranks->agree(ranks->rank() == 0),
                            ranks->agree(false)};
  });
  for (const auto& answer : answers) CHECK(answer == std::vector<int>{1, 0, 0});
}

TEST_CASE("the trouble of one rank is that of all", "[dist]") {
  const auto trouble_of = [](const std::function<void(int)>& work) {
    return ThreadRanks(3).troubles(
        [&](const RanksPtr& ranks) { ranks->together([&] { work(ranks->rank()); }); });
  };
  const auto typed = trouble_of([](int rank) {
    if (rank == 1) throw DataError("line 3: expected a number, got 'x'");
  });
  for (const auto& one : typed) {
    CHECK(thrown_text<DataError>(one) == "rank 1: line 3: expected a number, got 'x'");
  }
  const auto other = trouble_of([](int rank) {
    if (rank == 2) throw std::runtime_error("disk full");
  });
  for (const auto& one : other) CHECK(thrown_text<Error>(one) == "rank 2: disk full");
  // An exception that all have alike needs no rank's name, and stays as it is.
  const auto alike = trouble_of([](int) { throw std::invalid_argument("no rows"); });
  for (const auto& one : alike) CHECK(thrown_text<std::invalid_argument>(one) == "no rows");
  for (const auto& one : trouble_of([](int) {})) CHECK(one == nullptr);
}

TEST_CASE("a rank that has gone is named by the others", "[dist]") {
  ThreadRanks ranks(3);
  const auto thrown = ranks.troubles([&](const RanksPtr& one) {
    if (one->rank() == 2) {
      ranks.leave(2);
      return;
    }
    one->barrier();
  });
  CHECK(thrown[2] == nullptr);
  for (const std::size_t rank : {0, 1}) {
    const std::string text = thrown_text<LostRankError>(thrown[rank]);
    CHECK(text.starts_with("rank " + std::to_string(rank) +
                           ": expected a barrier of all 3 ranks, got '"));
    CHECK(text.ends_with("; no word from rank 2, which has ended, hangs or still computes"));
  }
}

TEST_CASE("options of ranks that do not fit are refused", "[dist]") {
  Launch three;
  three.size = three.local_size = 3;
  CHECK_THROWS_TEXT(join_ranks({.order = SumOrder::kTree}, three), ConfigError,
                    "distributed.order: expected 1, 2, 4, 8, ... ranks with order tree, got 3");
  CHECK_THROWS_TEXT(
      join_ranks({.sharding = Sharding::kOptimizer, .order = SumOrder::kTree}, Launch{}),
      ConfigError,
      "distributed.order: expected order fast with sharding, got tree; only whole gradients are "
      "added up in the order of a tree");
  CHECK_THROWS_TEXT(options_from_json<RanksOptions>(R"({"bucket_mib": 0})", "distributed"),
                    ConfigError, "distributed: expected bucket_mib >= 1, got 0");
  const auto options = options_from_json<RanksOptions>(
      R"({"backend": "gloo", "sharding": "gradients", "ddp_bucket_cap_mb": 1, "ddp_timeout": 60})",
      "distributed");
  CHECK(options.sharding == Sharding::kGradients);
  CHECK(options.bucket_mib == 1);
  CHECK(join_ranks(options, Launch{})->options().timeout_seconds == 60);
}

}  // namespace
}  // namespace prefopt
