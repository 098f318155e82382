// SPDX-License-Identifier: Apache-2.0
#include "kernels/cpu/tiles.h"

#include <ATen/Context.h>
#include <hwy/base.h>

#include <algorithm>
#include <array>
#include <stdexcept>
#include <type_traits>

#include "core/simd_limit.h"

#if HWY_ARCH_X86_64 && defined(__linux__)
#define PREFOPT_HAS_TILES
#include <cpuid.h>
#include <immintrin.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace prefopt::kernels::cpu {
namespace {

constexpr std::int64_t kSide = 16;   // rows of a tile
constexpr std::int64_t kDepth = 32;  // numbers of a row
constexpr std::int64_t kTileNumbers = kSide * kDepth;
constexpr std::int64_t kTilesOfStrip = TileStrips::kWidth / kSide;
constexpr int kParts = 3;
// Numbers in a strip for a step of the depth: for each part, the tiles of both halves.
constexpr std::int64_t kStepNumbers = kParts * kTilesOfStrip * kTileNumbers;

std::int64_t steps_of(std::int64_t depth) { return (depth + kDepth - 1) / kDepth; }

}  // namespace

int tile_parts() {
  switch (at::globalContext().float32MatmulPrecision()) {
    case at::Float32MatmulPrecision::HIGHEST:
      return 3;
    case at::Float32MatmulPrecision::HIGH:
      return 2;
    case at::Float32MatmulPrecision::MEDIUM:
      return 1;
  }
  return 3;
}

TileStrips::TileStrips(Side side, std::int64_t max_depth, std::int64_t size)
    : side_(side), size_(size), strip_numbers_(steps_of(max_depth) * kStepNumbers) {
  // The pool's blocks are in large pages and wait for the next product; the C library would give
  // the system back what is a little smaller.
  constexpr std::int64_t kSmall = std::int64_t{1} << 16, kPooled = std::int64_t{1} << 19;
  const std::int64_t numbers = count() * strip_numbers_;
  buffer_ = Buffer<std::uint16_t>(numbers < kSmall ? numbers : std::max(numbers, kPooled));
  parts_.resize(static_cast<std::size_t>(count()));
}

std::int64_t TileStrips::bytes(std::int64_t max_depth, std::int64_t size) {
  const std::int64_t strips = (size + kWidth - 1) / kWidth;
  return strips * steps_of(max_depth) * kStepNumbers *
         static_cast<std::int64_t>(sizeof(std::uint16_t));
}

}  // namespace prefopt::kernels::cpu

#ifdef PREFOPT_HAS_TILES

namespace prefopt::kernels::cpu {
namespace {

bool has_instructions() {
  constexpr unsigned kAmxBf16 = 1U << 22, kAmxTile = 1U << 24;
  unsigned a = 0, b = 0, c = 0, d = 0;
  if (__get_cpuid_count(7, 0, &a, &b, &c, &d) == 0) return false;
  return (d & kAmxBf16) != 0 && (d & kAmxTile) != 0 && __builtin_cpu_supports("avx512bf16");
}

// The system keeps the registers of a process that asked for them.
bool has_permission() {
  constexpr long kRequest = 0x1023, kTileData = 18;  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
  return syscall(SYS_arch_prctl, kRequest, kTileData) == 0;
}

}  // namespace

bool has_tiles() {
  static const bool is_lent = has_instructions() && has_permission();
  return is_lent && detail::allows_tiles();
}

}  // namespace prefopt::kernels::cpu

HWY_PUSH_ATTRIBUTES("avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,amx-tile,amx-bf16")
namespace prefopt::kernels::cpu {
namespace {

// --- packing ----------------------------------------------------------------------------------

/// A line of 32 numbers as bfloat16: what is rounded first, and what is rounded of the rest.
template <int kCount>
struct Line {
  __m512i parts[kCount] = {};
};

inline __m512i narrow(__m512 low, __m512 high) {
  return (__m512i)_mm512_cvtne2ps_pbh(high, low);  // NOLINT: a cast of vectors
}
inline __m512 widen(__m256i numbers) {
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(numbers), 16));
}
inline __m512 widen_low(__m512i line) { return widen(_mm512_castsi512_si256(line)); }
inline __m512 widen_high(__m512i line) { return widen(_mm512_extracti64x4_epi64(line, 1)); }

