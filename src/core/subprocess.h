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

/// Thrown by a LineProcess: what came in place of an answer, as `none within 2 s`.
struct ProcessFailure : std::runtime_error {
  using std::runtime_error::runtime_error;
};

/// A program that answers each line on its stdin by a line on its stdout. Its stderr is that of
/// this process. It runs in its own process group, which ends with this object, whether the
/// program itself has ended before or not. Where SIGCHLD is ignored the system does not say how a
/// program ended, and of a group whose program has ended nothing more is known.
class LineProcess {
 public:
  /// `command` is the program, looked for in PATH, and its arguments.
  explicit LineProcess(const std::vector<std::string>& command);
  ~LineProcess();
  LineProcess(const LineProcess&) = delete;
  LineProcess& operator=(const LineProcess&) = delete;

  /// `line` goes out with a line end, the answer comes without. An answer has at most 1 MiB.
  std::string ask(std::string_view line, std::chrono::milliseconds limit);

  /// Keeps a question that `receive` sends while it waits, so that many can be under way.
  void send(std::string_view line);
  /// Returns the next answer, in the order of the questions.
  std::string receive(std::chrono::milliseconds limit);
  /// Throws where lines came in addition to the answers. For when every question has its answer,
  /// and again before the next one, whose answer a late line would pass for.
  void expect_no_more() const;

 private:
  void send_some();
  void receive_some();
  std::string end_of_process();
  /// Returns whether the program ends in this time. Does not reap it: its group keeps its number.
  bool has_exited(std::chrono::milliseconds limit);

  /// The end of the program, as waitid reports it.
  struct End {
    bool is_known = false;
    bool by_signal = false;
    int status = 0;  ///< exit status or signal
  };

  pid_t pid_ = -1;
  int socket_ = -1;
  bool was_asked_ = false;
  bool exited_ = false;
  bool reaped_ = false;  ///< by the system, where SIGCHLD is ignored
  End end_;
  std::string unsent_;
  std::string received_;  // and not yet taken
};

/// Makes this process the parent of what its children leave behind, so that a LineProcess can wait
/// for the end of all of its group. For a program; a library does not decide that.
void adopt_orphans();
/// Ends the process groups of all LineProcess objects, for a process that is about to be ended by a
/// signal and destroys nothing. Calls only what a signal handler may call.
void end_process_groups();

}  // namespace prefopt::detail
