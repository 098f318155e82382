// SPDX-License-Identifier: Apache-2.0
#include "core/mapped_file.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/from_blob.h>
#include <fcntl.h>
#include <fmt/format.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstdint>
#include <cstring>
#include <mutex>
#include <set>
#include <system_error>
#include <utility>

namespace prefopt::detail {
namespace {

/// All mappings of the process.
struct MappedFiles {
  std::mutex mutex;
  std::set<const MappedFile*> files;
};

MappedFiles& mapped_files() {
  // Never destroyed: a tensor may keep a mapping longer than every static object.
  static auto* instance = new MappedFiles;
  return *instance;
}

}  // namespace

MappedFile::MappedFile(std::string path, Descriptor file, char* data, std::size_t size)
    : path_(std::move(path)), file_(std::move(file)), data_(data), size_(size) {
  MappedFiles& all = mapped_files();
  const std::lock_guard lock(all.mutex);
  all.files.insert(this);
}

std::shared_ptr<MappedFile> MappedFile::try_open(const std::string& path, std::string& why) {
  // Opening a pipe would wait for someone to write to it.
  Descriptor file(::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK));
  struct stat status {};
  if (file.get() < 0 || ::fstat(file.get(), &status) != 0) {
    why = last_error();
    return nullptr;
  }
  if (!S_ISREG(status.st_mode)) {
    why = S_ISDIR(status.st_mode) ? std::generic_category().message(EISDIR) : "no regular file";
    return nullptr;
  }
  const auto size = static_cast<std::size_t>(status.st_size);
  void* data = nullptr;
  if (size > 0) {  // no bytes cannot be mapped
    // No swap is set aside for pages that nobody will write to: a model may be larger than memory.
    data =
        ::mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_NORESERVE, file.get(), 0);
    if (data == MAP_FAILED) {
      why = last_error();
      return nullptr;
    }
  }
  return std::shared_ptr<MappedFile>(
      new MappedFile(path, std::move(file), static_cast<char*>(data), size));
}

MappedFile::~MappedFile() {
  {
    MappedFiles& all = mapped_files();
    const std::lock_guard lock(all.mutex);
    all.files.erase(this);
  }
  if (size_ > 0) ::munmap(data_, size_);
}

void MappedFile::let_go(std::size_t offset, std::size_t end) {
  // Advice: pages that stay do no harm.
  if (offset < end) ::madvise(data_ + offset, end - offset, MADV_DONTNEED);
}

std::string shrunk_file() {
  MappedFiles& all = mapped_files();
  const std::lock_guard lock(all.mutex);
  for (const MappedFile* file : all.files) {
    struct stat status {};
    if (::fstat(file->file_.get(), &status) != 0) continue;
    const auto size = static_cast<std::uint64_t>(status.st_size);
    if (size >= file->size_) continue;
    return fmt::format("{}: expected {} bytes, as when it was mapped, got {}", file->path_,
                       file->size_, size);
  }
  return "";
}

at::Tensor tensor_in_file(const std::shared_ptr<MappedFile>& file, std::uint64_t offset,
                          at::IntArrayRef shape, at::ScalarType dtype) {
  const auto options = at::TensorOptions(dtype).device(at::kCPU);
  if (c10::multiply_integers(shape) == 0) return at::empty(shape, options);
  char* data = file->mutable_data() + offset;
  if (reinterpret_cast<std::uintptr_t>(data) % c10::elementSize(dtype) == 0) {
    return at::from_blob(
        data, shape, [file](void*) {}, options);
  }
  at::Tensor copy = at::empty(shape, options);
  std::memcpy(copy.mutable_data_ptr(), data, copy.nbytes());
  return copy;
}

}  // namespace prefopt::detail
