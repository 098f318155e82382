// SPDX-License-Identifier: Apache-2.0
#include "files/gguf_quantize.h"

#include <fmt/format.h>

#include <cmath>

#include "core/parallel.h"
#include "prefopt/error.h"

namespace prefopt::detail {
namespace {

// BF16 and wider types hold whatever float32 does.
bool has_range_of_half(const GgufEncoding& encoding) {
  return !encoding.dtype || *encoding.dtype == at::kHalf;
}

void check_range(const GgufEncoding& encoding, const at::Tensor& values, std::string_view where) {
  constexpr float kMost = 65504;
  const auto* given = values.const_data_ptr<float>();
  for (std::int64_t i = 0; i < values.numel(); ++i) {
    if (std::abs(given[i]) <= kMost) continue;
    throw DtypeError(fmt::format("{}: expected values within [-{}, {}], which {} holds, got {}",
                                 where, kMost, kMost, encoding.name, given[i]));
  }
}

std::string bytes_of(const at::Tensor& values) {
  return {static_cast<const char*>(values.const_data_ptr()), values.nbytes()};
}

std::string encode_blocks(const GgufEncoding& encoding, const at::Tensor& values) {
  constexpr std::int64_t kGrain = 64;
  const std::int64_t blocks = values.numel() / encoding.values;
  std::string bytes(static_cast<std::size_t>(blocks * encoding.bytes), '\0');
  const auto* from = values.const_data_ptr<float>();
  auto* to = reinterpret_cast<std::uint8_t*>(bytes.data());
  parallel_for(0, blocks, kGrain, [&](std::int64_t first, std::int64_t last) {
    for (std::int64_t i = first; i < last; ++i) {
      encoding.encode(from + i * encoding.values, to + i * encoding.bytes);
    }
  });
  return bytes;
}

}  // namespace

bool is_written(const GgufEncoding& encoding) { return encoding.dtype || encoding.encode; }

std::string encoded(const GgufEncoding& encoding, const at::Tensor& values,
                    std::string_view where) {
  const std::int64_t row = values.dim() == 0 ? 1 : values.size(-1);
  if (row % encoding.values != 0) {
    throw DtypeError(fmt::format("{}: expected rows in blocks of {} for {}, got {} values", where,
                                 encoding.values, encoding.name, row));
  }
  const at::Tensor given = values.detach().cpu().contiguous();
  if (!has_range_of_half(encoding)) return bytes_of(given.to(*encoding.dtype));
  const at::Tensor floats = given.to(at::kFloat);
  check_range(encoding, floats, where);
  return encoding.dtype ? bytes_of(floats.to(*encoding.dtype)) : encode_blocks(encoding, floats);
}

}  // namespace prefopt::detail
