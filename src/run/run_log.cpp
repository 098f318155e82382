// SPDX-License-Identifier: Apache-2.0
#include "run/run_log.h"

#include <fmt/format.h>

#include <filesystem>
#include <system_error>

#include "core/file.h"
#include "prefopt/error.h"
#include "prefopt/report/report.h"
#include "report/run_record.h"

namespace prefopt::detail {
namespace {

namespace fs = std::filesystem;

double wall_time() {
  const auto now = std::chrono::system_clock::now().time_since_epoch();
  return std::chrono::duration<double>(now).count();
}

/// A block of code in Markdown.
std::string indented(const std::string& text) {
  std::string block = "    ";
  for (const char c : text) {
    block += c;
    if (c == '\n') block += "    ";
  }
  return block;
}

constexpr std::string_view kEvaluationPrefix = "eval_";

bool is_evaluation(const Json& line) {
  for (const auto& item : line.items()) {
    if (item.key().starts_with(kEvaluationPrefix)) return true;
  }
  return false;
}

}  // namespace

void RunLog::note(const std::string& line) {
  if (!writes_) return;
  if (started_) {
    append("notes.jsonl", {{"step", step_}, {"note", line}});
  } else {
    early_notes_.push_back(line);
  }
}

void RunLog::start(const Json& config, const Json& facts, std::optional<std::int64_t> resumed,
                   bool evaluation_is_due) {
  if (!writes_) return;
  step_ = resumed.value_or(0);
  facts_ = facts;
  if (resumed) {
    const auto last = static_cast<double>(step_);
    keep_lines("notes.jsonl", "step", last);
    keep_lines("samples.jsonl", "step", evaluation_is_due ? last - 1 : last);
    keep_lines("rounds.jsonl", "step", last);
    may_repeat_rounds_ = true;
    std::error_code ignored;  // a file that is not there has no samples
    const auto bytes = fs::file_size(file("samples.jsonl"), ignored);
    has_samples_ = !ignored && bytes > 0;
  } else {
    for (const auto* name : {"notes.jsonl", "samples.jsonl", "rounds.jsonl", "report.html"}) {
      std::error_code ignored;  // what cannot be removed cannot be written to either
      fs::remove(file(name), ignored);
    }
  }
  write_file<CheckpointError>(file("run.json"), dump_json(facts_, 2) + "\n");
  events_.emplace(file("tb"), wall_time());
  events_->add_restart(resumed ? step_ + 1 : 0, wall_time());
  events_->add_text(step_, wall_time(), "config", indented(dump_json(config, 2)));
  started_ = true;
  for (const auto& line : early_notes_) note(line);
  early_notes_.clear();
}

void RunLog::metrics(const Json& line) {
  if (!writes_) return;
  step_ = line.at("step");
  const bool evaluation = is_evaluation(line);
  EventFile::Scalars scalars;
  for (const auto& [key, value] : line.items()) {
    if (key == "step" || !value.is_number()) continue;
    std::string_view name = key;
    if (name.starts_with(kEvaluationPrefix)) name.remove_prefix(kEvaluationPrefix.size());
    scalars.emplace_back(fmt::format("{}/{}", evaluation ? "eval" : "train", name),
                         value.get<double>());
  }
  events_->add_scalars(step_, wall_time(), scalars);
}

void RunLog::samples(const std::vector<Json>& lines) {
  if (!writes_) return;
  for (const Json& line : lines) append("samples.jsonl", line);
  has_samples_ = has_samples_ || !lines.empty();
}

void RunLog::round(std::int64_t step, const std::string& record) {
  if (!writes_) return;
  Json line = parse_json<CheckpointError>(record, "round");
  line["step"] = step;
  const auto number = number_at(line, "round");
  // Rounds without rows after the checkpoint's step have that step too.
  if (may_repeat_rounds_ && number) keep_lines("rounds.jsonl", "round", *number - 1);
  may_repeat_rounds_ = false;
  append("rounds.jsonl", line);
}

void RunLog::refresh_report() {
  if (!writes_) return;
  if (reporting_ * 100 <= Clock::now() - start_) report();
}

void RunLog::finish(bool complete) {
  if (!writes_) return;
  facts_["complete"] = complete;
  write_file<CheckpointError>(file("run.json"), dump_json(facts_, 2) + "\n");
  report();
}

void RunLog::stop(const std::string& reason) {
  if (!writes_) return;
  try {
    note("stopped: " + reason);
    report();
  } catch (const Error&) {
    // The reason for the end may also keep this from being written, and matters more.
  }
}

void RunLog::report() {
  const auto begin = Clock::now();
  write_report(folder_);
  reporting_ += Clock::now() - begin;
}

std::string RunLog::file(std::string_view name) const {
  return (fs::path(folder_) / name).string();
}

void RunLog::append(std::string_view name, const Json& line) const {
  const std::string path = file(name);
  AppendedFile lines;
  auto why = lines.try_open(path);
  if (why.empty()) why = lines.try_append(dump_json(line) + "\n");
  if (!why.empty()) {
    throw CheckpointError(fmt::format("{}: expected to append a line, got {}", path, why));
  }
}

/// Rewrites a file without lines whose `key` is later than `last` and what a sudden end left of a
/// line.
void RunLog::keep_lines(std::string_view name, std::string_view key, double last) const {
  const std::string path = file(name);
  if (!fs::exists(path)) return;
  std::string kept;
  for (const Json& line : read_json_lines(path).lines) {
    const auto number = number_at(line, key);
    if (number && *number <= last) kept += dump_json(line) + "\n";
  }
  write_file<CheckpointError>(path, kept);
}

}  // namespace prefopt::detail
