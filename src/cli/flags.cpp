// SPDX-License-Identifier: Apache-2.0
#include "cli/flags.h"

#include <algorithm>

namespace prefopt::cli {

std::string flag_of(std::string_view option) {
  std::string flag = "--" + std::string(option);
  std::replace(flag.begin(), flag.end(), '_', '-');
  return flag;
}

std::string led_by_flag(std::string_view text, std::string_view command,
                        const std::function<bool(const std::string& flag)>& is_given) {
  constexpr std::string_view kExpected = ": expected ";
  const std::size_t colon = text.find(kExpected);
  if (colon == std::string_view::npos) return std::string(text);
  const std::string_view place = text.substr(0, colon);
  const std::string_view rest = text.substr(colon);
  std::string_view option = place;
  if (place == command || place == "sampling") {
    option = rest.substr(kExpected.size());
    option = option.substr(0, option.find(' '));
  }
  std::string flag = flag_of(option);
  return is_given(flag) ? flag.append(rest) : std::string(text);
}

}  // namespace prefopt::cli
