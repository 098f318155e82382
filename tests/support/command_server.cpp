// SPDX-License-Identifier: Apache-2.0
#include "support/command_server.h"

#include <fcntl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <iostream>
#include <stdexcept>

#if defined(PREFOPT_CLI_PATH)
#include "cli/commands.h"
#endif

namespace prefopt::testing_support {

#if defined(PREFOPT_CLI_PATH)
namespace {

int server_socket = -1;

/// False at the end of the stream.
bool read_all(int fd, void* data, std::size_t size) {
  auto* at = static_cast<char*>(data);
  while (size > 0) {
    const ssize_t got = ::read(fd, at, size);
    if (got <= 0) return false;
    at += got;
    size -= static_cast<std::size_t>(got);
  }
  return true;
}

bool write_all(int fd, const void* data, std::size_t size) {
  const auto* at = static_cast<const char*>(data);
  while (size > 0) {
    const ssize_t put = ::send(fd, at, size, MSG_NOSIGNAL);
    if (put <= 0) return false;
    at += put;
    size -= static_cast<std::size_t>(put);
  }
  return true;
}

bool read_word(int fd, std::string& word) {
  std::uint64_t size = 0;
  if (!read_all(fd, &size, sizeof(size))) return false;
  word.resize(size);
  return read_all(fd, word.data(), size);
}

bool write_word(int fd, const std::string& word) {
  const std::uint64_t size = word.size();
  return write_all(fd, &size, sizeof(size)) && write_all(fd, word.data(), size);
}

/// Folder, output file, error file, then the command line with its program.
bool read_request(int fd, std::vector<std::string>& words) {
  std::uint64_t count = 0;
  if (!read_all(fd, &count, sizeof(count))) return false;
  words.resize(count);
  for (std::string& word : words) {
    if (!read_word(fd, word)) return false;
  }
  return true;
}

void redirect(const std::string& path, int flags, int to) {
  const int fd = ::open(path.c_str(), flags, 0600);
  if (fd < 0 || ::dup2(fd, to) < 0) ::_exit(127);
  ::close(fd);
}

[[noreturn]] void run_request(std::vector<std::string>& words) {
  if (::chdir(words[0].c_str()) != 0) ::_exit(127);
  redirect("/dev/null", O_RDONLY, STDIN_FILENO);
  redirect(words[1], O_WRONLY | O_CREAT | O_TRUNC, STDOUT_FILENO);
  redirect(words[2], O_WRONLY | O_CREAT | O_TRUNC, STDERR_FILENO);
  std::vector<char*> argv;
  for (std::size_t i = 3; i < words.size(); ++i) argv.push_back(words[i].data());
  argv.push_back(nullptr);
  const int code = cli::run_command_line(static_cast<int>(argv.size()) - 1, argv.data());
  std::cout.flush();
  std::fflush(nullptr);
  ::_exit(code);  // what Catch2 registered to be run at the end is the parent's
}

void serve(int fd) {
  std::vector<std::string> words;
  while (read_request(fd, words)) {
    const pid_t child = ::fork();
    if (child == 0) {
      ::close(fd);
      run_request(words);
    }
    int status = 127 << 8;
    if (child > 0) ::waitpid(child, &status, 0);
    if (!write_all(fd, &status, sizeof(status))) return;
  }
}

}  // namespace

void start_command_server() {
  int ends[2];
  if (::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends) != 0) {
    throw std::runtime_error("command server: expected a pair of sockets");
  }
  const pid_t child = ::fork();
  if (child < 0) throw std::runtime_error("command server: expected a process");
  if (child == 0) {
    ::close(ends[0]);
    serve(ends[1]);
    ::_exit(0);
  }
  ::close(ends[1]);
  server_socket = ends[0];
}

int run_on_command_server(const std::vector<std::string>& arguments, const std::string& out,
                          const std::string& err) {
  std::vector<std::string> words{std::filesystem::current_path(), out, err, PREFOPT_CLI_PATH};
  words.insert(words.end(), arguments.begin(), arguments.end());
  const std::uint64_t count = words.size();
  bool is_sent = write_all(server_socket, &count, sizeof(count));
  for (const std::string& word : words) is_sent = is_sent && write_word(server_socket, word);
  int status = 0;
  if (!is_sent || !read_all(server_socket, &status, sizeof(status))) {
    throw std::runtime_error("command server: expected it to live");
  }
  return status;
}

#else

void start_command_server() {}

#endif

}  // namespace prefopt::testing_support
