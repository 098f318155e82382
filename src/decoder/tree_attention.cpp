// SPDX-License-Identifier: Apache-2.0
#include "decoder/tree_attention.h"

#include <ATen/ops/empty.h>
#include <c10/util/StringUtil.h>
#include <fmt/format.h>

#include <algorithm>
#include <atomic>
#include <numeric>
#include <string_view>

#include "core/memory_pool.h"
#include "core/parallel.h"
#include "kernels/cpu/attention.h"
#include "prefopt/error.h"

namespace prefopt {
namespace {

using kernels::cpu::AttentionShape;
using kernels::cpu::AttentionTask;
using kernels::cpu::AttentionWorkspace;
using kernels::cpu::HeadRows;
using kernels::cpu::KeyRange;

// --- input ------------------------------------------------------------------------------------

void check_like(const at::Tensor& tensor, std::string_view name, const at::Tensor& query) {
  if (tensor.scalar_type() != query.scalar_type()) {
    throw DtypeError(fmt::format("tree_attention: expected {} of the query's {}, got {}", name,
                                 c10::toString(query.scalar_type()),
                                 c10::toString(tensor.scalar_type())));
  }
  if (!tensor.device().is_cpu()) {
    throw DeviceError(
        fmt::format("tree_attention: expected {} on the CPU, got {}", name, tensor.device().str()));
  }
}

void check_tensors(const at::Tensor& query, const at::Tensor& key, const at::Tensor& value) {
  if (query.scalar_type() != at::kFloat && query.scalar_type() != at::kDouble) {
    throw DtypeError(fmt::format("tree_attention: expected a query of float32 or float64, got {}",
                                 c10::toString(query.scalar_type())));
  }
  check_like(query, "query", query);
  check_like(key, "key", query);
  check_like(value, "value", query);
  const bool fits = query.dim() == 3 && key.dim() == 3 && key.sizes() == value.sizes() &&
                    key.size(2) == query.size(2) && key.size(1) > 0 &&
                    query.size(1) % key.size(1) == 0;
  if (!fits) {
    throw ShapeError(fmt::format(
        "tree_attention: expected query [Nq, heads, head_dim], key and value [Nk, kv_heads, "
        "head_dim] with heads a multiple of kv_heads, got {}, {} and {}",
        c10::str(query.sizes()), c10::str(key.sizes()), c10::str(value.sizes())));
  }
}

void check_results(const at::Tensor& grad_output, const AttentionResult& result,
                   const at::Tensor& query) {
  check_like(grad_output, "grad_output", query);
  check_like(result.output, "output", query);
  const bool fits = grad_output.sizes() == query.sizes() &&
                    result.output.sizes() == query.sizes() &&
                    result.logsumexp.scalar_type() == at::kDouble &&
                    result.logsumexp.sizes() == at::IntArrayRef({query.size(1), query.size(0)});
  if (!fits) {
    throw ShapeError(fmt::format(
        "tree_attention_backward: expected grad_output and output of the query's shape {} and "
        "logsumexp [heads, Nq] of float64, got {}, {} and {} of {}",
        c10::str(query.sizes()), c10::str(grad_output.sizes()), c10::str(result.output.sizes()),
        c10::str(result.logsumexp.sizes()), c10::toString(result.logsumexp.scalar_type())));
  }
}

bool lies_in(std::int64_t begin, std::int64_t length, std::int64_t rows) {
  return begin >= 0 && length >= 0 && begin <= rows && length <= rows - begin;
}

void check_blocks(const std::vector<AttentionBlock>& blocks, std::int64_t queries,
                  std::int64_t keys) {
  std::vector<bool> taken(static_cast<std::size_t>(queries));
  std::int64_t count = 0;
  for (std::size_t i = 0; i < blocks.size(); ++i) {
    const AttentionBlock& block = blocks[i];
    const bool fits = lies_in(block.query, block.length, queries) &&
                      lies_in(block.key, block.length, keys) &&
                      lies_in(block.prefix, block.prefix_length, keys) && block.past >= 0 &&
                      block.past <= block.key;
    if (!fits) {
      throw ShapeError(fmt::format(
          "tree_attention: expected blocks within {} queries and {} keys, got block {} of queries "
          "[{}, +{}), keys [{}, +{}) with {} before them, prefix [{}, +{})",
          queries, keys, i, block.query, block.length, block.key, block.length, block.past,
          block.prefix, block.prefix_length));
    }
    const auto first = taken.begin() + block.query;
    count += std::count(first, first + block.length, false);
    std::fill(first, first + block.length, true);
  }
  const std::int64_t lengths = std::accumulate(
      blocks.begin(), blocks.end(), std::int64_t{0},
      [](std::int64_t sum, const AttentionBlock& block) { return sum + block.length; });
  if (count != queries || lengths != queries) {
    throw ShapeError(fmt::format(
        "tree_attention: expected each of {} queries in exactly one block, got blocks of {} "
        "queries, {} of them different",
        queries, lengths, count));
  }
}

/// As it is if its rows are dense, whatever lies between them.
at::Tensor with_dense_rows(const at::Tensor& rows) {
  const bool dense = (rows.size(2) <= 1 || rows.stride(2) == 1) &&
                     (rows.size(1) <= 1 || rows.stride(1) == rows.size(2));
  return dense ? rows : rows.contiguous();
}

// --- work -------------------------------------------------------------------------------------

/// A task and the kv head that it is for.
struct HeadTask {
  AttentionTask task;
  std::int64_t kv_head;

