// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <string>
#include <vector>

namespace prefopt::bench {

at::ScalarType dtype_named(const std::string& name);

/// Normal numbers times `scale`, the same for the same seed.
at::Tensor random_normal(std::vector<std::int64_t> shape, double scale, at::ScalarType dtype,
                         std::uint64_t seed);
at::Tensor random_targets(std::int64_t rows, std::int64_t vocab_size, std::uint64_t seed);

inline std::int64_t bytes_of(const at::Tensor& tensor) {
  return static_cast<std::int64_t>(tensor.nbytes());
}

/// Completion lengths of a batch of pairs, chosen and rejected in turn.
struct PairLens {
  std::vector<std::int64_t> chosen, rejected;
  std::int64_t rows() const;
  /// Rows that a model sees where each prompt is put before both completions and all are padded to
  /// the longest, less the last token of each.
  std::int64_t padded_rows = 0;
};

/// Reads a JSON file of [prompt, chosen, rejected] token counts, cut into batches of `pairs` in
/// its order.
std::vector<PairLens> read_lengths(const std::string& path, std::int64_t pairs);
PairLens equal_lengths(std::int64_t pairs, std::int64_t prompt, std::int64_t chosen,
                       std::int64_t rejected);

}  // namespace prefopt::bench