// The largest numbers would be rounded to infinity: they become the largest of bfloat16, and the
// next part has the rest. What is not finite stays so; its rest is a NaN.
inline __m512 clamp_finite(__m512 x) {
  constexpr int kInfinite = 0x08 | 0x10;
  const __m512 most = _mm512_castsi512_ps(_mm512_set1_epi32(0x7F7F0000));
  const __m512 least = _mm512_sub_ps(_mm512_setzero_ps(), most);
  const __mmask16 rest = _mm512_knot(_mm512_fpclass_ps_mask(x, kInfinite));
  x = _mm512_mask_min_ps(x, rest, most, x);  // of a NaN, the second operand: the NaN
  return _mm512_mask_max_ps(x, rest, least, x);
}

template <int kCount>
inline Line<kCount> split(__m512 low, __m512 high) {
  Line<kCount> line;
  line.parts[0] = narrow(clamp_finite(low), clamp_finite(high));
  for (int p = 1; p < kCount; ++p) {
    low = _mm512_sub_ps(low, widen_low(line.parts[p - 1]));
    high = _mm512_sub_ps(high, widen_high(line.parts[p - 1]));
    line.parts[p] = narrow(low, high);
  }
  return line;
}

inline __mmask16 first_16(std::int64_t count) {
  return static_cast<__mmask16>((1U << std::clamp<std::int64_t>(count, 0, 16)) - 1);
}

/// Loads 32 numbers that follow one another, with zeros from `count` on.
template <int kCount>
inline Line<kCount> load(const float* data, std::int64_t count) {
  return split<kCount>(_mm512_maskz_loadu_ps(first_16(count), data),
                       _mm512_maskz_loadu_ps(first_16(count - 16), data + 16));
}
template <int kCount>
inline Line<kCount> load(const c10::BFloat16* data, std::int64_t count) {
  const auto mask =
      static_cast<__mmask32>((std::uint64_t{1} << std::min<std::int64_t>(count, 32)) - 1);
  return {{_mm512_maskz_loadu_epi16(mask, data)}};
}

