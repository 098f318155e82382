// SPDX-License-Identifier: Apache-2.0
#include <cooperative_groups.h>
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_pipeline.h>

#include <cstring>
#include <limits>
#include <type_traits>

#include "logps/kernels/cuda/block_rows.h"
#include "logps/kernels/cuda/row_logps.h"

namespace prefopt::kernels::cuda {
namespace {

/// The Context of a running thread, see block_rows.h. Blocks with consecutive numbers share a row.
template <class State, class Element>
class DeviceContext {
 public:
  static constexpr int kWidth = Unit<Element>::kWidth;

  template <class T>
  struct PerThread {
    T value;
    __device__ T& operator[](Thread) { return value; }
  };

  __device__ DeviceContext(int blocks, int share, bool staged)
      : self_{static_cast<int>(blockIdx.x % static_cast<unsigned>(blocks)),
              static_cast<int>(threadIdx.x)},
        blocks_(blocks),
        share_(share),
        staged_(staged) {}

  template <class T>
  __device__ PerThread<T> values() const {
    return {};
  }

  template <class F>
  __device__ void each(const F& f) const {
    f(self_);
  }

  template <class T>
  __device__ PerThread<T> exchange(const PerThread<T>& values, int mask) const {
    constexpr int kWords = sizeof(T) / sizeof(unsigned);
    static_assert(kWords * sizeof(unsigned) == sizeof(T));
    unsigned words[kWords];
    std::memcpy(words, &values.value, sizeof(T));
    for (int i = 0; i < kWords; ++i) words[i] = __shfl_xor_sync(~0u, words[i], mask);
    PerThread<T> result;
    std::memcpy(&result.value, words, sizeof(T));
    return result;
  }

  __device__ void sync_block() const { __syncthreads(); }
  __device__ void sync_row() const {
#if __CUDA_ARCH__ >= 900
    if (blocks_ > 1) {
      cooperative_groups::this_cluster().sync();
      return;
    }
#endif
    __syncthreads();
  }

  __device__ int threads() const { return static_cast<int>(blockDim.x); }
  __device__ int blocks() const { return blocks_; }
  __device__ int share() const { return share_; }

  __device__ Scratch<State>& scratch(Thread) const {
    return *reinterpret_cast<Scratch<State>*>(shared());
  }
  __device__ Scratch<State>& scratch_of(int block) const {
#if __CUDA_ARCH__ >= 900
    if (blocks_ > 1) {
      return *cooperative_groups::this_cluster().map_shared_rank(&scratch(self_), block);
    }
#endif
    return scratch(Thread{block, 0});
  }

  __device__ bool is_staged() const { return staged_; }
  __device__ Unit<Element>* stage(Thread) const {
    return reinterpret_cast<Unit<Element>*>(shared() + kScratchBytes);
  }

  __device__ void fetch(Unit<Element>* to, const Element* from) const {
    __pipeline_memcpy_async(to, from, sizeof(*to));
  }
  __device__ void commit() const { __pipeline_commit(); }
  template <int n>
  __device__ void wait_but() const {
    __pipeline_wait_prior(n);
  }

  // By words: of elements of 2 bytes the compiler would make as many loads and stores.
  __device__ void read(const Unit<Element>* from, Accumulate<Element> (&values)[kWidth]) const {
    const uint4 loaded = *reinterpret_cast<const uint4*>(from);
    const unsigned words[4] = {loaded.x, loaded.y, loaded.z, loaded.w};
    if constexpr (std::is_same_v<Element, __nv_bfloat16>) {
      // The upper halves of floats: one operation each.
      for (int i = 0; i < 4; ++i) {
        values[2 * i] = __uint_as_float(words[i] << 16);
        values[2 * i + 1] = __uint_as_float(words[i] & 0xffff0000u);
      }
    } else {
      Unit<Element> unit;
      std::memcpy(&unit, words, sizeof(unit));
      for (int i = 0; i < kWidth; ++i) {
        values[i] = static_cast<Accumulate<Element>>(unit.values[i]);
      }
    }
  }
  __device__ void write(Element* to, const Unit<Element>& unit) const {
    uint4 words;
    std::memcpy(&words, &unit, sizeof(words));
    asm volatile("st.global.v4.b32 [%0], {%1, %2, %3, %4};" ::"l"(__cvta_generic_to_global(to)),
                 "r"(words.x), "r"(words.y), "r"(words.z), "r"(words.w)
                 : "memory");
  }

