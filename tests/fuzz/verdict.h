// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <stdexcept>
#include <string>
#include <string_view>

#include "prefopt/error.h"

namespace prefopt::fuzz {

/// Something that no input may bring about.
struct Fault : std::logic_error {
  using std::logic_error::logic_error;
};

inline void expect(bool holds, const char* what) {
  if (!holds) throw Fault(what);
}

/// Inputs that were refused, of this process.
inline std::uint64_t refusals = 0;

/// A refusal is a prefopt::Error that begins with its place and says what was expected.
inline void check_refusal(const Error& error, std::string_view place) {
  const std::string_view text = error.what();
  if (!text.starts_with(place) || text.find(": expected ") == std::string_view::npos) {
    throw Fault("a refusal that does not name its place: " + std::string(text));
  }
}

/// Whether `read` accepts its input; false where it refuses it as it should.
template <class Read>
bool accepts(std::string_view place, Read&& read) {
  try {
    read();
    return true;
  } catch (const Error& error) {
    check_refusal(error, place);
    ++refusals;
    return false;
  }
}

}  // namespace prefopt::fuzz