/// Loads 16 numbers of two rows in turn: x0 y0 x1 y1 …
template <int kCount>
inline Line<kCount> load_pair(const float* x, const float* y, std::int64_t count) {
  const __m512i low = _mm512_setr_epi32(0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
  const __m512i high =
      _mm512_setr_epi32(8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31);
  const __m512 a = _mm512_maskz_loadu_ps(first_16(count), x);
  const __m512 b = y == nullptr ? _mm512_setzero_ps() : _mm512_maskz_loadu_ps(first_16(count), y);
  return split<kCount>(_mm512_permutex2var_ps(a, low, b), _mm512_permutex2var_ps(a, high, b));
}
template <int kCount>
inline Line<kCount> load_pair(const c10::BFloat16* x, const c10::BFloat16* y, std::int64_t count) {
  const __m256i a = _mm256_maskz_loadu_epi16(first_16(count), x);
  const __m256i b =
      y == nullptr ? _mm256_setzero_si256() : _mm256_maskz_loadu_epi16(first_16(count), y);
  return {
      {_mm512_or_si512(_mm512_cvtepu16_epi32(a), _mm512_slli_epi32(_mm512_cvtepu16_epi32(b), 16))}};
}

/// Transposes a tile, as 16 x 16 pairs of numbers.
inline void transpose(std::uint16_t* tile) {
  __m512i rows[kSide], t[kSide];
  for (int i = 0; i < 16; ++i) rows[i] = _mm512_load_si512(tile + i * kDepth);
  for (int i = 0; i < 16; i += 2) {
    t[i] = _mm512_unpacklo_epi32(rows[i], rows[i + 1]);
    t[i + 1] = _mm512_unpackhi_epi32(rows[i], rows[i + 1]);
  }
  for (int i = 0; i < 16; i += 4) {
    rows[i] = _mm512_unpacklo_epi64(t[i], t[i + 2]);
    rows[i + 1] = _mm512_unpackhi_epi64(t[i], t[i + 2]);
    rows[i + 2] = _mm512_unpacklo_epi64(t[i + 1], t[i + 3]);
    rows[i + 3] = _mm512_unpackhi_epi64(t[i + 1], t[i + 3]);
  }
  constexpr int kEven = 0x88, kOdd = 0xDD;
  for (int i = 0; i < 4; ++i) {
    t[i] = _mm512_shuffle_i32x4(rows[i], rows[i + 4], kEven);
    t[i + 4] = _mm512_shuffle_i32x4(rows[i], rows[i + 4], kOdd);
    t[i + 8] = _mm512_shuffle_i32x4(rows[i + 8], rows[i + 12], kEven);
    t[i + 12] = _mm512_shuffle_i32x4(rows[i + 8], rows[i + 12], kOdd);
  }
  for (int i = 0; i < 4; ++i) {
    _mm512_store_si512(tile + i * kDepth, _mm512_shuffle_i32x4(t[i], t[i + 8], kEven));
    _mm512_store_si512(tile + (i + 4) * kDepth, _mm512_shuffle_i32x4(t[i + 4], t[i + 12], kEven));
    _mm512_store_si512(tile + (i + 8) * kDepth, _mm512_shuffle_i32x4(t[i], t[i + 8], kOdd));
    _mm512_store_si512(tile + (i + 12) * kDepth, _mm512_shuffle_i32x4(t[i + 4], t[i + 12], kOdd));
  }
}

/// Writes line `i` of a tile, and of those of the other parts behind it. `used` gathers their bits.
template <int kCount>
inline void store(const Line<kCount>& line, int i, std::uint16_t* tile, Line<kCount>& used) {
  for (int p = 0; p < kCount; ++p) {
    used.parts[p] = _mm512_or_si512(used.parts[p], line.parts[p]);
    _mm512_store_si512(tile + p * kTilesOfStrip * kTileNumbers + i * kDepth, line.parts[p]);
  }
}

/// Returns how many parts are not all 0, at least 1.
template <int kCount>
std::uint8_t used_parts(const Line<kCount>& used) {
  int count = kCount;
  while (count > 1 && _mm512_test_epi16_mask(used.parts[count - 1], used.parts[count - 1]) == 0) {
    --count;
  }
  return static_cast<std::uint8_t>(count);
}

// Of a left factor a line is 32 numbers of a row; of a right one, whose tiles the unit takes by
// pairs of the depth, it is two numbers of each of 16 columns. A tile that is read in the other way
// is transposed.

/// Packs a strip of `size` rows whose numbers follow one another. Returns its used_parts. Rows lie
/// far apart, and there are more of them than a processor's prefetching follows.
template <int kCount, class Source>
std::uint8_t pack_along(StridedMatrix<Source> source, std::int64_t size, std::int64_t depth,
                        bool turned, std::uint16_t* out) {
  constexpr std::int64_t kStepsAtOnce = 4, kLine = 64 / sizeof(Source);
  Line<kCount> used;
  for (std::int64_t begin = 0; begin < depth; begin += kStepsAtOnce * kDepth) {
    const std::int64_t end = std::min(depth, begin + kStepsAtOnce * kDepth);
    for (std::int64_t i = 0; i < TileStrips::kWidth; ++i) {
      const Source* row = source.data + i * source.row_stride;
      std::uint16_t* tile = out + i / kSide * kTileNumbers;
      for (std::int64_t k = end; k < end + kStepsAtOnce * kDepth && i < size; k += kLine) {
        _mm_prefetch(reinterpret_cast<const char*>(row + k), _MM_HINT_T0);
      }
      for (std::int64_t k = begin; k < end; k += kDepth, tile += kStepNumbers) {
        const auto line = i < size ? load<kCount>(row + k, depth - k) : Line<kCount>();
        store(line, static_cast<int>(i % kSide), tile, used);
      }
    }
    for (std::int64_t k = begin; k < end; k += kDepth, out += kStepNumbers) {
      for (int t = 0; t < kCount * kTilesOfStrip && turned; ++t) transpose(out + t * kTileNumbers);
    }
  }
  return used_parts(used);
}

/// Packs one step, `depth` numbers, of a strip of columns of which `size` follow one another.
/// Returns its used_parts.
template <int kCount, class Source>
std::uint8_t pack_across(StridedMatrix<Source> source, std::int64_t size, std::int64_t depth,
                         bool turned, std::uint16_t* out) {
  constexpr std::int64_t kLine = 64 / sizeof(Source);
  Line<kCount> used;
  for (int i = 0; i < kSide; ++i) {
    const Source* x = source.data + 2 * i * source.column_stride;
    const Source* y = 2 * i + 1 < depth ? x + source.column_stride : nullptr;
    const Source* next = x + kDepth * source.column_stride;
    for (std::int64_t line = 0; line < TileStrips::kWidth; line += kLine) {
      _mm_prefetch(reinterpret_cast<const char*>(next + line), _MM_HINT_T0);
      _mm_prefetch(reinterpret_cast<const char*>(next + source.column_stride + line), _MM_HINT_T0);
    }
    for (std::int64_t half = 0; half < kTilesOfStrip; ++half) {
      const std::int64_t first = half * kSide;
      const auto line =
          2 * i < depth && first < size
              ? load_pair<kCount>(x + first, y == nullptr ? y : y + first, size - first)
              : Line<kCount>();
      store(line, i, out + half * kTileNumbers, used);
    }
  }
  for (int t = 0; t < kCount * kTilesOfStrip && turned; ++t) transpose(out + t * kTileNumbers);
  return used_parts(used);
}

// --- multiplying ------------------------------------------------------------------------------

// Registers 0 to 3 are the sums of 32 x 32 numbers, 4 and 5 a part of the left strip, 6 and 7 of
// the right one. The names of registers must be constants.
#define PREFOPT_LOAD(first, second, source, part)                                \
  do {                                                                           \
    const std::uint16_t* tiles = (source) + (part)*kTilesOfStrip * kTileNumbers; \
    _tile_loadd(first, tiles, kDepth * 2);                                       \
    _tile_loadd(second, tiles + kTileNumbers, kDepth * 2);                       \
  } while (false)
#define PREFOPT_LOAD_LEFT(part) PREFOPT_LOAD(4, 5, left, part)
#define PREFOPT_LOAD_RIGHT(part) PREFOPT_LOAD(6, 7, right, part)
#define PREFOPT_MULTIPLY()   \
  do {                       \
    _tile_dpbf16ps(0, 4, 6); \
    _tile_dpbf16ps(1, 4, 7); \
    _tile_dpbf16ps(2, 5, 6); \
    _tile_dpbf16ps(3, 5, 7); \
  } while (false)

/// Numbers that a product of strips fetches for the next one: so many of each step, from `data` on.
struct Ahead {
  const std::uint16_t* data;
  std::int64_t numbers;
};

/// The products of parts whose places, counted from 0, add up to at most 2, the smallest first and
/// so that most of them share a part with the one before: (2, 0), (1, 0), (1, 1), (0, 1), (0, 0),
/// (0, 2). What a factor has no part for is left out.
template <int kLeft, int kRight>
void multiply_strips(const std::uint16_t* left, const std::uint16_t* right, std::int64_t steps,
                     Ahead ahead, float* out) {
  constexpr std::int64_t kLine = 64 / sizeof(std::uint16_t);
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
  for (std::int64_t step = 0; step < steps; ++step) {
    for (std::int64_t n = 0; n < ahead.numbers; n += kLine) {
      _mm_prefetch(reinterpret_cast<const char*>(ahead.data + n), _MM_HINT_T1);
    }
    PREFOPT_LOAD_RIGHT(0);
    if constexpr (kLeft > 2) {
      PREFOPT_LOAD_LEFT(2);
      PREFOPT_MULTIPLY();
    }
    if constexpr (kLeft > 1) {
      PREFOPT_LOAD_LEFT(1);
      PREFOPT_MULTIPLY();
    }
    if constexpr (kRight > 1) {
      PREFOPT_LOAD_RIGHT(1);
      if constexpr (kLeft > 1) {
        PREFOPT_MULTIPLY();
      }
    }
    PREFOPT_LOAD_LEFT(0);
    if constexpr (kRight > 1) {
      PREFOPT_MULTIPLY();
      PREFOPT_LOAD_RIGHT(0);
    }
    PREFOPT_MULTIPLY();
    if constexpr (kRight > 2) {
      PREFOPT_LOAD_RIGHT(2);
      PREFOPT_MULTIPLY();
    }
    left += kStepNumbers;
    right += kStepNumbers;
    ahead.data += kStepNumbers;
  }
  constexpr std::int64_t kWidth = TileStrips::kWidth, kStride = kWidth * sizeof(float);
  _tile_stored(0, out, kStride);
  _tile_stored(1, out + kSide, kStride);
  _tile_stored(2, out + kSide * kWidth, kStride);
  _tile_stored(3, out + kSide * kWidth + kSide, kStride);
}
#undef PREFOPT_LOAD
#undef PREFOPT_LOAD_LEFT
#undef PREFOPT_LOAD_RIGHT
#undef PREFOPT_MULTIPLY

using MultiplyStrips = void (*)(const std::uint16_t*, const std::uint16_t*, std::int64_t, Ahead,
                                float*);
constexpr std::array<std::array<MultiplyStrips, kParts>, kParts> kMultiplyStrips{{
    {multiply_strips<1, 1>, multiply_strips<1, 2>, multiply_strips<1, 3>},
    {multiply_strips<2, 1>, multiply_strips<2, 2>, multiply_strips<2, 3>},
    {multiply_strips<3, 1>, multiply_strips<3, 2>, multiply_strips<3, 3>},
}};

/// The registers of a thread while it multiplies: eight tiles of 16 rows of 64 bytes.
class TileRegisters {
 public:
  TileRegisters() {
    Configuration configuration;
    for (int i = 0; i < 8; ++i) {
      configuration.row_bytes[i] = kDepth * sizeof(std::uint16_t);
      configuration.rows[i] = kSide;
    }
    _tile_loadconfig(&configuration);
  }
  ~TileRegisters() { _tile_release(); }
  TileRegisters(const TileRegisters&) = delete;
  TileRegisters& operator=(const TileRegisters&) = delete;

 private:
  struct alignas(64) Configuration {
    std::uint8_t palette = 1, start_row = 0;
    std::array<std::uint8_t, 14> reserved{};
    std::array<std::uint16_t, 16> row_bytes{};
    std::array<std::uint8_t, 16> rows{};
  };
};

/// Writes `rows` x `columns` of a block of 32 x 32 sums.
void write_block(const float* sums, std::int64_t rows, std::int64_t columns, float* out,
                 std::int64_t stride, bool accumulate) {
  const __mmask16 low = first_16(columns), high = first_16(columns - 16);
  for (std::int64_t i = 0; i < rows; ++i) {
    __m512 x = _mm512_load_ps(sums), y = _mm512_load_ps(sums + 16);
    if (accumulate) {
      x = _mm512_add_ps(x, _mm512_maskz_loadu_ps(low, out));
      y = _mm512_add_ps(y, _mm512_maskz_loadu_ps(high, out + 16));
    }
    _mm512_mask_storeu_ps(out, low, x);
    _mm512_mask_storeu_ps(out + 16, high, y);
    sums += TileStrips::kWidth;
    out += stride;
  }
}

}  // namespace

