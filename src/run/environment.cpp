// SPDX-License-Identifier: Apache-2.0
#include "run/environment.h"

#include <ATen/Context.h>
#include <ATen/Parallel.h>
#include <ATen/Version.h>
#include <sys/utsname.h>
#include <torch/version.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <ctime>
#include <filesystem>
#include <string>
#include <string_view>
#include <system_error>
#include <thread>

#include "core/file.h"
#include "core/machine.h"
#include "prefopt/version.h"

namespace prefopt::detail {
namespace {

/// The distribution's name for itself; empty where it does not say.
std::string distribution_name() {
  constexpr std::string_view kKey = "PRETTY_NAME=";
  std::string text;
  if (!try_read_file("/etc/os-release", text).empty()) return {};
  for (std::size_t begin = 0; begin < text.size();) {
    const auto end = std::min(text.find('\n', begin), text.size());
    std::string_view line = std::string_view(text).substr(begin, end - begin);
    begin = end + 1;
    if (!line.starts_with(kKey)) continue;
    line.remove_prefix(kKey.size());
    while (line.starts_with(' ') || line.starts_with('"')) line.remove_prefix(1);
    while (line.ends_with(' ') || line.ends_with('"')) line.remove_suffix(1);
    return std::string(line);
  }
  return {};
}

std::string system_name() {
  const std::string distribution = distribution_name();
  utsname name{};
  if (::uname(&name) != 0) return distribution;
  const std::string kernel = std::string(name.sysname) + " " + name.release + " " + name.machine;
  return distribution.empty() ? kernel : distribution + ", " + kernel;
}

/// The arguments of this process as a list; null where the system does not say.
Json command_line() {
  std::string bytes;
  if (!try_read_file("/proc/self/cmdline", bytes).empty()) return nullptr;
  Json arguments = Json::array();
  for (std::size_t begin = 0; begin < bytes.size();) {
    const auto end = std::min(bytes.find('\0', begin), bytes.size());
    arguments.push_back(bytes.substr(begin, end - begin));
    begin = end + 1;
  }
  return arguments;
}

double memory_gib() {
  const auto pages = static_cast<double>(::sysconf(_SC_PHYS_PAGES));
  const auto bytes = pages * static_cast<double>(::sysconf(_SC_PAGESIZE));
  return std::round(bytes / (1 << 30) * 10) / 10;
}

constexpr std::string_view compiler() {
#if defined(__clang__)
  return "clang " __clang_version__;
#else
  return "gcc " __VERSION__;
#endif
}

}  // namespace

Json environment() {
  Json environment = {
      {"prefopt", PREFOPT_VERSION_STRING},
      {"libtorch", TORCH_VERSION},
      {"compiler", compiler()},
      {"threads", at::get_num_threads()},
      {"cpu_capability", at::get_cpu_capability()},
      {"processors", std::thread::hardware_concurrency()},
      {"memory_gib", memory_gib()},
  };
  const auto add = [&](const char* key, Json value) {
    if (!value.is_null() && value != "") environment[key] = std::move(value);
  };
  add("cpu", read_machine().processor);
  add("system", system_name());
  add("command", command_line());
  std::error_code unknown;
  add("folder", std::filesystem::current_path(unknown).string());
  environment["started"] = utc_time();
  return environment;
}

std::string utc_time() {
  const std::time_t now = std::time(nullptr);
  std::tm parts{};
  std::array<char, 32> text{};
  ::gmtime_r(&now, &parts);
  const auto size = std::strftime(text.data(), text.size(), "%Y-%m-%dT%H:%M:%SZ", &parts);
  return {text.data(), size};
}

}  // namespace prefopt::detail
