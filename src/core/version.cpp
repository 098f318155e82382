// SPDX-License-Identifier: Apache-2.0
#include "prefopt/version.h"

int prefopt::library_version() { return PREFOPT_VERSION; }
