// SPDX-License-Identifier: Apache-2.0
#include <fcntl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <csignal>
#include <cstdio>
#include <filesystem>
#include <functional>
#include <iostream>
#include <random>

#include "core/system_calls.h"
#include "prefopt/error.h"
#include "prefopt/run/run.h"
#include "run/checkpoint.h"
#include "run/selection.h"
#include "support/catch.h"
#include "support/checkpoint_parts.h"
#include "support/child.h"
#include "support/errors.h"
#include "support/no_sync.h"
#include "support/run_scene.h"

namespace prefopt {
namespace {

namespace fs = std::filesystem;
using namespace testing_support;

/// A run that saves often: one thread, as a child after fork has no others.
RunOptions saving_run(const Scene& scene, const std::string& run) {
  auto options = scene.options(run, "dpo");
  options.model.decoder.hidden_size = 8;
  options.model.decoder.intermediate_size = 8;
  options.machine.threads = 1;
  options.checkpoint.every = 1;
  options.data.eval_fraction = 0;
  return options;
}

std::string last_of(const RunOptions& options) { return options.output_dir + "/checkpoints/last"; }

/// Resumes the run and compares its end with `expected`.
void check_end(const RunOptions& options, const Parts& expected) {
  const auto result = run_training(options, {}, "auto");
  CHECK(result.steps == options.batch.steps);
  auto differences = differing(parts_of(result.checkpoint), expected);
  // Of a checkpoint of the last step: its line, which failed, is written when the run is resumed,
  // with the warning that it may give.
  for (const auto* late : {"unlogged", "displacement_noted"}) differences.erase(late);
  CHECK(differences.empty());
  const auto lines = untimed(options.output_dir);
  CHECK(std::ssize(lines) == options.batch.steps);
  run_training(options, {}, "auto");
  CHECK(untimed(options.output_dir) == lines);  // once
}

// The calls that tests put in place of the system's. They count down to the one that fails.
int calls_left = 0;
int calls_made = 0;
bool is_due() {
  ++calls_made;
  return --calls_left == 0;
}
bool is_due_or_later() {
  ++calls_made;
  return --calls_left <= 0;
}
template <class Result>
Result fail_with(int error) {
  errno = error;
  return static_cast<Result>(-1);
}

struct Fault {
  const char* name;
  std::function<void(detail::SystemCalls&)> install;
};

const std::vector<Fault>& faults() {
  using detail::SystemCalls;
  static const std::vector<Fault> kFaults = {
      {"write",
       [](SystemCalls& calls) {
         calls.write = [](int fd, const void* bytes, std::size_t count) {
           return is_due() ? fail_with<ssize_t>(EIO) : ::write(fd, bytes, count);
         };
       }},
      {"write, then a full disk",
       [](SystemCalls& calls) {
         calls.write = [](int fd, const void* bytes, std::size_t count) {
           if (!is_due_or_later()) return ::write(fd, bytes, count);
           return calls_left == 0 && count > 1 ? ::write(fd, bytes, count / 2)
                                               : fail_with<ssize_t>(ENOSPC);
         };
       }},
      {"short write",
       [](SystemCalls& calls) {
         calls.write = [](int fd, const void* bytes, std::size_t count) {
           return ::write(fd, bytes, is_due() && count > 1 ? count / 2 : count);
         };
       }},
      {"fsync",
       [](SystemCalls& calls) {
         calls.fsync = [](int) { return is_due() ? fail_with<int>(EIO) : 0; };
       }},
      {"close",
       [](SystemCalls& calls) {
         calls.close = [](int fd) {
           const int result = ::close(fd);
           return is_due() ? fail_with<int>(EIO) : result;
         };
       }},
      {"rename",
       [](SystemCalls& calls) {
         calls.rename = [](const char* from, const char* to) {
           return is_due() ? fail_with<int>(EIO) : std::rename(from, to);
         };
       }},
      {"open",
       [](SystemCalls& calls) {
         calls.open = [](const char* path, int flags, mode_t mode) {
           return is_due() ? fail_with<int>(EMFILE) : ::open(path, flags, mode);
         };
       }},
      {"mkdir",
       [](SystemCalls& calls) {
         calls.mkdir = [](const char* path, mode_t mode) {
           return is_due() ? fail_with<int>(ENOSPC) : ::mkdir(path, mode);
         };
       }},
      {"symlink",
       [](SystemCalls& calls) {
         calls.symlink = [](const char* target, const char* path) {
           return is_due() ? fail_with<int>(ENOSPC) : ::symlink(target, path);
         };
       }},
  };
  return kFaults;
}

/// The fault for as long as this lives.
class Injected {
 public:
  Injected(const Fault& fault, int nth) : before_(detail::system_calls()) {
    calls_left = nth;
    calls_made = 0;
    fault.install(detail::system_calls());
  }
  ~Injected() { detail::system_calls() = before_; }
  Injected(const Injected&) = delete;
  Injected& operator=(const Injected&) = delete;

