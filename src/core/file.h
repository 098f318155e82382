// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <string>
#include <string_view>

namespace prefopt::detail {

/// More than any file that is read at once has any use for.
inline constexpr std::int64_t kMostReadBytes = std::int64_t{4} << 30;

/// Empty on success, else why it failed. Files only, of at most kMostReadBytes; `bytes` is
/// replaced.
std::string try_read_file(const std::string& path, std::string& bytes);
/// Written next to `path`, fsynced, renamed over it, parent fsynced. Empty on success.
std::string try_write_file(const std::string& path, std::string_view bytes);
/// Does the same for `part(0)`, …, `part(count - 1)` one after the other; each has to last until
/// the next is asked for.
std::string try_write_parts(const std::string& path, std::size_t count,
                            const std::function<std::string_view(std::size_t)>& part);

/// With its parents; one that is there already is fine. Empty on success.
std::string try_make_directory(const std::string& path);
/// Renames and fsyncs the parent of `to`. Empty on success.
std::string try_move(const std::string& from, const std::string& to);
/// Makes a symbolic link at `path`, next to it and renamed over it, parent fsynced: whoever looks
/// sees the old link or the new one. Where the drive has no links it is a small file that names
/// `target`, which `followed` reads. Empty on success.
std::string try_link(const std::string& target, const std::string& path);
/// Returns what the link at `path`, or the file in its place, names; empty for anything else.
std::string link_target(const std::string& path);
/// Returns the path that the file in place of a link names; any other path as it is.
std::string followed(const std::string& path);

/// Removes files NAME.XXXXXX that a killed process left in `folder` while it wrote NAME, of the
/// names that `is_ours` takes. Files that a living process writes, or that cannot be removed, stay.
void remove_unfinished_files(const std::string& folder,
                             const std::function<bool(std::string_view name)>& is_ours);

/// A file that grows at its end.
class AppendedFile {
 public:
  AppendedFile() = default;
  ~AppendedFile();
  AppendedFile(const AppendedFile&) = delete;
  AppendedFile& operator=(const AppendedFile&) = delete;

  /// Each is empty on success. A line that could be written in part only is left like that.
  std::string try_open(const std::string& path);
  std::string try_append(std::string_view bytes);
  std::string try_sync();

 private:
  int fd_ = -1;
};

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

/// Throws `E` with "PATH: expected to make this folder, got …".
template <class E>
void make_directory(const std::string& path) {
  if (auto why = try_make_directory(path); !why.empty()) {
    throw E(path + ": expected to make this folder, got " + why);
  }
}

}  // namespace prefopt::detail
