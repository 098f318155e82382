// SPDX-License-Identifier: Apache-2.0
#include "core/memory.h"

#include <c10/util/Exception.h>
#include <sys/resource.h>

#include <new>
#include <string_view>

namespace prefopt::detail {

std::int64_t peak_memory_bytes() {
  rusage usage{};
  ::getrusage(RUSAGE_SELF, &usage);
#if defined(__APPLE__)
  return usage.ru_maxrss;
#else
  return usage.ru_maxrss * 1024;
#endif
}

std::string allocation_failure(const std::exception& error) {
  if (dynamic_cast<const std::bad_alloc*>(&error) != nullptr) return error.what();
  const auto* of_torch = dynamic_cast<const c10::Error*>(&error);
  if (of_torch == nullptr) return "";
  const std::string_view text = of_torch->what_without_backtrace();
  const std::string_view line = text.substr(0, text.find('\n'));
  if (dynamic_cast<const c10::OutOfMemoryError*>(of_torch) != nullptr) return std::string(line);
  // The CPU allocator has no class of exceptions.
  const auto memory = line.find("can't allocate memory");
  return memory == std::string_view::npos ? "" : std::string(line.substr(memory));
}

}  // namespace prefopt::detail