  double work() const {
    return static_cast<double>(task.queries) *
           (static_cast<double>(task.keys()) - static_cast<double>(task.queries) / 2);
  }
};

/// Cuts a long block among threads, but into few parts: in the backward pass each of them
/// has gradients of all keys that it sees.
std::int64_t queries_of_task(std::int64_t length) {
  constexpr std::int64_t kLeast = 192;
  constexpr std::int64_t kMostTasks = 4;
  // A multiple of 48 queries fills the kernel's tiles for every number of heads.
  const std::int64_t part = (length + kMostTasks - 1) / kMostTasks;
  return std::max(kLeast, (part + 47) / 48 * 48);
}

/// Leaves out the keys that lie too far back for all of the task's queries.
AttentionTask within_window(AttentionTask task, std::int64_t window) {
  if (window == 0) return task;
  const std::int64_t unseen = std::max<std::int64_t>(task.keys() - task.queries + 1 - window, 0);
  const std::int64_t of_prefix = std::min(unseen, task.prefix.length);
  const std::int64_t of_own = unseen - of_prefix;
  task.prefix = {task.prefix.begin + of_prefix, task.prefix.length - of_prefix};
  task.own = {task.own.begin + of_own, task.own.length - of_own};
  return task;
}

std::vector<HeadTask> tasks_of(const std::vector<AttentionBlock>& blocks, std::int64_t kv_heads,
                               std::int64_t window) {
  std::vector<HeadTask> tasks;
  for (const AttentionBlock& block : blocks) {
    const std::int64_t step = queries_of_task(block.length);
    for (std::int64_t first = 0; first < block.length; first += step) {
      const std::int64_t queries = std::min(step, block.length - first);
      const AttentionTask task =
          within_window({block.query + first,
                         queries,
                         {block.prefix, block.prefix_length},
                         {block.key - block.past, block.past + first + queries}},
                        window);
      for (std::int64_t h = 0; h < kv_heads; ++h) tasks.push_back({task, h});
    }
  }
  return tasks;
}

/// Calls f(i, workspace) for each task, the longest first, on whichever thread is free.
template <class T, class F>
void for_each_task(const std::vector<HeadTask>& tasks, const AttentionShape& shape, const F& f) {
  std::vector<std::size_t> order(tasks.size());
  std::iota(order.begin(), order.end(), std::size_t{0});
  std::stable_sort(order.begin(), order.end(),
                   [&](std::size_t a, std::size_t b) { return tasks[a].work() > tasks[b].work(); });
  std::int64_t most_keys = 0;
  for (const HeadTask& t : tasks) most_keys = std::max(most_keys, t.task.keys());
  std::atomic<std::size_t> next = 0;
  parallel_for(0, static_cast<std::int64_t>(tasks.size()), 1, [&](std::int64_t, std::int64_t) {
    AttentionWorkspace<T> workspace(shape, most_keys);
    for (std::size_t i = next++; i < order.size(); i = next++) f(order[i], workspace);
  });
}

AttentionShape shape_of(const at::Tensor& query, const at::Tensor& key, double scale,
                        const AttentionLimits& limits) {
  return {query.size(1) / key.size(1), query.size(2), scale, limits.window, limits.softcap};
}

/// Rows of a kv head, or of the query heads that share it.
template <class T>
HeadRows<const T> rows_of(const at::Tensor& tensor, std::int64_t first_head) {
  return {tensor.const_data_ptr<T>() + first_head * tensor.size(2), tensor.stride(0)};
}
template <class T>
HeadRows<T> mutable_rows_of(const at::Tensor& tensor, std::int64_t first_head) {
  return {tensor.data_ptr<T>() + first_head * tensor.size(2), tensor.stride(0)};
}

template <class T>
void forward(const at::Tensor& query, const at::Tensor& key, const at::Tensor& value,
             const std::vector<HeadTask>& tasks, const AttentionShape& shape,
             const AttentionResult& result) {
  const std::int64_t queries = query.size(0);
  for_each_task<T>(tasks, shape, [&](std::size_t i, AttentionWorkspace<T>& workspace) {
    const std::int64_t h = tasks[i].kv_head;
    const std::int64_t first_head = h * shape.groups;
    kernels::cpu::attention_forward<T>(
        tasks[i].task, shape,
        {rows_of<T>(query, first_head), rows_of<T>(key, h), rows_of<T>(value, h),
         mutable_rows_of<T>(result.output, first_head),
         result.logsumexp.data_ptr<double>() + first_head * queries, queries},
        workspace);
  });
}

/// Gradients of keys or values that each task made on its own, and where they belong.
template <class T>
class TaskGradients {
 public:
  TaskGradients(const std::vector<HeadTask>& tasks, std::int64_t dim)
      : tasks_(tasks), padded_(kernels::cpu::padded_dim(dim)) {
    std::int64_t size = 0;
    for (const HeadTask& t : tasks) {
      offsets_.push_back(size);
      size += t.task.keys() * padded_;
    }
    buffer_ = kernels::cpu::Buffer<T>(size);
  }

