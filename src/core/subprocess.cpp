// SPDX-License-Identifier: Apache-2.0
#include "core/subprocess.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <poll.h>
#include <spawn.h>
#ifdef __linux__
#include <sys/prctl.h>
#endif
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cerrno>
#include <csignal>
#include <cstring>
#include <ctime>
#include <mutex>
#include <system_error>
#include <thread>

#include "core/descriptor.h"

extern char** environ;

namespace prefopt::detail {
namespace {

using Clock = std::chrono::steady_clock;
using std::chrono::milliseconds;

constexpr std::size_t kMaxAnswer = std::size_t{1} << 20;

#ifdef MSG_NOSIGNAL
constexpr int kNoSignal = MSG_NOSIGNAL;
#else
constexpr int kNoSignal = 0;  // SO_NOSIGPIPE does it there
#endif

/// The ends of a two-way connection. Unlike a pipe, writing to it after the other side has gone is
/// an error and no signal.
struct Connection {
  Descriptor ours, theirs;

  static Connection open() {
    std::array<int, 2> ends{-1, -1};
    if (::socketpair(AF_UNIX, SOCK_STREAM, 0, ends.data()) != 0) throw ProcessFailure(last_error());
    for (const int end : ends) ::fcntl(end, F_SETFD, FD_CLOEXEC);
    ::fcntl(ends[0], F_SETFL, O_NONBLOCK);
#ifdef SO_NOSIGPIPE
    const int on = 1;
    ::setsockopt(ends[0], SOL_SOCKET, SO_NOSIGPIPE, &on, sizeof on);
#endif
    return {.ours = Descriptor(ends[0]), .theirs = Descriptor(ends[1])};
  }
};

/// The arguments of posix_spawn, freed at the end of its scope.
class SpawnOptions {
 public:
  explicit SpawnOptions(int connection) {
    ::posix_spawn_file_actions_init(&actions_);
    ::posix_spawn_file_actions_adddup2(&actions_, connection, STDIN_FILENO);
    ::posix_spawn_file_actions_adddup2(&actions_, connection, STDOUT_FILENO);
    ::posix_spawnattr_init(&attributes_);
    ::posix_spawnattr_setpgroup(&attributes_, 0);
    // Signals that this process ignores, a program would ignore as well.
    sigset_t defaults;
    ::sigemptyset(&defaults);
    for (const int number : {SIGPIPE, SIGCHLD, SIGXFSZ}) ::sigaddset(&defaults, number);
    ::posix_spawnattr_setsigdefault(&attributes_, &defaults);
    ::posix_spawnattr_setflags(&attributes_, POSIX_SPAWN_SETPGROUP | POSIX_SPAWN_SETSIGDEF);
  }
  ~SpawnOptions() {
    ::posix_spawnattr_destroy(&attributes_);
    ::posix_spawn_file_actions_destroy(&actions_);
  }
  SpawnOptions(const SpawnOptions&) = delete;
  SpawnOptions& operator=(const SpawnOptions&) = delete;

  pid_t start(const std::vector<std::string>& command) const {
    std::vector<char*> arguments;
    for (const std::string& part : command) arguments.push_back(const_cast<char*>(part.c_str()));
    arguments.push_back(nullptr);
    pid_t pid = -1;
    const int error =
        ::posix_spawnp(&pid, arguments.front(), &actions_, &attributes_, arguments.data(), environ);
    if (error != 0) throw ProcessFailure(std::generic_category().message(error));
    return pid;
  }

