// SPDX-License-Identifier: Apache-2.0
#include <ATen/detail/CUDAHooksInterface.h>

#include "prefopt/device.h"
#include "prefopt/error.h"
#include "support/catch.h"
#include "support/errors.h"
#include "support/pretend_device.h"

namespace prefopt {
namespace {

using namespace testing_support;

std::int64_t cuda_devices() {
  const auto& hooks = at::detail::getCUDAHooks();
  return hooks.hasCUDA() ? hooks.deviceCount() : 0;
}

}  // namespace

TEST_CASE("device: texts name devices that are there", "[core][device]") {
  CHECK(parse_device("cpu") == at::Device(at::kCPU));
  CHECK(parse_device("pretend") == pretend_device());
  CHECK(parse_device("pretend:0") == pretend_device());
  if (cuda_devices() == 0) {
    CHECK(parse_device("auto") == at::Device(at::kCPU));
  } else {
    CHECK(parse_device("auto") == at::Device(at::kCUDA, 0));
    CHECK(parse_device("cuda") == at::Device(at::kCUDA, 0));
  }
}

TEST_CASE("device: no other is taken in the place of one that is not there", "[core][device]") {
  for (const char* name : {"", "gpu", "CPU", "cpu:0", "cuda:", "cuda:x", "cuda:-1", "cuda:1 ",
                           "cuda:1000", "auto:0", "meta", "privateuseone"}) {
    INFO(name);
    CHECK_THROWS_TEXT(
        parse_device(name, "--device"), ConfigError,
        "--device: expected cpu, cuda, cuda:N or auto, got '" + std::string(name) + "'");
  }
  CHECK_THROWS_TEXT(parse_device("pretend:1", "model.device"), DeviceError,
                    "model.device: expected a device that LibTorch can use, got 'pretend:1' where "
                    "it has 1 of that type; cpu runs everywhere");
  if (cuda_devices() > 0) return;
  CHECK_THROWS_TEXT(parse_device("cuda"), DeviceError,
                    "device: expected a device that LibTorch can use, got 'cuda' where it has 0 of "
                    "that type; cpu runs everywhere");
}

}  // namespace prefopt
