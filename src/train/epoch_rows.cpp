// SPDX-License-Identifier: Apache-2.0
#include "prefopt/train/epoch_rows.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <random>
#include <utility>

#include "core/hash.h"
#include "prefopt/error.h"
#include "train/epoch_order.h"
#include "train/row_fingerprint.h"

namespace prefopt {
namespace {

std::size_t below(std::uint64_t bound, std::mt19937_64& rng) {
  const auto end = std::numeric_limits<std::uint64_t>::max() / bound * bound;
  auto x = rng();
  while (x >= end) x = rng();
  return x % bound;
}

EpochData checked_parts(EpochData data) {
  if (data.parts.empty()) return data;
  std::int64_t rows = 0;
  for (const EpochPart& part : data.parts) {
    if (part.rows < 1 || !(part.weight > 0) || !std::isfinite(part.weight)) {
      throw ConfigError(fmt::format(
          "epoch rows: expected parts with rows and a weight above 0, got {} rows of weight {}",
          part.rows, part.weight));
    }
    rows += part.rows;
  }
  if (rows == std::ssize(data.rows)) return data;
  throw ConfigError(fmt::format("epoch rows: expected parts of {} rows together, got {}",
                                data.rows.size(), rows));
}

/// Returns the share of rows that budgets have shortened.
Metrics share_cut(std::int64_t cut, std::int64_t rows) {
  return {{"truncated", static_cast<double>(cut) / static_cast<double>(rows)}};
}

}  // namespace

namespace detail {

std::vector<std::size_t> shuffled_order(std::size_t count, std::int64_t seed, std::int64_t epoch) {
  std::vector<std::size_t> order(count);
  std::iota(order.begin(), order.end(), 0);
  std::seed_seq seeds{seed & 0xffffffff, seed >> 32, epoch & 0xffffffff, epoch >> 32};
  std::mt19937_64 rng(seeds);
  for (auto left = count; left > 1; --left) std::swap(order[left - 1], order[below(left, rng)]);
  return order;
}

std::int64_t count_epoch_steps(double epochs, double rows, std::int64_t rows_a_step) {
  const double steps = epochs * rows / static_cast<double>(rows_a_step);
  return std::max<std::int64_t>(1, std::llround(std::ceil(steps - 1e-9)));
}

EndlessOrder::EndlessOrder(std::size_t count, std::int64_t seed, bool shuffles)
    : seed_(seed), shuffles_(shuffles), order_(count) {
  std::iota(order_.begin(), order_.end(), 0);
}

std::size_t EndlessOrder::at(std::int64_t position) {
  const auto count = std::ssize(order_);
  if (shuffles_ && position / count != epoch_) {
    epoch_ = position / count;
    order_ = shuffled_order(order_.size(), seed_, epoch_);
  }
  return order_[static_cast<std::size_t>(position % count)];
}

WeightedOrder::WeightedOrder(const std::vector<EpochPart>& parts, std::int64_t seed, bool shuffles)
    : seed_(seed), shuffles_(shuffles) {
  std::size_t begin = 0;
  for (const EpochPart& part : parts) {
    const auto rows = static_cast<std::size_t>(part.rows);
    const double wanted = part.weight * static_cast<double>(part.rows);
    // The order of one part is that of the epoch; more parts need other orders.
    const auto own_seed = seed + static_cast<std::int64_t>(parts_.size() + 1) * 1'000'003;
    const bool shuffles_itself = shuffles && (parts.size() > 1 || part.weight != 1);
    parts_.push_back({.order = EndlessOrder(rows, own_seed, shuffles_itself),
                      .begin = begin,
                      .quota = std::max<std::int64_t>(1, std::llround(wanted))});
    begin += rows;
    count_ += parts_.back().quota;
  }
}

std::size_t WeightedOrder::at(std::int64_t position) {
  if (position / count_ != epoch_) order_epoch(position / count_);
  return order_[static_cast<std::size_t>(position % count_)];
}

void WeightedOrder::order_epoch(std::int64_t epoch) {
  epoch_ = epoch;
  std::vector<std::size_t> rows;
  rows.reserve(static_cast<std::size_t>(count_));
  for (Part& part : parts_) {
    for (std::int64_t i = epoch * part.quota; i < (epoch + 1) * part.quota; ++i) {
      rows.push_back(part.begin + part.order.at(i));
    }
  }
  if (!shuffles_) {
    order_ = std::move(rows);
    return;
  }
  order_ = shuffled_order(rows.size(), seed_, epoch);
  for (std::size_t& place : order_) place = rows[place];
}

std::string fingerprint_of(const std::vector<TokenRow>& rows) {
  ContentHash hash;
  const auto add = [&](const auto& values) {
    const auto count = std::ssize(values);
    hash.update(&count, sizeof count);
    hash.update(values.data(), values.size() * sizeof(values[0]));
  };
  for (const TokenRow& row : rows) {
    for (const auto* tokens : {&row.prompt, &row.chosen, &row.rejected, &row.gold}) {
      add(*tokens);
    }
    for (const auto* weights : {&row.chosen_weights, &row.rejected_weights, &row.gold_weights}) {
      add(*weights);
    }
    // Only where there is one, so that runs of before have the hash that they had.
    for (const auto* mask : {&row.chosen_mask, &row.rejected_mask, &row.gold_mask}) {
      if (!mask->empty()) add(*mask);
    }
    for (std::size_t i = 0; i < kColumnKeys.size(); ++i) {
      const double value = row.columns[static_cast<Column>(i)];
      const bool is_later = i >= static_cast<std::size_t>(Column::kAdvantage);  // than such runs
      if (is_later && std::isnan(value)) continue;
      if (is_later) hash.update(&i, sizeof i);
      hash.update(&value, sizeof value);
    }
  }
  return hash.hex();
}

}  // namespace detail

const StepRows& RowSource::held_out() const {
  static const StepRows none;
  return none;
}

std::string RowSource::text_of(const std::vector<std::int64_t>& tokens) const {
  return fmt::format("{}", fmt::join(tokens, " "));
}

Metrics RowSource::evaluate(Policy& /*policy*/) { return {}; }

void RowSource::visit_evaluation(StateVisitor& /*visitor*/) {}

std::vector<std::vector<std::int64_t>> RowSource::sample_prompts() const {
  std::vector<std::vector<std::int64_t>> prompts;
  for (const TokenRow& row : held_out().rows) prompts.push_back(row.prompt);
  return prompts;
}

EpochRows::EpochRows(EpochData data, const EpochOptions& options)
    : data_(checked_parts(std::move(data))),
      options_(options),
      order_(std::make_shared<detail::WeightedOrder>(
          data_.parts.empty() ? std::vector<EpochPart>{{.rows = std::ssize(data_.rows)}}
                              : data_.parts,
          options_.seed, options_.shuffle)) {
  if (data_.rows.empty()) throw ConfigError("epoch rows: expected at least one row, got none");
  if (options_.batch_size < 1) {
    throw ConfigError(fmt::format("epoch rows: expected a batch_size of at least 1, got {}",
                                  options_.batch_size));
  }
  data_.is_cut.resize(data_.rows.size());
  held_out_.rows = std::move(data_.held_out);
  if (held_out_.rows.empty()) return;
  const auto& cut = data_.is_held_out_cut;
  held_out_.metrics =
      share_cut(std::count(cut.begin(), cut.end(), true), std::ssize(held_out_.rows));
}

StepRows EpochRows::next(Policy& /*policy*/) {
  StepRows step{.rows = {}, .numbers = next_numbers()};
  std::int64_t cut = 0;
  for (const std::int64_t number : step.numbers) {
    step.rows.push_back(data_.rows[static_cast<std::size_t>(number)]);
    cut += data_.is_cut[static_cast<std::size_t>(number)] ? 1 : 0;
  }
  step.metrics = share_cut(cut, std::ssize(step.rows));
  return step;
}

void EpochRows::finish_step() { position_ += options_.batch_size; }

std::int64_t EpochRows::rows_an_epoch() const { return order_->count(); }

void EpochRows::visit_state(StateVisitor& visitor) {
  visitor.integer("position", position_);
  const bool is_position = position_ >= 0;
  const auto expected = is_position ? next_numbers() : std::vector<std::int64_t>();
  std::vector<std::int64_t> numbers = expected;
  visitor.integers("next_rows", numbers);
  if (!is_position || numbers != expected) {
    throw CheckpointError(fmt::format(
        "expected next_rows to be what the order of rows has at position {}, got others",
        position_));
  }
}

std::string EpochRows::fingerprint() const {
  std::string hash = detail::fingerprint_of(data_.rows);
  for (const EpochPart& part : data_.parts) {
    hash += fmt::format(" {} rows of weight {}", part.rows, part.weight);
  }
  return hash;
}

std::string EpochRows::text_of(const std::vector<std::int64_t>& tokens) const {
  return data_.tokenizer ? data_.tokenizer->decode(tokens) : RowSource::text_of(tokens);
}

std::vector<std::int64_t> EpochRows::next_numbers() {
  std::vector<std::int64_t> numbers;
  for (auto place = position_; place < position_ + options_.batch_size; ++place) {
    numbers.push_back(static_cast<std::int64_t>(order_->at(place)));
  }
  return numbers;
}

}  // namespace prefopt
