// SPDX-License-Identifier: Apache-2.0
#include "support/pretend_device.h"

#include <ATen/CPUGeneratorImpl.h>
#include <ATen/EmptyTensor.h>
#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/detail/PrivateUse1HooksInterface.h>
#include <ATen/native/CPUFallback.h>
#include <ATen/ops/_local_scalar_dense.h>
#include <ATen/ops/_reshape_alias_native.h>
#include <ATen/ops/as_strided_native.h>
#include <ATen/ops/from_blob.h>
#include <ATen/ops/unfold_native.h>
#include <ATen/ops/view_native.h>
#include <c10/core/Allocator.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>
#include <sys/mman.h>
#include <torch/library.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cstring>
#include <map>
#include <mutex>
#include <string_view>

#include "prefopt/error.h"

namespace prefopt::testing_support {
namespace {

constexpr auto kPretend = c10::DeviceType::PrivateUse1;
constexpr const char* kName = "pretend";
const at::Device kDevice(kPretend, 0);

// --- memory -----------------------------------------------------------------------------------

/// Blocks that cannot be touched unless an operator has opened them.
class Memory {
 public:
  void* take(std::size_t bytes) {
    const std::size_t whole = whole_pages(bytes);
    const std::scoped_lock lock(mutex_);
    std::vector<void*>& free = free_[whole];
    if (!free.empty()) {
      void* const again = free.back();
      free.pop_back();
      return again;
    }
    void* const data = ::mmap(nullptr, whole, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    TORCH_CHECK(data != MAP_FAILED, "pretend device: no memory for ", bytes, " bytes");
    blocks_[data] = {whole, 0};
    return data;
  }

  void give_back(void* data) {
    const std::scoped_lock lock(mutex_);
    free_[blocks_.at(data).bytes].push_back(data);
  }

  void open(void* data) { change(data, +1, 1, PROT_READ | PROT_WRITE); }
  void close(void* data) { change(data, -1, 0, PROT_NONE); }

 private:
  struct Block {
    std::size_t bytes;
    int users;
  };

  static std::size_t whole_pages(std::size_t bytes) {
    const auto page = static_cast<std::size_t>(::sysconf(_SC_PAGESIZE));
    return (bytes + page - 1) / page * page;
  }

  // The protection changes where the number of users becomes `at`.
  void change(void* data, int by, int at, int protection) {
    if (data == nullptr) return;
    const std::scoped_lock lock(mutex_);
    Block& block = blocks_.at(data);
    block.users += by;
    if (block.users != at) return;
    TORCH_CHECK(::mprotect(data, block.bytes, protection) == 0, "pretend device: no protection");
  }

  std::mutex mutex_;
  std::map<void*, Block> blocks_;
  std::map<std::size_t, std::vector<void*>> free_;  // by their size, as closed as the others
};

Memory& memory() {
  static auto* const kMemory = new Memory;  // outlives all tensors
  return *kMemory;
}

class PretendAllocator final : public c10::Allocator {
 public:
  c10::DataPtr allocate(std::size_t bytes) override {
    void* const data = bytes == 0 ? nullptr : memory().take(bytes);
    return {data, data, &give_back, kDevice};
  }
  c10::DeleterFnPtr raw_deleter() const override { return &give_back; }
  void copy_data(void* to, const void* from, std::size_t bytes) const override {
    memory().open(to);
    memory().open(const_cast<void*>(from));
    std::memcpy(to, from, bytes);
    memory().close(const_cast<void*>(from));
    memory().close(to);
  }

