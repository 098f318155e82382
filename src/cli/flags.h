// SPDX-License-Identifier: Apache-2.0
#pragma once

// Flags of the command line by the names that options have in the library.

#include <functional>
#include <string>
#include <string_view>

namespace prefopt::cli {

/// Returns "--layers-tflops" of "layers_tflops".
std::string flag_of(std::string_view option);

/// Returns the text of an error, led by the flag of the option that it is about, where that flag
/// was given: "chat_format: expected …", and of the options of `command` itself "generate: expected
/// top_p …", become "--chat-format: expected …" and "--top-p: expected top_p …".
std::string led_by_flag(std::string_view text, std::string_view command,
                        const std::function<bool(const std::string& flag)>& is_given);

}  // namespace prefopt::cli
