// SPDX-License-Identifier: Apache-2.0
#include "data/data_files.h"

#include <fmt/format.h>
#include <fmt/ranges.h>
#include <fnmatch.h>
#include <glob.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <filesystem>
#include <map>
#include <optional>
#include <set>
#include <system_error>
#include <utility>

#include "core/json.h"
#include "core/text.h"
#include "data/row_json.h"
#include "prefopt/error.h"
#include "prefopt/options.h"

namespace prefopt::detail {
namespace {

namespace fs = std::filesystem;

constexpr std::array<std::string_view, 6> kFormats = {".jsonl", ".ndjson",  ".json",
                                                      ".arrow", ".feather", ".parquet"};
/// Formats of rows that are not read: a folder that has them has more rows than would be seen.
constexpr std::array<std::string_view, 9> kForeignFormats = {
    ".csv", ".tsv", ".xlsx", ".orc", ".avro", ".zst", ".bz2", ".xz", ".zip"};

std::string_view without_packing(std::string_view name) {
  if (lower_case(name).ends_with(".gz")) name.remove_suffix(3);
  return name;
}

/// Of `.JSONL` too.
std::string_view format_of(std::string_view name) {
  const std::string lower = lower_case(without_packing(name));
  for (const std::string_view format : kFormats) {
    if (lower.ends_with(format)) return format;
  }
  return {};
}

std::string_view without_format(std::string_view name) {
  name = without_packing(name);
  name.remove_suffix(format_of(name).size());
  return name;
}

/// Files that say what a data set is.
bool is_description(std::string_view name) {
  constexpr std::array<std::string_view, 4> kNames = {"readme", "license", "dataset_info",
                                                      "dataset_infos"};
  const std::string lower = lower_case(name);
  return lower.ends_with(".md") || is_among(kNames, lower.substr(0, lower.find('.')));
}

std::string_view without_end_digits(std::string_view text) {
  while (!text.empty() && is_digit(text.back())) text.remove_suffix(1);
  return text;
}

std::string_view without_end_marks(std::string_view text) {
  return text.substr(0, text.find_last_not_of("-_.") + 1);
}

/// A file of a series: `train-00002-of-00005`.
struct Shard {
  std::string_view series;  ///< with what parts it from the number
  std::string_view number, count;
};

std::optional<Shard> shard_of(std::string_view stem) {
  constexpr std::string_view kOf = "-of-";
  const std::size_t of = stem.rfind(kOf);
  if (of == std::string_view::npos) return std::nullopt;
  const std::string_view before = stem.substr(0, of);
  Shard shard{.series = without_end_digits(before), .number = {}, .count = stem.substr(of + 4)};
  shard.number = before.substr(shard.series.size());
  const bool counts = !shard.number.empty() && !shard.count.empty() && shard.count.size() <= 9 &&
                      shard.number.size() <= 9 && without_end_digits(shard.count).empty();
  return counts ? std::optional(shard) : std::nullopt;
}

/// Returns the name that the files of a series share, without numbers: `train`.
std::string series_of(const std::string& file) {
  const std::string name = fs::path(file).filename().string();
  const std::string_view stem = without_format(name);
  const auto shard = shard_of(stem);
  return std::string(without_end_marks(shard ? shard->series : without_end_digits(stem)));
}

/// Returns the split that a name speaks of; kAny: of none, or of several.
DataSplit split_of(std::string_view name) {
  constexpr std::array<std::string_view, 2> kTrain = {"train", "training"};
  constexpr std::array<std::string_view, 10> kHeldOut = {
      "test", "testing", "validation", "valid",   "val",
      "dev",  "eval",    "evaluation", "heldout", "holdout"};
  DataSplit found = DataSplit::kAny;
  const std::string lower = lower_case(name);
  for (std::size_t begin = 0; begin < lower.size();) {
    const std::size_t end = std::min(lower.find_first_of("-_. ", begin), lower.size());
    const std::string_view word = std::string_view(lower).substr(begin, end - begin);
    const DataSplit split = is_among(kTrain, word)     ? DataSplit::kTrain
                            : is_among(kHeldOut, word) ? DataSplit::kHeldOut
                                                       : DataSplit::kAny;
    if (split != DataSplit::kAny) {
      if (found != DataSplit::kAny && found != split) return DataSplit::kAny;
      found = split;
    }
    begin = end + 1;
  }
  return found;
}

std::string quoted_list(const std::vector<std::string>& names) {
  std::vector<std::string> quoted;
  for (const std::string& name : names) quoted.push_back("'" + shown_text(name) + "'");
  return fmt::format("{}", fmt::join(quoted, ", "));
}

/// Throws DataError where a series lacks files. `is_wanted`: of the names that a pattern matches.
template <class IsWanted>
void check_series(const std::string& where, const std::vector<std::string>& files,
                  IsWanted&& is_wanted) {
  struct Series {
    std::set<std::int64_t> numbers;
    std::string first;  ///< a file of it
  };
  std::map<std::string, Series> all;
  for (const std::string& file : files) {
    const auto shard = shard_of(without_format(file));
    if (!shard) continue;
    Series& series = all[fmt::format("{}\n{}", shard->series, shard->count)];
    series.numbers.insert(std::stoll(std::string(shard->number)));
    series.first = file;
  }
  for (const auto& [key, series] : all) {
    const Shard shard = *shard_of(without_format(series.first));
    const std::int64_t count = std::stoll(std::string(shard.count));
    const std::int64_t begin = series.numbers.contains(count) ? 1 : 0;  // some count from 1
    if (*series.numbers.rbegin() >= begin + count) {
      throw DataError(fmt::format("{}: expected {} files of a series, got one with number {}",
                                  where, count, *series.numbers.rbegin()));
    }
    for (std::int64_t i = begin; i < begin + count; ++i) {
      const std::string missing =
          fmt::format("{}{:0{}}-of-{}{}", shard.series, i, shard.number.size(), shard.count,
                      series.first.substr(without_format(series.first).size()));
      if (series.numbers.contains(i) || !is_wanted(missing)) continue;
      throw DataError(fmt::format("{}: expected all {} files of a series, got none named {}", where,
                                  count, fs::path(missing).filename().string()));
    }
  }
}

void sort_files(std::vector<std::string>& files) {
  std::sort(files.begin(), files.end(), is_before);
}

/// The files of rows in a folder, by their series.
class Folder {
 public:
  explicit Folder(const std::string& path) : Folder(path, /*may_be_inner=*/true) {}

