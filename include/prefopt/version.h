// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "prefopt/export.h"

// Of the headers that a program is compiled with.
#define PREFOPT_VERSION_MAJOR 0
#define PREFOPT_VERSION_MINOR 1
#define PREFOPT_VERSION_PATCH 0
#define PREFOPT_VERSION_STRING "0.1.0"

/// A number for `#if`: 102 for 0.1.2.
#define PREFOPT_VERSION \
  (PREFOPT_VERSION_MAJOR * 10000 + PREFOPT_VERSION_MINOR * 100 + PREFOPT_VERSION_PATCH)

namespace prefopt {

/// Returns the PREFOPT_VERSION of the library that the program runs with. Before 1.0 a program
/// needs the minor version that it was compiled with.
PREFOPT_API int library_version();

}  // namespace prefopt
