// SPDX-License-Identifier: Apache-2.0
#include "data/row_stream.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/stat.h>
#include <unistd.h>
#include <zlib.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <initializer_list>
#include <numeric>
#include <string_view>
#include <tuple>
#include <utility>

#include "core/descriptor.h"
#include "core/hash.h"
#include "prefopt/error.h"

namespace prefopt::detail {
namespace {

/// Purposes of draws.
enum Purpose : std::int64_t { kOfBuffer, kOfPart, kOfFiles, kOfShare };

/// Sebastiano Vigna's splitmix64: neighbouring numbers become unrelated ones.
std::uint64_t mixed(std::uint64_t x) {
  x += 0x9E3779B97F4A7C15U;
  x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9U;
  x = (x ^ (x >> 27)) * 0x94D049BB133111EBU;
  return x ^ (x >> 31);
}

std::uint64_t mixed_all(std::initializer_list<std::int64_t> numbers) {
  std::uint64_t x = 0;
  for (const std::int64_t number : numbers) x = mixed(x ^ static_cast<std::uint64_t>(number));
  return x;
}

/// In [0, 1).
double unit(std::uint64_t x) { return static_cast<double>(x >> 11) * 0x1p-53; }

std::int64_t size_of(const std::string& path) {
  struct stat status {};
  if (::stat(path.c_str(), &status) != 0) {
    throw DataError(fmt::format("{}: expected a readable file, got {}", path, last_error()));
  }
  if (!S_ISREG(status.st_mode)) {
    throw DataError(fmt::format(
        "{}: expected a regular file, which a stream reads again each epoch, got another", path));
  }
  return status.st_size;
}

void add_blocks(ContentHash& hash, const std::string& path) {
  constexpr std::int64_t kBlock = std::int64_t{1} << 16;
  constexpr std::int64_t kBlocks = 1024;
  const std::int64_t size = size_of(path);
  hash.update(&size, sizeof size);
  const Descriptor file(::open(path.c_str(), O_RDONLY | O_CLOEXEC));
  if (file.get() < 0) {
    throw DataError(fmt::format("{}: expected a readable file, got {}", path, last_error()));
  }
  const std::int64_t step = std::max(kBlock, size / kBlocks);
  std::vector<char> block(static_cast<std::size_t>(kBlock));
  for (std::int64_t at = 0; at < size; at += step) {
    const ssize_t got = ::pread(file.get(), block.data(), block.size(), at);
    if (got < 0) {
      throw DataError(fmt::format("{}: expected a readable file, got {}", path, last_error()));
    }
    hash.update(block.data(), static_cast<std::size_t>(got));
  }
}

std::uint32_t sum_of(const std::string& text) {
  const auto* bytes = reinterpret_cast<const Bytef*>(text.data());
  return static_cast<std::uint32_t>(::crc32_z(0, bytes, text.size()));
}

[[noreturn]] void fail_state(std::string_view got) {
  throw CheckpointError(
      fmt::format("expected the place of a stream in the files of data.train, got {}", got));
}

}  // namespace

/// The rows of one part, in an epoch: pass after pass, file after file.
class RowStream::PartReader {
 public:
  PartReader(DataPart part, std::int64_t number, const RowStreamOptions& options)
      : part_(std::move(part)), number_(number), options_(options) {
    for (const std::string& file : part_.files) bytes_ += size_of(file);
  }

  void begin(std::int64_t epoch) {
    epoch_ = epoch;
    seek({0, 0, 0});
  }

  /// Returns false at the end of the epoch's rows.
  bool next(StreamedRow& row) {
    while (at_.pass < passes()) {
      if (at_.slot == std::ssize(part_.files)) {
        seek({at_.pass + 1, 0, 0});
        continue;
      }
      if (!file_) open();
      if (!file_->next(row.row)) {
        seek({at_.pass, at_.slot + 1, 0});
        continue;
      }
      row.part = number_;
      row.file = order_[static_cast<std::size_t>(at_.slot)];
      row.index = at_.index++;
      row.sum = sum_of(row.row.text);
      if (at_.pass < times(row)) return true;
    }
    return false;
  }

  bool is_done() const { return at_.pass >= passes(); }
  /// Returns the share of an epoch that the part has, as far as bytes tell.
  double share() const { return part_.weight * static_cast<double>(bytes_); }
  const DataPart& part() const { return part_; }

  std::vector<std::int64_t> state() const { return {at_.pass, at_.slot, at_.index}; }
  void load(std::int64_t epoch, std::int64_t pass, std::int64_t slot, std::int64_t index) {
    epoch_ = epoch;
    seek({pass, slot, index});
  }

 private:
  struct Place {
    std::int64_t pass = 0;
    std::int64_t slot = 0;   ///< in the pass's order of files
    std::int64_t index = 0;  ///< rows of the file that were read
  };

  std::int64_t passes() const { return std::llround(std::ceil(part_.weight)); }

