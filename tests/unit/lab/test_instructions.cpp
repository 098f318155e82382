// SPDX-License-Identifier: Apache-2.0
#include <ATen/Parallel.h>
#include <ATen/Version.h>
#include <dlfcn.h>

#include <cstdlib>
#include <string>
#include <vector>

#include "core/crc32c.h"
#include "core/simd_limit.h"
#include "kernels/cpu/target.h"
#include "lab/neural_task.h"
#include "lab/statistics.h"
#include "support/catch.h"
#include "support/counts.h"

namespace prefopt::lab {
namespace {

using detail::SimdLimit;

/// The checksum of a network's weights after it saw pairs and samples.
double trained_weights(int seed) {
  const auto reference = fresh_network(Language::kOpen, static_cast<std::uint64_t>(seed));
  const exact::Pairs pairs{{0, 3, 2}, {1, 2, 7}, {5, 6, 0}, Eigen::ArrayXd::Constant(3, 1.0 / 3)};
  const NeuralTraining training{.loss = R"({"type": "hypo", "beta": 0.1, "lambda": 1})",
                                .learning_rate = 1e-2,
                                .steps = 12,
                                .batch = 8};
  const auto network = train_network(*reference, pairs, training, static_cast<std::uint64_t>(seed));
  std::string bytes;
  for (const NamedParameter& parameter : network->named_parameters()) {
    const at::Tensor values = parameter.value.detach().contiguous();
    bytes.append(static_cast<const char*>(values.data_ptr()), values.nbytes());
  }
  return detail::crc32c(bytes);
}

TEST_CASE("lab: prefopt's kernels, ATen and MKL are held to the same instructions", "[lab]") {
  if (!detail::has_simd(SimdLimit::kScalar)) return;  // another kind of processor
  const auto limit = detail::simd_limit_of_environment();
  if (!limit) {  // nothing is held where there is no AVX2
    CHECK(!detail::has_simd(SimdLimit::kAvx2));
    return;
  }
  const bool is_avx2 = *limit == SimdLimit::kAvx2, is_avx512 = *limit == SimdLimit::kAvx512;
  CHECK(at::get_cpu_capability() == (is_avx2 ? "AVX2" : is_avx512 ? "AVX512" : "DEFAULT"));
  const std::string kernels = kernels::cpu::simd_target();
  CHECK((kernels.find("AVX") != std::string::npos) == (is_avx2 || is_avx512));
  if (is_avx2) CHECK(kernels == "AVX2");
  // oneMKL's header: mkl_cbwr_get(MKL_CBWR_BRANCH), MKL_CBWR_COMPATIBLE.
  constexpr int kBranch = 1, kCompatible = 3;
  auto* branch = reinterpret_cast<int (*)(int)>(::dlsym(RTLD_DEFAULT, "mkl_serv_cbwr_get"));
  if (branch != nullptr && !is_avx512) CHECK(branch(kBranch) == kCompatible);
}

TEST_CASE("lab: a trained network's weights do not depend on the threads", "[lab]") {
  const auto train = [](int seed) { return std::vector<double>{trained_weights(seed)}; };
  const int threads = at::get_num_threads();
  at::set_num_threads(2);
  const BySeed two = for_each_seed({0, 2}, train);
  at::set_num_threads(1);
  const BySeed one = for_each_seed({0, 2}, train);
  at::set_num_threads(threads);
  CHECK(two == one);
  CHECK(one[0] != one[1]);
  // For comparison with other machines: one build, LibTorch and C library give one number.
  testing_support::report_count("lab, checksum of trained weights",
                                static_cast<std::size_t>(one[0][0]));
}

}  // namespace
}  // namespace prefopt::lab
