// SPDX-License-Identifier: Apache-2.0
#include <fmt/format.h>
#include <signal.h>  // NOLINT(modernize-deprecated-headers): kill is not in <csignal>
#include <string.h>  // NOLINT(modernize-deprecated-headers): strsignal is not in <cstring>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <ostream>
#include <string>
#include <string_view>
#include <system_error>
#include <thread>
#include <vector>

#include "cli/commands.h"
#include "cli/stop_signal.h"
#include "cli/temporary_folder.h"
#include "prefopt/error.h"

extern char** environ;  // NOLINT(readability-redundant-declaration): not in every libc's unistd.h

namespace prefopt::cli {
namespace {

using Clock = std::chrono::steady_clock;

/// The time that the others may take after one rank has ended: rank 0 saves the steps that were
/// done.
constexpr std::chrono::seconds kGrace{60};
constexpr std::chrono::milliseconds kPause{20};

struct Rank {
  pid_t id = -1;
  bool is_running = true;
  int status = 0;  ///< of waitpid

  bool ended_by_signal() const { return WIFSIGNALED(status); }
  bool has_failed() const { return !is_running && status != 0; }
  int code() const { return ended_by_signal() ? 128 + WTERMSIG(status) : WEXITSTATUS(status); }
};

std::string end_of(const Rank& rank) {
  if (!rank.ended_by_signal()) return fmt::format("ended with code {}", rank.code());
  const int number = WTERMSIG(rank.status);
  return fmt::format("was ended by signal {} ({})", number, ::strsignal(number));
}

/// Processes of this machine that train together.
class RankGroup {
 public:
  RankGroup(std::int64_t count, const std::vector<std::string>& arguments)
      : count_(count), arguments_(arguments) {
    for (std::int64_t rank = 0; rank < count; ++rank) ranks_.push_back(start(rank));
  }
  ~RankGroup() { end(SIGKILL); }
  RankGroup(const RankGroup&) = delete;
  RankGroup& operator=(const RankGroup&) = delete;

  /// Returns the place of the first rank that failed; -1: none did.
  std::int64_t wait(const StopSignal& stop);
  const Rank& rank(std::int64_t place) const { return ranks_[static_cast<std::size_t>(place)]; }

 private:
  Rank start(std::int64_t rank) const;
  void look();
  void end(int signal);
  bool is_running() const {
    return std::any_of(ranks_.begin(), ranks_.end(), [](const Rank& r) { return r.is_running; });
  }

  TemporaryFolder folder_{"prefopt-launch"};
  std::int64_t count_;
  const std::vector<std::string>& arguments_;
  std::vector<Rank> ranks_;
  std::int64_t first_failed_ = -1;
};

/// The environment of this process without the variables that `own` sets, and those.
std::vector<std::string> with_variables(const std::vector<std::string>& own) {
  std::vector<std::string> all = own;
  for (char** variable = environ; *variable != nullptr; ++variable) {
    const std::string_view text = *variable;
    const std::string_view name = text.substr(0, text.find('=') + 1);
    const bool is_set = std::any_of(
        own.begin(), own.end(), [&](const std::string& other) { return other.starts_with(name); });
    if (!is_set) all.emplace_back(text);
  }
  return all;
}

std::vector<char*> pointers(std::vector<std::string>& words) {
  std::vector<char*> result;
  for (std::string& word : words) result.push_back(word.data());
  result.push_back(nullptr);
  return result;
}

Rank RankGroup::start(std::int64_t rank) const {
  std::vector<std::string> words = {"prefopt"};
  words.insert(words.end(), arguments_.begin(), arguments_.end());
  std::vector<std::string> variables = with_variables(
      {fmt::format("RANK={}", rank), fmt::format("WORLD_SIZE={}", count_),
       fmt::format("LOCAL_RANK={}", rank), fmt::format("LOCAL_WORLD_SIZE={}", count_),
       fmt::format("PREFOPT_STORE={}/store", folder_.path())});
  const std::vector<char*> argv = pointers(words);
  const std::vector<char*> envp = pointers(variables);
  const pid_t child = ::fork();
  if (child < 0) {
    throw Error(fmt::format("launch: expected to start rank {}, got '{}'", rank,
                            std::generic_category().message(errno)));
  }
  if (child > 0) return {.id = child};
  // Signals of a terminal come to this process alone, which passes them on.
  ::setpgid(0, 0);
  ::prctl(PR_SET_PDEATHSIG, SIGKILL);
  ::execve("/proc/self/exe", argv.data(), envp.data());
  constexpr int kNotStarted = 127;
  ::_exit(kNotStarted);
}

void RankGroup::look() {
  for (Rank& rank : ranks_) {
    if (!rank.is_running || ::waitpid(rank.id, &rank.status, WNOHANG) != rank.id) continue;
    rank.is_running = false;
    if (rank.status != 0 && first_failed_ < 0) first_failed_ = &rank - ranks_.data();
  }
}

void RankGroup::end(int signal) {
  for (const Rank& rank : ranks_) {
    if (rank.is_running) ::kill(rank.id, signal);
  }
}

std::int64_t RankGroup::wait(const StopSignal& stop) {
  bool is_passed_on = false;
  auto limit = Clock::time_point::max();
  for (look(); is_running(); look()) {
    if (stop.has_come() && !is_passed_on) {
      end(SIGTERM);
      is_passed_on = true;
    }
    if (first_failed_ >= 0) limit = std::min(limit, Clock::now() + kGrace);
    if (Clock::now() > limit) end(SIGKILL);
    std::this_thread::sleep_for(kPause);
  }
  return first_failed_;
}

/// Returns the command that continues where `command` was broken off.
std::vector<std::string> resumed(const std::vector<std::string>& command) {
  std::vector<std::string> words;
  for (auto word = command.begin(); word != command.end(); ++word) {
    if (*word == "--resume" && word + 1 != command.end()) {
      ++word;
    } else if (!word->starts_with("--resume=")) {
      words.push_back(*word);
    }
  }
  words.insert(words.end(), {"--resume", "auto"});
  return words;
}

}  // namespace

int run_launch(const LaunchArguments& arguments, std::ostream& err) {
  if (arguments.command.front() != "train") {
    throw ConfigError(fmt::format("launch: expected train and its options after --, got '{}'",
                                  arguments.command.front()));
  }
  const StopSignal stop;
  std::vector<std::string> command = arguments.command;
  for (std::int64_t restart = 0;; ++restart) {
    RankGroup group(arguments.ranks, command);
    const std::int64_t failed = group.wait(stop);
    if (failed < 0) return 0;
    const Rank& rank = group.rank(failed);
    // A rank that has said why needs no second sentence.
    if (!rank.ended_by_signal()) return rank.code();
    err << fmt::format("prefopt launch: rank {} {}\n", failed, end_of(rank));
    if (stop.has_come() || restart == arguments.max_restarts) return rank.code();
    command = resumed(command);
    err << fmt::format("prefopt launch: starts all ranks again, restart {} of {}\n", restart + 1,
                       arguments.max_restarts);
  }
}

}  // namespace prefopt::cli
