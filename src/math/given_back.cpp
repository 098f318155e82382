// SPDX-License-Identifier: Apache-2.0
#include "math/given_back.h"

#include <ATen/core/grad_mode.h>
#include <ATen/ops/empty.h>

namespace prefopt::detail {

at::Tensor without_memory(at::IntArrayRef sizes, at::TensorOptions options) {
  const at::Tensor tensor = at::empty({0}, options);
  tensor.unsafeGetTensorImpl()->set_sizes_contiguous(sizes);
  return tensor;
}

bool has_memory(const at::Tensor& tensor) {
  return !tensor.has_storage() || tensor.numel() == 0 || tensor.storage().nbytes() > 0;
}

void give_memory_back(const at::Tensor& tensor) {
  c10::StorageImpl* const storage = tensor.storage().unsafeGetStorageImpl();
  storage->set_data_ptr_noswap(storage->allocator()->allocate(0));
  storage->set_nbytes(0);
}

void take_zeroed_memory(const at::Tensor& tensor) {
  const at::NoGradGuard no_grad;
  c10::StorageImpl* const storage = tensor.storage().unsafeGetStorageImpl();
  storage->set_data_ptr_noswap(storage->allocator()->allocate(tensor.nbytes()));
  storage->set_nbytes(tensor.nbytes());
  tensor.zero_();
}

}  // namespace prefopt::detail
