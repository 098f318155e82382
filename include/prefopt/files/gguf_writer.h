// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "prefopt/export.h"
#include "prefopt/files/gguf.h"

namespace prefopt {

/// A GGUF file to be written, of version 3. Entries and tensors keep the order in which they were
/// added; a key that is set again has its last value. Numbers have the types that llama.cpp reads:
/// uint32 and float32, in lists int32 and float32.
class PREFOPT_API GgufWriter {
 public:
  /// Throws DtypeError for one that is no uint32, or in a list no int32.
  void integer(std::string_view key, std::int64_t value);
  void integers(std::string_view key, const std::vector<std::int64_t>& values);
  void real(std::string_view key, double value);
  void reals(std::string_view key, const std::vector<double>& values);
  void flag(std::string_view key, bool value);
  void text(std::string_view key, std::string_view value);
  void texts(std::string_view key, const std::vector<std::string>& values);
  /// Takes over an entry as it is.
  void copy(const GgufFile& file, std::string_view key);
  bool has(std::string_view key) const;

  /// Adds a tensor to be encoded as F64, F32, F16, BF16, Q8_0, Q5_0, Q4_0, Q6_K or Q4_K when it is
  /// written. Q8_0, Q5_0 and Q4_0 are ggml's reference quantization, bit for bit; Q4_K and Q6_K
  /// have the least squared error that a search finds. Throws ConfigError for another type.
  void tensor(std::string name, at::Tensor values, std::string_view type);
  /// Adds parts of one shape and dtype as one tensor with a dimension more in front. They are not
  /// copied.
  void stack(std::string name, std::vector<at::Tensor> parts, std::string_view type);

  /// Writes the file whole or not at all, one tensor at a time in memory. Throws CheckpointError,
  /// and DtypeError for values that a tensor's type cannot hold, both led by the path.
  void write(const std::string& path) const;

 private:
  struct Tensor {
    std::string name;
    std::vector<std::int64_t> shape;
    std::vector<at::Tensor> parts;  ///< one behind another
    std::string type;
  };

  void set(std::string_view key, std::string encoded);
  void add(Tensor tensor);
  std::string head() const;

  std::vector<std::pair<std::string, std::string>> entries_;
  std::vector<Tensor> tensors_;
};

}  // namespace prefopt
