// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <array>
#include <cmath>
#include <limits>

#include "files/gguf_blocks.h"

// Blocks of 256 with the least sum of squared errors that a search finds: scale and offset of each
// part by least squares over some first guesses, then the float16 scales of the block by least
// squares over its parts, whose small integers are chosen among their neighbours.

namespace prefopt::detail {
namespace {

// Sums over lanes, which a compiler keeps in vectors; their order is the same on every machine.
constexpr int kLanes = 8;
using Lanes = std::array<float, kLanes>;

float sum(const Lanes& lanes) {
  return ((lanes[0] + lanes[4]) + (lanes[2] + lanes[6])) +
         ((lanes[1] + lanes[5]) + (lanes[3] + lanes[7]));
}

float as_half(float value) { return c10::Half(value); }

// --- Q4_K: x = scale q - offset, q in [0, 15], 8 parts of 32

constexpr int kParts = 8;
constexpr float kMaxLevel = 15;
constexpr int kMaxPartScale = 63;  // of 6 bits

struct Line {
  float scale = 0, offset = 0;
};

// Sums that the least squares of a part are made of. Those of levels are whole numbers.
struct Sums {
  float q = 0, qq = 0, qx = 0, x = 0, xx = 0;

  double squares(Line line) const {
    const double scale = line.scale;
    const double offset = line.offset;
    return xx + scale * (scale * qq - 2 * qx) + offset * (kBlock * offset - 2 * scale * q + 2 * x);
  }
};

Sums sums_of(const float* values) {
  Lanes x{};
  Lanes xx{};
  for (int i = 0; i < kBlock; i += kLanes) {
    for (int lane = 0; lane < kLanes; ++lane) {
      const float value = values[i + lane];
      x[lane] += value;
      xx[lane] += value * value;
    }
  }
  return {.x = sum(x), .xx = sum(xx)};
}

float level_at(float place) {
  return static_cast<float>(static_cast<int>(std::min(std::max(place, 0.0F), kMaxLevel) + 0.5F));
}

int level_on(Line line, float value) {
  return static_cast<int>(level_at((value + line.offset) * inverse_of(line.scale)));
}

// Returns `sums` with those of the levels that are nearest to the values on a line.
Sums with_levels(Sums sums, Line line, const float* values) {
  const float by = inverse_of(line.scale);
  Lanes q{};
  Lanes qq{};
  Lanes qx{};
  for (int i = 0; i < kBlock; i += kLanes) {
    for (int lane = 0; lane < kLanes; ++lane) {
      const float value = values[i + lane];
      const float level = level_at((value + line.offset) * by);
      q[lane] += level;
      qq[lane] += level * level;
      qx[lane] += level * value;
    }
  }
  sums.q = sum(q);
  sums.qq = sum(qq);
  sums.qx = sum(qx);
  return sums;
}

// The best line for given levels; neither number is negative.
Line fit_line(const Sums& sums) {
  const double spread = double{kBlock} * sums.qq - double{sums.q} * sums.q;
  if (spread > 0) {
    const double scale = (double{kBlock} * sums.qx - double{sums.q} * sums.x) / spread;
    const double offset = (scale * sums.q - sums.x) / kBlock;
    if (scale >= 0 && offset >= 0) return {static_cast<float>(scale), static_cast<float>(offset)};
  }
  if (sums.qq == 0) return {0, std::max(0.0F, -sums.x / kBlock)};
  return {std::max(0.0F, sums.qx / sums.qq), 0};
}

Line fit_part(const float* values) {
  constexpr float kMostClipped = 3;  // levels beyond the ends
  constexpr float kGuessStep = 0.5F;
  constexpr int kRefinements = 2;
  const auto [least, most] = std::minmax_element(values, values + kBlock);
  const float offset = std::max(0.0F, -*least);
  const float range = std::max(0.0F, *most) + offset;
  if (range == 0) return {};
  const Sums plain = sums_of(values);
  Line best;
  double least_squares = std::numeric_limits<double>::infinity();
  for (float clipped = -1; clipped <= kMostClipped; clipped += kGuessStep) {
    const Line guess{range / (kMaxLevel + clipped),
                     offset * kMaxLevel / (kMaxLevel + std::max(0.0F, clipped))};
    const Sums sums = with_levels(plain, guess, values);
    const Line line = fit_line(sums);
    if (const double squares = sums.squares(line); squares < least_squares) {
      least_squares = squares;
      best = line;
    }
  }
  for (int i = 0; i < kRefinements; ++i) best = fit_line(with_levels(plain, best, values));
  return best;
}

struct Q4KBlock {
  Line unit;  ///< of the small integers; as float16 has it
  std::array<int, kParts> scales{}, offsets{};
  std::array<Sums, kParts> sums{};
  double squares = 0;

