// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <string>
#include <vector>

namespace prefopt::testing_support {

/// Forks a process that runs the command `prefopt` on demand, each time in a fork of itself, which
/// has LibTorch loaded: another program takes half a second of a processor for that. To be
/// called before there are threads.
void start_command_server();

/// Runs the command's main function with `arguments` in the present folder, its output in files.
/// Returns the status as waitpid has it.
int run_on_command_server(const std::vector<std::string>& arguments, const std::string& out,
                          const std::string& err);

}  // namespace prefopt::testing_support
