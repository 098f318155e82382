// SPDX-License-Identifier: Apache-2.0

#include "prefopt/data/batch.h"
#include "prefopt/error.h"
#include "prefopt/policy/sequence_logps.h"
#include "support/bigram_policy.h"
#include "support/catch.h"
#include "support/errors.h"

using namespace prefopt;
using Ids = std::vector<std::int64_t>;

namespace {

at::Tensor longs(std::vector<std::vector<std::int64_t>> rows) {
  std::vector<at::Tensor> tensors;
  for (const auto& row : rows) tensors.push_back(torch::tensor(row, at::kLong));
  return at::stack(tensors);
}

at::Tensor bools(std::vector<std::vector<std::int64_t>> rows) {
  return longs(std::move(rows)).to(at::kBool);
}

}  // namespace

TEST_CASE("make_batch pads on the right and marks completions", "[data]") {
  const Ids p1 = {7, 8};
  const Ids c1 = {9};
  const Ids p2 = {1};
  const Ids c2 = {2, 3, 4};
  const TokenBatch batch = make_batch({{p1, c1}, {p2, c2}});

  CHECK(batch.sequences() == 2);
  CHECK(batch.input_ids.dtype() == at::kLong);
  CHECK(batch.input_ids.equal(longs({{7, 8, 9, 0}, {1, 2, 3, 4}})));
  CHECK(batch.attention_mask.dtype() == at::kBool);
  CHECK(batch.attention_mask.equal(bools({{1, 1, 1, 0}, {1, 1, 1, 1}})));
  CHECK(batch.completion_mask.dtype() == at::kBool);
  CHECK(batch.completion_mask.equal(bools({{0, 0, 1, 0}, {0, 1, 1, 1}})));
  CHECK(batch.completion_lens.equal(torch::tensor(Ids{1, 3}, at::kLong)));
}

TEST_CASE("make_pair_batch puts all chosen before all rejected", "[data]") {
  const std::vector<TokenRow> pairs = {{.prompt = {1}, .chosen = {2}, .rejected = {3, 4}},
                                       {.prompt = {5, 6}, .chosen = {7}, .rejected = {8}}};
  const TokenBatch both = make_pair_batch(pairs);
  CHECK(both.input_ids.equal(longs({{1, 2, 0}, {5, 6, 7}, {1, 3, 4}, {5, 6, 8}})));
  CHECK(both.completion_mask.equal(bools({{0, 1, 0}, {0, 0, 1}, {0, 1, 1}, {0, 0, 1}})));
  CHECK(both.completion_lens.equal(torch::tensor(Ids{1, 1, 2, 1}, at::kLong)));

  const TokenBatch chosen = make_pair_batch(pairs, false);
  CHECK(chosen.input_ids.equal(longs({{1, 2, 0}, {5, 6, 7}})));
}

TEST_CASE("a batch has a weight for each completion token where some sequence has", "[data]") {
  std::vector<TokenRow> pairs = {{.prompt = {1}, .chosen = {2, 3}, .rejected = {4}},
                                 {.prompt = {5, 6}, .chosen = {7}, .rejected = {8, 9}}};
  CHECK_FALSE(make_pair_batch(pairs).token_weights.defined());
  pairs[0].chosen_weights = {0.5, 0};
  pairs[1].rejected_weights = {3, 4};
  const TokenBatch batch = make_pair_batch(pairs);
  CHECK(batch.token_weights.equal(at::tensor({0.5, 0.0, 1.0, 1.0, 3.0, 4.0}, at::kDouble)));
  CHECK(batch.to(at::Device("meta")).token_weights.device().type() == at::kMeta);
  CHECK(select_sequences(batch, {3, 0})
            .token_weights.equal(at::tensor({3.0, 4.0, 0.5, 0.0}, at::kDouble)));

  pairs[1].chosen_weights = {1, 2};
  CHECK_THROWS_TEXT(make_pair_batch(pairs), ShapeError,
                    "make_pair_batch: expected 1 weights of the chosen completion in pair 1, one a "
                    "token, got 2");
  const Ids one = {1};
  const std::vector<double> two = {1, 1};
  CHECK_THROWS_TEXT(make_batch({{one, one, two}}), ShapeError,
                    "make_batch: expected 1 weights of the completion in sequence 0, one a token, "
                    "got 2");
}