 private:
  posix_spawn_file_actions_t actions_{};
  posix_spawnattr_t attributes_{};
};

/// Leaders of the groups that live; more than that are not ended by a signal. A signal handler may
/// read nothing else.
std::array<std::atomic<pid_t>, 64> groups{};
static_assert(std::atomic<pid_t>::is_always_lock_free);

/// Puts `leader` in the first place that holds `before`; 0: a free one.
void replace_group(pid_t before, pid_t leader) {
  for (auto& group : groups) {
    pid_t expected = before;
    if (group.compare_exchange_strong(expected, leader)) return;
  }
}

}  // namespace

LineProcess::LineProcess(const std::vector<std::string>& command) {
  // A program that another thread starts meanwhile would inherit the connection's other end.
  static std::mutex one_at_a_time;
  const std::scoped_lock lock(one_at_a_time);
  Connection connection = Connection::open();
  pid_ = SpawnOptions(connection.theirs.get()).start(command);
  socket_ = connection.ours.release();
  replace_group(0, pid_);
}

LineProcess::~LineProcess() {
  // A well-behaved program ends at the end of its input.
  ::close(socket_);
  constexpr milliseconds kPatience{200};
  constexpr milliseconds kShort{50};
  const bool was_polite = has_exited(kPatience);
  // The group may have other members, and keeps its number until the program is reaped.
  if (!reaped_) {
    ::kill(-pid_, SIGTERM);
    if (was_polite) std::this_thread::sleep_for(kShort);
    has_exited(kPatience);
  }
  replace_group(pid_, 0);
  if (reaped_) return;
  ::kill(-pid_, SIGKILL);
  ::kill(pid_, SIGKILL);
  while (::waitpid(pid_, nullptr, 0) < 0 && errno == EINTR) continue;
  // Members whose parents have ended are children of this process where it adopts them.
  while (::waitpid(-pid_, nullptr, 0) > 0 || errno == EINTR) continue;
}

std::string LineProcess::ask(std::string_view line, milliseconds limit) {
  expect_no_more();
  send(line);
  return receive(limit);
}

void LineProcess::expect_no_more() const {
  // A greeting comes at any time before the first question, and is refused as its answer.
  if (!was_asked_) return;
  char next = 0;
  const bool is_more = !received_.empty() || ::recv(socket_, &next, 1, MSG_PEEK | MSG_DONTWAIT) > 0;
  if (is_more) throw ProcessFailure("more than one line to a question");
}

void LineProcess::send(std::string_view line) {
  was_asked_ = true;
  unsent_.append(line) += '\n';
}

std::string LineProcess::receive(milliseconds limit) {
  const auto deadline = Clock::now() + limit;
  for (;;) {
    const auto end = received_.find('\n');
    if (end != std::string::npos) {
      const std::string answer = received_.substr(0, end);
      received_.erase(0, end + 1);
      return answer;
    }
    if (received_.size() > kMaxAnswer) throw ProcessFailure("a line of more than 1 MiB");
    const auto left = std::chrono::ceil<milliseconds>(deadline - Clock::now());
    pollfd state{.fd = socket_, .events = POLLIN, .revents = 0};
    if (!unsent_.empty()) state.events |= POLLOUT;
    const int ready = ::poll(&state, 1, static_cast<int>(std::max<std::int64_t>(0, left.count())));
    if (ready < 0 && errno != EINTR) throw ProcessFailure(last_error());
    if (ready == 0) {
      throw ProcessFailure(
          fmt::format("none within {} s", static_cast<double>(limit.count()) / 1000));
    }
    if (ready < 0) continue;
    if ((state.revents & ~POLLOUT) != 0) {
      receive_some();
    } else {
      send_some();
    }
  }
}

void LineProcess::send_some() {
  const ssize_t sent = ::send(socket_, unsent_.data(), unsent_.size(), kNoSignal);
  if (sent >= 0) {
    unsent_.erase(0, static_cast<std::size_t>(sent));
  } else if (errno == EPIPE || errno == ECONNRESET) {
    unsent_.clear();  // answers to earlier questions may still be there to be received
  } else if (errno != EAGAIN && errno != EINTR) {
    throw ProcessFailure(last_error());
  }
}

void LineProcess::receive_some() {
  std::array<char, 4096> bytes{};
  const ssize_t got = ::recv(socket_, bytes.data(), bytes.size(), 0);
  if (got > 0) {
    received_.append(bytes.data(), static_cast<std::size_t>(got));
  } else if (got == 0 || errno == ECONNRESET) {
    throw ProcessFailure(end_of_process());
  } else if (errno != EAGAIN && errno != EINTR) {
    throw ProcessFailure(last_error());
  }
}

std::string LineProcess::end_of_process() {
  if (!has_exited(milliseconds(1000)) || !end_.is_known) return "the end of its output";
  if (end_.by_signal) {
    return fmt::format("its end by signal {} ({})", end_.status, ::strsignal(end_.status));
  }
  return fmt::format("its end with exit status {}", end_.status);
}

bool LineProcess::has_exited(milliseconds limit) {
  const auto deadline = Clock::now() + limit;
  while (!exited_) {
    siginfo_t info{};
    const int result = ::waitid(P_PID, static_cast<id_t>(pid_), &info, WEXITED | WNOHANG | WNOWAIT);
    if (result == 0 && info.si_pid == pid_) {
      exited_ = true;
      end_ = {.is_known = true, .by_signal = info.si_code != CLD_EXITED, .status = info.si_status};
    } else if (result != 0 && errno == ECHILD) {
      // Its number may be another process's by now.
      exited_ = reaped_ = true;
    }
    if (exited_ || Clock::now() >= deadline) break;
    std::this_thread::sleep_for(milliseconds(2));
  }
  return exited_;
}

void adopt_orphans() {
#ifdef PR_SET_CHILD_SUBREAPER
  ::prctl(PR_SET_CHILD_SUBREAPER, 1);
#endif
}

void end_process_groups() {
  const auto signal_all = [](int number) {
    bool any = false;
    for (const auto& group : groups) {
      const pid_t leader = group;
      if (leader > 0 && ::kill(-leader, number) == 0) any = true;
    }
    return any;
  };
  if (!signal_all(SIGTERM)) return;
  constexpr timespec kPatience{.tv_sec = 0, .tv_nsec = 100'000'000};
  ::nanosleep(&kPatience, nullptr);
  signal_all(SIGKILL);
}

}  // namespace prefopt::detail