  std::vector<std::string> files_of(DataSplit split) const {
    std::vector<std::string> names;
    for (const auto& [name, files] : series_) names.push_back(name);
    if (names.empty()) fail("files of rows (.jsonl, .json, .parquet, .arrow, …)", "none");
    const auto is_of = [&](DataSplit wanted) {
      return [wanted](const std::string& name) { return split_of(name) == wanted; };
    };
    std::vector<std::string> chosen;
    if (std::all_of(names.begin(), names.end(), is_of(DataSplit::kAny))) {
      return checked(names);  // a folder of files, all of one kind
    }
    if (std::any_of(names.begin(), names.end(), is_of(DataSplit::kAny))) {
      fail("files that are all of a split, or of none",
           fmt::format("{}; name the files that are meant", quoted_list(names)));
    }
    if (split == DataSplit::kAny) {
      chosen = names;
    } else {
      std::copy_if(names.begin(), names.end(), std::back_inserter(chosen), is_of(split));
    }
    if (chosen.size() == 1) return checked(chosen);
    const std::string_view wanted = split == DataSplit::kTrain     ? "one split to train on"
                                    : split == DataSplit::kHeldOut ? "one held-out split"
                                                                   : "one split";
    fail(wanted, fmt::format("{}; name its files, as in {}/{}*", quoted_list(names), path_,
                             chosen.empty() ? names.front() : chosen.front()));
  }

  /// Names of files and folders that are of no split and not read.
  const std::vector<std::string>& passed_over() const { return passed_over_; }

 private:
  Folder(const std::string& path, bool may_be_inner) : path_(path) { find(may_be_inner); }

  [[noreturn]] void fail(std::string_view expected, std::string_view got) const {
    throw DataError(fmt::format("{}: expected {}, got {}", path_, expected, got));
  }

  void find(bool may_be_inner) {
    const std::vector<std::string> here = files_in(path_);
    std::vector<fs::path> inner;  // folders of splits, or one named data
    std::vector<fs::path> others;
    for (const auto& entry : fs::directory_iterator(path_)) {
      const std::string name = entry.path().filename().string();
      if (!entry.is_directory() || name.starts_with('.')) continue;
      const bool is_of_rows = name == "data" || split_of(name) != DataSplit::kAny;
      (is_of_rows ? inner : others).push_back(entry.path());
    }
    if (here.empty() && inner.empty() && may_be_inner) return enter_configuration(others);
    for (const fs::path& other : others) pass_over(other);
    if (!here.empty() && !inner.empty()) {
      fail("files of rows here or in a folder",
           fmt::format("both, also in '{}'; name the one that is meant",
                       inner.front().filename().string()));
    }
    for (const std::string& file : here) series_[series_of(file)].push_back(file);
    for (const fs::path& folder : inner) {
      const std::string name = folder.filename().string();
      for (const std::string& file : files_in(folder.string())) {
        series_[name == "data" ? series_of(file) : name].push_back(file);
      }
    }
  }

