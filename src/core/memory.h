// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <exception>
#include <string>

namespace prefopt::detail {

/// Returns the most that this process ever held in memory, bytes.
std::int64_t peak_memory_bytes();

/// Returns the words of the allocator, where `error` is an allocation that failed; else empty.
std::string allocation_failure(const std::exception& error);

}  // namespace prefopt::detail
