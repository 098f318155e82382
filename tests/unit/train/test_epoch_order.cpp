// SPDX-License-Identifier: Apache-2.0
#include <cstdint>
#include <map>
#include <vector>

#include "prefopt/error.h"
#include "prefopt/train/epoch_rows.h"
#include "support/catch.h"
#include "support/errors.h"
#include "train/epoch_order.h"

using namespace prefopt;
using prefopt::detail::EndlessOrder;
using prefopt::detail::WeightedOrder;

TEST_CASE("parts of weight 1 in one piece keep the order that rows have had", "[train]") {
  for (const bool shuffles : {true, false}) {
    EndlessOrder before(7, 3, shuffles);
    WeightedOrder now({{.rows = 7}}, 3, shuffles);
    for (std::int64_t i = 0; i < 30; ++i) CHECK(now.at(i) == before.at(i));
    CHECK(now.count() == 7);
  }
}

TEST_CASE("an epoch has weight times the rows of a part, all equally often", "[train]") {
  const std::vector<EpochPart> parts = {
      {.rows = 6, .weight = 1}, {.rows = 10, .weight = 0.5}, {.rows = 4, .weight = 2.25}};
  WeightedOrder order(parts, 11, true);
  REQUIRE(order.count() == 6 + 5 + 9);
  constexpr std::int64_t kEpochs = 8;
  std::map<std::size_t, int> times;
  for (std::int64_t epoch = 0; epoch < kEpochs; ++epoch) {
    std::map<int, int> of_part;
    for (std::int64_t i = 0; i < 20; ++i) {
      const std::size_t row = order.at(epoch * 20 + i);
      ++times[row];
      ++of_part[row < 6 ? 0 : row < 16 ? 1 : 2];
    }
    CHECK(of_part == std::map<int, int>{{0, 6}, {1, 5}, {2, 9}});
  }
  REQUIRE(times.size() == 20);
  for (const auto& [row, count] : times) CHECK(count == (row < 6 ? 8 : row < 16 ? 4 : 18));
  // Any place can be looked up first, as after a resume.
  WeightedOrder again(parts, 11, true);
  CHECK(again.at(93) == order.at(93));
  CHECK(again.at(2) == order.at(2));
}

TEST_CASE("parts have to be those of the rows", "[train]") {
  const std::vector<TokenRow> rows(3, {.prompt = {1}, .chosen = {2}, .rejected = {3}});
  const auto source = [&](std::vector<EpochPart> parts) {
    return EpochRows({.rows = rows, .parts = std::move(parts)}, {.batch_size = 2});
  };
  CHECK(source({{.rows = 1, .weight = 3}, {.rows = 2}}).rows_an_epoch() == 5);
  CHECK_THROWS_TEXT(source({{.rows = 2}}), ConfigError,
                    "epoch rows: expected parts of 3 rows together, got 2");
  CHECK_THROWS_TEXT(
      source({{.rows = 3, .weight = 0}}), ConfigError,
      "epoch rows: expected parts with rows and a weight above 0, got 3 rows of weight "
      "0");
}
