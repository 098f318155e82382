// SPDX-License-Identifier: Apache-2.0
#include "prefopt/error.h"
#include "prefopt/losses/registry.h"
#include "support/catch.h"
#include "support/errors.h"
#include "support/pairs.h"
#include "support/pretend_device.h"

namespace prefopt {
namespace {

using namespace testing_support;

PairLogps moved(PairLogps logps, at::Device device) {
  for (const auto& field : kPairFields<at::Tensor>) {
    at::Tensor& value = logps.*field.value;
    if (value.defined()) value = value.to(device);
  }
  if (logps.running.mean.defined()) logps.running.mean = logps.running.mean.to(device);
  return logps;
}

}  // namespace

TEST_CASE("every loss on a device: the CPU's value and gradients, and no wait",
          "[losses][device]") {
  for (const std::string& name : registered_losses()) {
    CAPTURE(name);
    const Loss loss = make_loss(R"({"type": ")" + name + R"("})");
    const auto samples = static_cast<int>(loss.requirements().samples_per_prompt);
    const PairLogps here = to_tensors(random_pairs(6, samples, 5, 2));
    const PairLogps there = moved(here, pretend_device());
    const LossOutput expected = loss(here);
    take_waits();
    const LossOutput got = loss(there);
    CHECK(take_waits() == std::vector<std::string>());
    CHECK(got.loss.device() == pretend_device());
    CHECK(got.loss.item<double>() == Approx(expected.loss.item<double>()).epsilon(1e-12));
    for (const auto& field : kPairFields<at::Tensor>) {
      if (field.gradient == nullptr) continue;
      const at::Tensor &a = got.*field.gradient, &b = expected.*field.gradient;
      CAPTURE(field.name);
      REQUIRE(a.defined() == b.defined());
      if (b.defined()) CHECK(at::allclose(a.cpu(), b, 1e-12, 1e-14));
    }
  }
}

TEST_CASE("a loss refuses inputs of two devices", "[losses][device]") {
  const Loss loss = make_loss(R"({"type": "dpo"})");
  PairLogps mixed = to_tensors(random_pairs(3, 1, 5, 2));
  mixed.rejected_logps = mixed.rejected_logps.to(pretend_device());
  CHECK_THROWS_TEXT(loss(mixed), DeviceError, "dpo: expected rejected_logps on cpu, got pretend:0");
}

}  // namespace prefopt
