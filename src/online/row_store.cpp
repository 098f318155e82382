// SPDX-License-Identifier: Apache-2.0
#include "online/row_store.h"

#include <ATen/ops/empty.h>
#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <utility>

#include "online/draw_seed.h"
#include "prefopt/error.h"
#include "train/epoch_order.h"

namespace prefopt::detail {
namespace {

template <class T>
at::Tensor tensor_of(const std::vector<T>& values, at::ScalarType dtype) {
  at::Tensor tensor = at::empty({std::ssize(values)}, dtype);
  std::copy(values.begin(), values.end(), tensor.mutable_data_ptr<T>());
  return tensor;
}

/// Reads values in the order in which they were put.
template <class T>
class Values {
 public:
  explicit Values(const at::Tensor& tensor)
      : tensor_(tensor.contiguous()),
        next_(tensor_.const_data_ptr<T>()),
        end_(next_ + tensor_.numel()) {}

  T take() { return *claim(1); }
  std::vector<T> take(std::int64_t count) {
    const T* first = claim(count);
    return {first, first + count};
  }
  bool is_empty() const { return next_ == end_; }

 private:
  const T* claim(std::int64_t count) {
    if (count < 0 || end_ - next_ < count) {
      throw CheckpointError("expected the rows of the rounds, got tensors that hold none");
    }
    return std::exchange(next_, next_ + count);
  }

