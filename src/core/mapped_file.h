// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <ATen/core/Tensor.h>

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <string_view>

namespace prefopt::detail {

/// A regular file in memory, privately: pages that are written to become the process's own, so no
/// write reaches the file. A file that is renamed over or removed stays; one that is cut short
/// while mapped ends the process on access, as with any mapping.
class MappedFile {
 public:
  /// Null where it cannot be, and `why` says so.
  static std::shared_ptr<MappedFile> try_open(const std::string& path, std::string& why);
  ~MappedFile();
  MappedFile(const MappedFile&) = delete;
  MappedFile& operator=(const MappedFile&) = delete;

  std::string_view bytes() const { return {data_, size_}; }
  char* mutable_data() { return data_; }

 private:
  MappedFile(char* data, std::size_t size) : data_(data), size_(size) {}

  char* data_;
  std::size_t size_;
};

/// Throws `E` with "PATH: expected a readable file, got …".
template <class E>
std::shared_ptr<MappedFile> map_file(const std::string& path) {
  std::string why;
  auto file = MappedFile::try_open(path, why);
  if (!file) throw E(path + ": expected a readable file, got " + why);
  return file;
}

/// Returns the contiguous tensor at byte `offset`, which the caller has checked against the file. A
/// view that keeps the mapping alive, or a copy where elements would not be aligned.
at::Tensor tensor_in_file(const std::shared_ptr<MappedFile>& file, std::uint64_t offset,
                          at::IntArrayRef shape, at::ScalarType dtype);

}  // namespace prefopt::detail
