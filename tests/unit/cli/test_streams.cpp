// SPDX-License-Identifier: Apache-2.0
#include <fcntl.h>
#include <poll.h>
#include <sys/resource.h>
#include <termios.h>
#include <unistd.h>

#include <algorithm>
#include <csignal>
#include <cstdlib>
#include <filesystem>
#include <map>
#include <string>
#include <vector>

#include "core/json.h"
#include "core/text.h"
#include "prefopt/data/tokenizer.h"
#include "prefopt/decoder/decoder.h"
#include "prefopt/policy/sampling.h"
#include "run/checkpoint.h"
#include "support/catch.h"
#include "support/cli.h"
#include "support/process.h"
#include "support/tiny_llama.h"

namespace prefopt {
namespace {

namespace fs = std::filesystem;
using namespace testing_support;

/// In the child: makes these streams pipes that nobody reads.
std::function<void()> unread(const std::vector<int>& streams) {
  return [streams] {
    int ends[2];
    if (::pipe(ends) != 0) ::_exit(126);
    for (const int stream : streams) ::dup2(ends[1], stream);
    ::close(ends[0]);
    ::close(ends[1]);
  };
}

bool is_whole(const std::string& run) {
  return detail::defect_of_checkpoint(run + "/checkpoints/last").empty();
}

TEST_CASE("prefopt train: whoever stops reading what it prints does not end it", "[cli]") {
  const Config config("run", 3);
  const Process neither(config.train(), unread({STDOUT_FILENO, STDERR_FILENO}));
  CHECK(neither.wait() == 0);
  CHECK(is_whole(config.run()));

  // Streams that are closed are not taken by files that are opened.
  const std::string folder = config.file("closed");
  const Process closed(config.train({"--set", "output_dir=" + folder}), [] {
    for (const int stream : {STDIN_FILENO, STDOUT_FILENO, STDERR_FILENO}) ::close(stream);
  });
  CHECK(closed.wait() == 0);
  CHECK(is_whole(folder));
  CHECK(Json::parse(read_text(folder + "/config.json"))["output_dir"] == folder);
  CHECK(read_text(folder + "/run.lock").find_first_not_of("0123456789") == std::string::npos);
}

TEST_CASE("prefopt: a result that nobody gets is an error", "[cli]") {
  const Process losses({"losses"}, unread({STDOUT_FILENO}));
  CHECK(losses.wait() == 1);
  CHECK(losses.err() == "prefopt: stdout: expected to write the result, got an error\n");
}

TEST_CASE("prefopt train: a terminal that closes saves, but not under nohup", "[cli]") {
  const Config config("run", 1'000'000);
  const Process closed(config.train());
  closed.wait_for("step 1/1000000");
  for (int i = 0; i < 3; ++i) closed.signal(SIGHUP);  // as terminals do
  CHECK(closed.wait() == 130);
  CHECK(closed.err().find("; --resume auto continues\n") != std::string::npos);
  CHECK(is_whole(config.run()));

  const std::string folder = config.file("nohup");
  const Process kept(config.train({"--set", "output_dir=" + folder}),
                     [] { ::signal(SIGHUP, SIG_IGN); });
  kept.wait_for("step 1/1000000");
  kept.signal(SIGHUP);
  const auto lines = [&] {
    const std::string text = read_text(folder + "/metrics.jsonl");
    return std::count(text.begin(), text.end(), '\n');
  };
  // More than the step at hand brings: it has not stopped.
  const auto before = lines();
  CHECK(comes_true([&] { return lines() > before + 2; }));
  kept.signal(SIGTERM);
  CHECK(kept.wait() == 130);
}

TEST_CASE("prefopt train: a file that may not grow is an error of a write", "[cli]") {
  const Config config("run", 2);
  const Process process(config.train(), [] {
    constexpr rlim_t kBytes = 8 << 10;
    const rlimit limit{kBytes, kBytes};
    ::setrlimit(RLIMIT_FSIZE, &limit);
  });
  CHECK(process.wait() == 4);
  CHECK(process.err().find("got File too large\n") != std::string::npos);
}

TEST_CASE("prefopt train: a model that is cut short meanwhile is named as the reason", "[cli]") {
  const Config config("base", 1);
  REQUIRE(Process(config.train()).wait() == 0);
  const std::string base = config.run() + "/checkpoints/step-1";
  const Process process(
      config.train({"--set", "output_dir=" + config.file("adapter"), "--set", "batch.steps=1000000",
                    "--set", "model={\"path\": \"" + base + "\", \"use_lora\": true}"}));
  process.wait_for("step 1/1000000");
  fs::resize_file(base + "/model.safetensors", 0);
  CHECK(process.wait() == 4);
  // A read of a page that is gone says so, or the next forward pass before it.
  const std::string err = process.err();
  const bool is_named = err.find("bytes, as when it was mapped, got 0") != std::string::npos;
  CHECK((is_named || err.ends_with("got one that was cut short (SIGBUS)\n")));
}

TEST_CASE("prefopt: control characters of files do not reach the terminal", "[cli]") {
  const TempDir folder;
  const std::string escape = "\x1b]0;owned\x07";
  const std::string model = folder.file("model");
  fs::copy(kPolicy, model);
  Json config = Json::parse(read_text(model + "/config.json"));
  config[escape + "\u009b31m"] = 1;
  write_text(model + "/config.json", config.dump());
  const std::string rows = folder.file("rows" + escape + ".jsonl");
  write_text(rows, R"({"prompt": "a", "chosen": "b", "rejected": "c"})");
  const auto check_quiet = [](const std::string& text) {
    INFO(text);
    CHECK(text.find('\x1b') == std::string::npos);
    CHECK(text.find('\x07') == std::string::npos);
    CHECK(text.find("\u009b") == std::string::npos);
    CHECK(text.find("␛]0;owned␇") != std::string::npos);
  };
  const CliResult doctor =
      run_cli({"doctor", "--model", model, "--data", rows, "--out", folder.path()});
  CHECK(doctor.code == 4);
  check_quiet(doctor.out);
  check_quiet(doctor.err);
  const CliResult check = run_cli({"data", "check", "--data", rows});
  CHECK(check.code == 0);
  check_quiet(check.out);
  check_quiet(run_cli({"score", "--model", folder.file(escape), "--data", rows}).err);
  check_quiet(run_cli({"losses", escape}).err);
}

/// A terminal that shows what it gets as it is.
class RawTerminal {
 public:
  RawTerminal() : screen_(::posix_openpt(O_RDWR | O_NOCTTY | O_CLOEXEC)) {
    REQUIRE((screen_ >= 0 && ::grantpt(screen_) == 0 && ::unlockpt(screen_) == 0));
    line_ = ::open(::ptsname(screen_), O_RDWR | O_NOCTTY | O_CLOEXEC);
    termios settings{};
    REQUIRE(::tcgetattr(line_, &settings) == 0);
    ::cfmakeraw(&settings);
    REQUIRE(::tcsetattr(line_, TCSANOW, &settings) == 0);
  }
  RawTerminal(const RawTerminal&) = delete;
  RawTerminal& operator=(const RawTerminal&) = delete;
  ~RawTerminal() {
    ::close(line_);
    ::close(screen_);
  }

