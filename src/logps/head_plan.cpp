// SPDX-License-Identifier: Apache-2.0
#include "logps/head_plan.h"

#include <fmt/format.h>

#include <algorithm>

#include "core/memory_pool.h"
#include "kernels/cpu/gemm.h"
#include "logps/kernels/statistics.h"
#include "prefopt/error.h"
#include "prefopt/logps/token_logps.h"

namespace prefopt {
namespace {

// A tile that the threads share stays in a third-level cache, a thread's block of it in a
// second-level one.
constexpr std::int64_t kTileBytes = std::int64_t{4} << 20;
constexpr std::int64_t kMaxTileRows = 1024;
constexpr std::int64_t kMinTileRows = 64;
// Enough for the threads of a desktop; not their number, on which results must not depend.
constexpr std::int64_t kMinTileBlocks = 16;

constexpr std::int64_t ceil_div(std::int64_t a, std::int64_t b) { return (a + b - 1) / b; }

std::int64_t padded(std::int64_t columns, bool float64) {
  return float64 ? kernels::cpu::PackedMatrix<double>::padded(columns)
                 : kernels::cpu::PackedMatrix<float>::padded(columns);
}

std::int64_t packed_bytes(std::int64_t depth, std::int64_t columns, bool float64) {
  return block_bytes(float64 ? kernels::cpu::PackedMatrix<double>::bytes(depth, columns)
                             : kernels::cpu::PackedMatrix<float>::bytes(depth, columns));
}

/// The memory that the passes allocate, as in kernels/cpu/head.cpp.
class Memory {
 public:
  Memory(const HeadWork& work, const HeadPlan& plan)
      : work_(work),
        plan_(plan),
        size_(work.float64 ? 8 : 4),
        stride_(padded(plan.tile_rows, work.float64)),
        row_tiles_(ceil_div(work.rows, std::max<std::int64_t>(plan.tile_rows, 1))) {}

  std::int64_t total() const {
    if (plan_.path == HeadPath::kForwardOnly) return forward();
    if (plan_.path == HeadPath::kFrozenHead) return forward() + hidden();
    return block(plan_.kept_vocab * stride_ * row_tiles_) + std::max(forward(), backward());
  }

  /// Vocabulary rows whose logits fit into `bytes`.
  std::int64_t kept_rows(std::int64_t bytes) const {
    const std::int64_t row = std::max<std::int64_t>(stride_ * row_tiles_ * size_, 1);
    std::int64_t rows = std::min(work_.vocab_size, bytes / row);
    if (rows == work_.vocab_size && block_bytes(rows * row) <= bytes) return rows;
    rows -= rows % kBlockVocab;
    while (rows > 0 && block_bytes(rows * row) > bytes) rows -= kBlockVocab;
    return rows;
  }

 private:
  /// Returns a buffer of `count` numbers.
  std::int64_t block(std::int64_t count) const { return block_bytes(count * size_); }
  std::int64_t hidden() const { return block(work_.rows * work_.hidden_size); }
  std::int64_t weight_tile() const { return block(plan_.tile_vocab * work_.hidden_size); }
  std::int64_t packed_tiles() const { return plan_.packs_once ? row_tiles_ : 1; }

  std::int64_t packed_weight() const {
    return packed_bytes(plan_.tile_vocab, work_.hidden_size, work_.float64);
  }

  std::int64_t common() const {
    const std::int64_t widened = work_.narrow_weight ? weight_tile() + hidden() : 0;
    return packed_tiles() * packed_bytes(work_.hidden_size, plan_.tile_rows, work_.float64) +
           block(plan_.tile_vocab * stride_) + widened;
  }

  std::int64_t forward() const {
    constexpr std::int64_t kBlockMoments = 5, kRowBytes = 6 * 8;
    return common() + block(kBlockMoments * ceil_div(plan_.tile_vocab, kBlockVocab) * stride_) +
           work_.rows * (kRowBytes + kernels::kAllStatistics * 8) +
           (plan_.path == HeadPath::kFrozenHead ? packed_weight() : 0);
  }

  std::int64_t backward() const {
    constexpr std::int64_t kFactors = kernels::kAllFactors * 8;
    const std::int64_t columns = work_.by_product_grad ? 4 : 3;
    std::int64_t bytes = common() + columns * block(stride_ * row_tiles_) +
                         (work_.by_product_grad ? work_.rows * kFactors : 0);
    if (work_.hidden_grad) {
      bytes += packed_weight();
      if (work_.narrow_weight) bytes += hidden();
    }
    if (work_.weight_grad) {
      bytes += packed_tiles() * packed_bytes(plan_.tile_rows, work_.hidden_size, work_.float64);
      if (work_.narrow_weight) bytes += weight_tile();
    }
    return bytes;
  }

