// SPDX-License-Identifier: Apache-2.0
#include "data/lines.h"

#include <fmt/format.h>
#include <zlib.h>

#include <algorithm>
#include <cerrno>
#include <deque>
#include <exception>
#include <memory>
#include <optional>
#include <system_error>
#include <utility>
#include <vector>

#include "data/arrow_rows.h"
#include "data/file_kind.h"
#include "data/row_file.h"
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

  /// Returns whether the file is as it is read, not packed.
  bool is_plain() const { return gzdirect(file_) == 1; }

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

using TakeRow = std::function<bool(std::int64_t, std::string_view)>;

/// Cuts a file that arrives in blocks into rows.
class RowCutter {
 public:
  RowCutter(const std::string& path, const TakeRow& row) : path_(path), row_(row) {}
  virtual ~RowCutter() = default;
  RowCutter(const RowCutter&) = delete;
  RowCutter& operator=(const RowCutter&) = delete;

  /// Returns false if no more rows are wanted.
  virtual bool feed(std::string_view block) = 0;
  /// After the last block.
  virtual void finish() = 0;
  /// Returns the last whole line.
  virtual std::int64_t line() const = 0;

 protected:
  void append(std::string_view part, std::int64_t line, std::string_view what) {
    text_.append(part);
    if (text_.size() > kMaxLine) {
      throw DataError(fmt::format("{}:{}: expected {} of at most {} MiB, got a longer one", path_,
                                  line, what, kMaxLine >> 20));
    }
  }

  const std::string& path_;
  const TakeRow& row_;
  std::string text_;  // of the row that is not yet whole
};

class LineCutter final : public RowCutter {
 public:
  using RowCutter::RowCutter;

  bool feed(std::string_view block) override {
    for (auto end = block.find('\n'); end != std::string_view::npos; end = block.find('\n')) {
      append(block.substr(0, end), number_ + 1, "a line");
      if (!finish_line()) return false;
      block.remove_prefix(end + 1);
    }
    append(block, number_ + 1, "a line");
    return true;
  }
  void finish() override {
    if (!text_.empty()) finish_line();
  }
  std::int64_t line() const override { return number_; }

 private:
  bool finish_line() {
    ++number_;
    std::string_view text = text_;
    if (number_ == 1 && text.starts_with(kByteOrderMark)) text.remove_prefix(kByteOrderMark.size());
    if (text.ends_with('\r')) text.remove_suffix(1);
    const bool blank = text.find_first_not_of(" \t") == std::string_view::npos;
    const bool more = blank || row_(number_, text);
    text_.clear();
    return more;
  }

  std::int64_t number_ = 0;
};

/// Rows that lines do not part: the elements of an array, or objects one after the other. Brackets
/// are counted, the rest is left to the parser of rows.
class ElementCutter final : public RowCutter {
 public:
  ElementCutter(const std::string& path, const TakeRow& row, bool is_array)
      : RowCutter(path, row),
        is_array_(is_array),
        state_(is_array ? State::kBefore : State::kBetween) {}

  bool feed(std::string_view block) override {
    std::size_t begin = 0;  // of what belongs to the element in this block
    for (std::size_t i = 0; i < block.size(); ++i) {
      const char c = block[i];
      if (c == '\n') ++line_;
      if (state_ != State::kInside) {
        if (is_space(c)) continue;
        if (!begin_element(c)) continue;
        begin = i;
      }
      const bool is_last = ends_with(c);
      if (state_ == State::kInside && !is_last) continue;
      append(block.substr(begin, i + (is_last ? 1 : 0) - begin), first_line_, "a row");
      if (state_ == State::kInside) state_ = State::kBetween;
      if (!finish_element()) return false;
    }
    if (state_ == State::kInside) append(block.substr(begin), first_line_, "a row");
    return true;
  }