TEST_CASE("tokens that do not count are read and no more", "[data]") {
  const std::vector<TokenRow> pairs = {
      {.prompt = {1, 2}, .chosen = {3, 4, 0, 1}, .rejected = {3, 4, 2}},
      {.prompt = {2}, .chosen = {4}, .rejected = {0, 1, 3}}};
  std::vector<TokenRow> masked = pairs;
  masked[0].chosen_mask = {1, 0, 0, 1};
  masked[1].rejected_mask = {0, 0, 1};
  masked[0].chosen_weights = {2, 3, 4, 5};
  const TokenBatch batch = make_pair_batch(masked);
  CHECK(batch.input_ids.equal(make_pair_batch(pairs).input_ids));
  CHECK(batch.completion_mask.equal(
      bools({{0, 0, 1, 0, 0, 1}, {0, 1, 0, 0, 0, 0}, {0, 0, 1, 1, 1, 0}, {0, 0, 0, 1, 0, 0}})));
  CHECK(batch.completion_lens.equal(torch::tensor(Ids{2, 1, 3, 1}, at::kLong)));
  CHECK(batch.token_weights.equal(at::tensor({2.0, 5.0, 1.0, 1.0, 1.0, 1.0, 1.0}, at::kDouble)));
  REQUIRE(batch.packed);
  CHECK(batch.packed->input_ids.equal(make_pair_batch(pairs).packed->input_ids));
  CHECK(batch.packed->targets.index_select(0, batch.packed->token_rows)
            .equal(torch::tensor(Ids{3, 1, 4, 3, 4, 2, 3}, at::kLong)));

  // Sums and lengths are of what counts, whoever computes them.
  testing_support::BigramPolicy policy(7);
  const auto check = [&](const SequenceLogps& logps) {
    CHECK(logps.logps[0].item<double>() == Approx(2 * policy.logp(2, 3) + 5 * policy.logp(0, 1)));
    CHECK(logps.logps[3].item<double>() == Approx(policy.logp(1, 3)));
    CHECK(logps.lens.equal(torch::tensor(Ids{2, 1, 3, 1}, at::kLong)));
  };
  check(sequence_logps(policy, batch));
  check(sequence_logps(policy, select_sequences(batch, {0, 1, 2, 3})));

  masked[1].rejected_mask = {0, 1};
  CHECK_THROWS_TEXT(make_pair_batch(masked), ShapeError,
                    "make_pair_batch: expected a mask of 3 tokens of the rejected completion in "
                    "pair 1, got 2");
  masked[1].rejected_mask = {0, 0, 0};
  CHECK_THROWS_TEXT(make_pair_batch(masked), ShapeError,
                    "make_pair_batch: expected a rejected completion of at least one token that "
                    "counts in pair 1, got none");
}

TEST_CASE("batches refuse sequences that cannot be scored", "[data]") {
  const Ids none;
  const Ids one = {1};
  CHECK_THROWS_TEXT(make_batch({}), ShapeError,
                    "make_batch: expected at least one sequence, got none");
  CHECK_THROWS_TEXT(make_batch({{one, one}, {none, one}}), ShapeError,
                    "make_batch: expected a prompt of at least one token in sequence 1, got none; "
                    "nothing predicts the first completion token");
  CHECK_THROWS_TEXT(
      make_batch({{one, none}}), ShapeError,
      "make_batch: expected a completion of at least one token in sequence 0, got none");

  CHECK_THROWS_TEXT(make_pair_batch({}), ShapeError,
                    "make_pair_batch: expected at least one pair, got none");
  CHECK_THROWS_TEXT(make_pair_batch({{.prompt = {}, .chosen = one, .rejected = one}}), ShapeError,
                    "make_pair_batch: expected a prompt of at least one token in pair 0, got none; "
                    "nothing predicts the first completion token");
  CHECK_THROWS_TEXT(
      make_pair_batch({{.prompt = one, .chosen = {}, .rejected = one}}), ShapeError,
      "make_pair_batch: expected a chosen completion of at least one token in pair 0, got none");
  const std::vector<TokenRow> single = {{.prompt = one, .chosen = one, .rejected = {}}};
  CHECK_THROWS_TEXT(
      make_pair_batch(single), ShapeError,
      "make_pair_batch: expected a rejected completion of at least one token in pair 0, got none; "
      "rows with one completion need with_rejected = false");
  CHECK(make_pair_batch(single, false).sequences() == 1);
}

