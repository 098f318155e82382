// SPDX-License-Identifier: Apache-2.0
#include "data/lines.h"

#include <fmt/format.h>
#include <zlib.h>

#include <cerrno>
#include <system_error>
#include <vector>

#include "prefopt/data/dataset.h"
#include "prefopt/error.h"

namespace prefopt {
namespace {

constexpr std::size_t kMaxLine = std::size_t{64} << 20;
constexpr std::size_t kBlock = std::size_t{1} << 16;
constexpr std::string_view kByteOrderMark = "\xEF\xBB\xBF";

// zlib reads a file that does not begin with gzip's magic bytes as it is.
class InputFile {
 public:
  explicit InputFile(const std::string& path) : path_(path) {
    errno = 0;
    file_ = gzopen(path.c_str(), "rbe");
    if (!file_) {
      const int code = errno ? errno : ENOMEM;
      throw DataError(fmt::format("{}: expected a readable file, got {}", path,
                                  std::generic_category().message(code)));
    }
  }
  ~InputFile() { gzclose(file_); }
  InputFile(const InputFile&) = delete;
  InputFile& operator=(const InputFile&) = delete;

  /// Bytes read into `buffer`; 0 at the end. `line` is the last whole line, for the error.
  std::size_t read(std::vector<char>& buffer, std::int64_t line) {
    const int got = gzread(file_, buffer.data(), static_cast<unsigned>(buffer.size()));
    if (got > 0) return static_cast<std::size_t>(got);
    int code = Z_OK;
    std::string_view reason = gzerror(file_, &code);
    // gzread answers 0, not an error, where a stream breaks off.
    if (code == Z_BUF_ERROR) {
      throw DataError(fmt::format(
          "{}: expected a whole gzip stream, got its end after line {}; the file was cut off",
          path_, line));
    }
    if (got == 0) return 0;
    const std::string prefix = path_ + ": ";
    if (reason.starts_with(prefix)) reason.remove_prefix(prefix.size());
    if (code == Z_ERRNO) {
      throw DataError(fmt::format("{}: expected a readable file, got {}", path_, reason));
    }
    throw DataError(fmt::format("{}: expected a whole gzip stream, got '{}' after line {}", path_,
                                reason, line));
  }

 private:
  const std::string& path_;
  gzFile file_;
};

}  // namespace

void detail::read_lines(const std::string& path,
                        const std::function<bool(std::int64_t, std::string_view)>& row) {
  InputFile file(path);
  std::vector<char> buffer(kBlock);
  std::string line;
  std::int64_t number = 0;

  const auto append = [&](std::string_view part) {
    line.append(part);
    if (line.size() > kMaxLine) {
      throw DataError(fmt::format("{}:{}: expected a line of at most {} MiB, got a longer one",
                                  path, number + 1, kMaxLine >> 20));
    }
  };
  const auto finish_line = [&] {
    ++number;
    std::string_view text = line;
    if (number == 1 && text.starts_with(kByteOrderMark)) text.remove_prefix(kByteOrderMark.size());
    if (text.ends_with('\r')) text.remove_suffix(1);
    const bool blank = text.find_first_not_of(" \t") == std::string_view::npos;
    const bool more = blank || row(number, text);
    line.clear();
    return more;
  };

  while (const std::size_t got = file.read(buffer, number)) {
    std::string_view rest(buffer.data(), got);
    for (auto end = rest.find('\n'); end != std::string_view::npos; end = rest.find('\n')) {
      append(rest.substr(0, end));
      if (!finish_line()) return;
      rest.remove_prefix(end + 1);
    }
    append(rest);
  }
  if (!line.empty()) finish_line();
}

void for_each_line(const std::string& path,
                   const std::function<void(std::int64_t, std::string_view)>& row) {
  detail::read_lines(path, [&](std::int64_t number, std::string_view text) {
    row(number, text);
    return true;
  });
}

}  // namespace prefopt
