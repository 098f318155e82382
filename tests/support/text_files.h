// SPDX-License-Identifier: Apache-2.0
#pragma once

// Whole files, which have to be there and to be written.

#include <fstream>
#include <sstream>
#include <string>

#include "support/catch.h"

namespace prefopt::testing_support {

inline std::string read_text(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  REQUIRE(file);
  std::stringstream text;
  text << file.rdbuf();
  return text.str();
}

inline void write_text(const std::string& path, const std::string& text) {
  std::ofstream file(path, std::ios::binary);
  file << text;
  REQUIRE(file.flush());
}

}  // namespace prefopt::testing_support