TEST_CASE("a batch moves to a device but keeps its counts on the CPU", "[data]") {
  const TokenBatch batch = make_pair_batch({{.prompt = {1}, .chosen = {2}, .rejected = {3}}});
  const TokenBatch moved = batch.to(at::Device("meta"));
  CHECK(moved.input_ids.device().type() == at::kMeta);
  CHECK(moved.attention_mask.device().type() == at::kMeta);
  CHECK(moved.completion_mask.device().type() == at::kMeta);
  CHECK(moved.completion_lens.device().type() == at::kCPU);
  // No build of LibTorch has this one; the reason behind the bracket is LibTorch's own text.
  try {
    batch.to(at::Device(at::kFPGA));
    FAIL("a batch moved to an FPGA");
  } catch (const DeviceError& error) {
    const std::string text = error.what();
    CHECK(text.starts_with("TokenBatch::to: expected a usable device, got fpga ("));
    CHECK(text.find('\n') == std::string::npos);
  }
}

TEST_CASE("a batch is also one stream in which equal beginnings stand once", "[data]") {
  // Rows of the first group: 1 2 5 | 7, then what is left of rejected: 6 3 (and 9, which predicts
  // nothing). The second sequence of prompt {8} is alone.
  const std::vector<TokenRow> pairs = {
      {.prompt = {1, 2}, .chosen = {5, 7, 4}, .rejected = {5, 6, 3, 9}},
      {.prompt = {8}, .chosen = {2}, .rejected = {2, 3}}};
  const TokenBatch batch = make_pair_batch(pairs);
  REQUIRE(batch.packed);
  const PackedTokens& packed = *batch.packed;
  REQUIRE(packed.groups.size() == 2);
  CHECK(packed.groups[0].begin == 0);
  CHECK(packed.groups[0].shared == 3);
  CHECK(packed.groups[0].scored == 1);
  CHECK(packed.groups[0].branches == Ids{1, 2});
  CHECK(packed.groups[1].begin == 6);
  CHECK(packed.groups[1].shared == 1);
  CHECK(packed.groups[1].scored == 0);
  CHECK(packed.groups[1].branches == Ids{0, 1});
  CHECK(packed.input_ids.equal(torch::tensor(Ids{1, 2, 5, 7, 6, 3, 8, 2}, at::kLong)));
  CHECK(packed.positions.equal(torch::tensor(Ids{0, 1, 2, 3, 3, 4, 0, 1}, at::kLong)));

  // Each completion token, sequence after sequence: the row before it and the token itself.
  const at::Tensor rows = packed.rows.index_select(0, packed.token_rows);
  const at::Tensor targets = packed.targets.index_select(0, packed.token_rows);
  CHECK(rows.equal(torch::tensor(Ids{1, 2, 3, 6, 1, 2, 4, 5, 6, 7}, at::kLong)));
  CHECK(targets.equal(torch::tensor(Ids{5, 7, 4, 2, 5, 6, 3, 9, 2, 3}, at::kLong)));
  // 5 after {1, 2} and 2 after {8} are common to two sequences.
  CHECK(packed.rows.size(0) == 8);
}

TEST_CASE("select_sequences refuses a batch of a device", "[data]") {
  const std::vector<TokenRow> pairs = {{.prompt = {1}, .chosen = {2}, .rejected = {3}}};
  CHECK_THROWS_TEXT(select_sequences(make_pair_batch(pairs).to(at::kMeta), {0}), DeviceError,
                    "select_sequences: expected a batch on the CPU, got one on meta; "
                    "batch.to(at::kCPU) is one");
}

TEST_CASE("select_sequences lays out some sequences as if they were alone", "[data]") {
  const std::vector<TokenRow> pairs = {{.prompt = {1, 2}, .chosen = {3}, .rejected = {4, 5}},
                                       {.prompt = {6}, .chosen = {7, 8, 9}, .rejected = {7}}};
  const Ids prompts[] = {{6}, {1, 2}};
  const Ids completions[] = {{7}, {3}};
  const TokenBatch part = select_sequences(make_pair_batch(pairs), {3, 0});
  const TokenBatch alone = make_batch({{prompts[0], completions[0]}, {prompts[1], completions[1]}});
  CHECK(part.input_ids.equal(alone.input_ids));
  CHECK(part.attention_mask.equal(alone.attention_mask));
  CHECK(part.completion_mask.equal(alone.completion_mask));
  CHECK(part.completion_lens.equal(alone.completion_lens));
  CHECK(part.packed->input_ids.equal(alone.packed->input_ids));
}
