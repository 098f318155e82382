// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <memory>
#include <string>

namespace prefopt::detail {

/// A row of a file as JSON, and its place there: see read_rows.
struct FileRow {
  std::int64_t number = 0;
  std::string text = {};
};

/// The rows of a file, one after the other, of which it holds a block in memory.
class RowFile {
 public:
  virtual ~RowFile() = default;

  /// Returns false at the end of the file. Throws DataError as read_rows.
  virtual bool next(FileRow& row) = 0;
  /// Passes over `count` rows, or those that are left.
  virtual void skip(std::int64_t count);
};

/// Opens a file of any kind that read_rows knows, and throws as it does.
std::unique_ptr<RowFile> open_rows(const std::string& path);

}  // namespace prefopt::detail
