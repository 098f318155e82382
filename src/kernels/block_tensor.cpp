// SPDX-License-Identifier: Apache-2.0
#include "kernels/block_tensor.h"

#include <ATen/OpaqueTensorImpl.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/mm.h>
#include <c10/util/StringUtil.h>
#include <fmt/format.h>
#include <torch/csrc/autograd/custom_function.h>

#include <utility>

#include "kernels/cpu/linear.h"
#include "prefopt/error.h"

namespace prefopt::kernels {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;
using Handle = std::shared_ptr<const StoredBlocks>;
using BlockTensorImpl = at::OpaqueTensorImpl<Handle>;

/// Returns whether the CPU's kernels, which make no graph, take the weight: blocks, or float32
/// numbers without a graph, for which they give the same bits.
bool is_for_kernels(const at::Tensor& x, const at::Tensor& weight) {
  if (blocks_of(weight)) return true;
  return x.is_cpu() && weight.is_cpu() && x.scalar_type() == at::kFloat &&
         weight.scalar_type() == at::kFloat;
}

/// Calls f(type, weight) with the weight as the kernels take it.
template <class F>
void with_weight(const at::Tensor& weight, const F& f) {
  if (const StoredBlocks* blocks = blocks_of(weight)) return f(cpu::BlockMatrix(), blocks->matrix);
  const at::Tensor rows = weight.contiguous();
  f(0.0F, cpu::Rows<const float>{rows.const_data_ptr<float>(), rows.size(1)});
}

/// A product with a weight that no gradient is asked of.
struct FrozenProduct : torch::autograd::Function<FrozenProduct> {
  static at::Tensor forward(AutogradContext* context, const at::Tensor& x,
                            const at::Tensor& weight) {
    context->saved_data["weight"] = weight;
    const at::Tensor rows = x.contiguous();
    const cpu::LinearSizes sizes{rows.size(0), rows.size(1), weight.size(0)};
    at::Tensor y = at::empty({sizes.rows, sizes.out}, rows.options());
    with_weight(weight, [&](auto type, const auto& w) {
      cpu::linear_forward<float, decltype(type)>({sizes,
                                                  {rows.const_data_ptr<float>(), sizes.in},
                                                  w,
                                                  {y.mutable_data_ptr<float>(), sizes.out}});
    });
    return y;
  }

  static variable_list backward(AutogradContext* context, const variable_list& gradients) {
    return {product_gradient(gradients[0], context->saved_data["weight"].toTensor()), {}};
  }
};

}  // namespace

at::Tensor make_block_tensor(StoredBlocks blocks) {
  const auto shared = std::make_shared<StoredBlocks>(std::move(blocks));
  shared->matrix.places = shared->places.empty() ? nullptr : shared->places.data();
  return at::detail::make_tensor<BlockTensorImpl>(
      c10::DispatchKeySet(c10::DispatchKey::CPU), caffe2::TypeMeta::Make<float>(),
      c10::Device(c10::kCPU), Handle(shared),
      at::IntArrayRef({shared->rows, shared->matrix.columns}));
}

const StoredBlocks* blocks_of(const at::Tensor& tensor) {
  const auto* impl = dynamic_cast<const BlockTensorImpl*>(tensor.unsafeGetTensorImpl());
  return impl == nullptr ? nullptr : impl->opaque_handle().get();
}

void check_trainable(const at::Tensor& weight, std::string_view name) {
  const StoredBlocks* blocks = blocks_of(weight);
  if (blocks == nullptr) return;
  throw ConfigError(fmt::format(
      "{}: expected a weight in a floating dtype to train, got one in {} blocks; train an adapter "
      "(model.use_lora), or load the model in float32 (model.base)",
      name, blocks->encoding));
}

at::Tensor narrow_rows(const at::Tensor& matrix, std::int64_t begin, std::int64_t count) {
  const StoredBlocks* all = blocks_of(matrix);
  if (all == nullptr) return matrix.narrow(0, begin, count);
  StoredBlocks part = *all;
  part.rows = count;
  part.places.clear();
  for (std::int64_t row = begin; row < begin + count; ++row) {
    part.places.push_back(all->places.empty() ? row : all->places[static_cast<std::size_t>(row)]);
  }
  return make_block_tensor(std::move(part));
}

at::Tensor rows_at(const StoredBlocks& blocks, const at::Tensor& ids) {
  const at::Tensor flat = ids.reshape(-1).contiguous();
  at::Tensor rows = at::empty({flat.size(0), blocks.matrix.columns}, at::kFloat);
  const auto* id = flat.const_data_ptr<std::int64_t>();
  for (std::int64_t i = 0; i < flat.size(0); ++i) {
    decode_row(blocks.matrix, id[i], rows.mutable_data_ptr<float>() + i * blocks.matrix.columns);
  }
  return rows;
}

at::Tensor with_numbers(const at::Tensor& matrix) {
  const StoredBlocks* blocks = blocks_of(matrix);
  if (blocks == nullptr) return matrix;
  at::Tensor numbers = at::empty({blocks->rows, blocks->matrix.columns}, at::kFloat);
  decode_slice(blocks->matrix, {0, blocks->rows, 0, blocks->matrix.columns},
               numbers.mutable_data_ptr<float>());
  return numbers;
}

at::Tensor product(const at::Tensor& x, const at::Tensor& weight) {
  if (blocks_of(weight) && x.scalar_type() != at::kFloat) {
    throw DtypeError(fmt::format("decoder: expected float32 rows for a weight in {} blocks, got {}",
                                 blocks_of(weight)->encoding, c10::toString(x.scalar_type())));
  }
  const bool is_trained = at::GradMode::is_enabled() && weight.requires_grad();
  if (is_trained || !is_for_kernels(x, weight)) return at::mm(x, weight.t());
  return FrozenProduct::apply(x, weight);
}

at::Tensor product_gradient(const at::Tensor& dy, const at::Tensor& weight) {
  const bool makes_graph = at::GradMode::is_enabled() && dy.requires_grad();
  if (!is_for_kernels(dy, weight) || (makes_graph && !blocks_of(weight))) {
    return at::mm(dy, weight);  // a gradient of the gradient
  }
  const at::Tensor rows = dy.contiguous();
  const cpu::LinearSizes sizes{rows.size(0), weight.size(1), weight.size(0)};
  at::Tensor dx = at::empty({sizes.rows, sizes.in}, rows.options());
  with_weight(weight, [&](auto type, const auto& w) {
    cpu::linear_input_grad<float, decltype(type)>({sizes,
                                                   {rows.const_data_ptr<float>(), sizes.out},
                                                   w,
                                                   {dx.mutable_data_ptr<float>(), sizes.in}});
  });
  return dx;
}

}  // namespace prefopt::kernels
