// SPDX-License-Identifier: Apache-2.0
#include <ATen/TensorOperators.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>

#include <array>
#include <cstring>

#include "fuzz/input_files.h"
#include "fuzz/targets.h"
#include "fuzz/verdict.h"
#include "prefopt/files/gguf.h"
#include "prefopt/files/gguf_writer.h"

namespace prefopt::fuzz {
namespace {

constexpr std::int64_t kRow = 256;

/// Values that no float16 scale is small enough for may become 0.
void check_errors(const at::Tensor& read, const at::Tensor& values, double share) {
  constexpr double kSmall = 1e-4;
  expect(read.isfinite().all().item<bool>(), "a value that is not finite");
  for (std::int64_t row = 0; row < values.size(0); ++row) {
    const double size = values[row].to(at::kDouble).norm().item<double>();
    const double error = (read[row] - values[row]).to(at::kDouble).norm().item<double>();
    expect(error <= share * size + kSmall * 16, "an error as large as the values");
  }
}

}  // namespace

/// A byte for the encoding, then rows of float32: what is written is read back nearly the same.
void read_gguf_writer(std::string_view bytes) {
  struct Written {
    const char* type;
    double error;
  };
  constexpr auto kTypes = std::to_array<Written>(
      {{"F16", 0.001}, {"Q8_0", 0.02}, {"Q5_0", 0.3}, {"Q4_0", 0.5}, {"Q6_K", 0.1}, {"Q4_K", 0.3}});
  if (bytes.empty()) return;
  const Written& type = kTypes[static_cast<unsigned char>(bytes.front()) % kTypes.size()];
  bytes.remove_prefix(1);
  const auto rows = static_cast<std::int64_t>(bytes.size() / sizeof(float)) / kRow;
  const at::Tensor values = at::empty({rows, kRow}, at::kFloat);
  if (rows > 0) std::memcpy(values.mutable_data_ptr(), bytes.data(), values.nbytes());
  static const InputFolder folder;
  const std::string path = folder.file("x.gguf");
  accepts(path, [&] {
    GgufWriter writer;
    writer.tensor("x", values, type.type);
    writer.write(path);
    check_errors(GgufFile::open(path).tensor("x"), values, type.error);
  });
}

}  // namespace prefopt::fuzz
