// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <functional>
#include <string>
#include <string_view>

namespace prefopt::detail {

/// Empty on success, else why it failed. Files only; `bytes` is replaced.
std::string try_read_file(const std::string& path, std::string& bytes);
/// Written beside `path`, fsynced, renamed over it, parent fsynced. Empty on success.
std::string try_write_file(const std::string& path, std::string_view bytes);
/// The same for `part(0)`, …, `part(count - 1)` one after the other; each has to last until the
/// next is asked for.
std::string try_write_parts(const std::string& path, std::size_t count,
                            const std::function<std::string_view(std::size_t)>& part);

/// Throws `E` with "PATH: expected a readable file, got …".
template <class E>
std::string read_file(const std::string& path) {
  std::string bytes;
  if (auto why = try_read_file(path, bytes); !why.empty()) {
    throw E(path + ": expected a readable file, got " + why);
  }
  return bytes;
}

/// Throws `E` with "PATH: expected to write N bytes, got …".
template <class E>
void write_file(const std::string& path, std::string_view bytes) {
  if (auto why = try_write_file(path, bytes); !why.empty()) {
    throw E(path + ": expected to write " + std::to_string(bytes.size()) + " bytes, got " + why);
  }
}

}  // namespace prefopt::detail