  std::string path() const { return ::ptsname(screen_); }

  /// Its text of `size` bytes, less where no more comes.
  std::string text(std::size_t size) const {
    std::string text;
    pollfd ready{screen_, POLLIN, 0};
    while (text.size() < size && ::poll(&ready, 1, /*milliseconds=*/5000) == 1) {
      char part[4096];
      const ssize_t count = ::read(screen_, part, sizeof part);
      if (count <= 0) break;
      text.append(part, static_cast<std::size_t>(count));
    }
    return text;
  }

 private:
  int screen_, line_;
};

TEST_CASE("prefopt generate: control characters of a model do not reach the terminal", "[cli]") {
  for (const bool as_json : {false, true}) {
    std::vector<std::string> words{"generate", "--model",          kPolicy, "--tokenizer",
                                   "byte",     "--prompt",         "ab",    "--end-tokens",
                                   "-1",       "--max-new-tokens", "200"};
    if (as_json) words.push_back("--json");
    const std::string raw = run_cli(words).out;
    const auto is_control = [](char c) { return c >= 0 && c < 0x20 && c != '\n' && c != '\t'; };
    CHECK((as_json || std::any_of(raw.begin(), raw.end(), is_control)));
    const RawTerminal terminal;
    const TempDir folder;
    CHECK(run_on_command_server(words, terminal.path(), folder.file("err")) == 0);
    const std::string shown = detail::printable(raw, /*keep_lines=*/true);
    CHECK(terminal.text(shown.size()) == shown);
  }
}

TEST_CASE("prefopt train: --set gives an option that is a text what is written", "[cli]") {
  const Config config("run", 3);
  const auto printed = cli_json(config.train(
      {"--set", "output_dir=2024", "--set", "data.train=true", "--set", "data.eval=null", "--set",
       "model.path=1e3", "--set", "model.tokenizer=\"byte\"", "--set", "model.dtype=[1]", "--set",
       "batch.steps=7", "--set", "loss.beta=0.25", "--set", "batch.shuffle=false",
       "--print-config"}));
  CHECK(printed["output_dir"] == "2024");
  CHECK(printed["data"]["train"] == "true");
  CHECK(printed["data"]["eval"] == "null");
  CHECK(printed["model"]["path"] == "1e3");
  CHECK(printed["model"]["tokenizer"] == "byte");
  CHECK(printed["model"]["dtype"] == "[1]");
  CHECK(printed["batch"]["steps"] == 7);
  CHECK(printed["batch"]["shuffle"] == false);
  CHECK(printed["loss"]["beta"] == 0.25);
}

TEST_CASE("prefopt eval: the judge's group ends with the command, however that ends", "[cli]") {
  const TempDir folder;
  const std::string file = folder.file("id");
  const Process process(
      {"eval", "--model", kPolicy, "--ref", kReference, "--data", kPairs, "--samples", "1",
       "--max-new-tokens", "2", "--judge",
       "sleep 100 & echo $! >" + file + ".new; mv " + file + ".new " + file + "; exec sleep 100"});
  REQUIRE(comes_true([&] { return fs::exists(file); }));
  const pid_t id = std::stoi(read_text(file));
  process.signal(SIGTERM);
  CHECK(process.wait() == -SIGTERM);
  CHECK(comes_true([&] { return !is_alive(id); }));
}

TEST_CASE("prefopt eval: the reference is sampled in parts, with the same result", "[cli]") {
  constexpr int kPrompts = 40;
  const TempDir folder;
  std::string rows;
  std::vector<std::vector<std::int64_t>> prompts;
  for (int i = 0; i < kPrompts; ++i) {
    prompts.push_back({'A' + i, 'x'});
    rows +=
        Json({{"prompt_ids", prompts.back()}, {"chosen_ids", {5}}, {"rejected_ids", {6}}}).dump() +
        "\n";
  }
  write_text(folder.file("rows.jsonl"), rows);
  const std::string questions = folder.file("questions");
  cli_json({"eval",
            "--model",
            kPolicy,
            "--ref",
            kReference,
            "--data",
            folder.file("rows.jsonl"),
            "--prompts",
            "0",
            "--samples",
            "1",
            "--max-new-tokens",
            "4",
            "--seed",
            "3",
            "--end-tokens",
            "-1",
            "--tokenizer",
            "byte",
            "--json",
            "--judge",
            "while read -r line; do printf \"%s\\n\" \"$line\" >>" + questions +
                "; echo \"{\\\"winner\\\": \\\"tie\\\"}\"; done"});
  const auto reference = Decoder::load(kReference, "keep");
  SamplingOptions sampling;
  sampling.max_new_tokens = 4;
  sampling.seed = 4;  // the next one to the policy's
  const auto completions = sample(*reference, prompts, sampling);
  std::map<std::string, std::string> by_prompt;
  for (std::size_t i = 0; i < prompts.size(); ++i) {
    // As JSON shows them: bytes need not be UTF-8.
    const auto shown = [](const std::vector<std::int64_t>& ids) {
      return detail::dump_json(ByteTokenizer().decode(ids));
    };
    by_prompt[shown(prompts[i])] = shown(completions[i]);
  }
  std::size_t found = 0;
  const auto asked = read_lines(questions);
  for (std::size_t i = 0; i < asked.size(); i += 2) {  // the policy's in front, then behind
    CHECK(detail::dump_json(asked[i]["b"]) == by_prompt.at(detail::dump_json(asked[i]["prompt"])));
    ++found;
  }
  CHECK(found > kPrompts / 2);  // equal ones are not asked about
}

}  // namespace
}  // namespace prefopt