 private:
  detail::SystemCalls before_;
};

/// Steps that the run took before it failed, or all.
std::int64_t steps_until_failure(const RunOptions& options, bool& has_failed) {
  std::int64_t steps = 0;
  RunEvents events;
  events.step = [&](std::int64_t step, std::int64_t, const Metrics&) { steps = step; };
  try {
    run_training(options, events);
    has_failed = false;
  } catch (const CheckpointError&) {
    has_failed = true;
  }
  return steps;
}

TEST_CASE("whatever call fails, the last checkpoint is whole and one step is lost", "[run]") {
  const NoSync no_sync;
  const Scene scene;
  auto options = saving_run(scene, "straight");
  options.batch.steps = 2;
  const Parts expected = parts_of(run_training(options).checkpoint);
  std::int64_t tried = 0;
  for (const Fault& fault : faults()) {
    std::int64_t failed = 0;
    // Until a run has fewer calls than that.
    for (int nth = 1;; ++nth) {
      INFO(fault.name << " number " << nth);
      options.output_dir = scene.file(fault.name + std::to_string(nth));
      bool has_failed = false;
      std::int64_t steps = 0;
      {
        const Injected injected(fault, nth);
        steps = steps_until_failure(options, has_failed);
      }
      if (calls_made < nth) break;
      ++tried;
      failed += has_failed ? 1 : 0;
      CHECK(has_failed == (std::string(fault.name) != "short write"));
      std::int64_t saved = 0;
      if (fs::exists(last_of(options))) {
        CHECK(detail::defect_of_checkpoint(last_of(options)) == "");
        saved = detail::step_of_checkpoint(last_of(options));
      }
      CHECK(steps - saved <= options.checkpoint.every);
      // Each kind in each place of a checkpoint; all of them would take as long again.
      constexpr int kEnds = 3;
      if (nth % kEnds == 1) check_end(options, expected);
      fs::remove_all(options.output_dir);
    }
    CHECK(failed >= (std::string(fault.name) == "short write" ? 0 : 2));
  }
  std::cout << "counted: " << tried << " n-th failures of " << faults().size() << " kinds\n";
}

int wait_for(pid_t child) {
  int status = 0;
  REQUIRE(::waitpid(child, &status, 0) == child);
  return status;
}

/// A moment of a process that trains: so many step events, and then so many changes of files.
struct Moment {
  int events = 0;
  int changes = 0;
};

// Of the child that ends there.
Moment to_come;
// How often the report is written depends on the clock, so that its changes do not count.
bool is_reporting = false;

bool is_moment() { return to_come.events == 0 && !is_reporting && to_come.changes-- == 0; }
void kill_at_moment() {
  if (is_moment()) ::raise(SIGKILL);
}

/// Trains as far as `moment`, where it ends as by a kill from outside: the same moment on every
/// machine, whatever else that does.
void train_until(const Moment& moment, const RunOptions& options) {
  to_come = moment;
  detail::SystemCalls& calls = detail::system_calls();
  calls.open = [](const char* path, int flags, mode_t mode) {
    if (std::string(path).find("/report.html.") != std::string::npos) is_reporting = true;
    kill_at_moment();
    return ::open(path, flags, mode);
  };
  calls.write = [](int fd, const void* bytes, std::size_t count) {
    const bool is_last = is_moment();
    const ssize_t written = ::write(fd, bytes, is_last ? count / 2 : count);
    if (is_last) ::raise(SIGKILL);
    return written;
  };
  calls.rename = [](const char* from, const char* to) {
    kill_at_moment();
    const int result = std::rename(from, to);
    if (std::string(to).ends_with("/report.html")) is_reporting = false;
    return result;
  };
  calls.mkdir = [](const char* path, mode_t mode) {
    kill_at_moment();
    return ::mkdir(path, mode);
  };
  calls.symlink = [](const char* target, const char* path) {
    kill_at_moment();
    return ::symlink(target, path);
  };
  RunEvents events;
  events.step = [](std::int64_t, std::int64_t, const Metrics&) {
    if (to_come.events > 0) --to_come.events;
  };
  run_training(options, events, "auto");
}

/// One of a run that still has `steps` to take: in its start or after one of the steps that follow.
/// Every start and every last step changes files more often than that.
Moment random_moment(std::mt19937_64& rng, std::int64_t steps) {
  constexpr std::uint64_t kMostEvents = 4;
  constexpr std::uint64_t kChanges = 24;
  const auto events = std::min(kMostEvents, static_cast<std::uint64_t>(steps));
  return {static_cast<int>(rng() % (events + 1)), static_cast<int>(rng() % kChanges)};
}

void check_kills(int wanted) {
  const NoSync no_sync;  // what is not synced outlives a process
  const Scene scene;
  auto options = saving_run(scene, "straight");
  options.batch.steps = 12;
  options.checkpoint.every = 2;
  options.data.eval_fraction = 0.25;
  options.evaluate.every = 3;
  const Parts expected = parts_of(run_training(options).checkpoint);
  const auto lines = untimed(options.output_dir);

  std::mt19937_64 rng(20);
  int kills = 0;
  int runs = 0;
  std::set<std::int64_t> steps_found;
  while (kills < wanted) {
    options.output_dir = scene.file("killed-" + std::to_string(++runs));
    std::int64_t saved = 0;
    for (; kills < wanted && saved < options.batch.steps; ++kills) {
      const Moment moment = random_moment(rng, options.batch.steps - saved);
      INFO("kill " << kills << " of run " << runs << ", after step " << saved << ": "
                   << moment.events << " events, " << moment.changes << " changes");
      const int status = wait_for(start_child([&] { train_until(moment, options); }));
      REQUIRE(WIFSIGNALED(status));
      REQUIRE(WTERMSIG(status) == SIGKILL);
      if (!fs::exists(last_of(options))) continue;
      REQUIRE(detail::defect_of_checkpoint(last_of(options)) == "");
      saved = detail::step_of_checkpoint(last_of(options));
      steps_found.insert(saved);
    }
    run_training(options, {}, "auto");
    CHECK(differing(parts_of(last_of(options)), expected).empty());
    CHECK(untimed(options.output_dir) == lines);
  }
  CHECK(steps_found.size() > 2);
  std::cout << "counted: " << kills << " survived in " << runs << " runs, of checkpoints of "
            << steps_found.size() << " steps\n";
}

TEST_CASE("runs killed at random moments end as an undisturbed one", "[run]") { check_kills(8); }

TEST_CASE("many runs killed at random moments end as an undisturbed one", "[run][.long]") {
  check_kills(50);
}

TEST_CASE("a limit on file sizes leaves the last checkpoint whole", "[run]") {
  const Scene scene;
  auto options = saving_run(scene, "straight");
  const Parts expected = parts_of(run_training(options).checkpoint);
  const auto size = fs::file_size(last_of(options) + "/model.safetensors");
  options.output_dir = scene.file("limited");
  const pid_t child = start_child([&] {
    std::signal(SIGXFSZ, SIG_IGN);
    RunEvents events;
    events.step = [&](std::int64_t step, std::int64_t, const Metrics&) {
      const rlimit limit{size / 2, size / 2};
      if (step == 2) ::setrlimit(RLIMIT_FSIZE, &limit);
    };
    run_training(options, events);
  });
  const int status = wait_for(child);
  REQUIRE(WIFEXITED(status));
  CHECK(WEXITSTATUS(status) == 1);
  CHECK(detail::defect_of_checkpoint(last_of(options)) == "");
  CHECK(detail::step_of_checkpoint(last_of(options)) == 1);
  check_end(options, expected);
}

TEST_CASE("a damaged checkpoint is passed over for the one before it", "[run]") {
  const NoSync no_sync;
  const Scene scene;
  auto options = saving_run(scene, "run");
  const Parts expected = parts_of(run_training(options).checkpoint);
  const std::string third = scene.file("run/checkpoints/step-3");
  const auto flip = [&](const std::string& name) {
    std::string bytes = read_text(third + "/" + name);
    bytes[bytes.size() - 2] = static_cast<char>(bytes[bytes.size() - 2] ^ 1);
    write_text(third + "/" + name, bytes);
  };
  const auto cut = [&](const std::string& name) {
    const std::string bytes = read_text(third + "/" + name);
    write_text(third + "/" + name, bytes.substr(0, bytes.size() / 2));
  };
  struct Damage {
    std::function<void()> make;
    std::string said;
  };
  const std::vector<Damage> damages = {
      {[&] { flip("model.safetensors"); }, "model.safetensors: expected crc32 \""},
      {[&] { cut("model.safetensors"); }, "model.safetensors: expected bytes "},
      {[&] { flip("training_state.safetensors"); }, "training_state.safetensors: expected crc32 "},
      {[&] { cut("training_state.json"); }, "training_state.json: expected bytes "},
      {[&] { fs::remove(third + "/training_state.json"); },
       "training_state.json: expected a readable file, got No such file or directory"},
      {[&] { fs::remove(third + "/config.json"); }, "config.json: expected a readable file, got "},
      {[&] { fs::remove(third + "/manifest.json"); },
       "manifest.json: expected a readable file, got No such file or directory"},
      {[&] { cut("manifest.json"); }, "manifest.json: expected JSON, got "},
      {[&] { write_text(third + "/manifest.json", "[]"); },
       "manifest.json: expected an object of format prefopt-checkpoint-1, got []"},
      {[&] { write_text(third + "/manifest.json", R"({"format": "prefopt-checkpoint-1"})"); },
       "manifest.json: expected 'step' to be a number of steps, got null"},
      {[&] {
         write_text(third + "/manifest.json",
                    R"({"format": "prefopt-checkpoint-1", "step": 3, "files": 1})");
       },
       "manifest.json: expected 'files' to be an object, got 1"},
      {[&] {
         write_text(third + "/manifest.json",
                    R"({"format": "prefopt-checkpoint-1", "step": 3, "files": {"../x": {}}})");
       },
       "manifest.json: expected names of files in this folder, got \"../x\""},
      {[&] {
         write_text(third + "/manifest.json",
                    R"({"format": "prefopt-checkpoint-1", "step": 3, "files": {"x": {}}})");
       },
       "manifest.json: expected 'x' to have 'bytes' and 'crc32', got {}"},
      {[&] { fs::remove_all(third); }, "manifest.json: expected a readable file, got "},
  };
  for (const Damage& damage : damages) {
    INFO(damage.said);
    damage.make();
    std::vector<std::string> notes;
    RunEvents events;
    events.note = [&](const std::string& line) { notes.push_back(line); };
    const auto result = run_training(options, events, "auto");
    CHECK(count_containing(notes, "checkpoint step-3 is damaged and passed over: " + third + "/" +
                                      damage.said) == 1);
    CHECK(count_containing(notes, "resume: continues after step 2 of 3, from ") == 1);
    CHECK(differing(parts_of(result.checkpoint), expected).empty());
  }
  std::cout << "counted: " << damages.size() << " kinds of damage passed over\n";

  fs::remove(third + "/manifest.json");
  CHECK_THROWS_TEXT(run_training(options, {}, third), ConfigError,
                    "resume: expected auto, a run folder or a checkpoint, got " + third +
                        ", which has no manifest.json and no checkpoints");
  fs::remove(scene.file("run/checkpoints/step-2/manifest.json"));
  CHECK_THROWS_TEXT(run_training(options, {}, "auto"), CheckpointError,
                    scene.file("run/checkpoints") + ": expected a whole checkpoint, got none; " +
                        third +
                        "/manifest.json: expected a readable file, got No such file or "
                        "directory");
}

TEST_CASE("a checkpoint that is named is taken or refused, not replaced", "[run]") {
  const Scene scene;
  auto options = saving_run(scene, "run");
  options.checkpoint.keep_last = 0;
  const Parts expected = parts_of(run_training(options).checkpoint);
  const std::string first = scene.file("run/checkpoints/step-1");
  check_end(options, expected);

  SECTION("back to an earlier one in the same folder") {
    const auto result = run_training(options, {}, first);
    CHECK(result.checkpoint == scene.file("run/checkpoints/step-3"));
    CHECK(differing(parts_of(result.checkpoint), expected).empty());
  }
  SECTION("into a new folder, and not into one with another run") {
    options.output_dir = scene.file("new");
    CHECK(differing(parts_of(run_training(options, {}, first).checkpoint), expected).empty());
    CHECK_THROWS_TEXT(run_training(options, {}, first), ConfigError,
                      "output_dir: expected an empty or new folder, got " + scene.file("new") +
                          " with a config.json in it; choose another name, or resume that run");
  }
  SECTION("damaged") {
    fs::remove(first + "/config.json");
    CHECK_THROWS_TEXT(run_training(options, {}, first), CheckpointError,
                      first +
                          "/config.json: expected a readable file, got No such file or "
                          "directory");
  }
}

TEST_CASE("selection: the best few, and how long none was better", "[run]") {
  detail::Selection low("eval_loss", 2, 2);
  CHECK(low.add(1, 0.5));
  CHECK(low.add(2, 0.7));
  CHECK_FALSE(low.is_exhausted());
  CHECK_FALSE(low.add(3, 0.8));
  CHECK(low.is_exhausted());
  CHECK_FALSE(low.add(4, std::numeric_limits<double>::quiet_NaN()));
  CHECK(low.best_steps() == std::vector<std::int64_t>{1, 2});
  CHECK(low.add(5, 0.4));
  CHECK_FALSE(low.is_exhausted());
  CHECK_FALSE(low.add(6, 0.5));  // as good as step 1, which stays
  CHECK(low.best_steps() == std::vector<std::int64_t>{5, 1});

  detail::Selection high("eval_rewards/accuracies", 1, 0);
  high.load(low.state());
  CHECK_FALSE(high.add(7, 0.3));
  CHECK(high.add(8, 0.6));
  CHECK(high.best_steps() == std::vector<std::int64_t>{8});

  // A state that cannot be read leaves all as it was.
  for (const char* broken :
       {R"({"best": []})", R"({"best": [{"step": 9, "value": "x"}], "evaluations_since_best": 0})",
        R"({"best": [{"step": 9, "value": 1}], "evaluations_since_best": "0"})"}) {
    CHECK_THROWS_AS(high.load(detail::Json::parse(broken)), detail::Json::exception);
    CHECK(high.best_steps() == std::vector<std::int64_t>{8});
  }

  detail::Selection none("eval_kl", 0, 1);
  CHECK_FALSE(none.add(1, 0.5));
  CHECK_FALSE(none.is_exhausted());
  CHECK_FALSE(none.add(2, 0.6));
  CHECK(none.is_exhausted());
  CHECK(none.best_steps().empty());
}

}  // namespace
}  // namespace prefopt