  void seek(Place place) {
    at_ = place;
    file_.reset();
  }

  void open() {
    order_files();
    const auto file = static_cast<std::size_t>(order_[static_cast<std::size_t>(at_.slot)]);
    file_ = open_rows(part_.files[file]);
    file_->skip(at_.index);
  }

  void order_files() {
    order_.resize(part_.files.size());
    std::iota(order_.begin(), order_.end(), 0);
    if (!options_.shuffle) return;
    for (std::size_t left = order_.size(); left > 1; --left) {
      const std::uint64_t x = mixed_all(
          {options_.seed, kOfFiles, number_, epoch_, at_.pass, static_cast<std::int64_t>(left)});
      std::swap(order_[left - 1], order_[x % left]);
    }
  }

  /// Returns the passes of the epoch that have the row.
  std::int64_t times(const StreamedRow& row) const {
    const double weight = part_.weight;
    if (weight == std::floor(weight)) return std::llround(weight);
    // Multiples of the golden ratio are spread evenly, whatever the number of rows.
    const double start = unit(mixed_all({options_.seed, kOfShare, number_, row.file}));
    const double own = std::fmod(start + 0.6180339887498949 * static_cast<double>(row.index), 1.0);
    const auto epoch = static_cast<double>(epoch_);
    return std::llround(std::floor((epoch + 1) * weight + own) - std::floor(epoch * weight + own));
  }

