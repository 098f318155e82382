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
#include <vector>

#include "core/simd_limit.h"
#include "lab/instructions.h"
#include "support/command_server.h"
#include "support/pretend_device.h"

namespace {

/// Returns whether each of the chosen tests has a tag; of all where none is named.
std::vector<bool> have_tag(Catch::Session& session, const std::string& tag) {
  const auto& config = session.config();
  const auto& all = Catch::getAllTestCasesSorted(config);
  const auto chosen =
      config.hasTestFilters() ? Catch::filterTests(all, config.testSpec(), config) : all;
  std::vector<bool> have;
  for (const auto& test : chosen) {
    have.push_back(test.getTestCaseInfo().tagsAsString().find(tag) != std::string::npos);
  }
  return have;
}

bool has_any(const std::vector<bool>& have) {
  return std::find(have.begin(), have.end(), true) != have.end();
}

/// LibTorch chooses its instructions once, so that this comes before all tests.
void choose_instructions(Catch::Session& session) {
  if (has_any(have_tag(session, "[lab]"))) {
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
    const std::vector<bool> on_device = have_tag(session, "[device]");
    const bool is_for_device =
        std::find(on_device.begin(), on_device.end(), false) == on_device.end();
    if (is_for_device) prefopt::testing_support::offer_pretend_device();
    prefopt::testing_support::start_command_server();
    choose_instructions(session);
  } catch (const std::exception& error) {
    std::cerr << error.what() << '\n';
    return 1;
  }
  return session.run();
}
