// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <string_view>

namespace prefopt::detail {

/// Works as for_each_line, but stops when `row` returns false and leaves the rest unread.
void read_lines(const std::string& path,
                const std::function<bool(std::int64_t, std::string_view)>& row);

/// The rows of a file: its lines as read_lines gives them, or the elements of a JSON array, or
/// objects over several lines, or the rows of a Parquet or Arrow file as JSON. An element has the
/// number of the line it begins in; those that share a line are numbered on from it. Throws
/// DataError as read_lines does, for an array that does not end, as open_arrow_rows, and for a file
/// of another kind (UTF-16, an archive), which it names.
void read_rows(const std::string& path,
               const std::function<bool(std::int64_t, std::string_view)>& row);

}  // namespace prefopt::detail
