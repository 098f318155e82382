// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <string_view>

namespace prefopt::detail {

/// for_each_line that stops where `row` returns false; what follows is then not read or checked.
void read_lines(const std::string& path,
                const std::function<bool(std::int64_t, std::string_view)>& row);

}  // namespace prefopt::detail
