// SPDX-License-Identifier: Apache-2.0
#pragma once

// Tensors that give their memory back for a time, and keep their shape, their place in a graph and
// those who hold them.

#include <ATen/core/Tensor.h>

namespace prefopt::detail {

/// Returns a dense tensor without memory.
at::Tensor without_memory(at::IntArrayRef sizes, at::TensorOptions options);

/// Returns whether a tensor has its memory; true for one without numbers.
bool has_memory(const at::Tensor& tensor);

/// Gives the memory of a dense tensor back, which is its storage's only user. Reading it is an
/// error then.
void give_memory_back(const at::Tensor& tensor);

/// Takes memory for a tensor that has none, and leaves zeros in it. Throws std::bad_alloc, and
/// c10::OutOfMemoryError of a GPU.
void take_zeroed_memory(const at::Tensor& tensor);

}  // namespace prefopt::detail
