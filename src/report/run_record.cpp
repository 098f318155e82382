// SPDX-License-Identifier: Apache-2.0
#include "report/run_record.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <filesystem>
#include <functional>
#include <limits>
#include <system_error>

#include "core/file.h"
#include "prefopt/data/dataset.h"
#include "prefopt/error.h"

namespace prefopt::detail {
namespace {

namespace fs = std::filesystem;

bool exists(const std::string& path) {
  std::error_code ignored;
  return fs::exists(path, ignored);
}

/// Calls `row` for each line that holds a JSON object; returns what is wrong with the others.
std::string for_each_object(const std::string& path, const std::function<void(Json)>& row) {
  constexpr std::size_t kNamed = 5;
  std::vector<std::int64_t> bad;
  std::int64_t lines = 0;
  try {
    for_each_line(path, [&](std::int64_t number, std::string_view text) {
      ++lines;
      try {
        Json value = parse_json_or_throw<Json>(text);
        if (!value.is_object()) throw JsonDefect("no object");
        row(std::move(value));
      } catch (const JsonDefect&) {
        bad.push_back(number);
      }
    });
  } catch (const DataError& error) {
    return error.what();
  }
  if (bad.empty()) return {};
  const auto named = std::min(bad.size(), kNamed);
  return fmt::format("{} of {} lines cannot be read (line {}{})", bad.size(), lines,
                     fmt::join(bad.begin(), bad.begin() + static_cast<std::ptrdiff_t>(named), ", "),
                     bad.size() > named ? ", …" : "");
}

Json read_object(const std::string& path, std::string& defect) {
  std::string text;
  defect = try_read_file(path, text);
  if (!defect.empty()) return Json::object();
  try {
    Json value = parse_json_or_throw<Json>(text);
    if (value.is_object()) return value;
    defect = fmt::format("expected an object, got {}", json_type_name(value));
  } catch (const JsonDefect& error) {
    defect = fmt::format("expected JSON, got {}", error.what());
  }
  return Json::object();
}

/// A step that comes again, after a run resumed from an earlier one, replaces what was there.
void add_point(Curve& curve, double step, double value) {
  while (!curve.steps.empty() && curve.steps.back() >= step) {
    curve.steps.pop_back();
    curve.values.pop_back();
  }
  curve.steps.push_back(step);
  curve.values.push_back(value);
}

void add_metrics(const Json& line, RunRecord& record) {
  constexpr std::string_view kPrefix = "eval_";
  const auto step = number_at(line, "step");
  if (!step) return;
  for (const auto& [key, value] : line.items()) {
    const auto number = number_at(line, key);
    if (!number || key == "step") continue;
    if (key == "seconds") {
      record.seconds = *number;
    } else if (key.starts_with(kPrefix)) {
      add_point(record.evaluations[key.substr(kPrefix.size())], *step, *number);
    } else if (key != "epoch") {
      add_point(record.train[key], *step, *number);
    }
  }
}

/// Returns the last file of a folder by name; empty without one.
std::string newest_file(const std::string& folder) {
  std::string newest;
  std::error_code ignored;
  for (const auto& entry : fs::directory_iterator(folder, ignored)) {
    newest = std::max(newest, entry.path().string());
  }
  return newest;
}

double last_step_of(const Curves& curves) {
  double last = 0;
  for (const auto& [name, curve] : curves) last = std::max(last, curve.steps.back());
  return last;
}

}  // namespace

double RunRecord::last_step() const {
  return std::max(last_step_of(train), last_step_of(evaluations));
}

std::size_t RunRecord::count_evaluations() const {
  const auto loss = evaluations.find("loss");
  return loss == evaluations.end() ? 0 : loss->second.steps.size();
}

RunRecord read_run(const std::string& folder) {
  RunRecord record;
  record.folder = folder;
  const auto file = [&](std::string_view name) { return (fs::path(folder) / name).string(); };
  if (!exists(file("config.json")) && !exists(file("metrics.jsonl"))) {
    throw CheckpointError(fmt::format(
        "{}: expected a run folder, got one without config.json and metrics.jsonl", folder));
  }
  const auto say = [&](std::string_view name, const std::string& defect) {
    if (!defect.empty()) record.gaps.push_back(fmt::format("{}: {}", name, defect));
  };
  std::string defect;
  for (const auto& [name, value] :
       {std::pair("config.json", &record.config), std::pair("env.json", &record.environment),
        std::pair("run.json", &record.facts)}) {
    *value = read_object(file(name), defect);
    say(name, defect);
  }
  say("metrics.jsonl",
      for_each_object(file("metrics.jsonl"), [&](const Json& line) { add_metrics(line, record); }));
  for (const auto& [name, lines] :
       {std::pair("samples.jsonl", &record.samples), std::pair("rounds.jsonl", &record.rounds),
        std::pair("notes.jsonl", &record.notes)}) {
    auto read = read_json_lines(file(name));
    *lines = std::move(read.lines);
    say(name, read.defect);
  }
  if (const std::string newest = newest_file(file("trees")); !newest.empty()) {
    try {
      record.trees = load_trees(newest);
    } catch (const DataError& error) {
      record.gaps.emplace_back(error.what());
    }
  }
  return record;
}

JsonLines read_json_lines(const std::string& path) {
  JsonLines result;
  if (exists(path)) {
    result.defect =
        for_each_object(path, [&](Json line) { result.lines.push_back(std::move(line)); });
  }
  return result;
}

std::optional<double> number_at(const Json& object, std::string_view key) {
  const auto found = object.find(key);
  if (found == object.end()) return std::nullopt;
  if (found->is_null()) return std::numeric_limits<double>::quiet_NaN();
  if (!found->is_number()) return std::nullopt;
  return found->get<double>();
}

std::string text_at(const Json& object, std::string_view key) {
  const auto found = object.find(key);
  if (found == object.end()) return {};
  return found->is_string() ? found->get<std::string>() : dump_json(*found);
}

const Json& object_at(const Json& object, std::string_view key) {
  static const Json kNone = Json::object();
  const auto found = object.find(key);
  return found != object.end() && found->is_object() ? *found : kNone;
}

}  // namespace prefopt::detail
