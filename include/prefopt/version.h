// SPDX-License-Identifier: Apache-2.0
#pragma once

#define PREFOPT_VERSION_MAJOR 0
#define PREFOPT_VERSION_MINOR 1
#define PREFOPT_VERSION_PATCH 0
#define PREFOPT_VERSION_STRING "0.1.0"
