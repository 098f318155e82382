// SPDX-License-Identifier: Apache-2.0
#include "prefopt/error.h"
#include "prefopt/logps/token_logps.h"
#include "support/catch.h"
#include "support/errors.h"
#include "support/logps_oracle.h"
#include "support/pretend_device.h"

namespace prefopt::test_device_logps {
namespace {

using namespace testing_support;

constexpr std::int64_t kRows = 11, kHidden = 6, kVocab = 40;

struct Result {
  TokenLogps out;
  std::vector<at::Tensor> gradients;
};

/// Everything on `device`, brought back to the CPU.
Result score(at::Device device, at::ScalarType dtype, LinearTokenLogpsOptions options) {
  const auto leaf = [&](const at::Tensor& x) {
    return x.to(at::TensorOptions(dtype).device(device)).requires_grad_(true);
  };
  const at::Tensor hidden = leaf(random_normal({kRows, kHidden}, at::kDouble, 1));
  const at::Tensor weight = leaf(random_normal({kVocab, kHidden}, at::kDouble, 2));
  const at::Tensor bias = leaf(random_normal({kVocab}, at::kDouble, 3));
  const at::Tensor targets = at::arange(kRows, at::kLong).mul(7).remainder(kVocab).to(device);
  options.bias = bias;
  options.by_products = ByProducts::all();
  options.transform = {.scale = 0.8, .softcap = 4, .temperature = 1.5};
  Result result;
  result.out = linear_token_logps(hidden, weight, targets, options);
  at::Tensor total = (result.out.logps * at::linspace(-1, 2, kRows).to(device)).sum();
  if (options.differentiable.entropy) total = total + result.out.by_products.entropy.sum();
  total.backward();
  for (const at::Tensor& x : {hidden, weight, bias}) result.gradients.push_back(x.grad().cpu());
  return result;
}

}  // namespace

TEST_CASE("linear_token_logps on a device: the CPU's values and gradients, within any budget",
          "[logps][device]") {
  const bool entropy = GENERATE(false, true);
  // Blocks of logits that a chunk takes; kept whole, a few rows at a time, a single row.
  const std::int64_t row = kVocab * 8 * (entropy ? 2 : 1);
  const std::int64_t budget = GENERATE_COPY(row * kRows, row * 3, row);
  LinearTokenLogpsOptions options;
  options.differentiable.entropy = entropy;
  const Result expected = score(at::kCPU, at::kDouble, options);
  options.budget_bytes = budget;
  take_waits();
  const Result got = score(pretend_device(), at::kDouble, options);
  const auto waits = take_waits();
  for (const std::string& wait : waits) CHECK(wait.find("copy") != std::string::npos);
  CHECK(at::allclose(got.out.logps.cpu(), expected.out.logps, 1e-12, 1e-12));
  CHECK(at::allclose(got.out.by_products.entropy.cpu(), expected.out.by_products.entropy, 1e-11));
  CHECK(got.out.by_products.is_top1.cpu().equal(expected.out.by_products.is_top1));
  for (std::size_t i = 0; i < expected.gradients.size(); ++i) {
    CHECK(at::allclose(got.gradients[i], expected.gradients[i], 1e-10, 1e-12));
  }
}

TEST_CASE("linear_token_logps on a device: a budget below a row of logits is refused",
          "[logps][device]") {
  LinearTokenLogpsOptions options;
  options.budget_bytes = kVocab * 4 - 1;
  CHECK_THROWS_TEXT(score(pretend_device(), at::kFloat, options), ConfigError,
                    "linear_token_logps: expected budget_bytes >= 160 for a row of 40 logits on "
                    "pretend:0, got 159");
}

TEST_CASE("linear_token_logps refuses tensors of two devices", "[logps][device]") {
  const at::Tensor hidden = at::zeros({2, 3}), weight = at::zeros({5, 3});
  const at::Tensor targets = at::zeros({2}, at::kLong);
  CHECK_THROWS_TEXT(linear_token_logps(hidden, weight.to(pretend_device()), targets), DeviceError,
                    "linear_token_logps: expected weight on cpu, got pretend:0");
  CHECK_THROWS_TEXT(
      linear_token_logps(hidden.to(pretend_device()), weight.to(pretend_device()), targets),
      DeviceError, "linear_token_logps: expected targets on pretend:0, got cpu");
}

}  // namespace prefopt::test_device_logps
