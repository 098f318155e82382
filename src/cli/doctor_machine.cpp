// SPDX-License-Identifier: Apache-2.0
#include <ATen/Context.h>
#include <ATen/Parallel.h>
#include <ATen/TensorOperators.h>
#include <ATen/Version.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/isfinite.h>
#include <ATen/ops/log_softmax.h>
#include <ATen/ops/ones.h>
#include <ATen/ops/randint.h>
#include <ATen/ops/randn.h>
#include <fcntl.h>
#include <fmt/format.h>
#include <torch/version.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <cmath>
#include <cstdlib>
#include <exception>
#include <filesystem>
#include <memory>
#include <ostream>
#include <sstream>
#include <string>
#include <string_view>
#include <system_error>
#include <utility>
#include <vector>

#include "cli/finding.h"
#include "core/descriptor.h"
#include "core/json.h"
#include "core/machine.h"
#include "core/system_calls.h"
#include "kernels/cpu/target.h"
#include "policy/token_range.h"
#include "prefopt/data/dataset.h"
#include "prefopt/decoder/decoder.h"
#include "prefopt/error.h"
#include "prefopt/logps/token_logps.h"

namespace prefopt::cli {
namespace {

namespace fs = std::filesystem;
using detail::Json;
using Clock = std::chrono::steady_clock;

std::string gibibytes(std::int64_t bytes) {
  return fmt::format("{:.1f} GiB", static_cast<double>(bytes) / (1 << 30));
}

Finding processor(const detail::Machine& machine) {
  const std::string simd = kernels::cpu::simd_target();
  const bool is_slow = simd.find("AVX") == std::string::npos;
  return {.subject = "processor",
          .status = is_slow ? Status::kWarning : Status::kOk,
          .found = fmt::format("{}; kernels for {}, LibTorch for {}",
                               machine.processor.empty() ? "unknown" : machine.processor, simd,
                               at::get_cpu_capability()),
          .advice = is_slow ? "a processor with AVX2 or AVX-512 is several times faster" : ""};
}

Finding gpu() {
  if (!at::hasCUDA()) {
    return {.subject = "CUDA", .found = "none; everything is computed on the CPU"};
  }
  return {.subject = "CUDA",
          .status = Status::kWarning,
          .found = "present",
          .advice = "the command computes on the CPU; the library takes tensors on the GPU"};
}

Finding threads(const detail::Machine& machine) {
  const std::int64_t cores = machine.usable_cores();
  const std::int64_t used = at::get_num_threads();
  std::string found = fmt::format("{} of LibTorch on {} cores", used, machine.cores);
  if (machine.core_limit) found += fmt::format(", of which {:.2g} at a time", *machine.core_limit);
  for (const char* name : {"OMP_NUM_THREADS", "MKL_NUM_THREADS", "OMP_PROC_BIND"}) {
    if (const char* value = std::getenv(name)) found += fmt::format(", {}={}", name, value);
  }
  Finding finding{.subject = "threads", .found = found};
  if (used > cores) {
    finding.status = Status::kWarning;
    finding.advice = fmt::format(
        "more threads than cores wait for each other: set machine.threads "
        "or OMP_NUM_THREADS to {}",
        cores);
  } else if (2 * used < cores) {
    finding.status = Status::kWarning;
    finding.advice =
        fmt::format("set machine.threads or OMP_NUM_THREADS to {} for all cores", cores);
  }
  return finding;
}

Finding libtorch() {
  return {.subject = "LibTorch",
          .found = fmt::format("{}{}{}", TORCH_VERSION, at::hasMKL() ? ", with MKL" : "",
                               at::hasOpenMP() ? ", with OpenMP" : "")};
}

Finding memory(const detail::Machine& machine) {
  constexpr std::int64_t kLittle = std::int64_t{2} << 30;
  const auto usable = machine.usable_memory();
  if (!usable) return {.subject = "memory", .found = "the system does not say"};
  std::string found = gibibytes(*usable) + " can be used";
  if (machine.total_memory) found += fmt::format(" of {}", gibibytes(*machine.total_memory));
  if (machine.memory_limit) {
    found +=
        fmt::format(", {} is the limit of the control group", gibibytes(*machine.memory_limit));
  }
  const bool is_little = *usable < kLittle;
  return {.subject = "memory",
          .status = is_little ? Status::kWarning : Status::kOk,
          .found = found,
          .advice = is_little ? "a smaller batch.micro_tokens or model.use_lora take less" : ""};
}

/// Hidden states and a head whose log-probs and gradients are computed twice.
struct KernelCase {
  at::Tensor hidden, weight, targets;
  static KernelCase random(at::ScalarType dtype) {
    constexpr std::int64_t kRows = 33, kHidden = 48, kVocab = 1003;
    return {.hidden = at::randn({kRows, kHidden}, dtype),
            .weight = at::randn({kVocab, kHidden}, dtype) * 0.2,
            .targets = at::randint(kVocab, {kRows}, at::kLong)};
  }
};

/// The largest difference of log-probs and gradients from LibTorch's own in float64.
double kernel_error(const KernelCase& given) {
  const at::Tensor hidden = given.hidden.detach().clone().requires_grad_();
  const at::Tensor weight = given.weight.detach().clone().requires_grad_();
  const at::Tensor logps = linear_token_logps(hidden, weight, given.targets).logps;
  logps.sum().backward();

  const at::Tensor wide_hidden = given.hidden.to(at::kDouble).requires_grad_();
  const at::Tensor wide_weight = given.weight.to(at::kDouble).requires_grad_();
  const at::Tensor expected = at::log_softmax(wide_hidden.matmul(wide_weight.t()), 1)
                                  .gather(1, given.targets.unsqueeze(1))
                                  .squeeze(1);
  expected.sum().backward();
  const auto difference = [](const at::Tensor& a, const at::Tensor& b) {
    return (a.detach().to(at::kDouble) - b.detach()).abs().max().item<double>();
  };
  return std::max({difference(logps, expected), difference(hidden.grad(), wide_hidden.grad()),
                   difference(weight.grad(), wide_weight.grad())});
}

Finding kernels_agree() {
  const double float32 = kernel_error(KernelCase::random(at::kFloat));
  const double float64 = kernel_error(KernelCase::random(at::kDouble));
  const bool agree = float32 < 1e-4 && float64 < 1e-11;  // NaN does not
  return {.subject = "kernels",
          .status = agree ? Status::kOk : Status::kProblem,
          .found = fmt::format("log-probs and gradients within {:.1e} of LibTorch's, {:.1e} in "
                               "float64",
                               float32, float64),
          .advice = agree ? "" : "results cannot be trusted here: run prefopt_tests '[logps]'"};
}

double seconds_since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

/// A file of zeros that is deleted at the end of its scope.
class ScratchFile {
 public:
  explicit ScratchFile(const std::string& folder)
      : path_(folder + "/prefopt-doctor-XXXXXX"), file_(::mkstemp(path_.data())) {
    if (file_.get() < 0) fail("to make a file in this folder");
  }
  ~ScratchFile() { ::unlink(path_.c_str()); }
  ScratchFile(const ScratchFile&) = delete;
  ScratchFile& operator=(const ScratchFile&) = delete;

