// SPDX-License-Identifier: Apache-2.0
#include "train/run_folder.h"

#include <fmt/format.h>

#include <filesystem>
#include <system_error>
#include <utility>

#include "core/file.h"
#include "prefopt/error.h"

namespace prefopt::detail {
namespace {

namespace fs = std::filesystem;

void make_directory(const std::string& path) {
  std::error_code error;
  fs::create_directories(path, error);
  if (error) {
    throw CheckpointError(
        fmt::format("{}: expected to make this folder, got '{}'", path, error.message()));
  }
}

}  // namespace

RunFolder::RunFolder(std::string path) : path_(std::move(path)) {
  if (path_.empty()) throw ConfigError("output_dir: expected the name of a folder, got ''");
  for (const auto* name : {"config.json", "metrics.jsonl", "checkpoints"}) {
    std::error_code ignored;
    if (fs::exists(file(name), ignored)) {
      throw ConfigError(
          fmt::format("output_dir: expected an empty or new folder, got {} with a "
                      "{} in it; choose another name",
                      path_, name));
    }
  }
}

std::string RunFolder::file(std::string_view name) const {
  return fmt::format("{}/{}", path_, name);
}

void RunFolder::start(const Json& config, const Json& environment) {
  make_directory(file("checkpoints"));
  write_file<CheckpointError>(file("config.json"), dump_json(config, 2) + "\n");
  write_file<CheckpointError>(file("env.json"), dump_json(environment, 2) + "\n");
  metrics_.open(file("metrics.jsonl"), std::ios::app);
  check_metrics();
}

void RunFolder::append_metrics(const Json& line) {
  metrics_ << dump_json(line) << std::endl;
  check_metrics();
}

std::string RunFolder::save(const Policy& policy, const LossState& loss, std::int64_t step) const {
  const auto name = fmt::format("step-{}", step);
  const auto directory = file("checkpoints/" + name);
  make_directory(directory);
  policy.save(directory);
  if (loss.count > 0) {
    write_file<CheckpointError>(directory + "/loss_state.json",
                                dump_json({{"mean", loss.mean}, {"count", loss.count}}, 2) + "\n");
  }
  const auto last = file("checkpoints/last");
  std::error_code error;
  fs::create_directory_symlink(name, last, error);
  if (error) {
    throw CheckpointError(
        fmt::format("{}: expected to link it to {}, got '{}'", last, name, error.message()));
  }
  return directory;
}

void RunFolder::check_metrics() const {
  if (!metrics_) {
    throw CheckpointError(file("metrics.jsonl") + ": expected to append a line, got an error");
  }
}

}  // namespace prefopt::detail
