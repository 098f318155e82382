// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <string_view>
#include <vector>

namespace prefopt::detail {

/// `1 row`, `3 rows`.
std::string counted(std::int64_t count, std::string_view noun);

/// `(line 4)`, `(lines 2, 7, 19)`; five at most, then `…`.
std::string places(const std::vector<std::int64_t>& lines);

/// `dropped 3 rows: empty completion (lines 2, 7, 19)`.
std::string defect_line(std::string_view verb, std::string_view reason,
                        const std::vector<std::int64_t>& lines);

/// `dropped 3 rows: empty completion (a.jsonl:2, b.jsonl:7, b.jsonl:19)`.
std::string defect_line(std::string_view verb, std::string_view reason,
                        const std::vector<std::string>& rows);

/// `text that nothing reads: 'id' (100 % of the rows), 'notes' (2.5 % of the rows)`.
std::string unread_line(const std::map<std::string, std::int64_t>& columns, std::int64_t rows);

}  // namespace prefopt::detail
