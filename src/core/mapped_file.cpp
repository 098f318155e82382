// SPDX-License-Identifier: Apache-2.0
#include "core/mapped_file.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/from_blob.h>
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <system_error>

#include "core/descriptor.h"

namespace prefopt::detail {

std::shared_ptr<MappedFile> MappedFile::try_open(const std::string& path, std::string& why) {
  // Opening a pipe would wait for someone to write to it.
  const Descriptor file(::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK));
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
    data = ::mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_PRIVATE, file.get(), 0);
    if (data == MAP_FAILED) {
      why = last_error();
      return nullptr;
    }
  }
  return std::shared_ptr<MappedFile>(new MappedFile(static_cast<char*>(data), size));
}

MappedFile::~MappedFile() {
  if (size_ > 0) ::munmap(data_, size_);
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