  /// The hub's converted files lie in default/train, where `default` is the configuration.
  void enter_configuration(const std::vector<fs::path>& folders) {
    std::vector<std::string> names;
    for (const fs::path& path : folders) {
      Folder folder(path.string(), /*may_be_inner=*/false);
      if (folder.series_.empty()) {
        pass_over(path);
        continue;
      }
      names.push_back(path.filename().string());
      series_ = std::move(folder.series_);
      passed_over_.insert(passed_over_.end(), folder.passed_over_.begin(),
                          folder.passed_over_.end());
    }
    if (names.size() < 2) return;
    std::sort(names.begin(), names.end());
    fail("files of one configuration",
         fmt::format("{}; name the folder that is meant", quoted_list(names)));
  }

  void pass_over(const fs::path& path) { passed_over_.push_back(path.string()); }

  /// JSON files next to rows in other formats describe them.
  std::vector<std::string> files_in(const std::string& folder) {
    std::vector<std::string> files, json;
    for (const auto& entry : fs::directory_iterator(folder)) {
      const std::string name = entry.path().filename().string();
      if (entry.is_directory() || name.starts_with('.') || name.starts_with('_')) continue;
      const std::string_view format = format_of(name);
      if (format == ".json") {
        json.push_back(entry.path().string());
      } else if (!format.empty()) {
        files.push_back(entry.path().string());
      } else if (is_among(kForeignFormats, lower_case(entry.path().extension().string()))) {
        fail("files of rows that are read (.jsonl, .json, .parquet, .arrow, …)",
             fmt::format("also {}; name the files that are meant", shown_text(name)));
      } else if (!is_description(name)) {
        pass_over(entry.path());
      }
    }
    if (files.empty()) return json;
    for (const std::string& file : json) {
      if (!is_description(fs::path(file).filename().string())) pass_over(file);
    }
    return files;
  }

  std::vector<std::string> checked(const std::vector<std::string>& names) const {
    std::vector<std::string> files;
    for (const std::string& name : names) {
      const auto& more = series_.at(name);
      files.insert(files.end(), more.begin(), more.end());
    }
    sort_files(files);
    for (const std::string& file : files) {
      if (format_of(file) == format_of(files.front())) continue;
      fail("files of one format, or rows would be there twice",
           fmt::format("{} and {}; name the files that are meant",
                       fs::path(files.front()).filename().string(),
                       fs::path(file).filename().string()));
    }
    check_series(path_, files, [](const std::string&) { return true; });
    return files;
  }

