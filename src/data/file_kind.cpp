// SPDX-License-Identifier: Apache-2.0
#include "data/file_kind.h"

#include <fmt/format.h>

#include "prefopt/error.h"

namespace prefopt::detail {
namespace {

/// A file of another kind, by what it begins with.
struct OtherKind {
  std::string_view beginning, name, hint;
};

constexpr std::string_view kUnpack = "unpack it, or pack it with gzip";
constexpr std::string_view kAsUtf8 = "make it UTF-8, as iconv -f UTF-16 -t UTF-8 does";

constexpr OtherKind kOtherKinds[] = {
    {"PARE", "a Parquet file with an encrypted footer", kAsLines},
    {"FEA1", "a Feather file of version 1", "write it as version 2, an Arrow file"},
    {"ORC", "an ORC file", kAsLines},
    {"SQLite format 3", "an SQLite database", kAsLines},
    {"PK\x03\x04", "a ZIP archive", kUnpack},
    {"\x28\xB5\x2F\xFD", "a Zstandard file", kUnpack},
    {"BZh", "a bzip2 file", kUnpack},
    {"\xFD"
     "7zXZ",
     "an xz file", kUnpack},
    {"\xFF\xFE", "UTF-16", kAsUtf8},
    {"\xFE\xFF", "UTF-16", kAsUtf8},
    {{"{\0", 2}, "UTF-16", kAsUtf8},
    {{"[\0", 2}, "UTF-16", kAsUtf8},
    {{"\0{", 2}, "UTF-16", kAsUtf8},
    {{"\0[", 2}, "UTF-16", kAsUtf8},
    {"version https://git-lfs", "the pointer to a file of Git LFS", "fetch the file itself"},
};

}  // namespace

std::optional<ArrowKind> arrow_kind_of(std::string_view head) {
  if (head.starts_with("PAR1")) return ArrowKind::kParquet;
  if (head.starts_with("ARROW1")) return ArrowKind::kFile;
  // The mark of a message, which no text begins with.
  if (head.starts_with("\xFF\xFF\xFF\xFF")) return ArrowKind::kStream;
  return std::nullopt;
}

void check_kind_of_file(const std::string& path, std::string_view head) {
  for (const OtherKind& kind : kOtherKinds) {
    if (!head.starts_with(kind.beginning)) continue;
    throw DataError(fmt::format("{}: expected JSON lines or a JSON array, got {}; {}", path,
                                kind.name, kind.hint));
  }
}

}  // namespace prefopt::detail
