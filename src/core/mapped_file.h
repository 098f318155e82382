// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <ATen/core/Tensor.h>

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <string_view>

#include "core/descriptor.h"

namespace prefopt::detail {

/// A regular file in memory, privately: pages that are written to become the process's own, so no
/// write reaches the file. A file that is renamed over or removed stays; one that is cut short
/// while mapped ends the process on access, as with any mapping, unless `shrunk_file` is asked
/// before.
class MappedFile {
 public:
  /// Null where it cannot be, and `why` says so.
  static std::shared_ptr<MappedFile> try_open(const std::string& path, std::string& why);
  friend std::string shrunk_file();
  ~MappedFile();
  MappedFile(const MappedFile&) = delete;
  MappedFile& operator=(const MappedFile&) = delete;

  std::string_view bytes() const { return {data_, size_}; }
  char* mutable_data() { return data_; }
  /// Lets go of the pages from `offset`, whole ones, up to `end`, which are read again when they
  /// are asked for. Nothing may have been written to them.
  void let_go(std::size_t offset, std::size_t end);

 private:
  MappedFile(std::string path, Descriptor file, char* data, std::size_t size);

  std::string path_;
  Descriptor file_;
  char* data_;
  std::size_t size_;
};

/// Returns of the first mapped file that is now shorter than it was "PATH: expected N bytes, as
/// when it was mapped, got M"; empty where there is none.
std::string shrunk_file();

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
