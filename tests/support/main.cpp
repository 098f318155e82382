// SPDX-License-Identifier: Apache-2.0

#if __has_include(<catch2/catch_session.hpp>)
#include <catch2/catch_session.hpp>
#include <catch2/catch_test_case_info.hpp>
#include <catch2/catch_test_spec.hpp>
#include <catch2/internal/catch_test_case_registry_impl.hpp>
#else
#define CATCH_CONFIG_RUNNER
#include <catch2/catch.hpp>
#endif

#include <algorithm>
#include <exception>
#include <iostream>
#include <string>

#include "core/simd_limit.h"
#include "lab/instructions.h"
#include "support/command_server.h"

namespace {

/// Whether the tests of the lab are among the chosen ones, as they are where none is named.
bool runs_lab(Catch::Session& session) {
  const auto& config = session.config();
  if (!config.hasTestFilters()) return true;
  const auto chosen =
      Catch::filterTests(Catch::getAllTestCasesSorted(config), config.testSpec(), config);
  return std::any_of(chosen.begin(), chosen.end(), [](const auto& test) {
    return test.getTestCaseInfo().tagsAsString().find("[lab]") != std::string::npos;
  });
}

/// LibTorch chooses its instructions once, so that this comes before all tests.
void choose_instructions(Catch::Session& session) {
  if (runs_lab(session)) {
    prefopt::lab::hold_instructions();
  } else if (const auto limit = prefopt::detail::simd_limit_of_environment()) {
    prefopt::detail::hold_simd(*limit);
  }
}

}  // namespace

int main(int argc, char** argv) {
  Catch::Session session;
  if (const int code = session.applyCommandLine(argc, argv); code != 0) return code;
  try {
    prefopt::testing_support::start_command_server();
    choose_instructions(session);
  } catch (const std::exception& error) {
    std::cerr << error.what() << '\n';
    return 1;
  }
  return session.run();
}
