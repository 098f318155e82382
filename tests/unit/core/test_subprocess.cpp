// SPDX-License-Identifier: Apache-2.0
#include <pthread.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <chrono>
#include <csignal>
#include <memory>
#include <stdexcept>
#include <string>

#include "core/subprocess.h"
#include "support/catch.h"
#include "support/child.h"
#include "support/temp_dir.h"
#include "support/text_files.h"
#include "support/wait.h"

namespace prefopt::detail {
namespace {

using testing_support::comes_true;
using testing_support::is_alive;
using testing_support::kLongWait;
using testing_support::read_text;
using testing_support::TempDir;

const std::string kEcho = "while read -r line; do echo \"$line\"; done";

std::unique_ptr<LineProcess> shell(const std::string& body) {
  return std::make_unique<LineProcess>(std::vector<std::string>{"/bin/sh", "-c", body});
}

bool ends(pid_t id) {
  return comes_true([&] { return !is_alive(id); });
}

pid_t number_in(const std::string& path) { return std::stoi(read_text(path)); }

TEST_CASE("a program's group ends with it, also where the program has ended", "[core]") {
  const TempDir dir;
  const std::string start = "sleep 100 & echo $! >" + dir.file("id") + "; ";
  // Ends at the end of its input; ends unasked; stays until it is killed; its child takes no hint.
  for (const std::string& body :
       {start + kEcho, start + "read -r line; echo \"$line\"; exit 3",
        start + "trap '' TERM; while :; do read -r line && echo \"$line\"; done",
        "(trap '' TERM; while :; do sleep 1; done) & echo $! >" + dir.file("id") + "; " + kEcho}) {
    CAPTURE(body);
    auto process = shell(body);
    CHECK(process->ask("hello", kLongWait) == "hello");
    const pid_t id = number_in(dir.file("id"));
    REQUIRE(is_alive(id));
    process.reset();
    CHECK(ends(id));
  }
}

TEST_CASE("questions that are sent ahead have their answers in order", "[core]") {
  auto process = shell(kEcho);
  // More than a connection holds in either direction.
  const std::string wide(5000, 'x');
  for (int i = 0; i < 200; ++i) process->send(std::to_string(i) + wide);
  for (int i = 0; i < 200; ++i) CHECK(process->receive(kLongWait) == std::to_string(i) + wide);
  process->expect_no_more();

  // Answers before the end of the program are not lost.
  auto short_lived = shell("read -r line; echo 1; read -r line; echo 2; exit 4");
  for (int i = 0; i < 200; ++i) short_lived->send(wide);
  CHECK(short_lived->receive(kLongWait) == "1");
  CHECK(short_lived->receive(kLongWait) == "2");
  CHECK_THROWS_AS(short_lived->receive(kLongWait), ProcessFailure);

  auto talkative = shell("read -r line; printf '1\\n2\\n'; read -r line");
  CHECK(talkative->ask("x", kLongWait) == "1");
  CHECK_THROWS_AS(talkative->expect_no_more(), ProcessFailure);
}

TEST_CASE("a program sees the signals that its caller ignores", "[core]") {
  const auto before = ::signal(SIGPIPE, SIG_IGN);
  auto process = shell("read -r line; kill -PIPE $$; echo alive");
  CHECK_THROWS_AS(process->ask("x", kLongWait), ProcessFailure);
  try {
    process->ask("x", kLongWait);
  } catch (const ProcessFailure& failure) {
    CHECK(std::string(failure.what()).starts_with("its end by signal 13 ("));
  }
  ::signal(SIGPIPE, before);
}

TEST_CASE("where SIGCHLD is ignored nothing waits and nothing foreign is signalled", "[core]") {
  const pid_t child = testing_support::start_child([] {
    ::signal(SIGCHLD, SIG_IGN);
    const auto end_one = [] {
      auto process = shell("read -r line; exit 0");
      try {
        process->ask("x", kLongWait);
      } catch (const ProcessFailure& failure) {
        if (failure.what() == std::string("the end of its output")) return;
      }
      throw std::runtime_error("expected the end of its output");
    };
    // Each would take longer if it waited; one that load keeps is no sign of that.
    constexpr int kTries = 100;
    constexpr std::chrono::milliseconds kWaited{200};
    int tries = 0;
    for (auto taken = kWaited; taken >= kWaited; ++tries) {
      if (tries == kTries) throw std::runtime_error("expected no waiting");
      const auto begin = std::chrono::steady_clock::now();
      end_one();
      taken =
          std::chrono::ceil<std::chrono::milliseconds>(std::chrono::steady_clock::now() - begin);
    }
    auto living = shell(kEcho);
    if (living->ask("a", kLongWait) != "a") throw std::runtime_error("");
  });
  int status = 0;
  REQUIRE(::waitpid(child, &status, 0) == child);
  CHECK(WIFEXITED(status));
  CHECK(WEXITSTATUS(status) == 0);
}

TEST_CASE("signals that break into a conversation change nothing", "[core]") {
  struct sigaction action {};
  struct sigaction before {};
  action.sa_handler = [](int) {};  // without SA_RESTART
  REQUIRE(::sigaction(SIGALRM, &action, &before) == 0);
  const itimerval often{.it_interval = {0, 500}, .it_value = {0, 500}};
  const itimerval never{};
  ::setitimer(ITIMER_REAL, &often, nullptr);
  {
    auto process = shell(kEcho);
    for (int i = 0; i < 50; ++i) {
      const std::string line = "line " + std::to_string(i) + std::string(20000, 'x');
      CHECK(process->ask(line, kLongWait) == line);
    }
  }
  ::setitimer(ITIMER_REAL, &never, nullptr);
  ::sigaction(SIGALRM, &before, nullptr);
  CHECK(::waitpid(-1, nullptr, WNOHANG) <= 0);  // nothing is left to be reaped
}

TEST_CASE("a process that a signal ends takes its groups with it", "[core]") {
  const TempDir dir;
  int ready[2];
  REQUIRE(::pipe(ready) == 0);
  const pid_t child = testing_support::start_child([&] {
    auto first = shell("sleep 100 & echo $! >" + dir.file("a") + "; " + kEcho);
    auto second = shell("trap '' TERM; echo $$ >" + dir.file("b") + "; " + kEcho);
    first->ask("x", kLongWait);
    second->ask("x", kLongWait);
    if (::write(ready[1], "x", 1) != 1) ::_exit(2);
    end_process_groups();
    ::_exit(0);
  });
  char byte = 0;
  CHECK(::read(ready[0], &byte, 1) == 1);
  int status = 0;
  REQUIRE(::waitpid(child, &status, 0) == child);
  CHECK(ends(number_in(dir.file("a"))));
  CHECK(ends(number_in(dir.file("b"))));
  ::close(ready[0]);
  ::close(ready[1]);
}

}  // namespace
}  // namespace prefopt::detail