 private:
  static void give_back(void* data) {
    if (data != nullptr) memory().give_back(data);
  }
};

PretendAllocator& allocator() {
  static auto* const kAllocator = new PretendAllocator;
  return *kAllocator;
}
REGISTER_ALLOCATOR(kPretend, &allocator())

/// The memory of a tensor, open while this lives, as a tensor of the CPU.
class Opened {
 public:
  explicit Opened(const at::Tensor& tensor) : tensor_(tensor) {
    if (tensor.is_cpu()) return;
    block_ = tensor.storage().unsafeGetStorageImpl()->_mutable_data_ptr_no_checks().get();
    memory().open(block_);
    auto* const first = static_cast<char*>(block_) +
                        tensor.storage_offset() * static_cast<std::int64_t>(tensor.itemsize());
    tensor_ = at::from_blob(first, tensor.sizes(), tensor.strides(), tensor.scalar_type());
  }
  ~Opened() { memory().close(block_); }
  Opened(const Opened&) = delete;
  Opened& operator=(const Opened&) = delete;

  const at::Tensor& here() const { return tensor_; }

 private:
  void* block_ = nullptr;
  at::Tensor tensor_;
};

// --- waits ------------------------------------------------------------------------------------

std::mutex g_waits_mutex;
std::vector<std::string> g_waits;
std::atomic<std::int64_t> g_fallbacks = 0;
thread_local int g_within_fallback = 0;  // whose copies are not those of the program

void add_wait(std::string_view what) {
  if (g_within_fallback > 0) return;
  const std::scoped_lock lock(g_waits_mutex);
  g_waits.emplace_back(what);
}

// --- operators --------------------------------------------------------------------------------

at::Tensor empty(c10::SymIntArrayRef size, std::optional<at::ScalarType> dtype,
                 std::optional<at::Layout> /*layout*/, std::optional<at::Device> /*device*/,
                 std::optional<bool> /*pin*/, std::optional<at::MemoryFormat> format) {
  return at::detail::empty_generic(C10_AS_INTARRAYREF_SLOW(size), &allocator(),
                                   c10::DispatchKeySet(c10::DispatchKey::PrivateUse1),
                                   c10::dtype_or_default(dtype), format);
}

at::Tensor empty_strided(c10::SymIntArrayRef size, c10::SymIntArrayRef stride,
                         std::optional<at::ScalarType> dtype, std::optional<at::Layout> /*layout*/,
                         std::optional<at::Device> /*device*/, std::optional<bool> /*pin*/) {
  return at::detail::empty_strided_generic(
      C10_AS_INTARRAYREF_SLOW(size), C10_AS_INTARRAYREF_SLOW(stride), &allocator(),
      c10::DispatchKeySet(c10::DispatchKey::PrivateUse1), c10::dtype_or_default(dtype));
}

at::Tensor as_strided(const at::Tensor& self, c10::SymIntArrayRef size, c10::SymIntArrayRef stride,
                      std::optional<c10::SymInt> offset) {
  return at::native::as_strided_tensorimpl(
      self, C10_AS_INTARRAYREF_SLOW(size), C10_AS_INTARRAYREF_SLOW(stride),
      offset ? std::optional(offset->expect_int()) : std::nullopt);
}

at::Tensor view(const at::Tensor& self, c10::SymIntArrayRef size) {
  return at::native::view(self, C10_AS_INTARRAYREF_SLOW(size));
}

at::Tensor reshape_alias(const at::Tensor& self, c10::SymIntArrayRef size,
                         c10::SymIntArrayRef stride) {
  return at::native::_reshape_alias(self, C10_AS_INTARRAYREF_SLOW(size),
                                    C10_AS_INTARRAYREF_SLOW(stride));
}

at::Tensor copy_from(const at::Tensor& self, const at::Tensor& to, bool non_blocking) {
  if (to.is_cpu()) add_wait("a copy to the CPU");
  if (self.is_cpu() && !non_blocking) add_wait("a blocking copy from the CPU");
  const at::AutoDispatchBelowADInplaceOrView below_autograd;
  const Opened from(self), into(to);
  into.here().copy_(from.here());
  return to;
}

const at::Tensor& resize(const at::Tensor& self, c10::SymIntArrayRef size,
                         std::optional<at::MemoryFormat> /*format*/) {
  at::TensorImpl* const impl = self.unsafeGetTensorImpl();
  impl->set_sizes_contiguous(C10_AS_INTARRAYREF_SLOW(size));
  const std::size_t bytes =
      (static_cast<std::size_t>(self.storage_offset()) + static_cast<std::size_t>(self.numel())) *
      self.itemsize();
  c10::StorageImpl& storage = *impl->unsafe_storage().unsafeGetStorageImpl();
  if (bytes <= storage.nbytes()) return self;
  c10::DataPtr grown = allocator().allocate(bytes);
  if (storage.nbytes() > 0) {
    void* const before = storage._mutable_data_ptr_no_checks().get();
    allocator().copy_data(grown.get(), before, storage.nbytes());
  }
  storage.set_data_ptr_noswap(std::move(grown));
  storage.set_nbytes(bytes);
  return self;
}

at::Tensor copy_from_and_resize(const at::Tensor& self, const at::Tensor& to) {
  if (to.sizes() != self.sizes()) to.resize_(self.sizes());
  return copy_from(self, to, /*non_blocking=*/false);
}

at::Tensor& set_storage(at::Tensor& self, at::Storage source, c10::SymInt offset,
                        c10::SymIntArrayRef size, c10::SymIntArrayRef stride) {
  at::TensorImpl* const impl = self.unsafeGetTensorImpl();
  impl->set_storage_keep_dtype(std::move(source));
  impl->set_storage_offset(offset.expect_int());
  if (stride.empty()) {
    impl->set_sizes_contiguous(C10_AS_INTARRAYREF_SLOW(size));
  } else {
    impl->set_sizes_and_strides(C10_AS_INTARRAYREF_SLOW(size), C10_AS_INTARRAYREF_SLOW(stride));
  }
  return self;
}

at::Scalar local_scalar(const at::Tensor& self) {
  add_wait("a single number");
  const at::AutoDispatchBelowADInplaceOrView below_autograd;
  const Opened opened(self);
  return at::_local_scalar_dense(opened.here());
}

/// The host has to know the result, or its size.
bool is_wait(const c10::FunctionSchema& schema) {
  constexpr std::array<std::string_view, 5> kSizes = {"aten::nonzero", "aten::masked_select",
                                                      "aten::_unique2", "aten::unique_dim",
                                                      "aten::repeat_interleave"};
  const bool of_size = std::find(kSizes.begin(), kSizes.end(), schema.name()) != kSizes.end();
  const auto is_number = [](const c10::Argument& result) {
    return !result.type()->isSubtypeOf(*c10::TensorType::get()) &&
           result.type()->kind() != c10::TypeKind::ListType;
  };
  return of_size || std::any_of(schema.returns().begin(), schema.returns().end(), is_number);
}

/// Only single numbers may lie on the host, as with CUDA.
void check_device(const at::Tensor& tensor, const c10::FunctionSchema& schema) {
  TORCH_CHECK(!tensor.defined() || !tensor.is_cpu() || tensor.dim() == 0,
              "pretend device: ", schema.name(),
              " expects tensors of one device, got one of the CPU");
}

void check_devices(const c10::FunctionSchema& schema, const torch::jit::Stack& stack) {
  const std::size_t count = schema.arguments().size();
  for (std::size_t i = stack.size() - count; i < stack.size(); ++i) {
    if (stack[i].isTensor()) check_device(stack[i].toTensor(), schema);
    if (stack[i].isTensorList()) {
      for (const at::Tensor& tensor : stack[i].toTensorList()) check_device(tensor, schema);
    }
    if (stack[i].isOptionalTensorList()) {
      for (const std::optional<at::Tensor>& tensor : stack[i].toOptionalTensorList()) {
        if (tensor) check_device(*tensor, schema);
      }
    }
  }
}

void fallback(const c10::OperatorHandle& op, torch::jit::Stack* stack) {
  TORCH_CHECK(op.schema().name().find("prefopt::") != 0,
              "pretend device: expected an operator of LibTorch, got ", op.schema().name());
  check_devices(op.schema(), *stack);
  if (is_wait(op.schema())) add_wait(op.schema().name());
  ++g_fallbacks;
  ++g_within_fallback;
  try {
    at::native::cpu_fallback(op, stack);
  } catch (...) {
    --g_within_fallback;
    throw;
  }
  --g_within_fallback;
}

TORCH_LIBRARY_IMPL(_, PrivateUse1, library) {
  library.fallback(torch::CppFunction::makeFromBoxedFunction<&fallback>());
}

TORCH_LIBRARY_IMPL(aten, PrivateUse1, library) {
  library.impl("empty.memory_format", TORCH_FN(empty));
  library.impl("empty_strided", TORCH_FN(empty_strided));
  library.impl("as_strided", TORCH_FN(as_strided));
  library.impl("view", TORCH_FN(view));
  library.impl("_reshape_alias", TORCH_FN(reshape_alias));
  library.impl("unfold", TORCH_FN(at::native::unfold));
  library.impl("resize_", TORCH_FN(resize));
  library.impl("set_.source_Storage_storage_offset", TORCH_FN(set_storage));
  library.impl("_copy_from", TORCH_FN(copy_from));
  library.impl("_copy_from_and_resize", TORCH_FN(copy_from_and_resize));
  library.impl("_local_scalar_dense", TORCH_FN(local_scalar));
}

// --- device -----------------------------------------------------------------------------------

bool g_is_offered = false;

/// One device and one stream, on which everything is done at once.
struct PretendGuard final : c10::impl::DeviceGuardImplInterface {
  c10::DeviceType type() const override { return kPretend; }
  c10::Device exchangeDevice(c10::Device) const override { return kDevice; }
  c10::Device getDevice() const override { return kDevice; }
  void setDevice(c10::Device) const override {}
  void uncheckedSetDevice(c10::Device) const noexcept override {}
  c10::Stream getStream(c10::Device device) const override {
    return c10::Stream(c10::Stream::DEFAULT, device.has_index() ? device : kDevice);
  }
  c10::Stream getDefaultStream(c10::Device device) const override { return getStream(device); }
  c10::Stream exchangeStream(c10::Stream stream) const override { return stream; }
  c10::DeviceIndex deviceCount() const noexcept override { return g_is_offered ? 1 : 0; }
  void record(void**, const c10::Stream&, c10::DeviceIndex, c10::EventFlag) const override {}
  void block(void*, const c10::Stream&) const override {}
  bool queryEvent(void*) const override { return true; }
};
C10_REGISTER_GUARD_IMPL(PrivateUse1, PretendGuard)

struct PretendHooks final : at::PrivateUse1HooksInterface {
  bool isBuilt() const override { return true; }
  bool isAvailable() const override { return true; }
  bool hasPrimaryContext(c10::DeviceIndex) const override { return true; }
  c10::DeviceIndex deviceCount() const override { return g_is_offered ? 1 : 0; }
  // Nobody draws from it: draws are the host's, for all devices. A seed for all generators sets it.
  const at::Generator& getDefaultGenerator(c10::DeviceIndex) const override {
    static const at::Generator kGenerator = at::detail::createCPUGenerator();
    return kGenerator;
  }
};

const bool kIsRegistered = [] {
  c10::register_privateuse1_backend(kName);
  at::RegisterPrivateUse1HooksInterface(new PretendHooks);
  return true;
}();

}  // namespace

void offer_pretend_device() { g_is_offered = true; }

at::Device pretend_device() {
  if (!g_is_offered) {
    throw Error("pretend device: expected tests with the tag [device] alone, got others with them");
  }
  return kDevice;
}

std::vector<std::string> take_waits() {
  const std::scoped_lock lock(g_waits_mutex);
  return std::exchange(g_waits, {});
}

std::int64_t fallbacks() { return g_fallbacks; }

}  // namespace prefopt::testing_support