  T* of(std::size_t task) const { return buffer_.data() + offsets_[task]; }

  /// out[key, head, :] = Σ over tasks, in their order, so that threads change no bit.
  void sum_into(at::Tensor& out) const {
    constexpr std::int64_t kRows = 64;
    const std::int64_t parts = (out.size(0) + kRows - 1) / kRows;
    parallel_for(0, parts, 1, [&](std::int64_t begin, std::int64_t end) {
      const KeyRange rows{begin * kRows, std::min(end * kRows, out.size(0)) - begin * kRows};
      out.narrow(0, rows.begin, rows.length).zero_();
      for (std::size_t i = 0; i < tasks_.size(); ++i) {
        const AttentionTask& task = tasks_[i].task;
        add(of(i), task.prefix, rows, tasks_[i].kv_head, out);
        add(of(i) + task.prefix.length * padded_, task.own, rows, tasks_[i].kv_head, out);
      }
    });
  }

 private:
  void add(const T* gradient, KeyRange keys, KeyRange rows, std::int64_t head,
           at::Tensor& out) const {
    const std::int64_t begin = std::max(keys.begin, rows.begin);
    const std::int64_t end = std::min(keys.begin + keys.length, rows.begin + rows.length);
    if (begin >= end) return;
    const auto target = mutable_rows_of<T>(out, head);
    kernels::cpu::add_task_gradient<T>(gradient + (begin - keys.begin) * padded_, end - begin,
                                       out.size(2),
                                       {target.data + begin * target.stride, target.stride});
  }