  void append(std::size_t bytes) {
    const std::string zeros(bytes, '\0');
    std::string_view rest = zeros;
    while (!rest.empty()) {
      const ssize_t written = ::write(file_.get(), rest.data(), rest.size());
      if (written < 0) fail("to write");
      rest.remove_prefix(static_cast<std::size_t>(written));
    }
  }
  void sync() {
    if (::fsync(file_.get()) != 0) fail("to write to the disk");
  }

 private:
  [[noreturn]] void fail(std::string_view what) const {
    throw CheckpointError(
        fmt::format("{}: expected {}, got {}", path_, what, detail::last_error()));
  }

  std::string path_;
  detail::Descriptor file_;
};

/// Whether the drive of `folder` has symbolic links.
bool has_links(const std::string& folder) {
  const std::string link = fmt::format("{}/prefopt-doctor-link-{}", folder, ::getpid());
  const bool is_made = detail::system_calls().symlink("prefopt-doctor", link.c_str()) == 0;
  if (is_made) ::unlink(link.c_str());
  return is_made;
}

Finding output_folder(const std::string& path) {
  constexpr std::size_t kMebibyte = std::size_t{1} << 20;
  constexpr int kMebibytes = 32;
  std::error_code error;
  fs::create_directories(path, error);
  if (error) {
    throw CheckpointError(
        fmt::format("{}: expected a folder to write to, got '{}'", path, error.message()));
  }
  ScratchFile file(path);
  const auto start = Clock::now();
  for (int i = 0; i < kMebibytes; ++i) file.append(kMebibyte);
  file.sync();
  const double speed = kMebibytes / seconds_since(start);

  std::array<double, 9> latencies{};
  for (double& latency : latencies) {
    const auto before = Clock::now();
    file.append(4096);
    file.sync();
    latency = seconds_since(before);
  }
  std::nth_element(latencies.begin(), latencies.begin() + latencies.size() / 2, latencies.end());
  const double median = latencies[latencies.size() / 2];
  const auto free = static_cast<std::int64_t>(fs::space(path, error).available);

  Finding finding{.subject = "folder " + path,
                  .found = fmt::format("writes {:.0f} MiB/s, fsync takes {:.1f} ms, {} free", speed,
                                       1000 * median, gibibytes(free))};
  if (free < (std::int64_t{1} << 30)) {
    finding.status = Status::kWarning;
    finding.advice = "little room for checkpoints: delete old runs or choose another output_dir";
  } else if (speed < 20 || median > 0.1) {
    finding.status = Status::kWarning;
    finding.advice = "checkpoints are slow to write here: a local disk is faster";
  } else if (!has_links(path)) {
    finding.status = Status::kWarning;
    finding.advice =
        "no symbolic links here: last and best of a run's checkpoints are small files, which only "
        "prefopt reads";
  }
  return finding;
}

}  // namespace

std::vector<Finding> examine_machine(const std::string& out) {
  const detail::Machine machine = detail::read_machine();
  std::vector<Finding> findings{processor(machine), gpu(), threads(machine), libtorch(),
                                memory(machine)};
  findings.push_back(finding_of("kernels", kernels_agree));
  findings.push_back(finding_of("folder " + out, [&] { return output_folder(out); }));
  return findings;
}

}  // namespace prefopt::cli
