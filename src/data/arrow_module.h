// SPDX-License-Identifier: Apache-2.0
#pragma once

// The border between prefopt and the module that reads Parquet and Arrow files, which alone is
// linked with Arrow and is loaded with dlopen: neither C++ types nor exceptions cross it.

#include <cstddef>
#include <cstdint>

namespace prefopt::detail {

enum class ArrowKind : int { kParquet, kFile, kStream };

/// An open file, known to the module alone.
struct ArrowRows;

/// The text of an error, cut at its size, with a zero byte at the end.
struct ArrowError {
  char text[1024] = {};
};

/// The functions of the module. A path and its file must live as long as the rows.
struct ArrowModule {
  const char* version;        ///< of prefopt, which loads the module of the same version only
  const char* arrow_version;  ///< of Arrow
  /// Returns null for an error.
  ArrowRows* (*open)(const char* path, ArrowKind kind, ArrowError* error);
  /// Returns 1 with the JSON object of the next row, which lives until the next call, 0 at the end
  /// of the file, or -1 for an error.
  int (*next)(ArrowRows* rows, const char** json, std::size_t* size, ArrowError* error);
  /// Passes over `count` rows, or those that are left. Returns 0, or -1 for an error.
  int (*skip)(ArrowRows* rows, std::int64_t count, ArrowError* error);
  void (*close)(ArrowRows* rows);
};

/// Of the function `const ArrowModule* ()` that the module exports.
inline constexpr char kArrowModuleSymbol[] = "prefopt_arrow_module";

/// The longest row as JSON.
inline constexpr std::size_t kMaxArrowRow = std::size_t{64} << 20;

/// Begins the only key of the object that a value of a type without JSON becomes, in front of the
/// type's name. Its value is null, or a text where the value may hold one.
inline constexpr char kArrowTypeMark[] = "\\u0000type: ";

}  // namespace prefopt::detail