  const HeadWork& work_;
  const HeadPlan& plan_;
  std::int64_t size_, stride_, row_tiles_;
};

// Returns the largest tiles, halved until the plan with `kept_vocab` fits the budget or they are
// the smallest.
HeadPlan tiled_plan(const HeadWork& work, HeadPath path, std::int64_t kept_vocab,
                    std::int64_t budget_bytes) {
  HeadPlan plan;
  plan.path = path;
  plan.kept_vocab = kept_vocab;
  plan.packs_once = true;
  plan.tile_rows = std::clamp<std::int64_t>(work.rows, 1, kMaxTileRows);
  const std::int64_t bytes_of_block = kBlockVocab * plan.tile_rows * (work.float64 ? 8 : 4);
  const std::int64_t blocks = ceil_div(std::max<std::int64_t>(work.vocab_size, 1), kBlockVocab);
  plan.tile_vocab =
      kBlockVocab * std::min(blocks, std::max(kMinTileBlocks, kTileBytes / bytes_of_block));
  const auto fits = [&] {
    plan.bytes = Memory(work, plan).total();
    return plan.bytes <= budget_bytes;
  };
  if (!fits() && work.rows > plan.tile_rows) plan.packs_once = false;
  while (!fits() && plan.tile_vocab > kBlockVocab) {
    plan.tile_vocab = kBlockVocab * std::max<std::int64_t>(1, plan.tile_vocab / kBlockVocab / 2);
  }
  while (!fits() && plan.tile_rows > kMinTileRows) {
    plan.tile_rows = std::max(kMinTileRows, plan.tile_rows / 2);
    plan.packs_once = false;
  }
  return plan;
}

}  // namespace

std::string to_string(HeadPath path) {
  switch (path) {
    case HeadPath::kAutomatic:
      return "automatic";
    case HeadPath::kForwardOnly:
      return "forward_only";
    case HeadPath::kFrozenHead:
      return "frozen_head";
    case HeadPath::kKeepLogits:
      return "keep_logits";
    case HeadPath::kRecompute:
      return "recompute";
  }
  throw ConfigError(
      fmt::format("HeadPath: expected one of its names, got {}", static_cast<int>(path)));
}

std::string HeadPlan::text() const {
  return fmt::format("{}: {:.2f} GEMMs, {:.1f} MiB, tiles of {} x {}", to_string(path), gemms,
                     static_cast<double>(bytes) / (1 << 20), tile_vocab, tile_rows);
}

HeadPath checked_path(const HeadWork& work, HeadPath wanted) {
  // With nothing to differentiate every path is its own forward pass.
  if (!work.hidden_grad && !work.weight_grad) return HeadPath::kForwardOnly;
  switch (wanted) {
    case HeadPath::kForwardOnly:
      throw ConfigError(
          "linear_token_logps: expected a path with a gradient, got forward_only; hidden, weight "
          "or bias requires one");
    case HeadPath::kFrozenHead:
      if (work.weight_grad) {
        throw ConfigError(
            "linear_token_logps: expected keep_logits or recompute, got frozen_head; weight or "
            "bias requires a gradient");
      }
      if (work.by_product_grad) {
        throw ConfigError(
            "linear_token_logps: expected keep_logits or recompute, got frozen_head; its gradient "
            "is built in the forward pass, for log-probs alone, and entropy or logsumexp requires "
            "one");
      }
      return wanted;
    case HeadPath::kAutomatic:
      return work.weight_grad || work.by_product_grad ? HeadPath::kKeepLogits
                                                      : HeadPath::kFrozenHead;
    default:
      return wanted;
  }
}

HeadPlan plan_head(const HeadWork& work, std::int64_t budget_bytes, HeadPath path) {
  const HeadPath checked = checked_path(work, path);
  const double gemms = 1 + (work.hidden_grad ? 1 : 0) + (work.weight_grad ? 1 : 0);
  if (checked == HeadPath::kKeepLogits) {
    HeadPlan plan = tiled_plan(work, checked, work.vocab_size, budget_bytes);
    plan.gemms = gemms;
    if (plan.bytes <= budget_bytes) return plan;
    if (path == HeadPath::kKeepLogits) {
      throw ConfigError(
          fmt::format("linear_token_logps: expected budget_bytes >= {} for keep_logits, got {}",
                      plan.bytes, budget_bytes));
    }
  }

  const bool recomputes = checked == HeadPath::kKeepLogits || checked == HeadPath::kRecompute;
  HeadPlan plan =
      tiled_plan(work, recomputes ? HeadPath::kRecompute : checked, /*kept_vocab=*/0, budget_bytes);
  if (plan.bytes > budget_bytes) {
    throw ConfigError(
        fmt::format("linear_token_logps: expected budget_bytes >= {} for {} rows of hidden size {} "
                    "in the smallest tiles, got {}",
                    plan.bytes, work.rows, work.hidden_size, budget_bytes));
  }
  plan.gemms = gemms;
  if (recomputes) {
    if (path != HeadPath::kRecompute) {
      plan.kept_vocab = Memory(work, plan).kept_rows(budget_bytes - plan.bytes);
      plan.bytes = Memory(work, plan).total();
    }
    plan.gemms += 1 - static_cast<double>(plan.kept_vocab) /
                          static_cast<double>(std::max<std::int64_t>(work.vocab_size, 1));
  }
  return plan;
}

}  // namespace prefopt
