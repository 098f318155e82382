// SPDX-License-Identifier: Apache-2.0
#include "files/gguf_encoding.h"

#include <algorithm>
#include <array>
#include <vector>

#include "files/gguf_blocks.h"

namespace prefopt::detail {
namespace {

template <void (*kDecode)(const std::uint8_t*, float*), int kValues, int kBytes>
void each(const std::uint8_t* blocks, std::int64_t count, float* values) {
  for (std::int64_t i = 0; i < count; ++i) kDecode(blocks + i * kBytes, values + i * kValues);
}

// Sizes of the encodings that are not decoded serve to find the data behind them. IQ1 to IQ3 choose
// from tables of trained vectors.
constexpr std::array kEncodings = std::to_array<GgufEncoding>({
    {0, "F32", 1, 4, at::kFloat},
    {1, "F16", 1, 2, at::kHalf},
    {2, "Q4_0", kBlock, 18, {}, decode_run_q4_0, encode_q4_0},
    {3, "Q4_1", kBlock, 20, {}, decode_run_q4_1},
    {6, "Q5_0", kBlock, 22, {}, decode_run_q5_0, encode_q5_0},
    {7, "Q5_1", kBlock, 24, {}, decode_run_q5_1},
    {8, "Q8_0", kBlock, 34, {}, decode_run_q8_0, encode_q8_0},
    {9, "Q8_1", kBlock, 40},
    {10, "Q2_K", kSuperBlock, 84, {}, decode_run_q2_k},
    {11, "Q3_K", kSuperBlock, 110, {}, decode_run_q3_k},
    {12, "Q4_K", kSuperBlock, 144, {}, decode_run_q4_k, encode_q4_k},
    {13, "Q5_K", kSuperBlock, 176, {}, decode_run_q5_k},
    {14, "Q6_K", kSuperBlock, 210, {}, decode_run_q6_k, encode_q6_k},
    {15, "Q8_K", kSuperBlock, 292},
    {16, "IQ2_XXS", kSuperBlock, 66},
    {17, "IQ2_XS", kSuperBlock, 74},
    {18, "IQ3_XXS", kSuperBlock, 98},
    {19, "IQ1_S", kSuperBlock, 50},
    {20, "IQ4_NL", kBlock, 18, {}, decode_run_iq4_nl},
    {21, "IQ3_S", kSuperBlock, 110},
    {22, "IQ2_S", kSuperBlock, 82},
    {23, "IQ4_XS", kSuperBlock, 136, {}, decode_run_iq4_xs},
    {24, "I8", 1, 1},
    {25, "I16", 1, 2},
    {26, "I32", 1, 4},
    {27, "I64", 1, 8},
    {28, "F64", 1, 8, at::kDouble},
    {29, "IQ1_M", kSuperBlock, 56},
    {30, "BF16", 1, 2, at::kBFloat16},
    {34, "TQ1_0", kSuperBlock, 54, {}, each<decode_tq1_0, kSuperBlock, 54>},
    {35, "TQ2_0", kSuperBlock, 66, {}, decode_run_tq2_0},
    {39, "MXFP4", kBlock, 17, {}, decode_run_mxfp4},
    {40, "NVFP4", 64, 36, {}, each<decode_nvfp4, 64, 36>},
    {41, "Q1_0", 128, 18},
});

const GgufEncoding* found(decltype(kEncodings)::const_iterator at) {
  return at == kEncodings.end() ? nullptr : at;
}

}  // namespace

const GgufEncoding* find_gguf_encoding(std::uint32_t id) {
  return found(std::find_if(kEncodings.begin(), kEncodings.end(),
                            [&](const GgufEncoding& known) { return known.id == id; }));
}

const GgufEncoding* find_gguf_encoding(std::string_view name) {
  return found(std::find_if(kEncodings.begin(), kEncodings.end(),
                            [&](const GgufEncoding& known) { return known.name == name; }));
}

std::string decoded_encodings() {
  std::vector<std::string_view> names;
  for (const GgufEncoding& known : kEncodings) {
    if (known.dtype || known.decode) names.push_back(known.name);
  }
  std::string text;
  for (std::size_t i = 0; i < names.size(); ++i) {
    if (i > 0) text += i + 1 == names.size() ? " or " : ", ";
    text += names[i];
  }
  return text;
}

}  // namespace prefopt::detail
