// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <sys/types.h>

#include <chrono>
#include <cstddef>
#include <stdexcept>
#include <string>
#include <string_view>
#include <vector>

namespace prefopt::detail {

/// What a LineProcess throws: what came in place of an answer, as `none within 2 s`.
struct ProcessFailure : std::runtime_error {
  using std::runtime_error::runtime_error;
};

/// A program that answers each line on its stdin by a line on its stdout. Its stderr is that of
/// this process. It runs in a process group of its own, which ends with this object.
class LineProcess {
 public:
  /// `command` is the program, looked for in PATH, and its arguments.
  explicit LineProcess(const std::vector<std::string>& command);
  ~LineProcess();
  LineProcess(const LineProcess&) = delete;
  LineProcess& operator=(const LineProcess&) = delete;

  /// `line` goes out with a line end, the answer comes without. An answer has at most 1 MiB.
  std::string ask(std::string_view line, std::chrono::milliseconds limit);

 private:
  void send_some(std::string_view& rest);
  void receive_some();
  std::string end_of_process();
  bool has_exited(std::chrono::milliseconds limit);

  pid_t pid_ = -1;
  int socket_ = -1;
  bool exited_ = false;
  int status_ = 0;
  std::string received_;  // and not yet taken
};

}  // namespace prefopt::detail
