// SPDX-License-Identifier: Apache-2.0
#include "train/adafactor.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/linalg_vector_norm.h>
#include <ATen/ops/zeros.h>

#include <algorithm>
#include <cmath>
#include <optional>

namespace prefopt::detail {
namespace {

constexpr double kSquareFloor = 1e-30;  // ε1
constexpr double kScaleFloor = 1e-3;    // ε2
// Numbers that are worked on at a time: they stay in the cache.
constexpr std::int64_t kNumbersAtOnce = std::int64_t{1} << 18;

/// One step. A vector is a column of rows of one number; of more than two dimensions the last two
/// are the matrix.
class AdafactorPass {
 public:
  AdafactorPass(const AdafactorStep& step, const RoundNumbers& round)
      : step_(step),
        round_(round),
        is_factored_(step.moments.size() == 2),
        dtype_(step.moments.front().scalar_type()),
        new_share_(std::pow(step.number, -step.decay)) {
    if (!is_factored_) return;
    columns_ = step.moments[1].size(-1);
    rows_ = step.moments[0].size(-1);
  }

  void run() {
    if (step_.values.numel() == 0) return;
    update_moments();
    const at::Tensor length = step_length();  // before the weights change
    for_each_chunk([&](const Chunk& chunk) { move(chunk, length); });
  }

 private:
  /// Rows of one matrix.
  struct Chunk {
    std::int64_t matrix, first, last;
  };

  template <class Use>
  void for_each_chunk(const Use& use) const {
    const std::int64_t rows = is_factored_ ? rows_ : step_.values.numel();
    const std::int64_t matrices = step_.values.numel() / (rows * columns_);
    const std::int64_t at_once = std::max<std::int64_t>(1, kNumbersAtOnce / columns_);
    for (std::int64_t matrix = 0; matrix < matrices; ++matrix) {
      for (std::int64_t first = 0; first < rows; first += at_once) {
        use(Chunk{matrix, first, std::min(rows, first + at_once)});
      }
    }
  }

  /// Returns the chunk's part of a flat tensor, [rows, columns].
  at::Tensor part_of(const at::Tensor& flat, const Chunk& chunk) const {
    const std::int64_t begin = (chunk.matrix * rows_ + chunk.first) * columns_;
    return flat.narrow(0, begin, (chunk.last - chunk.first) * columns_).view({-1, columns_});
  }

  at::Tensor gradient_of(const Chunk& chunk) const {
    const at::Tensor part = part_of(step_.gradient, chunk).to(dtype_);
    return step_.divisor.defined() ? part / step_.divisor : part;
  }

  at::Tensor row_means(std::int64_t matrix) const {
    return step_.moments[0].view({-1, rows_})[matrix];
  }
  at::Tensor column_means(std::int64_t matrix) const {
    return step_.moments[1].view({-1, columns_})[matrix];
  }

  void update_moments() {
    at::Tensor sums;  // over the rows of a matrix
    for_each_chunk([&](const Chunk& chunk) {
      const at::Tensor squares = gradient_of(chunk).square().add_(kSquareFloor);
      if (!is_factored_) {
        part_of(step_.moments[0], chunk).lerp_(squares, new_share_);
        return;
      }
      row_means(chunk.matrix)
          .slice(0, chunk.first, chunk.last)
          .lerp_(squares.mean(at::OptionalIntArrayRef({1})), new_share_);
      const at::Tensor sum = squares.sum(0);
      sums = chunk.first == 0 ? sum : sums + sum;
      if (chunk.last == rows_) {
        column_means(chunk.matrix).lerp_(sums / static_cast<double>(rows_), new_share_);
      }
    });
  }

  /// Returns U of the chunk.
  at::Tensor update_of(const Chunk& chunk) const {
    const at::Tensor gradient = gradient_of(chunk);
    if (!is_factored_) return gradient * part_of(step_.moments[0], chunk).rsqrt();
    const at::Tensor rows = row_means(chunk.matrix);
    const at::Tensor shares = rows.slice(0, chunk.first, chunk.last) / rows.mean();
    return (gradient * shares.rsqrt().unsqueeze(1)).mul_(column_means(chunk.matrix).rsqrt());
  }

  /// Returns the number that U is multiplied by: α / max(1, rms(U) / clip).
  at::Tensor step_length() const {
    at::Tensor squares = at::zeros({}, step_.values.options().dtype(at::kDouble));
    for_each_chunk(
        [&](const Chunk& chunk) { squares += update_of(chunk).square().sum(at::kDouble); });
    const double numbers = static_cast<double>(step_.values.numel());
    const at::Tensor too_long = ((squares / numbers).sqrt() / step_.clip).clamp_min(1);
    if (!step_.scale_parameter) return step_.learning_rate / too_long;
    const at::Tensor norm =
        at::linalg_vector_norm(step_.values, 2, std::nullopt, false, at::kDouble);
    return (norm / std::sqrt(numbers)).clamp_min(kScaleFloor) * step_.learning_rate / too_long;
  }

  void move(const Chunk& chunk, const at::Tensor& length) const {
    at::Tensor values = part_of(step_.values, chunk);
    const at::Tensor wide = values.to(dtype_);  // itself where it is no narrower
    if (step_.weight_decay != 0) wide.mul_(1 - step_.learning_rate * step_.weight_decay);
    wide.sub_(update_of(chunk).mul_(length));
    if (!wide.is_same(values)) round_(wide, values);
  }

  const AdafactorStep& step_;
  const RoundNumbers& round_;
  bool is_factored_;
  at::ScalarType dtype_;
  double new_share_;  // 1 − β_t
  std::int64_t rows_ = 1, columns_ = 1;
};

}  // namespace

void take_adafactor_step(const AdafactorStep& step, const RoundNumbers& round) {
  AdafactorPass(step, round).run();
}

}  // namespace prefopt::detail