  const std::vector<HeadTask>& tasks_;
  std::int64_t padded_;
  std::vector<std::int64_t> offsets_;
  kernels::cpu::Buffer<T> buffer_;
};

template <class T>
void backward(const at::Tensor& grad_output, const at::Tensor& query, const at::Tensor& key,
              const at::Tensor& value, const AttentionResult& result,
              const std::vector<HeadTask>& tasks, const AttentionShape& shape,
              AttentionGradients& grads) {
  const std::int64_t queries = query.size(0);
  const TaskGradients<T> of_keys(tasks, shape.dim), of_values(tasks, shape.dim);
  for_each_task<T>(tasks, shape, [&](std::size_t i, AttentionWorkspace<T>& workspace) {
    const std::int64_t h = tasks[i].kv_head;
    const std::int64_t first_head = h * shape.groups;
    kernels::cpu::attention_backward<T>(
        tasks[i].task, shape,
        {rows_of<T>(grad_output, first_head), rows_of<T>(query, first_head), rows_of<T>(key, h),
         rows_of<T>(value, h), rows_of<T>(result.output, first_head),
         result.logsumexp.const_data_ptr<double>() + first_head * queries, queries,
         mutable_rows_of<T>(grads.query, first_head), of_keys.of(i), of_values.of(i)},
        workspace);
  });
  of_keys.sum_into(grads.key);
  of_values.sum_into(grads.value);
}

}  // namespace

AttentionResult tree_attention(const at::Tensor& query, const at::Tensor& key,
                               const at::Tensor& value, const std::vector<AttentionBlock>& blocks,
                               double scale, const AttentionLimits& limits) {
  check_tensors(query, key, value);
  check_blocks(blocks, query.size(0), key.size(0));
  AttentionResult result{
      empty_from_pool(query.sizes(), query.scalar_type()),
      at::empty({query.size(1), query.size(0)}, query.options().dtype(at::kDouble))};
  const auto tasks = tasks_of(blocks, key.size(1), limits.window);
  const auto pass = query.scalar_type() == at::kDouble ? forward<double> : forward<float>;
  pass(with_dense_rows(query), with_dense_rows(key), with_dense_rows(value), tasks,
       shape_of(query, key, scale, limits), result);
  return result;
}

AttentionGradients tree_attention_backward(const at::Tensor& grad_output, const at::Tensor& query,
                                           const at::Tensor& key, const at::Tensor& value,
                                           const AttentionResult& forward_result,
                                           const std::vector<AttentionBlock>& blocks, double scale,
                                           const AttentionLimits& limits) {
  check_tensors(query, key, value);
  check_blocks(blocks, query.size(0), key.size(0));
  check_results(grad_output, forward_result, query);
  AttentionGradients grads{empty_from_pool(query.sizes(), query.scalar_type()),
                           empty_from_pool(key.sizes(), key.scalar_type()),
                           empty_from_pool(value.sizes(), value.scalar_type())};
  const auto tasks = tasks_of(blocks, key.size(1), limits.window);
  const auto pass = query.scalar_type() == at::kDouble ? backward<double> : backward<float>;
  pass(with_dense_rows(grad_output), with_dense_rows(query), with_dense_rows(key),
       with_dense_rows(value),
       {with_dense_rows(forward_result.output), forward_result.logsumexp.contiguous()}, tasks,
       shape_of(query, key, scale, limits), grads);
  return grads;
}

}  // namespace prefopt
