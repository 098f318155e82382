// SPDX-License-Identifier: Apache-2.0
#include "data/token_cache.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/stat.h>
#include <unistd.h>

#include <array>
#include <bit>
#include <cerrno>
#include <cstdint>
#include <cstring>
#include <ctime>
#include <filesystem>
#include <map>
#include <optional>
#include <string_view>
#include <system_error>
#include <vector>

#include "core/descriptor.h"
#include "core/file.h"
#include "core/hash.h"
#include "core/mapped_file.h"
#include "prefopt/error.h"

namespace prefopt::detail {
namespace {

namespace fs = std::filesystem;

// Goes up with every change of the format or of what tokenization means.
constexpr std::string_view kMagic = "prefopt tokens 9\n";

std::string hash_of(std::string_view bytes) {
  ContentHash hash;
  hash.update(bytes);
  return hash.hex();
}

/// Returns the hash of a file's bytes, read in blocks: a mapped file that is truncated meanwhile
/// could not be read.
std::string hash_of_file(const std::string& path) {
  const auto fail = [&](std::string_view got) {
    throw DataError(fmt::format("{}: expected a readable file, got {}", path, got));
  };
  // Opening a pipe would wait for someone to write to it.
  const Descriptor file(::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK));
  struct stat status {};
  if (file.get() < 0 || ::fstat(file.get(), &status) != 0) fail(last_error());
  if (!S_ISREG(status.st_mode)) {
    fail(S_ISDIR(status.st_mode) ? std::generic_category().message(EISDIR) : "no regular file");
  }
  ContentHash hash;
  std::vector<char> block(std::size_t{1} << 20);
  while (true) {
    const ssize_t got = ::read(file.get(), block.data(), block.size());
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) fail(last_error());
    if (got == 0) return hash.hex();
    hash.update(std::string_view(block.data(), static_cast<std::size_t>(got)));
  }
}

// Returns what makes texts of messages, and the day where the template may write it.
std::string template_key(const Tokenizer& tokenizer) {
  std::string key = tokenizer.chat_template();
  if (key.find("strftime_now") == std::string::npos) return key;
  std::array<char, 32> day{};
  const std::time_t now = std::time(nullptr);
  std::tm time{};
  localtime_r(&now, &time);
  return key.append(day.data(), std::strftime(day.data(), day.size(), "%F", &time));
}

// Returns a key without the places of rows and cache and the held-out part: they change no token.
std::string key_of(const std::string& rows_hash, const Tokenizer& tokenizer, DataOptions options,
                   const RowNeeds& needs) {
  options.train.clear();
  options.eval.clear();
  options.eval_fraction = 0;
  options.stream = {};
  options.token_cache.clear();
  options.leak = {};
  std::string columns;
  for (const Column column : needs.columns)
    columns += kColumnKeys[static_cast<std::size_t>(column)];
  return hash_of(fmt::format("{}{}\n{}\n{}\n{} {} {} {}\n{}", kMagic, rows_hash,
                             tokenizer.fingerprint(), options_to_json(options), needs.rejected,
                             needs.gold, needs.context_length, columns, template_key(tokenizer)));
}

class Writer {
 public:
  void number(std::int64_t value) {
    bytes_.append(reinterpret_cast<const char*>(&value), sizeof value);
  }
  template <class T>
  requires(sizeof(T) == sizeof(std::int64_t)) void numbers(const std::vector<T>& values) {
    number(static_cast<std::int64_t>(values.size()));
    bytes_.append(reinterpret_cast<const char*>(values.data()), values.size() * sizeof(values[0]));
  }
  void text(std::string_view value) {
    number(static_cast<std::int64_t>(value.size()));
    bytes_ += value;
  }
  void mask(const TokenMask& mask) {
    number(static_cast<std::int64_t>(mask.size()));
    bytes_.append(mask.begin(), mask.end());
  }
  void lines(const std::map<std::string, std::vector<std::int64_t>>& by_reason) {
    number(static_cast<std::int64_t>(by_reason.size()));
    for (const auto& [reason, lines] : by_reason) {
      text(reason);
      numbers(lines);
    }
  }
  const std::string& bytes() const { return bytes_; }

 private:
  std::string bytes_;
};

/// Thrown and caught in this file: bytes that Writer did not write.
struct Damage {};

class Reader {
 public:
  explicit Reader(std::string_view bytes) : bytes_(bytes) {}

  std::int64_t number() {
    std::int64_t value = 0;
    std::memcpy(&value, take(sizeof value).data(), sizeof value);
    return value;
  }
  /// Reads a number of things that take at least `bytes` each.
  std::size_t count(std::size_t bytes) {
    const std::int64_t value = number();
    if (value < 0 || static_cast<std::uint64_t>(value) > bytes_.size() / bytes) throw Damage();
    return static_cast<std::size_t>(value);
  }
  template <class T = std::int64_t>
  requires(sizeof(T) == sizeof(std::int64_t)) std::vector<T> numbers() {
    std::vector<T> values(count(sizeof(T)));
    const std::size_t bytes = values.size() * sizeof(T);
    if (bytes > 0) std::memcpy(values.data(), take(bytes).data(), bytes);
    return values;
  }
  std::string text() { return std::string(take(count(1))); }
  TokenMask mask() {
    const std::string_view bytes = take(count(1));
    return {bytes.begin(), bytes.end()};
  }
  std::map<std::string, std::vector<std::int64_t>> lines() {
    std::map<std::string, std::vector<std::int64_t>> by_reason;
    for (std::size_t i = count(2 * sizeof(std::int64_t)); i > 0; --i) {
      const std::string reason = text();
      by_reason[reason] = numbers();
    }
    return by_reason;
  }
  void expect_end() const {
    if (!bytes_.empty()) throw Damage();
  }