  void finish() override {
    if (state_ == State::kInside && !is_array_) {
      finish_element();
    } else if (is_array_ && state_ != State::kAfter) {
      throw DataError(
          fmt::format("{}: expected a whole JSON array, got the end of the file after "
                      "line {}; the file was cut off",
                      path_, line_));
    }
  }

  std::int64_t line() const override { return line_ - 1; }

 private:
  enum class State { kBefore, kBetween, kInside, kAfter };

  static bool is_space(char c) { return c == ' ' || c == '\t' || c == '\r' || c == '\n'; }

  /// Returns whether a character outside of elements is the first of one.
  bool begin_element(char c) {
    switch (state_) {
      case State::kBefore:
        state_ = State::kBetween;
        return false;
      case State::kAfter:
        throw DataError(
            fmt::format("{}:{}: expected the end of the file after the JSON array, got "
                        "more; a file is one array of rows, or a row a line",
                        path_, line_));
      case State::kBetween:
      case State::kInside:
        break;
    }
    if (c == ',') return false;
    if (c == ']' && is_array_) {
      state_ = State::kAfter;
      return false;
    }
    state_ = State::kInside;
    first_line_ = line_;
    depth_ = 0;
    in_text_ = false;
    is_escaped_ = false;
    return true;
  }

  /// Returns whether `c` is the last character of the element. One that follows the last of a
  /// number or a text changes the state instead.
  bool ends_with(char c) {
    if (in_text_) {
      in_text_ = is_escaped_ || c != '"';
      is_escaped_ = !is_escaped_ && c == '\\';
      return false;
    }
    switch (c) {
      case '"':
        in_text_ = true;
        return false;
      case '{':
      case '[':
        ++depth_;
        return false;
      case '}':
      case ']':
        if (depth_ > 0) return --depth_ == 0;
        if (c == ']' && is_array_) state_ = State::kAfter;
        return false;
      case ',':
        if (depth_ == 0) state_ = State::kBetween;
        return false;
      default:
        return false;
    }
  }

  bool finish_element() {
    std::string_view text = text_;
    while (!text.empty() && is_space(text.back())) text.remove_suffix(1);
    number_ = std::max(first_line_, number_ + 1);
    const bool more = row_(number_, text);
    text_.clear();
    return more;
  }

  bool is_array_;
  State state_;
  std::int64_t line_ = 1;
  std::int64_t first_line_ = 1;  // of the element
  std::int64_t number_ = 0;
  int depth_ = 0;
  bool in_text_ = false;
  bool is_escaped_ = false;
};

enum class FileForm { kUnknown, kLines, kArray, kObjects };

/// Returns how the rows lie in a file, as far as its beginning tells.
FileForm form_of(std::string_view head, bool is_all) {
  constexpr std::string_view kSpace = " \t\r\n";
  constexpr std::size_t kMostHead = std::size_t{1} << 20;
  const FileForm not_yet =
      is_all || head.size() > kMostHead ? FileForm::kLines : FileForm::kUnknown;
  if (head.starts_with(kByteOrderMark)) head.remove_prefix(kByteOrderMark.size());
  const std::size_t first = head.find_first_not_of(kSpace);
  if (first == std::string_view::npos) return not_yet;
  const std::size_t second = head.find_first_not_of(kSpace, first + 1);
  if (head[first] == '[') {
    if (second == std::string_view::npos) {
      return not_yet == FileForm::kUnknown ? not_yet : FileForm::kArray;
    }
    const bool is_array = head[second] == '{' || head[second] == ']';
    return is_array ? FileForm::kArray : FileForm::kLines;
  }
  if (head[first] != '{') return FileForm::kLines;
  if (second == std::string_view::npos) return not_yet;
  // A brace that is alone on its line opens an object over several.
  return head.substr(first, second - first).find('\n') == std::string_view::npos
             ? FileForm::kLines
             : FileForm::kObjects;
}