template <int kCount, class Source>
void TileStrips::pack_parts(StridedMatrix<Source> source, std::int64_t depth, std::int64_t first,
                            std::int64_t last) {
  const bool along = source.column_stride == 1;
  const bool turned = along != (side_ == Side::kLeft);
  std::fill(parts_.begin() + first, parts_.begin() + last, std::uint8_t{1});
  // Across, a row of the source goes through all strips.
  const std::int64_t step = along ? std::max<std::int64_t>(depth, 1) : kDepth;
  for (std::int64_t k = 0; k < depth; k += step) {
    for (std::int64_t s = first; s < last; ++s) {
      const StridedMatrix<Source> strip = source.from(s * kWidth, k);
      const std::int64_t size = std::min(kWidth, size_ - s * kWidth);
      const auto pack = along ? pack_along<kCount, Source> : pack_across<kCount, Source>;
      std::uint8_t& parts = parts_[static_cast<std::size_t>(s)];
      parts =
          std::max(parts, pack(strip, size, std::min(step, depth - k), turned,
                               buffer_.data() + s * strip_numbers_ + k / kDepth * kStepNumbers));
    }
  }
}

template <class Source>
void TileStrips::pack(StridedMatrix<Source> source, std::int64_t depth, std::int64_t first,
                      std::int64_t last) {
  if (source.column_stride != 1 && source.row_stride != 1) {
    throw std::logic_error("TileStrips: expected a factor whose rows or columns have stride 1");
  }
  switch (std::is_same_v<Source, float> ? tile_parts() : 1) {
    case 1:
      return pack_parts<1>(source, depth, first, last);
    case 2:
      return pack_parts<2>(source, depth, first, last);
    default:
      return pack_parts<3>(source, depth, first, last);
  }
}

