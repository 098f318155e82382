// SPDX-License-Identifier: Apache-2.0
#include "run/run_folder.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <filesystem>
#include <limits>
#include <numeric>
#include <system_error>
#include <utility>

#include "prefopt/error.h"
#include "prefopt/options.h"
#include "prefopt/run/run.h"

namespace prefopt::detail {
namespace {

namespace fs = std::filesystem;

/// All that a run writes over, or removes, in its folder.
constexpr std::array<std::string_view, 12> kRunFiles = {
    "config.json",  "env.json",    "run.json", "metrics.jsonl", "notes.jsonl", "samples.jsonl",
    "rounds.jsonl", "report.html", "tb",       "checkpoints",   "nonfinite",   "rollouts"};

bool is_run_file(std::string_view name) {
  return std::find(kRunFiles.begin(), kRunFiles.end(), name) != kRunFiles.end();
}

/// Returns why a config.json is not one that a run wrote, with groups and options that this version
/// knows; empty: it is one.
std::string defect_of_config(const Json& config) {
  for (const char* group : {"loss", "model", "data", "optimizer"}) {
    if (!config.is_object() || !config.value(group, Json()).is_object()) {
      return fmt::format("it has no object '{}'", group);
    }
  }
  try {
    options_from_json<RunOptions>(dump_json(config), "config.json");
    return "";
  } catch (const ConfigError& error) {
    return error.what();
  }
}

bool has_evaluation(const Json& line) {
  return std::any_of(line.items().begin(), line.items().end(),
                     [](const auto& item) { return item.key().starts_with("eval_"); });
}

/// The lines of JSON up to a step, and counts of those that were dropped.
struct CutLines {
  std::string kept;
  std::int64_t later = 0;
  std::int64_t broken = 0;
  RunFolder::Kept said;
};

CutLines cut_lines(std::string_view text, std::int64_t step, bool evaluation_is_due = false) {
  CutLines cut;
  while (!text.empty()) {
    const auto end = text.find('\n');
    const bool is_whole = end != std::string_view::npos;
    const std::string_view line = text.substr(0, is_whole ? end + 1 : text.size());
    text.remove_prefix(line.size());
    const Json value = is_whole ? Json::parse(line, nullptr, /*allow_exceptions=*/false) : Json();
    if (!value.is_object() || !value.value("step", Json()).is_number_integer()) {
      ++cut.broken;
    } else if (value.at("step").get<std::int64_t>() > step ||
               (evaluation_is_due && value.at("step") == step && has_evaluation(value))) {
      ++cut.later;
    } else {
      cut.kept += line;
      const Json seconds = value.value("seconds", Json());
      if (seconds.is_number()) cut.said.seconds = seconds.get<double>();
      if (!has_evaluation(value)) cut.said.logged_step = value.at("step").get<std::int64_t>();
    }
  }
  return cut;
}

Json row_of(const NonFiniteStep& report, std::size_t place, std::int64_t number) {
  const TokenRow& row = report.rows[place];
  Json line = {{"row", number}, {"prompt_ids", row.prompt}, {"chosen_ids", row.chosen}};
  if (!row.rejected.empty()) line["rejected_ids"] = row.rejected;
  if (!row.gold.empty()) line["gold_ids"] = row.gold;
  for (const auto& [name, weights] : {std::pair{"chosen_token_weights", &row.chosen_weights},
                                      {"rejected_token_weights", &row.rejected_weights},
                                      {"gold_token_weights", &row.gold_weights}}) {
    if (!weights->empty()) line[name] = *weights;
  }
  for (const auto& [name, mask] : {std::pair{"chosen_token_mask", &row.chosen_mask},
                                   {"rejected_token_mask", &row.rejected_mask},
                                   {"gold_token_mask", &row.gold_mask}}) {
    if (!mask->empty()) line[name] = *mask;
  }
  for (const auto& [name, values] : report.logps) line[name] = json_number(values[place]);
  return line;
}

std::int64_t entries_of(const std::string& folder) {
  std::int64_t count = 0;
  std::error_code error;
  for (fs::directory_iterator at(folder, error); !error && at != fs::directory_iterator();
       at.increment(error)) {
    ++count;
  }
  return count;
}

Json name_or_null(const std::string& name) { return name.empty() ? Json() : Json(name); }

}  // namespace

Json json_number(double value) {
  if (std::isfinite(value)) return value;
  if (std::isnan(value)) return "nan";
  return value > 0 ? "inf" : "-inf";
}

double number_in(const Json& value) {
  if (value == "nan") return std::numeric_limits<double>::quiet_NaN();
  if (value == "inf") return std::numeric_limits<double>::infinity();
  if (value == "-inf") return -std::numeric_limits<double>::infinity();
  return value.get<double>();
}

double seconds_by(const std::string& folder, std::int64_t step) {
  std::string text;
  const std::string why = try_read_file(folder + "/metrics.jsonl", text);
  return why.empty() ? cut_lines(text, step).said.seconds : 0;
}

RunFolder::RunFolder(std::string path)
    : path_(std::move(path)), checkpoints_(fmt::format("{}/checkpoints", path_)) {
  if (path_.empty()) throw ConfigError("output_dir: expected the name of a folder, got ''");
}

void RunFolder::check_new() const {
  for (const auto name : kRunFiles) {
    std::error_code ignored;
    if (fs::exists(file(name), ignored)) {
      throw ConfigError(
          fmt::format("output_dir: expected an empty or new folder, got {} with a "
                      "{} in it; choose another name, or resume that run",
                      path_, name));
    }
  }
}

void RunFolder::check_run_or_new(const std::vector<std::string>& spared) const {
  if (checkpoints_.last() || !checkpoints_.steps().empty() || config()) return;
  const auto is_spared = [&](const fs::path& entry) {
    const std::string name = entry.filename().string();
    std::error_code ignored;
    if (name == "run.lock" || name.starts_with("config.json.")) return true;
    if (name == "checkpoints" && fs::is_empty(entry, ignored)) return true;
    return std::any_of(spared.begin(), spared.end(), [&](const std::string& path) {
      if (path.empty()) return false;
      const std::string whole = fs::weakly_canonical(entry, ignored).string();
      const std::string inside = fs::weakly_canonical(path, ignored).string();
      return inside == whole || inside.starts_with(whole + "/");
    });
  };
  std::error_code error;  // a folder that is not there holds nothing
  for (const auto& entry : fs::directory_iterator(path_, error)) {
    if (is_spared(entry.path())) continue;
    throw ConfigError(
        fmt::format("output_dir: expected an empty or new folder, or a run to resume, got {} with "
                    "a {} in it and no run; choose another name",
                    path_, entry.path().filename().string()));
  }
}

std::optional<Json> RunFolder::config() const {
  const std::string path = file("config.json");
  std::error_code ignored;
  if (!fs::exists(fs::symlink_status(path, ignored))) return std::nullopt;
  std::string defect;
  std::string text;
  try {
    const std::string why = try_read_file(path, text);
    Json config = why.empty() ? parse_json<ConfigError>(text, "config.json") : Json();
    defect = why.empty() ? defect_of_config(config) : why;
    if (defect.empty()) return config;
  } catch (const ConfigError& error) {
    defect = error.what();
  }
  throw ConfigError(
      fmt::format("output_dir: expected an empty or new folder, or a run to resume, got {} with a "
                  "config.json in it that no run wrote ({}); choose another name",
                  path_, defect));
}

void RunFolder::lock() {
  if (lock_) return;
  make_directory<CheckpointError>(path_);
  if (lock_.emplace(file("run.lock")).is_ours()) return;
  const std::string holder = lock_->holder();
  lock_.reset();
  throw ConfigError(
      fmt::format("output_dir: expected a folder that no other run writes to, got {}, where {} is "
                  "at work; wait for it, or choose another name",
                  path_, holder));
}

std::string RunFolder::file(std::string_view name) const {
  return fmt::format("{}/{}", path_, name);
}

void RunFolder::start(const Json& config, const Json& environment) {
  remove_unfinished();
  // First the files that mark this folder as that of a run.
  write_descriptions(config, environment);
  make_directory<CheckpointError>(file("checkpoints"));
  write_file<CheckpointError>(file("metrics.jsonl"), "");
  open_metrics();
}

RunFolder::Kept RunFolder::resume(const Json& config, const Json& environment, std::int64_t step,
                                  bool evaluation_is_due, const Note& note) {
  remove_unfinished();
  write_descriptions(config, environment);
  const std::string path = file("metrics.jsonl");
  Kept kept;
  std::error_code error;
  if (fs::exists(path, error)) {
    const CutLines cut = cut_lines(read_file<CheckpointError>(path), step, evaluation_is_due);
    if (cut.later > 0) {
      note(fmt::format("metrics.jsonl: {} lines after step {} are cut off", cut.later, step));
    }
    if (cut.broken > 0) note(fmt::format("metrics.jsonl: {} broken lines are cut off", cut.broken));
    if (cut.later + cut.broken > 0) write_file<CheckpointError>(path, cut.kept);
    kept = cut.said;
  }
  open_metrics();
  return kept;
}

void RunFolder::remove_unfinished() const {
  checkpoints_.remove_unfinished();
  remove_unfinished_files(path_, is_run_file);
  std::error_code error;
  for (const auto& step : fs::directory_iterator(file("nonfinite"), error)) {
    remove_unfinished_files(step.path().string(), [](std::string_view name) {
      return name == "rows.jsonl" || name == "report.json";
    });
  }
}

void RunFolder::write_descriptions(const Json& config, const Json& environment) const {
  write_file<CheckpointError>(file("config.json"), dump_json(config, 2) + "\n");
  write_file<CheckpointError>(file("env.json"), dump_json(environment, 2) + "\n");
}

void RunFolder::open_metrics() { check_metrics(metrics_.try_open(file("metrics.jsonl"))); }

void RunFolder::append_metrics(const Json& line) {
  check_metrics(metrics_.try_append(dump_json(line) + "\n"));
}

void RunFolder::sync_metrics() { check_metrics(metrics_.try_sync()); }

void RunFolder::check_metrics(const std::string& why) const {
  if (why.empty()) return;
  throw CheckpointError(
      fmt::format("{}: expected to append a line, got {}", file("metrics.jsonl"), why));
}

std::string RunFolder::write_non_finite(const NonFiniteStep& report,
                                        const std::vector<std::int64_t>& row_numbers,
                                        bool ends_the_run) const {
  if (!ends_the_run && entries_of(file("nonfinite")) >= kMostNonFinite) return "";
  const std::string folder = file(fmt::format("nonfinite/step-{}", report.step));
  std::vector<std::int64_t> places = report.offending;
  if (places.empty()) {
    places.resize(report.rows.size());
    std::iota(places.begin(), places.end(), 0);
  }
  Json numbers = Json::array();
  std::string lines;
  for (const std::int64_t place : places) {
    const auto i = static_cast<std::size_t>(place);
    if (!report.offending.empty()) numbers.push_back(row_numbers[i]);
    lines += dump_json(row_of(report, i, row_numbers[i])) + "\n";
  }
  const Json facts = {{"step", report.step},
                      {"loss", json_number(report.loss)},
                      {"grad_norm", json_number(report.grad_norm)},
                      {"offending_rows", numbers},
                      {"first_bad_weight", name_or_null(report.weight)},
                      {"first_bad_gradient", name_or_null(report.gradient)}};
  make_directory<CheckpointError>(folder);
  write_file<CheckpointError>(folder + "/rows.jsonl", lines);
  write_file<CheckpointError>(folder + "/report.json", dump_json(facts, 2) + "\n");
  return folder;
}

}  // namespace prefopt::detail
