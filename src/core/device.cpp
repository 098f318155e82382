// SPDX-License-Identifier: Apache-2.0
#include "prefopt/device.h"

#include <ATen/detail/CUDAHooksInterface.h>
#include <ATen/detail/PrivateUse1HooksInterface.h>
#include <fmt/format.h>

#include <charconv>
#include <optional>
#include <system_error>

#include "prefopt/error.h"

namespace prefopt {
namespace {

// LibTorch's hooks know without a link to CUDA: a LibTorch without it has none.
std::int64_t cuda_devices() {
  const at::CUDAHooksInterface& hooks = at::detail::getCUDAHooks();
  return hooks.hasCUDA() ? hooks.deviceCount() : 0;
}

std::int64_t own_devices() {
  return at::isPrivateUse1HooksRegistered() ? at::detail::getPrivateUse1Hooks().deviceCount() : 0;
}

// The number behind the colon; -1: no number.
std::int64_t index_in(std::string_view text) {
  std::int64_t index = -1;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), index);
  const bool is_index = error == std::errc() && end == text.data() + text.size();
  return is_index && index <= INT8_MAX ? index : -1;
}

}  // namespace

at::Device parse_device(std::string_view name, std::string_view where) {
  if (name == "cpu") return at::kCPU;
  if (name == "auto") return cuda_devices() > 0 ? at::Device(at::kCUDA, 0) : at::Device(at::kCPU);
  const std::size_t colon = name.find(':');
  const std::string_view type = name.substr(0, colon);
  const bool is_own = own_devices() > 0 && type == c10::get_privateuse1_backend();
  const std::int64_t index = colon == std::string_view::npos ? 0 : index_in(name.substr(colon + 1));
  if (index < 0 || (type != "cuda" && !is_own)) {
    throw ConfigError(fmt::format("{}: expected cpu, cuda, cuda:N or auto, got '{}'", where, name));
  }
  const std::int64_t count = is_own ? own_devices() : cuda_devices();
  if (index >= count) {
    throw DeviceError(fmt::format(
        "{}: expected a device that LibTorch can use, got '{}' where it has {} of that type; cpu "
        "runs everywhere",
        where, name, count));
  }
  return {is_own ? at::kPrivateUse1 : at::kCUDA, static_cast<at::DeviceIndex>(index)};
}

}  // namespace prefopt
