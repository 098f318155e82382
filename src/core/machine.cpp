// SPDX-License-Identifier: Apache-2.0
#include "core/machine.h"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <string_view>
#include <thread>

#ifdef __linux__
#include <sched.h>
#endif

#include "core/file.h"

namespace prefopt::detail {
namespace {

/// Empty where the file cannot be read.
std::string content_of(const std::string& path) {
  std::string bytes;
  return try_read_file(path, bytes).empty() ? bytes : "";
}

std::string_view trimmed(std::string_view text) {
  const auto first = text.find_first_not_of(" \t\n");
  if (first == std::string_view::npos) return {};
  return text.substr(first, text.find_last_not_of(" \t\n") - first + 1);
}

/// Returns the text after `key` and a colon in the first line that begins with it.
std::string_view value_of(std::string_view text, std::string_view key) {
  while (!text.empty()) {
    const auto end = std::min(text.find('\n'), text.size());
    const std::string_view line = text.substr(0, end);
    const auto colon = line.find(':');
    if (colon != std::string_view::npos && trimmed(line.substr(0, colon)) == key) {
      return trimmed(line.substr(colon + 1));
    }
    text.remove_prefix(std::min(end + 1, text.size()));
  }
  return {};
}

std::optional<std::int64_t> number_of(std::string_view text) {
  std::int64_t value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc() || end == text.data()) return std::nullopt;
  return value;
}

std::optional<std::int64_t> kibibytes(std::string_view text) {
  const auto value = number_of(text);
  return value ? std::optional(*value * 1024) : std::nullopt;
}

std::int64_t allowed_cores() {
#ifdef __linux__
  cpu_set_t set;
  CPU_ZERO(&set);
  if (::sched_getaffinity(0, sizeof set, &set) == 0) return CPU_COUNT(&set);
#endif
  return std::max(1U, std::thread::hardware_concurrency());
}

/// Returns the content of a file of this process's control group, version 2 of the interface.
std::string group_file(const std::string& root, std::string_view name) {
  const std::string groups = content_of(root + "/proc/self/cgroup");
  const std::string base = root + "/sys/fs/cgroup";
  if (const std::string own(value_of(groups, "0")); own.starts_with(":/")) {
    const std::string content = content_of(base + own.substr(1) + "/" + std::string(name));
    if (!content.empty()) return content;
  }
  // In a container the group is the root of what can be seen.
  return content_of(base + "/" + std::string(name));
}

/// "QUOTA PERIOD", both in microseconds, or "max PERIOD".
std::optional<double> core_limit(std::string_view text) {
  const auto space = text.find(' ');
  const auto quota = number_of(text.substr(0, space));
  if (!quota || space == std::string_view::npos) return std::nullopt;
  const auto period = number_of(text.substr(space + 1));
  if (!period || *period <= 0) return std::nullopt;
  return static_cast<double>(*quota) / static_cast<double>(*period);
}

}  // namespace

std::optional<std::int64_t> Machine::usable_memory() const {
  std::optional<std::int64_t> least = free_memory;
  if (memory_limit) {
    const std::int64_t left =
        std::max<std::int64_t>(0, *memory_limit - memory_in_group.value_or(0));
    least = std::min(least.value_or(left), left);
  }
  return least;
}

std::int64_t Machine::usable_cores() const {
  if (!core_limit) return cores;
  return std::clamp<std::int64_t>(std::llround(std::ceil(*core_limit)), 1, cores);
}

Machine read_machine(const std::string& root) {
  const std::string processors = content_of(root + "/proc/cpuinfo");
  const std::string memory = content_of(root + "/proc/meminfo");
  Machine machine;
  machine.processor = value_of(processors, "model name");
  machine.cores = allowed_cores();
  machine.core_limit = core_limit(group_file(root, "cpu.max"));
  machine.total_memory = kibibytes(value_of(memory, "MemTotal"));
  machine.free_memory = kibibytes(value_of(memory, "MemAvailable"));
  machine.memory_limit = number_of(group_file(root, "memory.max"));
  machine.memory_in_group = number_of(group_file(root, "memory.current"));
  return machine;
}

}  // namespace prefopt::detail
