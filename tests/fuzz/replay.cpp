// SPDX-License-Identifier: Apache-2.0
// Runs the corpora through their readers without libFuzzer, and then changes them at random for a
// moment. The same inputs on every run and every machine.
//   prefopt_fuzz_corpus [MUTATIONS]        all of corpus/, and so many changed inputs a target
//   prefopt_fuzz_corpus TARGET FILE...     these files, as after a find
#include <ATen/Parallel.h>
#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <exception>
#include <filesystem>
#include <iostream>
#include <iterator>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "fuzz/mutation.h"
#include "fuzz/targets.h"
#include "fuzz/verdict.h"
#include "support/files.h"

namespace prefopt::fuzz {
namespace {

namespace fs = std::filesystem;

constexpr int kMutations = 200;  // a target

/// The input that is being read, on disk for when it ends the process.
class LastInput {
 public:
  explicit LastInput(std::string path)
      : path_(std::move(path)), fd_(::open(path_.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0644)) {}
  ~LastInput() {
    ::close(fd_);
    ::unlink(path_.c_str());
  }
  LastInput(const LastInput&) = delete;
  LastInput& operator=(const LastInput&) = delete;

  void put(std::string_view bytes) const {
    const bool written = ::ftruncate(fd_, 0) == 0 &&
                         ::pwrite(fd_, bytes.data(), bytes.size(), 0) == std::ssize(bytes);
    if (!written) throw Fault("no room for the last input in " + path_);
  }

 private:
  std::string path_;
  int fd_;
};

std::vector<std::string> corpus_of(std::string_view target) {
  std::vector<fs::path> paths;
  for (const auto& entry : fs::directory_iterator(fs::path(PREFOPT_FUZZ_CORPUS) / target)) {
    paths.push_back(entry.path());
  }
  std::sort(paths.begin(), paths.end());  // the folder's own order is the machine's
  std::vector<std::string> inputs;
  for (const fs::path& path : paths) inputs.push_back(testing_support::bytes_of(path.string()));
  return inputs;
}

void replay(const Target& target, int mutations) {
  const std::vector<std::string> corpus = corpus_of(target.name);
  expect(!corpus.empty(), "a target without a corpus");
  const LastInput last("fuzz-last-" + std::string(target.name));
  const std::uint64_t refused_before = refusals;
  const auto read = [&](const std::string& input) {
    last.put(input);
    target.read(input);
  };
  for (const std::string& input : corpus) read(input);
  const std::uint64_t refused_of_corpus = refusals - refused_before;
  Mutation mutation(/*seed=*/1);
  for (int i = 0; i < mutations; ++i) {
    const std::string& seed = corpus[mutation.below(corpus.size())];
    read(mutation(seed, corpus[mutation.below(corpus.size())]));
  }
  std::cout << "counted: fuzz " << target.name << ": " << corpus.size() << " files replayed, "
            << mutations << " mutations, " << refused_of_corpus << " and "
            << refusals - refused_before - refused_of_corpus << " refusals" << std::endl;
}

const Target& find_target(std::string_view name) {
  const auto* found = std::find_if(kTargets.begin(), kTargets.end(),
                                   [&](const Target& target) { return target.name == name; });
  if (found == kTargets.end()) throw Fault("no target of the name " + std::string(name));
  return *found;
}

int run(const std::vector<std::string>& arguments) {
  const bool has_count = arguments.size() == 1;
  if (arguments.empty() || has_count) {
    const int mutations = has_count ? std::stoi(arguments[0]) : kMutations;
    for (const Target& target : kTargets) replay(target, mutations);
  } else {
    const Target& target = find_target(arguments[0]);
    for (std::size_t i = 1; i < arguments.size(); ++i) {
      target.read(testing_support::bytes_of(arguments[i]));
    }
  }
  return EXIT_SUCCESS;
}

}  // namespace
}  // namespace prefopt::fuzz

int main(int argc, char** argv) {
  at::set_num_threads(1);
  // Not caught here, so that a debugger stands where a fault was thrown; the handler says what.
  std::set_terminate([] {
    try {
      std::rethrow_exception(std::current_exception());
    } catch (const std::exception& error) {
      std::cerr << "fault: " << error.what() << "\nthe input is kept in fuzz-last-TARGET\n";
    }
    std::_Exit(EXIT_FAILURE);
  });
  return prefopt::fuzz::run({argv + 1, argv + argc});
}
