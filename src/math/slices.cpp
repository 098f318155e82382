// SPDX-License-Identifier: Apache-2.0
#include "math/slices.h"

#include <algorithm>

namespace prefopt::detail {
namespace {

/// Calls `copy` with the same part of both: the full rows, and the beginning of the one after them.
template <class Copy>
void for_each_part(const at::Tensor& rows, const at::Tensor& numbers, const Copy& copy) {
  const std::int64_t each = rows.size(1);
  if (each == 0) return;
  const std::int64_t full = numbers.size(0) / each;
  const std::int64_t left = numbers.size(0) - full * each;
  copy(rows.narrow(0, 0, full), numbers.narrow(0, 0, full * each).view({full, each}));
  if (left > 0) copy(rows[full].narrow(0, 0, left), numbers.narrow(0, full * each, left));
}

}  // namespace

void cut(const at::Tensor& numbers, const at::Tensor& rows) {
  for_each_part(rows, numbers,
                [](const at::Tensor& to, const at::Tensor& from) { to.copy_(from); });
}

void join(const at::Tensor& rows, const at::Tensor& numbers) {
  for_each_part(rows, numbers,
                [](const at::Tensor& from, const at::Tensor& to) { to.copy_(from); });
}

at::Tensor slice_of(const at::Tensor& numbers, int rank, int ranks) {
  const std::int64_t each = slice_size(numbers.size(0), ranks);
  const std::int64_t first = std::min(rank * each, numbers.size(0));
  return numbers.narrow(0, first, std::min(each, numbers.size(0) - first));
}

}  // namespace prefopt::detail