 private:
  __device__ static unsigned char* shared() {
    extern __shared__ __align__(16) unsigned char bytes[];
    return bytes;
  }

  Thread self_;
  int blocks_, share_;
  bool staged_;
};

template <class Element>
struct Task {
  LogitRows rows;
  LogitMap<Accumulate<Element>> map;
  std::int64_t first_row;
  int blocks, share;
  bool staged;

  __device__ std::int64_t row_index() const {
    return first_row + blockIdx.x / static_cast<unsigned>(blocks);
  }
  __device__ Row<Element> row() const {
    const std::int64_t index = row_index();
    const std::int64_t target = rows.targets[index];
    auto* const gradient = static_cast<Element*>(rows.gradient);
    return {static_cast<const Element*>(rows.logits) + index * rows.stride, rows.size, target,
            target == rows.ignored_target,
            gradient == nullptr ? nullptr : gradient + index * rows.gradient_stride};
  }
};

template <class Element, class State>
__global__ void __launch_bounds__(kBlockThreads)
    score(const __grid_constant__ Task<Element> task, double* statistics) {
  DeviceContext<State, Element> context(task.blocks, task.share, task.staged);
  score_row<State>(context, task.row(), task.map, statistics + task.row_index(), task.rows.rows);
}

template <class Element>
__global__ void __launch_bounds__(kBlockThreads)
    backpropagate(const __grid_constant__ Task<Element> task, FactorColumns factors,
                  const double* logsumexp) {
  DeviceContext<SoftmaxSum<Accumulate<Element>>, Element> context(task.blocks, task.share, false);
  const std::int64_t row = task.row_index();
  const double of_target = factors.of_target[row];
  RowFactors of_row{of_target, of_target, 0};
  if (factors.of_p != nullptr) {
    of_row.of_p = factors.of_p[row];
    of_row.of_p_log_p = factors.of_p_log_p[row];
  }
  backpropagate_row(context, task.row(), task.map, logsumexp[row], of_row);
}

cudaError_t limits_of(const void* kernel, DeviceLimits& limits) {
  int device = 0, shared_bytes = 0;
  cudaFuncAttributes attributes;
  cudaError_t error = cudaGetDevice(&device);
  if (error == cudaSuccess) {
    error = cudaDeviceGetAttribute(&limits.multiprocessors, cudaDevAttrMultiProcessorCount, device);
  }
  if (error == cudaSuccess) {
    error = cudaDeviceGetAttribute(&shared_bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, device);
  }
  if (error == cudaSuccess) error = cudaFuncGetAttributes(&attributes, kernel);
  if (error != cudaSuccess) return error;
  limits.shared_bytes = shared_bytes;
  // Depends on the compiled target: code for older devices has no clusters, wherever it runs.
  limits.clusters = attributes.ptxVersion >= 90;
  return cudaSuccess;
}

/// One launch, or several where a grid cannot have that many blocks.
template <class Element, class... Arguments>
cudaError_t launch(void (*kernel)(Task<Element>, Arguments...), const LogitRows& rows,
                   const Plan& plan, bool in_clusters, cudaStream_t stream,
                   Arguments... arguments) {
  // 16 GiB a block, which its int indices and some steps beyond can count.
  if (plan.share > std::int64_t{1} << 30) return cudaErrorInvalidValue;
  constexpr std::int64_t kSharedByDefault = 48 << 10;
  const std::int64_t shared = shared_bytes(plan);
  if (shared > kSharedByDefault) {
    const cudaError_t error = cudaFuncSetAttribute(
        kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(shared));
    if (error != cudaSuccess) return error;
  }
  cudaLaunchAttribute cluster{};
  cluster.id = cudaLaunchAttributeClusterDimension;
  cluster.val.clusterDim = {static_cast<unsigned>(plan.blocks), 1, 1};
  cudaLaunchConfig_t config{};
  config.blockDim = dim3(static_cast<unsigned>(plan.threads));
  config.dynamicSmemBytes = static_cast<std::size_t>(shared);
  config.stream = stream;
  config.attrs = &cluster;
  config.numAttrs = in_clusters && plan.blocks > 1 ? 1 : 0;
  constexpr std::int64_t kMaxGrid = std::numeric_limits<int>::max();
  const std::int64_t most = kMaxGrid / plan.blocks;
  Task<Element> task{rows,
                     {rows.scale, rows.softcap, rows.temperature},
                     0,
                     plan.blocks,
                     static_cast<int>(plan.share),
                     plan.staged};
  for (; task.first_row < rows.rows; task.first_row += most) {
    const std::int64_t left = rows.rows - task.first_row;
    config.gridDim = dim3(static_cast<unsigned>((left < most ? left : most) * plan.blocks));
    const cudaError_t error = cudaLaunchKernelEx(&config, kernel, task, arguments...);
    if (error != cudaSuccess) return error;
  }
  return cudaSuccess;
}

template <class Element, class State>
cudaError_t launch_scores(const LogitRows& rows, double* statistics, cudaStream_t stream) {
  const auto kernel = score<Element, State>;
  DeviceLimits limits;
  const cudaError_t error = limits_of(reinterpret_cast<const void*>(kernel), limits);
  if (error != cudaSuccess) return error;
  const Plan plan =
      plan_scores(rows.rows, rows.size, sizeof(Element), rows.gradient != nullptr, limits);
  return launch(kernel, rows, plan, /*in_clusters=*/true, stream, statistics);
}

template <class Element>
cudaError_t launch_gradients(const LogitRows& rows, const FactorColumns& factors,
                             const double* logsumexp, cudaStream_t stream) {
  const auto kernel = backpropagate<Element>;
  DeviceLimits limits;
  const cudaError_t error = limits_of(reinterpret_cast<const void*>(kernel), limits);
  if (error != cudaSuccess) return error;
  const Plan plan = plan_gradients(rows.rows, rows.size, sizeof(Element), limits);
  return launch(kernel, rows, plan, /*in_clusters=*/false, stream, factors, logsumexp);
}

/// f(Element()) for the type of the elements.
template <class F>
cudaError_t dispatch(ElementType element, const F& f) {
  switch (element) {
    case ElementType::kFloat:
      return f(float());
    case ElementType::kDouble:
      return f(double());
    case ElementType::kBFloat16:
      return f(__nv_bfloat16());
    case ElementType::kHalf:
      return f(__half());
  }
  return cudaErrorInvalidValue;
}

/// Takes an error back from the runtime, where the next caller would find it.
cudaError_t reported(cudaError_t error) {
  if (error != cudaSuccess) static_cast<void>(cudaGetLastError());
  return error;
}

}  // namespace

cudaError_t score_rows(const LogitRows& rows, bool all_statistics, double* statistics,
                       cudaStream_t stream) {
  if (rows.rows == 0) return cudaSuccess;
  return reported(dispatch(rows.element, [&](auto element) {
    using Element = decltype(element);
    using A = Accumulate<Element>;
    return all_statistics ? launch_scores<Element, SoftmaxMoments<A>>(rows, statistics, stream)
                          : launch_scores<Element, SoftmaxSum<A>>(rows, statistics, stream);
  }));
}

cudaError_t backpropagate_rows(const LogitRows& rows, const FactorColumns& factors,
                               const double* logsumexp, cudaStream_t stream) {
  if (rows.rows == 0) return cudaSuccess;
  return reported(dispatch(rows.element, [&](auto element) {
    return launch_gradients<decltype(element)>(rows, factors, logsumexp, stream);
  }));
}

}  // namespace prefopt::kernels::cuda
