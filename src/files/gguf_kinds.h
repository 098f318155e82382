// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>

namespace prefopt::detail {

/// Types of metadata, by their numbers in a file.
enum class GgufKind : std::uint32_t {
  kUint8,
  kInt8,
  kUint16,
  kInt16,
  kUint32,
  kInt32,
  kFloat32,
  kFlag,
  kText,
  kList,
  kUint64,
  kInt64,
  kFloat64,
};

/// The newest version of the format.
inline constexpr std::uint32_t kGgufVersion = 3;
/// Of tensors, where the metadata name no other.
inline constexpr std::uint64_t kGgufAlignment = 32;

}  // namespace prefopt::detail
