// SPDX-License-Identifier: Apache-2.0
// Blocks that follow one another, decoded by vectors to the bits of gguf_decode.cpp. A value is a
// small integer times a scale, an exact product in float32 since a scale has 11 bits of a float16
// and at most 8 of an integer; a fused addition of an offset rounds once, as a separate one does.
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "files/gguf_decode_runs.cpp"
#include <hwy/foreach_target.h>  // IWYU pragma: keep
//
#include <hwy/highway.h>

#include <cstdint>
#include <cstring>

#include "files/gguf_blocks.h"

HWY_BEFORE_NAMESPACE();
namespace prefopt::detail {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

#if HWY_TARGET != HWY_SCALAR

// All decoders make 16 values at once.
constexpr int kStep = 16;
using ByteTag = hn::Full128<std::uint8_t>;
using Bytes = hn::Vec<ByteTag>;
using FloatTag = hn::CappedTag<float, kStep>;

using Floats = hn::Vec<FloatTag>;

HWY_INLINE Floats floats_of(float value) { return hn::Set(FloatTag(), value); }

// A float16 in all lanes.
HWY_INLINE Floats half_floats(const std::uint8_t* bytes) {
  const hn::Rebind<hwy::float16_t, FloatTag> halves;
  const hn::Rebind<std::uint16_t, FloatTag> words;
  std::uint16_t bits = 0;
  std::memcpy(&bits, bytes, sizeof bits);
  return hn::PromoteTo(FloatTag(), hn::BitCast(halves, hn::Set(words, bits)));
}

HWY_INLINE float half_float(const std::uint8_t* bytes) { return hn::GetLane(half_floats(bytes)); }

// Calls make(floats, place) for as many of 16 bytes at a time as a vector has floats.
template <class D, class Make>
HWY_INLINE void for_parts(D d, Bytes integers, const Make& make) {
  const hn::RebindToSigned<D> wide;
  const hn::Rebind<std::int8_t, D> narrow;
  const hn::Full128<std::int8_t> all;
  if constexpr (hn::MaxLanes(D()) == kStep) {
    make(hn::ConvertTo(d, hn::PromoteTo(wide, hn::BitCast(all, integers))), 0);
  } else {
    HWY_ALIGN std::int8_t bytes[kStep];
    hn::Store(hn::BitCast(all, integers), all, bytes);
    for (std::size_t i = 0; i < kStep; i += hn::Lanes(d)) {
      make(hn::ConvertTo(d, hn::PromoteTo(wide, hn::LoadU(narrow, bytes + i))), i);
    }
  }
}

HWY_INLINE void put(Bytes integers, Floats scale, float* HWY_RESTRICT values) {
  const FloatTag d;
  for_parts(d, integers, [&](auto lanes, std::size_t place) HWY_ATTR {
    hn::StoreU(hn::Mul(lanes, scale), d, values + place);
  });
}
HWY_INLINE void put(Bytes integers, float scale, float* HWY_RESTRICT values) {
  put(integers, floats_of(scale), values);
}

HWY_INLINE void put(Bytes integers, Floats scale, Floats offset, float* HWY_RESTRICT values) {
  const FloatTag d;
  for_parts(d, integers, [&](auto lanes, std::size_t place) HWY_ATTR {
    hn::StoreU(hn::MulAdd(lanes, scale, offset), d, values + place);
  });
}
HWY_INLINE void put(Bytes integers, float scale, float offset, float* HWY_RESTRICT values) {
  put(integers, floats_of(scale), floats_of(offset), values);
}

HWY_INLINE Bytes load(const std::uint8_t* bytes) { return hn::LoadU(ByteTag(), bytes); }
HWY_INLINE Bytes bytes_of(int value) {
  return hn::Set(ByteTag(), static_cast<std::uint8_t>(value));
}

// Bits [shift, shift + those of mask) of each byte, which end within it.
HWY_INLINE Bytes bits_at(Bytes bytes, int shift, int mask) {
  const hn::Full128<std::uint16_t> words;
  const auto shifted = hn::ShiftRightSame(hn::BitCast(words, bytes), shift);
  return hn::And(hn::BitCast(ByteTag(), shifted), bytes_of(mask));
}
HWY_INLINE Bytes low_nibbles(Bytes bytes) { return hn::And(bytes, bytes_of(15)); }
HWY_INLINE Bytes high_nibbles(Bytes bytes) { return hn::ShiftRight<4>(bytes); }
HWY_INLINE Bytes nibbles_at(const std::uint8_t* bytes, bool upper) {
  return upper ? high_nibbles(load(bytes)) : low_nibbles(load(bytes));
}

// 16 in each of 16 bytes whose bit is set; reads 8 bytes.
HWY_INLINE Bytes sixteens(const std::uint8_t* bits) {
  return hn::IfThenElseZero(hn::LoadMaskBits(ByteTag(), bits), bytes_of(16));
}

HWY_INLINE void fast_q8_0(const std::uint8_t* block, float* values) {
  const Floats scale = half_floats(block);
  put(load(block + 2), scale, values);
  put(load(block + 2 + kStep), scale, values + kStep);
}

HWY_INLINE void fast_q4_0(const std::uint8_t* block, float* values) {
  const Floats scale = half_floats(block);
  const Bytes packed = load(block + 2), eight = bytes_of(8);
  put(hn::Sub(low_nibbles(packed), eight), scale, values);
  put(hn::Sub(high_nibbles(packed), eight), scale, values + kStep);
}

HWY_INLINE void fast_q4_1(const std::uint8_t* block, float* values) {
  const Floats scale = half_floats(block), offset = half_floats(block + 2);
  const Bytes packed = load(block + 4);
  put(low_nibbles(packed), scale, offset, values);
  put(high_nibbles(packed), scale, offset, values + kStep);
}

HWY_INLINE void fast_q5_0(const std::uint8_t* block, float* values) {
  const Floats scale = half_floats(block);
  const Bytes packed = load(block + 6), sixteen = bytes_of(16);
  const Bytes first = hn::Or(low_nibbles(packed), sixteens(block + 2));
  const Bytes second = hn::Or(high_nibbles(packed), sixteens(block + 4));
  put(hn::Sub(first, sixteen), scale, values);
  put(hn::Sub(second, sixteen), scale, values + kStep);
}

HWY_INLINE void fast_q5_1(const std::uint8_t* block, float* values) {
  const Floats scale = half_floats(block), offset = half_floats(block + 2);
  const Bytes packed = load(block + 8);
  put(hn::Or(low_nibbles(packed), sixteens(block + 4)), scale, offset, values);
  put(hn::Or(high_nibbles(packed), sixteens(block + 6)), scale, offset, values + kStep);
}

// Calls decode(first value, byte of a half, its shift) for each 16 of the 256 values whose pairs of
// bits lie in 64 bytes.
template <class Decode>
HWY_INLINE void for_pairs(const Decode& decode) {
  for (int first = 0; first < kSuperBlock; first += kStep) {
    decode(first, first / 128 * kBlock + first % kBlock, 2 * (first % 128 / kBlock));
  }
}

HWY_INLINE void fast_q2_k(const std::uint8_t* block, float* values) {
  const float scale = half_float(block + 80), offset = half_float(block + 82);
  for_pairs([&](int first, int byte, int shift) HWY_ATTR {
    const std::uint8_t part = block[first / kStep];
    put(bits_at(load(block + 16 + byte), shift, 3), scale * static_cast<float>(low(part)),
        -(offset * static_cast<float>(high(part))), values + first);
  });
}

HWY_INLINE void fast_q3_k(const std::uint8_t* block, float* values) {
  const float scale = half_float(block + 108);
  for_pairs([&](int first, int byte, int shift) HWY_ATTR {
    // 4 is taken off where the bit is not set.
    const Bytes kept = bits_at(load(block + first % kBlock), first / kBlock, 1);
    const Bytes four = hn::ShiftLeft<2>(hn::Xor(kept, bytes_of(1)));
    const Bytes pairs = bits_at(load(block + kBlock + byte), shift, 3);
    put(hn::Sub(pairs, four), scale * static_cast<float>(scale_of_q3_k(block + 96, first / kStep)),
        values + first);
  });
}

// Calls decode(scale, offset, part) for each of the 8 parts of a Q4_K or Q5_K block.
template <class Decode>
HWY_INLINE void for_k_parts(const std::uint8_t* block, const Decode& decode) {
  const float scale = half_float(block), offset = half_float(block + 2);
  for (int part = 0; part < 8; ++part) {
    const auto [of_scale, of_offset] = part_bits(block + 4, part);
    decode(scale * static_cast<float>(of_scale), -(offset * static_cast<float>(of_offset)), part);
  }
}

HWY_INLINE void fast_q4_k(const std::uint8_t* block, float* values) {
  for_k_parts(block, [&](float scale, float offset, int part) HWY_ATTR {
    for (int i = 0; i < kBlock; i += kStep) {
      const std::uint8_t* nibbles = block + 16 + part / 2 * kBlock + i;
      put(nibbles_at(nibbles, part % 2 != 0), scale, offset, values + part * kBlock + i);
    }
  });
}

HWY_INLINE void fast_q5_k(const std::uint8_t* block, float* values) {
  for_k_parts(block, [&](float scale, float offset, int part) HWY_ATTR {
    for (int i = 0; i < kBlock; i += kStep) {
      const Bytes bits = bits_at(load(block + 16 + i), part, 1);
      const std::uint8_t* nibbles = block + 48 + part / 2 * kBlock + i;
      put(hn::Or(nibbles_at(nibbles, part % 2 != 0), hn::ShiftLeft<4>(bits)), scale, offset,
          values + part * kBlock + i);
    }
  });
}

HWY_INLINE void fast_q6_k(const std::uint8_t* block, float* values) {
  const float scale = half_float(block + 208);
  for_pairs([&](int first, int byte, int shift) HWY_ATTR {
    const std::uint8_t* nibbles = block + first / 128 * 64 + first % 64;
    const Bytes pairs = bits_at(load(block + 128 + byte), shift, 3);
    const Bytes all = hn::Or(nibbles_at(nibbles, first % 128 >= 64), hn::ShiftLeft<4>(pairs));
    const auto of_part = static_cast<std::int8_t>(block[192 + first / kStep]);
    put(hn::Sub(all, bytes_of(32)), scale * static_cast<float>(of_part), values + first);
  });
}

// 16 bytes of nibbles, places in a list of values.
HWY_INLINE void put_listed(const ValueList& list, float scale, const std::uint8_t* nibbles,
                           float* values) {
  const Bytes table = load(reinterpret_cast<const std::uint8_t*>(list.data()));
  const Bytes packed = load(nibbles);
  put(hn::TableLookupBytes(table, low_nibbles(packed)), scale, values);
  put(hn::TableLookupBytes(table, high_nibbles(packed)), scale, values + kStep);
}

HWY_INLINE void fast_iq4_nl(const std::uint8_t* block, float* values) {
  put_listed(kUneven, half_float(block), block + 2, values);
}

HWY_INLINE void fast_iq4_xs(const std::uint8_t* block, float* values) {
  const float scale = half_float(block);
  for (int part = 0; part < 8; ++part) {
    put_listed(kUneven, scale * static_cast<float>(scale_of_iq4_xs(block, part)),
               block + 8 + part * kStep, values + part * kBlock);
  }
}

HWY_INLINE void fast_mxfp4(const std::uint8_t* block, float* values) {
  put_listed(kFourBitFloats, half_power(block[0]), block + 1, values);
}

HWY_INLINE void fast_tq2_0(const std::uint8_t* block, float* values) {
  const float scale = half_float(block + 64);
  for_pairs([&](int first, int byte, int shift) HWY_ATTR {
    put(hn::Sub(bits_at(load(block + byte), shift, 3), bytes_of(1)), scale, values + first);
  });
}

#define PREFOPT_DECODER(name) fast_##name
#else
#define PREFOPT_DECODER(name) decode_##name
#endif

// Each is exported to the dispatcher.
#define PREFOPT_RUN(name, values_of_block, bytes_of_block)                                  \
  void run_##name(const std::uint8_t* blocks, std::int64_t count, float* values) {          \
    for (std::int64_t i = 0; i < count; ++i) {                                              \
      PREFOPT_DECODER(name)(blocks + i * (bytes_of_block), values + i * (values_of_block)); \
    }                                                                                       \
  }
PREFOPT_FAST_ENCODINGS(PREFOPT_RUN)
#undef PREFOPT_RUN
#undef PREFOPT_DECODER

}  // namespace HWY_NAMESPACE
}  // namespace prefopt::detail
HWY_AFTER_NAMESPACE();

#if HWY_ONCE

namespace prefopt::detail {

#define PREFOPT_RUN(name, values_of_block, bytes_of_block)                                \
  HWY_EXPORT(run_##name);                                                                 \
  void decode_run_##name(const std::uint8_t* blocks, std::int64_t count, float* values) { \
    HWY_DYNAMIC_DISPATCH(run_##name)(blocks, count, values);                              \
  }
PREFOPT_FAST_ENCODINGS(PREFOPT_RUN)
#undef PREFOPT_RUN

}  // namespace prefopt::detail
#endif
