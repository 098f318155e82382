// SPDX-License-Identifier: Apache-2.0
#include <fmt/format.h>

#include "prefopt/version.h"
#include "support/catch.h"

namespace prefopt {
namespace {

TEST_CASE("the version is the same as text and as a number", "[core]") {
  CHECK(PREFOPT_VERSION_STRING == fmt::format("{}.{}.{}", PREFOPT_VERSION / 10000,
                                              PREFOPT_VERSION / 100 % 100, PREFOPT_VERSION % 100));
  CHECK(library_version() == PREFOPT_VERSION);
}

}  // namespace
}  // namespace prefopt
