// SPDX-License-Identifier: Apache-2.0
#include "run/checkpoint.h"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <cstdint>
#include <filesystem>
#include <string_view>
#include <system_error>

#include "core/file.h"
#include "core/hash.h"
#include "core/json.h"
#include "core/mapped_file.h"
#include "prefopt/error.h"

namespace prefopt::detail {
namespace {

namespace fs = std::filesystem;

constexpr std::string_view kManifest = "manifest.json";
constexpr std::string_view kFormat = "prefopt-checkpoint-1";
constexpr std::string_view kStep = "step-";
constexpr std::string_view kPartial = ".partial";

/// The number in `step-N`; empty for any other name.
std::optional<std::int64_t> step_in(std::string_view name) {
  if (!name.starts_with(kStep)) return std::nullopt;
  name.remove_prefix(kStep.size());
  std::int64_t step = 0;
  const auto [end, error] = std::from_chars(name.data(), name.data() + name.size(), step);
  const bool is_number = error == std::errc() && end == name.data() + name.size() && step >= 0;
  return is_number ? std::optional(step) : std::nullopt;
}

/// Reads a part of the file at a time: it may be as large as the optimizer's state.
Json entry_of(const std::string& path) {
  constexpr std::size_t kPart = std::size_t{64} << 20;
  const auto file = map_file<CheckpointError>(path);
  const std::string_view bytes = file->bytes();
  Crc32 sum;
  for (std::size_t first = 0; first < bytes.size(); first += kPart) {
    sum.update(bytes.substr(first, kPart));
    file->let_go(first, std::min(bytes.size(), first + kPart));
  }
  return {{"bytes", bytes.size()}, {"crc32", sum.hex()}};
}

/// Names of the files in a folder, sorted.
std::set<std::string> files_in(const std::string& folder) {
  std::set<std::string> names;
  std::error_code error;
  for (const auto& item : fs::directory_iterator(folder, error)) {
    if (item.is_regular_file(error)) names.insert(item.path().filename().string());
  }
  return names;
}

Json read_manifest(const std::string& folder) {
  const std::string path = fmt::format("{}/{}", folder, kManifest);
  Json manifest = parse_json<CheckpointError>(read_file<CheckpointError>(path), path);
  const auto fail = [&](std::string_view expected, const Json& got) {
    throw CheckpointError(fmt::format("{}: expected {}, got {}", path, expected, shown_json(got)));
  };
  if (!manifest.is_object() || manifest.value("format", Json()) != kFormat) {
    fail(fmt::format("an object of format {}", kFormat), manifest);
  }
  const Json step = manifest.value("step", Json());
  if (!step.is_number_unsigned() || step.get<std::uint64_t>() > INT64_MAX) {
    fail("'step' to be a number of steps", step);
  }
  const Json files = manifest.value("files", Json());
  if (!files.is_object()) fail("'files' to be an object", files);
  for (const auto& [name, entry] : files.items()) {
    if (name.empty() || name == "." || name == ".." ||
        name.find_first_of(std::string_view("/\0", 2)) != std::string::npos) {
      fail("names of files in this folder", name);
    }
    if (!entry.is_object() || !entry.value("bytes", Json()).is_number_unsigned() ||
        !entry.value("crc32", Json()).is_string()) {
      fail(fmt::format("'{}' to have 'bytes' and 'crc32'", shown_text(name)), entry);
    }
  }
  return manifest;
}

void check_file(const std::string& path, const Json& entry) {
  const Json found = entry_of(path);
  for (const char* key : {"bytes", "crc32"}) {
    if (found.at(key) == entry.at(key)) continue;
    throw CheckpointError(fmt::format("{}: expected {} {}, as the manifest says, got {}", path, key,
                                      shown_json(entry.at(key)), shown_json(found.at(key))));
  }
}

/// A folder that is removed in part is no checkpoint: the manifest goes first. Empty on success.
std::string try_remove(const std::string& folder) {
  std::error_code error;
  fs::remove(fmt::format("{}/{}", folder, kManifest), error);
  if (!error) fs::remove_all(folder, error);
  return error ? error.message() : "";
}

void check(const std::string& why, const std::string& path, std::string_view what) {
  if (!why.empty()) {
    throw CheckpointError(fmt::format("{}: expected to {}, got {}", path, what, why));
  }
}

}  // namespace

void write_manifest(const std::string& folder, std::int64_t step) {
  Json files = Json::object();
  for (const std::string& name : files_in(folder)) {
    if (name == kManifest) continue;
    files[name] = entry_of(fmt::format("{}/{}", folder, name));
  }
  write_file<CheckpointError>(
      fmt::format("{}/{}", folder, kManifest),
      dump_json({{"format", kFormat}, {"step", step}, {"files", files}}, 2) + "\n");
}

std::string defect_of_checkpoint(const std::string& folder) {
  try {
    const Json manifest = read_manifest(folder);
    for (const auto& [name, entry] : manifest.at("files").items()) {
      check_file(fmt::format("{}/{}", folder, name), entry);
    }
    return "";
  } catch (const CheckpointError& error) {
    return error.what();
  }
}

std::int64_t step_of_checkpoint(const std::string& folder) {
  return read_manifest(folder).at("step").get<std::int64_t>();
}

std::string CheckpointStore::folder_of(std::int64_t step) const {
  return fmt::format("{}/{}{}", directory_, kStep, step);
}

std::string CheckpointStore::commit(
    std::int64_t step, const std::function<void(const std::string& folder)>& write) const {
  const std::string folder = folder_of(step);
  const std::string beside = fmt::format("{}/.{}{}{}", directory_, kStep, step, kPartial);
  // Of a process that ended here, or of a run that went on from an earlier step.
  check(try_remove(beside), beside, "remove it");
  make_directory<CheckpointError>(beside);
  write(beside);
  write_manifest(beside, step);
  check(try_remove(folder), folder, "remove it");
  check(try_move(beside, folder), folder, "move a checkpoint here");
  link("last", step);
  return folder;
}

void CheckpointStore::link(const std::string& name, std::int64_t step) const {
  const std::string path = fmt::format("{}/{}", directory_, name);
  const std::string target = fmt::format("{}{}", kStep, step);
  check(try_link(target, path), path, "link it to " + target);
}

void CheckpointStore::link_best(const std::vector<std::int64_t>& best) const {
  for (const std::int64_t step : best) {
    std::error_code ignored;
    if (fs::exists(fmt::format("{}/{}", folder_of(step), kManifest), ignored)) {
      return link("best", step);
    }
  }
  std::error_code ignored;  // a link that names what is not there is as good as none
  fs::remove(directory_ + "/best", ignored);
}

std::vector<std::int64_t> CheckpointStore::steps() const {
  std::vector<std::int64_t> steps;
  std::error_code error;
  for (const auto& item : fs::directory_iterator(directory_, error)) {
    const auto step = step_in(item.path().filename().string());
    if (step && item.is_directory(error)) steps.push_back(*step);
  }
  std::sort(steps.begin(), steps.end());
  return steps;
}

void CheckpointStore::remove_unfinished() const {
  std::error_code error;
  for (const auto& item : fs::directory_iterator(directory_, error)) {
    const std::string name = item.path().filename().string();
    if (name.starts_with(".") && name.ends_with(kPartial)) try_remove(item.path().string());
  }
  remove_unfinished_files(directory_,
                          [](std::string_view name) { return name == "last" || name == "best"; });
}

std::optional<std::int64_t> CheckpointStore::last() const {
  return step_in(fs::path(link_target(directory_ + "/last")).filename().string());
}

void CheckpointStore::prune(std::int64_t newest, std::int64_t keep_last,
                            const std::set<std::int64_t>& kept) const {
  if (keep_last == 0) return;
  std::vector<std::int64_t> known = steps();
  std::erase_if(known, [&](std::int64_t step) { return step > newest; });
  for (auto i = std::ssize(known) - keep_last - 1; i >= 0; --i) {
    const std::int64_t step = known[static_cast<std::size_t>(i)];
    if (!kept.contains(step)) try_remove(folder_of(step));
  }
}

}  // namespace prefopt::detail
