// SPDX-License-Identifier: Apache-2.0

// From logits and from hidden states to log-probs on any device (targets K1 to K3), against what
// eager PyTorch does with the same tensors. One JSON line a contender; tools/gpu_check runs it.

#include <ATen/TensorOperators.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/matmul.h>
#include <ATen/ops/randint.h>
#include <ATen/ops/randn.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>
#include <fmt/format.h>
#include <torch/csrc/autograd/autograd.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <chrono>
#include <cstdint>
#include <functional>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "prefopt/logps/token_logps.h"
#include "support/eager.h"
#include "support/inputs.h"

namespace prefopt::bench {
namespace {

using Clock = std::chrono::steady_clock;

struct DeviceArguments {
  std::string device = "cpu", dtype = "float32";
  std::vector<std::int64_t> rows = {2048}, vocab = {49152};
  std::int64_t hidden = 576;
  int repeat = 10;
};

/// Waits until the device has done what it was told to.
void wait_for(at::Device device) {
  if (device.is_cpu()) return;
  const auto* const guard = c10::impl::getDeviceGuardImpl(device.type());
  guard->synchronizeDevice(guard->getDevice().index());
}

double median_ms(at::Device device, int repeat, const std::function<void()>& run) {
  std::vector<double> all;
  for (int i = 0; i <= repeat; ++i) {
    wait_for(device);
    const auto start = Clock::now();
    run();
    wait_for(device);
    all.push_back(std::chrono::duration<double, std::milli>(Clock::now() - start).count());
  }
  all.erase(all.begin());  // it warms up
  std::sort(all.begin(), all.end());
  return all[all.size() / 2];
}

/// The contenders of one shape.
class Shape {
 public:
  Shape(const DeviceArguments& arguments, std::int64_t rows, std::int64_t vocab)
      : arguments_(arguments), device_(arguments.device), rows_(rows), vocab_(vocab) {
    const auto options = at::TensorOptions(dtype_named(arguments.dtype)).device(device_);
    logits_ = (at::randn({rows, vocab}, options) * 3).requires_grad_();
    hidden_ = at::randn({rows, arguments.hidden}, options).requires_grad_();
    weight_ = (at::randn({vocab, arguments.hidden}, options) * 0.02).requires_grad_();
    targets_ = at::randint(vocab, {rows}, at::TensorOptions(at::kLong).device(device_));
  }

  void run() {
    using Logps = std::function<at::Tensor(const at::Tensor&)>;
    const Logps ours = [&](const at::Tensor& x) { return token_logps(x, targets_).logps; };
    const Logps in_place = [&](const at::Tensor& x) {
      return token_logps(x, targets_, {.overwrite_logits = true}).logps;
    };
    const Logps log_softmax = [&](const at::Tensor& x) {
      return eager::log_softmax_gather(x, targets_);
    };
    const Logps cross_entropy = [&](const at::Tensor& x) {
      return eager::cross_entropy(x, targets_);
    };
    check(ours(logits_), "k1");
    forward("prefopt", ours);
    forward("log_softmax_gather", log_softmax);
    forward("cross_entropy", cross_entropy);
    backward("prefopt", in_place);
    backward("log_softmax_gather", log_softmax);
    backward("cross_entropy", cross_entropy);
    head("prefopt", [&] { return linear_token_logps(hidden_, weight_, targets_).logps; });
    head("matmul_log_softmax",
         [&] { return eager::log_softmax_gather(at::matmul(hidden_, weight_.t()), targets_); });
  }

 private:
  /// Adds the largest difference from float64 on the host, of a few rows.
  void check(const at::Tensor& logps, const char* part) const {
    const std::int64_t some = std::min<std::int64_t>(rows_, 64);
    const at::Tensor wide = logits_.detach().narrow(0, 0, some).to(at::kCPU, at::kDouble);
    const at::Tensor exact = eager::log_softmax_gather(wide, targets_.narrow(0, 0, some).cpu());
    const at::Tensor error =
        (logps.detach().narrow(0, 0, some).to(at::kCPU, at::kDouble) - exact).abs().max();
    nlohmann::json line = describe(part, "float64 on the host");
    line["max_error"] = error.item<double>();
    fmt::print("{}\n", line.dump());
  }

  void forward(const char* name, const std::function<at::Tensor(const at::Tensor&)>& logps) {
    measure("k1", name, [&] {
      const at::NoGradGuard no_grad;
      logps(logits_);
    });
  }

  /// Of logits that are computed, as a model's are, and may be overwritten: a copy of them is in
  /// the time of all contenders.
  void backward(const char* name, const std::function<at::Tensor(const at::Tensor&)>& logps) {
    measure("k2", name, [&] {
      logits_.mutable_grad().reset();
      logps(logits_ * 1).sum().backward();
    });
  }

  void head(const char* name, const std::function<at::Tensor()>& logps) {
    measure("k3", name, [&] {
      hidden_.mutable_grad().reset();
      weight_.mutable_grad().reset();
      logps().sum().backward();
    });
  }

  void measure(const char* part, const char* name, const std::function<void()>& run) const {
    nlohmann::json line = describe(part, name);
    line["ms"] = median_ms(device_, arguments_.repeat, run);
    fmt::print("{}\n", line.dump());
    std::fflush(stdout);
  }

  nlohmann::json describe(const char* part, const char* name) const {
    return {{"part", part},           {"contender", name}, {"dtype", arguments_.dtype},
            {"rows", rows_},          {"vocab", vocab_},   {"hidden", arguments_.hidden},
            {"device", device_.str()}};
  }

  const DeviceArguments& arguments_;
  at::Device device_;
  std::int64_t rows_, vocab_;
  at::Tensor logits_, hidden_, weight_, targets_;
};

void run(const DeviceArguments& arguments) {
  for (const std::int64_t vocab : arguments.vocab) {
    for (const std::int64_t rows : arguments.rows) Shape(arguments, rows, vocab).run();
  }
}

}  // namespace
}  // namespace prefopt::bench

int main(int argc, char** argv) {
  prefopt::bench::DeviceArguments arguments;
  CLI::App app{"Times log-probs on a device: prefopt and eager PyTorch"};
  app.add_option("--device", arguments.device)->capture_default_str();
  app.add_option("--dtype", arguments.dtype)
      ->check(CLI::IsMember({"float32", "bfloat16"}))
      ->capture_default_str();
  app.add_option("--rows", arguments.rows)->delimiter(',')->capture_default_str();
  app.add_option("--vocab", arguments.vocab)->delimiter(',')->capture_default_str();
  app.add_option("--hidden", arguments.hidden)->capture_default_str();
  app.add_option("--repeat", arguments.repeat)->capture_default_str();
  CLI11_PARSE(app, argc, argv);
  try {
    prefopt::bench::run(arguments);
    return 0;
  } catch (const std::exception& error) {
    fmt::print(stderr, "bench_device: {}\n", error.what());
    return 1;
  }
}