  DataPart part_;
  std::int64_t number_;
  RowStreamOptions options_;
  std::int64_t bytes_ = 0;
  std::int64_t epoch_ = 0;
  Place at_;
  std::vector<std::int64_t> order_;  ///< of the files of the present pass
  std::unique_ptr<RowFile> file_;
};

RowStream::RowStream(std::vector<DataPart> parts, const RowStreamOptions& options)
    : options_(options) {
  if (!options_.shuffle) options_.buffer = 1;
  for (DataPart& part : parts) {
    parts_.emplace_back(std::move(part), std::ssize(parts_), options_);
  }
  begin_epoch();
}

RowStream::~RowStream() = default;
RowStream::RowStream(RowStream&&) noexcept = default;

StreamedRow RowStream::next() {
  // Few rows of a small weight are in some epochs only.
  constexpr int kMostWithoutRows = 1000;
  for (int without = 0; is_at_epoch_end(); ++without) {
    if (without == kMostWithoutRows) {
      throw DataError(fmt::format("{}: expected at least one row in {} epochs, got none",
                                  parts_.front().part().files.front(), kMostWithoutRows));
    }
    ++epoch_;
    begin_epoch();
  }
  const auto place = static_cast<std::size_t>(draw(kOfBuffer, given_++) % buffer_.size());
  std::swap(buffer_[place], buffer_.back());
  StreamedRow row = std::move(buffer_.back());
  buffer_.pop_back();
  if (is_marked_) {
    given_since_.push_back({.row = {row.part, row.file, row.index, row.sum},
                            .place = place,
                            .read = std::exchange(read_since_, 0)});
  }
  return row;
}

bool RowStream::is_at_epoch_end() {
  fill_buffer();
  return buffer_.empty();
}

void RowStream::fill_buffer() {
  while (std::ssize(buffer_) < options_.buffer && read_row()) {
  }
}

void RowStream::begin_epoch() {
  read_ = given_ = 0;
  for (PartReader& part : parts_) part.begin(epoch_);
}

bool RowStream::read_row() {
  while (true) {
    const std::size_t part = draw_part();
    if (part == parts_.size()) return false;
    StreamedRow row;
    if (!parts_[part].next(row)) continue;
    buffer_.push_back(std::move(row));
    ++read_;
    ++read_since_;
    return true;
  }
}

/// Returns the number of parts where none has further rows.
std::size_t RowStream::draw_part() {
  double all = 0;
  std::size_t last = parts_.size();
  for (std::size_t i = 0; i < parts_.size(); ++i) {
    if (parts_[i].is_done()) continue;
    if (!options_.shuffle) return i;
    all += parts_[i].share();
    last = i;
  }
  double rest = all * unit(draw(kOfPart, read_));
  for (std::size_t i = 0; i < last; ++i) {
    if (parts_[i].is_done()) continue;
    rest -= parts_[i].share();
    if (rest < 0) return i;
  }
  return last;
}

std::uint64_t RowStream::draw(std::int64_t purpose, std::int64_t number) const {
  return mixed_all({options_.seed, purpose, epoch_, number});
}

const std::string& RowStream::path_of(const StreamedRow& row) const {
  const auto& files = parts_[static_cast<std::size_t>(row.part)].part().files;
  return files[static_cast<std::size_t>(row.file)];
}

std::int64_t RowStream::sum_of_rows(const std::vector<StoredRow>& rows) {
  std::uint64_t sum = 0;
  for (const StoredRow& row : rows) sum = mixed(sum ^ row.sum);
  return static_cast<std::int64_t>(sum >> 1);
}

std::vector<RowStream::StoredRow> RowStream::stored_buffer() const {
  std::vector<StoredRow> rows;
  rows.reserve(buffer_.size());
  for (const StreamedRow& row : buffer_) {
    rows.push_back({row.part, row.file, row.index, row.sum});
  }
  return rows;
}

// Epoch, rows read and given, a sum over the buffer's texts, the place in each part, and three
// numbers a row of the buffer.

std::vector<std::int64_t> RowStream::head() const {
  std::vector<std::int64_t> head{epoch_, read_, given_, /*sum=*/0};
  for (const PartReader& part : parts_) {
    const auto place = part.state();
    head.insert(head.end(), place.begin(), place.end());
  }
  return head;
}

std::vector<std::int64_t> RowStream::state_of(std::vector<std::int64_t> head,
                                              const std::vector<StoredRow>& buffer) {
  std::vector<std::int64_t> state = std::move(head);
  state[3] = sum_of_rows(buffer);
  for (const StoredRow& row : buffer) {
    state.insert(state.end(), {row.part, row.file, row.index});
  }
  return state;
}

std::vector<std::int64_t> RowStream::state() const { return state_of(head(), stored_buffer()); }

void RowStream::mark() {
  is_marked_ = true;
  marked_head_ = head();
  given_since_.clear();
  read_since_ = 0;
}

std::vector<std::int64_t> RowStream::state_at_mark() const {
  std::vector<StoredRow> buffer = stored_buffer();
  buffer.resize(buffer.size() - read_since_);
  for (auto given = given_since_.rbegin(); given != given_since_.rend(); ++given) {
    buffer.push_back(given->row);
    std::swap(buffer[given->place], buffer.back());
    buffer.resize(buffer.size() - given->read);
  }
  return state_of(marked_head_, buffer);
}

void RowStream::load(const std::vector<std::int64_t>& state) {
  const std::size_t head = 4 + 3 * parts_.size();
  const bool is_negative =
      std::any_of(state.begin(), state.end(), [](std::int64_t x) { return x < 0; });
  const std::size_t most = head + 3 * static_cast<std::size_t>(options_.buffer);
  const bool is_whole = state.size() >= head && (state.size() - head) % 3 == 0;
  if (!is_whole || state.size() > most || is_negative) fail_state("other numbers");
  epoch_ = state[0];
  read_ = state[1];
  given_ = state[2];
  for (std::size_t i = 0; i < parts_.size(); ++i) {
    const std::int64_t* place = state.data() + 4 + 3 * i;
    if (place[1] > std::ssize(parts_[i].part().files)) fail_state("a file that is not there");
    parts_[i].load(epoch_, place[0], place[1], place[2]);
  }
  buffer_.clear();
  for (std::size_t at = head; at < state.size(); at += 3) {
    StreamedRow row{.part = state[at], .file = state[at + 1], .index = state[at + 2]};
    const bool is_there =
        row.part < std::ssize(parts_) &&
        row.file < std::ssize(parts_[static_cast<std::size_t>(row.part)].part().files);
    if (!is_there) fail_state("a file that is not there");
    buffer_.push_back(std::move(row));
  }
  read_buffer();
  if (sum_of_rows(stored_buffer()) != state[3]) fail_state("rows that are others now");
  is_marked_ = false;
}

/// Reads the texts of the rows in the buffer.
void RowStream::read_buffer() {
  // In the order of the files, so that each is read once.
  std::vector<StreamedRow*> rows;
  for (StreamedRow& row : buffer_) rows.push_back(&row);
  const auto place = [](const StreamedRow* row) {
    return std::tuple(row->part, row->file, row->index);
  };
  std::sort(rows.begin(), rows.end(),
            [&](const auto* a, const auto* b) { return place(a) < place(b); });
  std::unique_ptr<RowFile> file;
  const StreamedRow* before = nullptr;
  for (StreamedRow* row : rows) {
    const bool is_same_file = before && before->part == row->part && before->file == row->file;
    const bool is_again = is_same_file && before->index == row->index;  // in two passes
    if (is_again) row->row = before->row;
    if (!is_same_file) file = open_rows(path_of(*row));
    if (!is_again) {
      file->skip(row->index - (is_same_file ? before->index + 1 : 0));
      if (!file->next(row->row)) {
        fail_state(fmt::format("no row {} of {}", row->index + 1, path_of(*row)));
      }
    }
    row->sum = sum_of(row->row.text);
    before = row;
  }
}

std::string RowStream::fingerprint() const {
  ContentHash hash;
  hash.update(fmt::format("stream {} {} {}", options_.buffer, options_.seed, options_.shuffle));
  for (const PartReader& part : parts_) {
    hash.update(fmt::format("\n{} {}", part.part().files.size(), part.part().weight));
    for (const std::string& file : part.part().files) add_blocks(hash, file);
  }
  return hash.hex();
}

}  // namespace prefopt::detail