  Line line(std::size_t part) const {
    return {unit.scale * static_cast<float>(scales[part]),
            unit.offset * static_cast<float>(offsets[part])};
  }
};

// The small integers below and above value / unit.
std::array<int, 2> neighbours(float value, float unit) {
  constexpr float kMost = kMaxPartScale;
  const int below = unit > 0 ? static_cast<int>(std::min(value / unit, kMost)) : 0;
  return {below, std::min(below + 1, kMaxPartScale)};
}

// Chooses small integers next to each part's line.
void place_parts(const float* values, const std::array<Line, kParts>& lines, Q4KBlock& block) {
  for (std::size_t part = 0; part < kParts; ++part) {
    const float* x = values + part * kBlock;
    const Sums plain = sums_of(x);
    double least = std::numeric_limits<double>::infinity();
    for (const int scale : neighbours(lines[part].scale, block.unit.scale)) {
      for (const int offset : neighbours(lines[part].offset, block.unit.offset)) {
        const Line line{block.unit.scale * static_cast<float>(scale),
                        block.unit.offset * static_cast<float>(offset)};
        const Sums sums = with_levels(plain, line, x);
        const double squares = sums.squares(line);
        if (squares >= least) continue;
        least = squares;
        block.scales[part] = scale;
        block.offsets[part] = offset;
        block.sums[part] = sums;
      }
    }
    block.squares += least;
  }
}

// The best scale of scales and scale of offsets for given small integers and levels.
Line fit_units(const Q4KBlock& block) {
  double aa = 0, ab = 0, bb = 0, ax = 0, bx = 0;
  for (std::size_t part = 0; part < kParts; ++part) {
    const double scale = block.scales[part];
    const double offset = block.offsets[part];
    const Sums& sums = block.sums[part];
    aa += scale * scale * sums.qq;
    ab += scale * offset * sums.q;
    bb += offset * offset * kBlock;
    ax += scale * sums.qx;
    bx += offset * sums.x;
  }
  const double determinant = aa * bb - ab * ab;
  if (!(determinant > 1e-9 * aa * bb)) return block.unit;
  return {as_half(static_cast<float>(std::max(0.0, (ax * bb - ab * bx) / determinant))),
          as_half(static_cast<float>(std::max(0.0, (ab * ax - aa * bx) / determinant)))};
}

Q4KBlock fit_block(const float* values) {
  constexpr int kRefinements = 2;
  std::array<Line, kParts> lines;
  Line most;
  for (std::size_t part = 0; part < kParts; ++part) {
    lines[part] = fit_part(values + part * kBlock);
    most.scale = std::max(most.scale, lines[part].scale);
    most.offset = std::max(most.offset, lines[part].offset);
  }
  Q4KBlock best;
  best.unit = {as_half(most.scale / kMaxPartScale), as_half(most.offset / kMaxPartScale)};
  place_parts(values, lines, best);
  for (int i = 0; i < kRefinements; ++i) {
    Q4KBlock next;
    next.unit = fit_units(best);
    place_parts(values, lines, next);
    if (next.squares >= best.squares) break;
    best = next;
  }
  return best;
}

// As decode_q4_k reads them.
void pack_parts(const Q4KBlock& block, std::uint8_t* packed) {
  for (std::size_t part = 0; part < kParts / 2; ++part) {
    const int scale = block.scales[part + kParts / 2];
    const int offset = block.offsets[part + kParts / 2];
    packed[part] = static_cast<std::uint8_t>(block.scales[part] | ((scale >> 4) << 6));
    packed[part + 4] = static_cast<std::uint8_t>(block.offsets[part] | ((offset >> 4) << 6));
    packed[part + 8] = static_cast<std::uint8_t>((scale & 15) | ((offset & 15) << 4));
  }
}

// --- Q6_K: x = scale q, q in [-32, 31], 16 parts of 16

constexpr int kSmallPart = 16;
constexpr int kSmallParts = kSuperBlock / kSmallPart;

float signed_level(float place) {
  constexpr float kHalf = 32;
  const float raised = std::min(std::max(place, -kHalf), kHalf - 1) + (kHalf + 0.5F);
  return static_cast<float>(static_cast<int>(raised)) - kHalf;
}

// Sums of q x and q q over a part.
struct Products {
  float qx = 0, qq = 0;
};

Products products_at(float scale, const float* values) {
  const float by = inverse_of(scale);
  Lanes qx{};
  Lanes qq{};
  for (int i = 0; i < kSmallPart; i += kLanes) {
    for (int lane = 0; lane < kLanes; ++lane) {
      const float value = values[i + lane];
      const float level = signed_level(value * by);
      qx[lane] += level * value;
      qq[lane] += level * level;
    }
  }
  return {.qx = sum(qx), .qq = sum(qq)};
}

float fit_small_part(const float* values) {
  constexpr float kGuessStep = 0.25F;
  const float far = *std::max_element(values, values + kSmallPart,
                                      [](float a, float b) { return std::abs(a) < std::abs(b); });
  float best = 0;
  float most = 0;  // of the squares that a scale takes off the sum of x x
  for (float level = 29; level <= 33; level += kGuessStep) {
    const Products sums = products_at(-far / level, values);
    if (sums.qq == 0) continue;
    const float taken = sums.qx * sums.qx / sums.qq;
    if (taken > most) {
      most = taken;
      best = sums.qx / sums.qq;
    }
  }
  return best;
}

struct Q6KBlock {
  float unit = 0;
  std::array<int, kSmallParts> scales{};
};

Q6KBlock fit_small_parts(const float* values) {
  std::array<float, kSmallParts> scales;
  float far = 0;
  for (std::size_t part = 0; part < kSmallParts; ++part) {
    scales[part] = fit_small_part(values + part * kSmallPart);
    if (std::abs(scales[part]) > std::abs(far)) far = scales[part];
  }
  Q6KBlock block{.unit = as_half(far / -128)};
  double qx = 0;
  double qq = 0;
  const float by = inverse_of(block.unit);
  for (std::size_t part = 0; part < kSmallParts; ++part) {
    const int scale = static_cast<int>(std::lround(std::clamp(scales[part] * by, -128.0F, 127.0F)));
    block.scales[part] = scale;
    const Products sums =
        products_at(block.unit * static_cast<float>(scale), values + part * kSmallPart);
    qx += static_cast<double>(scale) * sums.qx;
    qq += static_cast<double>(scale) * scale * sums.qq;
  }
  if (qq > 0) block.unit = as_half(static_cast<float>(qx / qq));
  return block;
}

}  // namespace

void encode_q4_k(const float* values, std::uint8_t* bytes) {
  const Q4KBlock block = fit_block(values);
  put_half(block.unit.scale, bytes);
  put_half(block.unit.offset, bytes + 2);
  pack_parts(block, bytes + 4);
  for (std::size_t part = 0; part < kParts; part += 2) {
    std::uint8_t* nibbles = bytes + 16 + part / 2 * kBlock;
    const Line first = block.line(part);
    const Line second = block.line(part + 1);
    const float* x = values + part * kBlock;
    for (std::size_t i = 0; i < kBlock; ++i) {
      const int lower = level_on(first, x[i]);
      const int upper = level_on(second, x[i + kBlock]);
      nibbles[i] = static_cast<std::uint8_t>(lower | (upper << 4));
    }
  }
}

void encode_q6_k(const float* values, std::uint8_t* bytes) {
  const Q6KBlock block = fit_small_parts(values);
  std::fill_n(bytes, 192, std::uint8_t{0});
  for (std::size_t i = 0; i < kSuperBlock; ++i) {
    const float scale = block.unit * static_cast<float>(block.scales[i / kSmallPart]);
    const auto level = static_cast<unsigned>(signed_level(values[i] * inverse_of(scale)) + 32);
    const bool upper = i % 128 >= 64;
    bytes[i / 128 * 64 + i % 64] |= static_cast<std::uint8_t>((level & 15U) << (upper ? 4 : 0));
    bytes[128 + i / 128 * kBlock + i % kBlock] |=
        static_cast<std::uint8_t>((level >> 4) << (2 * (i % 128 / kBlock)));
  }
  for (std::size_t part = 0; part < kSmallParts; ++part) {
    bytes[192 + part] = static_cast<std::uint8_t>(static_cast<std::int8_t>(block.scales[part]));
  }
  put_half(block.unit, bytes + 208);
}

}  // namespace prefopt::detail
