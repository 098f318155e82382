// SPDX-License-Identifier: Apache-2.0
#include "decoder/quantized_weight.h"

#include <ATen/ops/empty.h>

#include <algorithm>
#include <cstring>

#include "decoder/decoder_config.h"
#include "files/gguf_quantize.h"
#include "kernels/block_tensor.h"

namespace prefopt::detail {
namespace {

/// Numbers that are widened at once.
constexpr std::int64_t kNumbersAtOnce = std::int64_t{1} << 20;

}  // namespace

const GgufEncoding* encoding_on_load(std::string_view name) {
  if (name == "q8_0") return find_gguf_encoding("Q8_0");
  if (name == "q4_k") return find_gguf_encoding("Q4_K");
  return nullptr;
}

bool can_be_blocks(std::string_view name, const std::vector<std::int64_t>& shape) {
  const bool is_expert = name.find(".mlp.experts.") != std::string_view::npos;
  return shape.size() == 2 && !is_expert && !name.ends_with(".mlp.gate.weight") &&
         name != kScoreWeight;
}

std::int64_t bytes_in_blocks(const GgufEncoding& encoding, const std::vector<std::int64_t>& shape) {
  return shape[0] * (shape[1] / encoding.values) * encoding.bytes;
}

at::Tensor quantized(const GgufEncoding& encoding, const at::Tensor& matrix,
                     const std::string& where) {
  const std::int64_t rows = matrix.size(0), columns = matrix.size(1);
  kernels::StoredBlocks blocks{
      .encoding = encoding.name,
      .matrix = {.columns = columns,
                 .values = encoding.values,
                 .bytes = encoding.bytes,
                 .decode = encoding.decode},
      .rows = rows,
      .bytes = at::empty({bytes_in_blocks(encoding, {rows, columns})}, at::kByte)};
  auto* to = blocks.bytes.mutable_data_ptr<std::uint8_t>();
  blocks.matrix.data = to;
  const std::int64_t step = std::max<std::int64_t>(1, kNumbersAtOnce / columns);
  for (std::int64_t first = 0; first < rows; first += step) {
    const std::string part =
        encoded(encoding, matrix.narrow(0, first, std::min(step, rows - first)), where);
    std::memcpy(to, part.data(), part.size());
    to += part.size();
  }
  return kernels::make_block_tensor(std::move(blocks));
}

}  // namespace prefopt::detail
