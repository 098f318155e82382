// SPDX-License-Identifier: Apache-2.0
#include "cli/temporary_folder.h"

#include <fmt/format.h>
#include <stdlib.h>  // NOLINT(modernize-deprecated-headers): mkdtemp is POSIX, not in <cstdlib>

#include <cerrno>
#include <filesystem>
#include <system_error>

#include "prefopt/error.h"

namespace prefopt::cli {

TemporaryFolder::TemporaryFolder(std::string_view name)
    : path_((std::filesystem::temp_directory_path() / fmt::format("{}-XXXXXX", name)).string()) {
  if (::mkdtemp(path_.data()) == nullptr) {
    throw Error(fmt::format("{}: expected to make a temporary folder, got '{}'", path_,
                            std::generic_category().message(errno)));
  }
}

TemporaryFolder::~TemporaryFolder() {
  std::error_code ignored;
  std::filesystem::remove_all(path_, ignored);
}

}  // namespace prefopt::cli