/// Rows of JSON: the cutter fills a queue, block by block.
class JsonRows final : public detail::RowFile {
 public:
  explicit JsonRows(std::string path) : path_(std::move(path)), file_(path_), buffer_(kBlock) {}

  /// Reads as much as tells the form of the rows. Returns the kind of a file for Arrow instead,
  /// which this is not.
  std::optional<detail::ArrowKind> begin() {
    std::string head;
    FileForm form = FileForm::kUnknown;
    while (form == FileForm::kUnknown) {
      const std::size_t got = file_.read(buffer_, 0);
      head.append(buffer_.data(), got);
      form = form_of(head, /*is_all=*/got == 0);
    }
    if (const auto kind = detail::arrow_kind_of(head)) {
      if (file_.is_plain()) return kind;
      throw DataError(
          fmt::format("{}: expected JSON lines or a JSON array in gzip, got {}; unpack "
                      "it, as its columns are packed anyway",
                      path_, detail::arrow_kind_name(*kind)));
    }
    detail::check_kind_of_file(path_, head);
    begin_rows(form, head);
    return std::nullopt;
  }

  bool next(detail::FileRow& row) override {
    while (rows_.empty()) {
      // Rows in front of a defect come first.
      if (failure_) std::rethrow_exception(failure_);
      if (is_at_end_) return false;
      feed();
    }
    row = std::move(rows_.front());
    rows_.pop_front();
    return true;
  }

 private:
  void begin_rows(FileForm form, std::string_view head) {
    if (form == FileForm::kLines) {
      cutter_ = std::make_unique<LineCutter>(path_, take_);
    } else {
      if (head.starts_with(kByteOrderMark)) head.remove_prefix(kByteOrderMark.size());
      cutter_ = std::make_unique<ElementCutter>(path_, take_, form == FileForm::kArray);
    }
    guard([&] { cutter_->feed(head); });
  }

  void feed() {
    guard([&] {
      const std::size_t got = file_.read(buffer_, cutter_->line());
      is_at_end_ = got == 0;
      if (is_at_end_) {
        cutter_->finish();
      } else {
        cutter_->feed({buffer_.data(), got});
      }
    });
  }

  template <class Work>
  void guard(Work&& work) {
    try {
      work();
    } catch (const DataError&) {
      failure_ = std::current_exception();
    }
  }

  std::string path_;
  InputFile file_;
  std::vector<char> buffer_;
  std::deque<detail::FileRow> rows_;
  const TakeRow take_ = [this](std::int64_t number, std::string_view text) {
    rows_.push_back({.number = number, .text = std::string(text)});
    return true;
  };
  std::unique_ptr<RowCutter> cutter_;
  std::exception_ptr failure_;
  bool is_at_end_ = false;
};

}  // namespace

void detail::RowFile::skip(std::int64_t count) {
  FileRow passed;
  while (count > 0 && next(passed)) --count;
}

std::unique_ptr<detail::RowFile> detail::open_rows(const std::string& path) {
  auto rows = std::make_unique<JsonRows>(path);
  if (const auto kind = rows->begin()) return open_arrow_rows(path, *kind);
  return rows;
}

void detail::read_lines(const std::string& path, const TakeRow& row) {
  InputFile file(path);
  LineCutter lines(path, row);
  std::vector<char> buffer(kBlock);
  while (const std::size_t got = file.read(buffer, lines.line())) {
    if (!lines.feed({buffer.data(), got})) return;
  }
  lines.finish();
}

void detail::read_rows(const std::string& path, const TakeRow& row) {
  const auto rows = open_rows(path);
  FileRow next;
  while (rows->next(next) && row(next.number, next.text)) {
  }
}

void for_each_line(const std::string& path,
                   const std::function<void(std::int64_t, std::string_view)>& row) {
  detail::read_lines(path, [&](std::int64_t number, std::string_view text) {
    row(number, text);
    return true;
  });
}

}  // namespace prefopt