  at::Tensor tensor_;
  const T* next_;
  const T* end_;
};

using Tokens = std::vector<std::int64_t>;

constexpr std::array kRolloutNumbers = {&RolloutColumns::advantages, &RolloutColumns::old_logps,
                                        &RolloutColumns::ref_logps,  &RolloutColumns::sampler_logps,
                                        &RolloutColumns::old_values, &RolloutColumns::returns};

}  // namespace

PackedRows pack_rows(const std::vector<TokenRow>& rows) {
  Tokens integers;
  std::vector<double> numbers;
  Tokens rollout_integers;
  std::vector<double> rollout_numbers;
  const auto add_tokens = [&](const auto& tokens) {
    integers.push_back(std::ssize(tokens));
    integers.insert(integers.end(), tokens.begin(), tokens.end());
  };
  const auto add_numbers = [&](const std::vector<double>& values) {
    integers.push_back(std::ssize(values));
    numbers.insert(numbers.end(), values.begin(), values.end());
  };
  const auto add_rollout = [&](const RolloutColumns& columns) {
    rollout_integers.push_back(columns.group);
    rollout_integers.push_back(std::ssize(columns.turns));
    rollout_integers.insert(rollout_integers.end(), columns.turns.begin(), columns.turns.end());
    for (const auto column : kRolloutNumbers) {
      const std::vector<double>& values = columns.*column;
      rollout_integers.push_back(std::ssize(values));
      rollout_numbers.insert(rollout_numbers.end(), values.begin(), values.end());
    }
  };
  for (const TokenRow& row : rows) {
    for (const Tokens* tokens : {&row.prompt, &row.chosen, &row.rejected, &row.gold}) {
      add_tokens(*tokens);
    }
    for (const TokenMask* mask : {&row.chosen_mask, &row.rejected_mask, &row.gold_mask}) {
      add_tokens(*mask);
    }
    for (const TokenWeights* weights :
         {&row.chosen_weights, &row.rejected_weights, &row.gold_weights}) {
      add_numbers(*weights);
    }
    for (std::size_t i = 0; i < kColumnKeys.size(); ++i) {
      numbers.push_back(row.columns[static_cast<Column>(i)]);
    }
    add_rollout(row.rollout);
  }
  return {tensor_of(integers, at::kLong), tensor_of(numbers, at::kDouble),
          tensor_of(rollout_integers, at::kLong), tensor_of(rollout_numbers, at::kDouble)};
}

std::vector<TokenRow> unpack_rows(const PackedRows& packed) {
  Values<std::int64_t> integers(packed.integers);
  Values<double> numbers(packed.numbers);
  std::vector<TokenRow> rows;
  while (!integers.is_empty()) {
    TokenRow row;
    for (Tokens* tokens : {&row.prompt, &row.chosen, &row.rejected, &row.gold}) {
      *tokens = integers.take(integers.take());
    }
    for (TokenMask* mask : {&row.chosen_mask, &row.rejected_mask, &row.gold_mask}) {
      const Tokens values = integers.take(integers.take());
      mask->assign(values.begin(), values.end());
    }
    for (TokenWeights* weights : {&row.chosen_weights, &row.rejected_weights, &row.gold_weights}) {
      *weights = numbers.take(integers.take());
    }
    for (std::size_t i = 0; i < kColumnKeys.size(); ++i) {
      row.columns[static_cast<Column>(i)] = numbers.take();
    }
    rows.push_back(std::move(row));
  }
  if (!packed.rollout_integers.defined()) return rows;
  Values<std::int64_t> of_rollouts(packed.rollout_integers);
  Values<double> rollout_numbers(packed.rollout_numbers);
  for (TokenRow& row : rows) {
    row.rollout.group = of_rollouts.take();
    row.rollout.turns = of_rollouts.take(of_rollouts.take());
    for (const auto column : kRolloutNumbers) {
      row.rollout.*column = rollout_numbers.take(of_rollouts.take());
    }
  }
  return rows;
}

void RowStore::add(std::vector<TokenRow> rows, std::int64_t round, const ReplayOptions& replay) {
  const auto is_out_of_reach = [&](const StoredRow& stored) {
    const std::int64_t back = round - stored.round;
    return replay.share == 0 || (replay.rounds > 0 && back > replay.rounds);
  };
  std::erase_if(rows_, is_out_of_reach);
  for (TokenRow& row : rows) rows_.push_back({std::move(row), round});
}

std::vector<TokenRow> RowStore::pick(std::int64_t round, const ReplayOptions& replay,
                                     std::int64_t seed) const {
  std::vector<TokenRow> picked;
  for (std::int64_t from = round; from >= 1; --from) {
    std::vector<const TokenRow*> of_round;
    for (const StoredRow& stored : rows_) {
      if (stored.round == from) of_round.push_back(&stored.row);
    }
    const std::int64_t back = round - from;
    const double share =
        back == 0 ? 1 : replay.share * std::pow(replay.decay, static_cast<double>(back - 1));
    const auto count =
        static_cast<std::size_t>(std::llround(share * static_cast<double>(of_round.size())));
    if (count == of_round.size()) {
      for (const TokenRow* row : of_round) picked.push_back(*row);
      continue;
    }
    const auto order =
        shuffled_order(of_round.size(), draw_seed(seed, {kReplayDraws, round}), from);
    for (std::size_t i = 0; i < count; ++i) picked.push_back(*of_round[order[i]]);
  }
  return picked;
}

void RowStore::visit_state(StateVisitor& visitor, bool has_rollouts) {
  std::vector<TokenRow> rows;
  std::vector<std::int64_t> rounds;
  if (!visitor.is_loading()) {
    for (const StoredRow& stored : rows_) {
      rows.push_back(stored.row);
      rounds.push_back(stored.round);
    }
  }
  PackedRows packed = pack_rows(rows);
  visitor.array("rows", packed.integers);
  visitor.array("columns", packed.numbers);
  visitor.integers("row_rounds", rounds);
  if (has_rollouts) {
    visitor.array("rollout_integers", packed.rollout_integers);
    visitor.array("rollout_numbers", packed.rollout_numbers);
  } else {
    packed.rollout_integers.reset();
  }
  if (!visitor.is_loading()) return;
  rows = unpack_rows(packed);
  if (rows.size() != rounds.size()) {
    throw CheckpointError(
        fmt::format("expected row_rounds of {} rows, got {}", rows.size(), rounds.size()));
  }
  rows_.clear();
  for (std::size_t i = 0; i < rows.size(); ++i) rows_.push_back({std::move(rows[i]), rounds[i]});
}

}  // namespace prefopt::detail
