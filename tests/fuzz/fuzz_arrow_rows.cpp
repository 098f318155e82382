// SPDX-License-Identifier: Apache-2.0
#include <cstdint>
#include <string>

#include "data/row_file.h"
#include "data/row_layout.h"
#include "data/row_preparation.h"
#include "fuzz/input_files.h"
#include "fuzz/targets.h"
#include "fuzz/verdict.h"

namespace prefopt::fuzz {
namespace {

/// A run of equal values takes a few bytes, however many rows it has.
constexpr std::int64_t kMostRows = 2000;

void read_from(const std::string& path, std::int64_t first) {
  accepts(path, [&] {
    const auto file = detail::open_rows(path);
    file->skip(first);
    detail::FileRow row;
    for (std::int64_t i = 0; i < kMostRows && file->next(row); ++i) {
      expect(row.number == first + i + 1, "rows that are not numbered one by one");
      const std::string where = detail::row_place(path, row.number);
      accepts(where, [&] { detail::parse_line_json(row.text, where); });
    }
  });
}

}  // namespace

void read_arrow_rows(std::string_view bytes) {
  // Other files are those of read_rows.
  const bool is_arrow = bytes.starts_with("PAR1") || bytes.starts_with("ARROW1") ||
                        bytes.starts_with("\xFF\xFF\xFF\xFF");
  if (!is_arrow) return;
  const MemoryFile file(bytes);
  read_from(file.path(), 0);
  read_from(file.path(), 3);
}

}  // namespace prefopt::fuzz