void multiply_tiles(TileFactor a, std::int64_t rows, TileFactor b, std::int64_t depth,
                    ProductTarget<float> c) {
  constexpr std::int64_t kWidth = TileStrips::kWidth;
  const std::int64_t steps = steps_of(depth);
  const std::int64_t of_a = a.begin / kDepth * kStepNumbers, of_b = b.begin / kDepth * kStepNumbers;
  const std::int64_t strips_of_b = b.last - b.first;
  alignas(64) std::array<float, kWidth * kWidth> sums;
  const TileRegisters registers;
  // All of b stay in a second-level cache while a strip of a goes past, and bring the next one in.
  for (std::int64_t i = a.first; i < a.last; ++i) {
    const std::int64_t next = std::min(i + 1, a.last - 1);
    const std::int64_t tiles = i == next ? 0 : a.strips.parts(next) * kTilesOfStrip;
    const std::int64_t share = (tiles * kTileNumbers + strips_of_b - 1) / strips_of_b;
    const std::int64_t row = (i - a.first) * kWidth;
    for (std::int64_t j = b.first; j < b.last; ++j) {
      kMultiplyStrips[a.strips.parts(i) - 1][b.strips.parts(j) - 1](
          a.strips.strip(i) + of_a, b.strips.strip(j) + of_b, steps,
          {a.strips.strip(next) + of_a + (j - b.first) * share, share}, sums.data());
      write_block(sums.data(), std::min(kWidth, rows - row),
                  std::min(kWidth, c.columns - j * kWidth),
                  c.data + row * c.row_stride + j * kWidth, c.row_stride, c.accumulate);
    }
  }
}

}  // namespace prefopt::kernels::cpu
HWY_POP_ATTRIBUTES

#else

namespace prefopt::kernels::cpu {

bool has_tiles() { return false; }

template <class Source>
void TileStrips::pack(StridedMatrix<Source>, std::int64_t, std::int64_t, std::int64_t) {}

void multiply_tiles(TileFactor, std::int64_t, TileFactor, std::int64_t, ProductTarget<float>) {}

}  // namespace prefopt::kernels::cpu

#endif

namespace prefopt::kernels::cpu {

template void TileStrips::pack(StridedMatrix<float>, std::int64_t, std::int64_t, std::int64_t);
template void TileStrips::pack(StridedMatrix<c10::BFloat16>, std::int64_t, std::int64_t,
                               std::int64_t);

}  // namespace prefopt::kernels::cpu