  const std::string path_;
  std::map<std::string, std::vector<std::string>> series_;
  std::vector<std::string> passed_over_;
};

std::vector<std::string> files_of_pattern(const std::string& pattern) {
  const auto fail = [&](std::string_view expected, std::string_view got) {
    throw DataError(fmt::format("{}: expected {}, got {}", pattern, expected, got));
  };
  if (pattern.find("**") != std::string::npos) fail("a pattern for names in one folder", "'**'");
  glob_t found{};
  const int code = ::glob(pattern.c_str(), GLOB_NOSORT, nullptr, &found);
  std::vector<std::string> files;
  if (code == 0) files.assign(found.gl_pathv, found.gl_pathv + found.gl_pathc);
  ::globfree(&found);
  if (files.empty()) fail("files that match", "none");
  for (const std::string& file : files) {
    std::error_code ignored;
    if (fs::is_directory(file, ignored)) fail("files that match", "the folder " + file);
  }
  sort_files(files);
  check_series(pattern, files, [&](const std::string& name) {
    return ::fnmatch(pattern.c_str(), name.c_str(), FNM_PATHNAME) == 0;
  });
  return files;
}

DataPart files_at(const std::string& path, DataSplit split) {
  std::error_code ignored;
  try {
    if (fs::is_directory(path, ignored)) {
      const Folder folder(path);
      return {.files = folder.files_of(split), .passed_over = folder.passed_over()};
    }
  } catch (const fs::filesystem_error& error) {
    throw DataError(
        fmt::format("{}: expected a readable folder, got {}", path, error.code().message()));
  }
  const bool is_pattern = path.find_first_of("*?[") != std::string::npos;
  if (is_pattern && !fs::exists(path, ignored)) return {.files = files_of_pattern(path)};
  return {.files = {path}};
}

/// Returns the list that a text spells; null: it is a path.
Json list_in(const std::string& rows) {
  Json list;
  if (rows.starts_with('[')) list = Json::parse(rows, nullptr, /*allow_exceptions=*/false);
  return list.is_array() ? list : Json();
}

DataPart part_of(const Json& item, DataSplit split) {
  constexpr std::string_view kWhere = "rows";
  if (item.is_string()) return files_at(item.get<std::string>(), split);
  if (!item.is_object() || !item.contains("path") || !item["path"].is_string()) {
    throw ConfigError(fmt::format(
        "{}: expected a list of paths or {{\"path\": text, \"weight\": number}}, got {} in it",
        kWhere, shown_json(item)));
  }
  for (const auto& [key, value] : item.items()) {
    if (key == "path" || key == "weight") continue;
    throw ConfigError(fmt::format(
        "{}: expected 'path' and 'weight' of a file, got '{}'{}", kWhere, shown_text(key),
        did_you_mean(key, std::vector<std::string_view>{"path", "weight"})));
  }
  const auto path = item["path"].get<std::string>();
  DataPart part = files_at(path, split);
  if (!item.contains("weight")) return part;
  const Json& weight = item["weight"];
  constexpr Range kWeights{.min = 0, .max = 1000, .min_open = true};
  if (!weight.is_number() || !kWeights.contains(weight.get<double>())) {
    throw ConfigError(
        fmt::format("{}: expected the weight of {} to be above 0 and at most 1000, "
                    "got {}",
                    kWhere, path, shown_json(weight)));
  }
  part.weight = weight.get<double>();
  return part;
}

}  // namespace

bool is_before(std::string_view a, std::string_view b) {
  const std::string_view whole_a = a, whole_b = b;
  while (!a.empty() && !b.empty()) {
    if (!is_digit(a.front()) || !is_digit(b.front())) {
      if (a.front() != b.front()) return a.front() < b.front();
      a.remove_prefix(1);
      b.remove_prefix(1);
      continue;
    }
    const auto take_number = [](std::string_view& text) {
      const std::size_t size = std::min(text.find_first_not_of("0123456789"), text.size());
      std::string_view number = text.substr(0, size);
      text.remove_prefix(size);
      number.remove_prefix(std::min(number.find_first_not_of('0'), number.size()));
      return number;
    };
    const std::string_view x = take_number(a);
    const std::string_view y = take_number(b);
    if (x.size() != y.size()) return x.size() < y.size();
    if (x != y) return x < y;
  }
  if (a.empty() != b.empty()) return a.empty();
  return whole_a < whole_b;  // numbers that differ in zeros alone
}

std::vector<DataPart> find_data_files(const std::string& rows, DataSplit split) {
  const Json list = list_in(rows);
  if (list.is_null()) return {files_at(rows, split)};
  if (list.empty()) throw ConfigError("rows: expected a list of files, got an empty one");
  std::vector<DataPart> parts;
  std::set<std::string> seen;
  for (const Json& item : list) {
    parts.push_back(part_of(item, split));
    for (const std::string& file : parts.back().files) {
      std::error_code ignored;
      if (seen.insert(fs::weakly_canonical(file, ignored).string()).second) continue;
      throw ConfigError(fmt::format(
          "rows: expected each file once, got {} twice; its weight says how often it is read",
          file));
    }
  }
  return parts;
}

std::vector<std::string> find_files_of_rows(const std::string& rows, DataSplit split) {
  std::vector<std::string> files;
  for (const DataPart& part : find_data_files(rows, split)) {
    if (part.weight != 1) {
      throw ConfigError(
          fmt::format("rows: expected a weight for rows that are trained on alone, got {} for {}",
                      part.weight, part.files.front()));
    }
    files.insert(files.end(), part.files.begin(), part.files.end());
  }
  return files;
}

std::string note_on_folders(const std::string& rows, DataSplit split) {
  constexpr std::size_t kMost = 5;
  std::vector<std::string> names;
  for (const DataPart& part : find_data_files(rows, split)) {
    names.insert(names.end(), part.passed_over.begin(), part.passed_over.end());
  }
  if (names.empty()) return "";
  sort_files(names);
  const std::size_t more = names.size() - std::min(names.size(), kMost);
  names.resize(names.size() - more);
  return fmt::format("not read: {}{}", quoted_list(names),
                     more > 0 ? fmt::format(" and {} more", more) : "");
}

}  // namespace prefopt::detail
