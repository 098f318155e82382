// SPDX-License-Identifier: Apache-2.0
#include "core/activation_file.h"

#include <ATen/ops/from_blob.h>
#include <fcntl.h>
#include <fmt/format.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cerrno>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <map>
#include <mutex>
#include <utility>

#include "core/descriptor.h"
#include "prefopt/error.h"

namespace prefopt::detail {
namespace {

/// Parts of the file begin and end with pages of any system.
constexpr std::int64_t kFilePage = 65536;

std::int64_t whole_pages(std::int64_t bytes) {
  return (bytes + kFilePage - 1) / kFilePage * kFilePage;
}

Descriptor unnamed_file(const std::string& folder, const std::string& option) {
  std::string path = folder + "/prefopt-activations-XXXXXX";
  Descriptor file(::mkstemp(path.data()));
  if (file.get() < 0) {
    throw ConfigError(fmt::format("{}: expected a folder that files can be made in, got {}: {}",
                                  option, folder, last_error()));
  }
  ::unlink(path.c_str());
  return file;
}

}  // namespace

struct ActivationFile::Impl {
  Descriptor file;
  std::mutex mutex;
  std::int64_t end = 0;
  std::multimap<std::int64_t, std::int64_t> free = {};  ///< places by size

  /// Returns the place of `bytes`, whole pages.
  std::int64_t take(std::int64_t bytes) {
    const std::lock_guard lock(mutex);
    if (const auto found = free.find(bytes); found != free.end()) {
      const std::int64_t place = found->second;
      free.erase(found);
      return place;
    }
    // Asked for now, or a full drive would end the process when a page is written.
    if (const int why = ::posix_fallocate(file.get(), end, bytes); why != 0) {
      throw CheckpointError(fmt::format(
          "activations: expected {} more bytes of the drive of machine.activation_folder, got {}",
          bytes, std::generic_category().message(why)));
    }
    return std::exchange(end, end + bytes);
  }

  void give_back(std::int64_t place, std::int64_t bytes) {
    const std::lock_guard lock(mutex);
    free.emplace(bytes, place);
  }
};

ActivationFile::ActivationFile(const std::string& folder, const std::string& option)
    : impl_(new Impl{.file = unnamed_file(folder, option), .mutex = {}}) {}

ActivationFile::~ActivationFile() = default;

at::Tensor ActivationFile::put(const std::shared_ptr<ActivationFile>& file,
                               const at::Tensor& tensor) {
  const at::Tensor from = tensor.contiguous();
  const std::int64_t bytes = whole_pages(static_cast<std::int64_t>(from.nbytes()));
  if (bytes == 0) return from;
  Impl& my = *file->impl_;
  const std::int64_t place = my.take(bytes);
  const auto size = static_cast<std::size_t>(bytes);
  void* data = ::mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_SHARED, my.file.get(), place);
  if (data == MAP_FAILED) {
    const std::string why = last_error();
    my.give_back(place, bytes);
    throw CheckpointError(
        fmt::format("activations: expected to map {} bytes of a file, got {}", bytes, why));
  }
  std::memcpy(data, from.const_data_ptr(), from.nbytes());
  // The process lets go of the pages; the system writes them when it needs their memory.
  ::madvise(data, size, MADV_DONTNEED);
  return at::from_blob(
      data, from.sizes(),
      [file, data, place, bytes](void*) {
        ::munmap(data, static_cast<std::size_t>(bytes));
        file->impl_->give_back(place, bytes);
      },
      from.options());
}

std::shared_ptr<ActivationFile>& activation_file() {
  static auto* instance = new std::shared_ptr<ActivationFile>;
  return *instance;
}

}  // namespace prefopt::detail