 private:
  std::string_view take(std::size_t bytes) {
    if (bytes > bytes_.size()) throw Damage();
    const std::string_view taken = bytes_.substr(0, bytes);
    bytes_.remove_prefix(bytes);
    return taken;
  }

  std::string_view bytes_;
};

std::string to_bytes(const Dataset& dataset) {
  Writer writer;
  const RowReport& report = dataset.report;
  for (std::int64_t value : {report.rows_read, report.rows_kept, report.truncated_prompts,
                             report.truncated_completions, report.message_rows}) {
    writer.number(value);
  }
  writer.numbers(report.truncated_lines);
  writer.lines(report.dropped);
  writer.lines(report.kept_with);
  writer.number(static_cast<std::int64_t>(report.unread.size()));
  for (const auto& [column, rows] : report.unread) {
    writer.text(column);
    writer.number(rows);
  }
  writer.numbers(dataset.lines);
  writer.number(static_cast<std::int64_t>(dataset.pairs.size()));
  for (const TokenRow& pair : dataset.pairs) {
    writer.numbers(pair.prompt);
    writer.numbers(pair.chosen);
    writer.numbers(pair.rejected);
    writer.numbers(pair.gold);
    writer.numbers(pair.chosen_weights);
    writer.numbers(pair.rejected_weights);
    writer.numbers(pair.gold_weights);
    for (const auto* mask : {&pair.chosen_mask, &pair.rejected_mask, &pair.gold_mask}) {
      writer.mask(*mask);
    }
    for (std::size_t i = 0; i < kColumnKeys.size(); ++i) {
      writer.number(std::bit_cast<std::int64_t>(pair.columns[static_cast<Column>(i)]));
    }
  }
  return std::string(kMagic) + hash_of(writer.bytes()) + writer.bytes();
}

std::optional<Dataset> from_bytes(std::string_view bytes) {
  constexpr std::size_t kHashDigits = 40;
  const std::size_t header = kMagic.size() + kHashDigits;
  if (!bytes.starts_with(kMagic) || bytes.size() < header) return std::nullopt;
  const std::string_view content = bytes.substr(header);
  if (hash_of(content) != bytes.substr(kMagic.size(), kHashDigits)) return std::nullopt;
  try {
    Reader reader(content);
    Dataset dataset;
    RowReport& report = dataset.report;
    for (std::int64_t* value : {&report.rows_read, &report.rows_kept, &report.truncated_prompts,
                                &report.truncated_completions, &report.message_rows}) {
      *value = reader.number();
    }
    report.truncated_lines = reader.numbers();
    report.dropped = reader.lines();
    report.kept_with = reader.lines();
    for (std::size_t i = reader.count(2 * sizeof(std::int64_t)); i > 0; --i) {
      const std::string column = reader.text();
      report.unread[column] = reader.number();
    }
    dataset.lines = reader.numbers();
    dataset.pairs.resize(reader.count(10 * sizeof(std::int64_t)));
    for (TokenRow& pair : dataset.pairs) {
      pair.prompt = reader.numbers();
      pair.chosen = reader.numbers();
      pair.rejected = reader.numbers();
      pair.gold = reader.numbers();
      pair.chosen_weights = reader.numbers<double>();
      pair.rejected_weights = reader.numbers<double>();
      pair.gold_weights = reader.numbers<double>();
      for (auto* mask : {&pair.chosen_mask, &pair.rejected_mask, &pair.gold_mask}) {
        *mask = reader.mask();
      }
      for (std::size_t i = 0; i < kColumnKeys.size(); ++i) {
        pair.columns[static_cast<Column>(i)] = std::bit_cast<double>(reader.number());
      }
    }
    reader.expect_end();
    if (dataset.lines.size() != dataset.pairs.size()) throw Damage();
    return dataset;
  } catch (const Damage&) {
    return std::nullopt;
  }
}

}  // namespace

TokenCache::TokenCache(const std::string& folder, const std::string& rows,
                       const Tokenizer& tokenizer, const DataOptions& options,
                       const RowNeeds& needs)
    : folder_(folder), rows_(rows), rows_hash_(hash_of_file(rows)) {
  const std::string key = key_of(rows_hash_, tokenizer, options, needs);
  path_ = (fs::path(folder) / (key + ".tokens")).string();
}

Dataset TokenCache::get_or_make(const std::function<Dataset()>& make) const {
  remove_unfinished_files(folder_, [](std::string_view name) { return name.ends_with(".tokens"); });
  std::string ignored_why;  // no file the first time
  const auto found = MappedFile::try_open(path_, ignored_why);
  if (found) {
    if (auto kept = from_bytes(found->bytes())) {
      kept->report.cache_note = fmt::format("tokens are those kept in {}", path_);
      return *std::move(kept);
    }
  }
  Dataset dataset = make();
  dataset.report.cache_note = found ? fmt::format("{} is damaged and was made again", path_) : "";
  if (hash_of_file(rows_) != rows_hash_) {
    dataset.report.cache_note =
        fmt::format("no tokens are kept: {} changed while it was read", rows_);
    return dataset;
  }
  std::error_code ignored;  // writing reports what is wrong with the folder
  fs::create_directories(folder_, ignored);
  if (const auto why = try_write_file(path_, to_bytes(dataset)); !why.empty()) {
    dataset.report.cache_note = fmt::format("no tokens are kept in {} ({})", path_, why);
  }
  return dataset;
}

}  // namespace prefopt::detail
