// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "prefopt/export.h"

namespace prefopt {

/// One tensor of a GGUF file, not yet read.
struct GgufTensor {
  std::string name;
  std::string type;                 ///< encoding under ggml's name: "F32", "Q4_K", …
  std::vector<std::int64_t> shape;  ///< outermost first: the file's order reversed
  std::uint64_t offset = 0;         ///< of the first byte in the file
  std::uint64_t bytes = 0;
};

/// A GGUF file of version 2 or 3, little-endian, memory-mapped. Every count, length and offset is
/// checked against the file before anything is allocated; CheckpointError names file and byte
/// offset. The file must not be truncated while it or one of its tensors is in use.
///
/// Metadata has one getter for each kind of value, which throws CheckpointError if the key is
/// absent or holds another kind. Texts are bytes: tokens need not be UTF-8. Lists of lists are
/// checked and have no getter. Copies share the mapping.
class PREFOPT_API GgufFile {
 public:
  static GgufFile open(const std::string& path);

  const std::string& path() const;
  /// Returns the keys of the metadata in the order of the file.
  const std::vector<std::string>& keys() const;
  bool has(std::string_view key) const;

  std::string text(std::string_view key) const;
  /// Returns a value of any integer type; 2^63 and more is refused.
  std::int64_t integer(std::string_view key) const;
  /// Returns a float32 or float64 value.
  double real(std::string_view key) const;
  bool flag(std::string_view key) const;
  std::vector<std::string> texts(std::string_view key) const;
  std::vector<std::int64_t> integers(std::string_view key) const;
  std::vector<double> reals(std::string_view key) const;
  /// Returns a value of any kind as it is in the file, its kind in front.
  std::string encoded(std::string_view key) const;

  /// Returns the tensors in the order of the file.
  const std::vector<GgufTensor>& tensors() const;
  /// Returns null if there is no tensor of that name.
  const GgufTensor* find_tensor(std::string_view name) const;
  /// Decodes F64, F32, F16, BF16, Q4_0 to Q8_0, Q2_K to Q6_K, IQ4_NL, IQ4_XS, TQ1_0, TQ2_0, MXFP4
  /// and NVFP4 through float32 to `dtype`, a floating one, on all threads; CheckpointError names
  /// any other type. If the file holds `dtype` itself, the tensor is a view of the mapping, which
  /// is private: writing to it never reaches the file.
  at::Tensor tensor(std::string_view name, at::ScalarType dtype = at::kFloat) const;
  /// Returns a tensor's bytes as they are in the file, uint8 [bytes], a view of the mapping.
  at::Tensor bytes(std::string_view name) const;

 private:
  struct Impl;
  explicit GgufFile(std::shared_ptr<const Impl> impl);
  std::size_t place_of(std::string_view name) const;
  std::shared_ptr<const Impl> impl_;
};

}  // namespace prefopt
