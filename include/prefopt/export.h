// SPDX-License-Identifier: Apache-2.0
#pragma once

// Marks what a shared libprefopt exports; everything else is hidden.
#if defined(_WIN32)
#define PREFOPT_API
#else
#define PREFOPT_API __attribute__((visibility("default")))
#endif
