// SPDX-License-Identifier: Apache-2.0

// Whether a processor's bfloat16 units would make the products of a linear layer faster: the most
// that one thread multiplies and adds in registers, float32 against bfloat16 (AVX512-BF16), then
// LibTorch's products in both, and prefopt's with float32 rows and float32 or bfloat16 weights.

#include <ATen/ops/mm.h>
#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <chrono>
#include <cstdint>
#include <string>
#include <vector>
#if defined(__x86_64__) && defined(__GNUC__)
#include <immintrin.h>
#endif

#include "kernels/cpu/linear.h"
#include "support/inputs.h"
#include "support/report.h"

namespace prefopt::bench {
namespace {

namespace cpu = kernels::cpu;

#if defined(__x86_64__) && defined(__GNUC__)
constexpr std::int64_t kRounds = 10'000'000;
constexpr std::size_t kSums = 16;  // enough for the instructions' latency

// Returns GFLOP/s of `multiply`, called for each of some sums in registers.
#define PREFOPT_RATE(flops, multiply)                                                        \
  __m512 sums[kSums];                                                                        \
  for (std::size_t i = 0; i < kSums; ++i) sums[i] = _mm512_set1_ps(static_cast<float>(i));   \
  const auto start = std::chrono::steady_clock::now();                                       \
  for (std::int64_t round = 0; round < kRounds; ++round) {                                   \
    _Pragma("GCC unroll 16") for (std::size_t i = 0; i < kSums; ++i) { sums[i] = multiply; } \
    asm volatile("" : "+v"(x)); /* no round is known to be like the one before */            \
  }                                                                                          \
  const double seconds =                                                                     \
      std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();       \
  float sum = 0;                                                                             \
  for (const __m512& one : sums) sum += _mm512_reduce_add_ps(one);                           \
  return sum == 1 ? 0 : static_cast<double>(kRounds) * kSums * (flops) / seconds / 1e9

__attribute__((target("avx512f"), optimize("O3"))) double float32_rate() {
  __m512 x = _mm512_set1_ps(1e-3F);
  PREFOPT_RATE(2 * 16, _mm512_fmadd_ps(x, x, sums[i]));
}

__attribute__((target("avx512f,avx512bf16"), optimize("O3"))) double bfloat16_rate() {
  __m512 x = _mm512_set1_ps(1e-3F);
  PREFOPT_RATE(2 * 32, _mm512_dpbf16_ps(sums[i], (__m512bh)x, (__m512bh)x));
}

#undef PREFOPT_RATE

void compare_units() {
  if (!__builtin_cpu_supports("avx512bf16")) {
    fmt::print("units: this processor has no AVX512-BF16\n");
    return;
  }
  const double wide = float32_rate(), narrow = bfloat16_rate();
  fmt::print("units, one thread: float32 {:.0f} GFLOP/s, bfloat16 {:.0f}, ratio {:.2f}\n", wide,
             narrow, narrow / wide);
}
#else
void compare_units() { fmt::print("units: not known on this processor\n"); }
#endif

template <class Weight>
void multiply(const at::Tensor& x, const at::Tensor& weight, at::Tensor& y) {
  cpu::linear_forward<float, Weight>(
      {.sizes = {.rows = x.size(0), .in = x.size(1), .out = weight.size(0)},
       .x = {x.const_data_ptr<float>(), x.size(1)},
       .weight = {weight.const_data_ptr<Weight>(), x.size(1)},
       .y = {y.mutable_data_ptr<float>(), weight.size(0)}});
}

void compare_products(Report& report, std::int64_t rows, std::int64_t in, std::int64_t out) {
  const at::Tensor x = random_normal({rows, in}, 1, at::kFloat, 1);
  const at::Tensor w = random_normal({out, in}, 1, at::kFloat, 2);
  const at::Tensor narrow_x = x.to(at::kBFloat16), narrow_w = w.to(at::kBFloat16);
  at::Tensor y = at::mm(x, w.t());
  const double flops =
      2.0 * static_cast<double>(rows) * static_cast<double>(in) * static_cast<double>(out);
  report.measure({.part = "bf16",
                  .title = fmt::format("Y = X Wt, N = {}, {} to {}", rows, in, out),
                  .dtype = "float32 sums",
                  .rows = rows,
                  .hidden = in,
                  .out = out,
                  .unit = "GFLOP/s",
                  .base = "prefopt, float32"},
                 {{"prefopt, float32", [&] { multiply<float>(x, w, y); }, flops},
                  {"prefopt, bfloat16 W", [&] { multiply<c10::BFloat16>(x, narrow_w, y); }, flops},
                  {"at::mm, float32", [&] { at::mm(x, w.t()); }, flops},
                  {"at::mm, bfloat16", [&] { at::mm(narrow_x, narrow_w.t()); }, flops}});
}

}  // namespace
}  // namespace prefopt::bench

int main(int argc, char** argv) {
  using namespace prefopt::bench;
  CLI::App app{"Compares products in float32 and bfloat16"};
  Options options;
  options.rows = {64, 1600};
  options.add_to(app);
  return bench_main("bench_bfloat16", app, options, argc, argv, [&](Report& report) {
    compare_units();
    for (const std::int64_t rows : options.rows) {
      compare_products(report, rows, 576, 1536);
      compare_products(report, rows, 1536, 576);
    }
  });
}
