// SPDX-License-Identifier: Apache-2.0
#include "support/report.h"

#include <ATen/Parallel.h>
#include <fmt/format.h>

#include <algorithm>
#include <cstdio>
#include <exception>
#include <fstream>
#include <nlohmann/json.hpp>
#include <utility>

#include "prefopt/error.h"

namespace prefopt::bench {
namespace {

class OracleError : public Error {
 public:
  using Error::Error;
};

std::string mib(std::int64_t bytes) {
  return fmt::format("{:.1f}", static_cast<double>(bytes) / (1 << 20));
}

// Work a millisecond in thousands of millions a second.
double rate(const Row& row) { return row.contender.work / row.timing.median_ms() / 1e6; }

std::string shape(const Task& task) {
  if (task.out > 0) {
    return fmt::format("N={} in={} out={} {}", task.rows, task.hidden, task.out, task.dtype);
  }
  std::string text = fmt::format("N={}", task.rows);
  if (task.vocab > 0) text += fmt::format(" V={}", task.vocab);
  if (task.hidden > 0) text += fmt::format(" H={}", task.hidden);
  return text + " " + task.dtype;
}

struct Column {
  std::string head;
  std::function<std::string(const Row&)> text;  // empty where the row has none
};

std::vector<Column> columns_of(const Table& table) {
  const std::optional<double> base = table.ms(table.task().base);
  return {
      {"median ms", [](const Row& r) { return fmt::format("{:.3f}", r.timing.median_ms()); }},
      {"min", [](const Row& r) { return fmt::format("{:.3f}", r.timing.min_ms()); }},
      {"max", [](const Row& r) { return fmt::format("{:.3f}", r.timing.max_ms()); }},
      {table.task().unit,
       [](const Row& r) {
         return r.contender.work > 0 ? fmt::format("{:.1f}", rate(r)) : std::string();
       }},
      {"peak MiB",
       [](const Row& r) { return r.peak_bytes ? mib(*r.peak_bytes) : std::string("n/a"); }},
      {"without results",
       [](const Row& r) {
         if (!r.peak_bytes || r.contender.result_bytes == 0) return std::string();
         return mib(std::max<std::int64_t>(0, *r.peak_bytes - r.contender.result_bytes));
       }},
      {"plan",
       [](const Row& r) {
         return r.contender.plan_bytes > 0 ? mib(r.contender.plan_bytes) : std::string();
       }},
      {"ratio",
       [base](const Row& r) {
         return base ? fmt::format("{:.2f}", r.timing.median_ms() / *base) : std::string();
       }},
  };
}

}  // namespace

void Options::add_to(CLI::App& app) {
  app.add_option("--rows", rows, "Token rows N, separated by commas")
      ->delimiter(',')
      ->capture_default_str();
  app.add_option("--vocab", vocab, "Vocabulary sizes V, separated by commas")
      ->delimiter(',')
      ->capture_default_str();
  app.add_option("--threads", threads, "Threads; 0: LibTorch's default")->capture_default_str();
  app.add_option("--repeat", repeat, "Timed runs of each contender")
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  app.add_option("--warmup", warmup, "Untimed runs before each timed one")
      ->check(CLI::NonNegativeNumber)
      ->capture_default_str();
  app.add_option("--only", only, "Only contenders whose name has one of these parts")
      ->delimiter(',');
  app.add_option("--simd", simd, "Instructions of prefopt's kernels: auto, avx2 or scalar")
      ->check(CLI::IsMember({"auto", "avx2", "scalar"}))
      ->capture_default_str();
  app.add_option("--json", json, "Also write the results to this file");
  app.add_flag("!--no-check", check, "Leave out the comparison with the oracle");
}

void Options::apply() const {
  if (threads > 0) at::set_num_threads(threads);
  limit_kernels(simd);
}

bool Options::selects(std::string_view contender) const {
  return only.empty() || std::any_of(only.begin(), only.end(), [&](const std::string& part) {
           return contender.find(part) != std::string_view::npos;
         });
}

const Row* Table::find(std::string_view name) const {
  const auto found = std::find_if(rows_.begin(), rows_.end(),
                                  [&](const Row& row) { return row.contender.name == name; });
  return found == rows_.end() ? nullptr : &*found;
}

std::optional<double> Table::ms(std::string_view name) const {
  const Row* row = find(name);
  return row == nullptr ? std::nullopt : std::optional(row->timing.median_ms());
}

std::optional<double> Table::fastest_ms(std::initializer_list<std::string_view> names) const {
  std::optional<double> fastest;
  for (const std::string_view name : names) {
    const std::optional<double> time = ms(name);
    if (time && (!fastest || *time < *fastest)) fastest = time;
  }
  return fastest;
}

std::optional<double> quotient(std::optional<double> a, std::optional<double> b) {
  return a && b && *b > 0 ? std::optional(*a / *b) : std::nullopt;
}

Report::Report(std::string benchmark, const Options& options)
    : benchmark_(std::move(benchmark)), options_(options), machine_(this_machine()) {
  if (!options_.json.empty()) json_file();  // an hour later is too late
  fmt::print("{}: {}, {} threads, kernels {}, ATen {}, LibTorch {}{}{}\n", benchmark_, machine_.cpu,
             machine_.threads, machine_.kernels, machine_.aten, machine_.libtorch,
             machine_.environment.empty() ? "" : ", ", machine_.environment);
  fmt::print(
      "median of {} runs, each after {} untimed, contenders in turn; ratio: time / time of *\n",
      options_.repeat, options_.warmup);
}

void Report::check(const std::string& what, double error, double tolerance) {
  ++checks_;
  // Not `error > tolerance`: NaN has to fail.
  if (!(error <= tolerance)) {
    throw OracleError(
        fmt::format("{}: {}: expected an error <= {:.1e} against the float64 oracle, "
                    "got {:.2e}",
                    benchmark_, what, tolerance, error));
  }
  fmt::print("  ok {}: error {:.1e} <= {:.0e}\n", what, error, tolerance);
}

Table Report::measure(Task task, std::vector<Contender> contenders,
                      const std::function<void()>& prepare) {
  std::erase_if(contenders, [&](const Contender& c) { return !options_.selects(c.name); });
  const std::vector<Timing> timings =
      time_interleaved(contenders, options_.repeat, options_.warmup, prepare);
  std::vector<Row> rows;
  for (std::size_t i = 0; i < contenders.size(); ++i) {
    if (prepare) prepare();
    const auto peak = peak_memory(contenders[i].run);
    rows.push_back({std::move(contenders[i]), timings[i], peak});
  }
  tables_.emplace_back(std::move(task), std::move(rows));
  print(tables_.back());
  return tables_.back();
}

Table Report::measure_quietly(Task task, std::vector<Contender> contenders) {
  std::erase_if(contenders, [&](const Contender& c) { return !options_.selects(c.name); });
  const std::vector<Timing> timings =
      time_interleaved(contenders, options_.repeat, options_.warmup, {});
  std::vector<Row> rows;
  for (std::size_t i = 0; i < contenders.size(); ++i) {
    rows.push_back({std::move(contenders[i]), timings[i], std::nullopt});
  }
  tables_.emplace_back(std::move(task), std::move(rows));
  return tables_.back();
}

void Report::print(const Table& table) const {
  fmt::print("\n{} {}: {}\n", table.task().part, shape(table.task()), table.task().title);
  std::size_t names = 0;
  for (const Row& row : table.rows()) names = std::max(names, row.contender.name.size() + 2);
  std::vector<std::pair<Column, std::size_t>> shown;
  for (Column& column : columns_of(table)) {
    std::size_t width = 0;
    for (const Row& row : table.rows()) width = std::max(width, column.text(row).size());
    if (width == 0) continue;
    shown.emplace_back(column, std::max(width, column.head.size()));
  }
  fmt::print("{:{}}", "", names);
  for (const auto& [column, width] : shown) fmt::print("  {:>{}}", column.head, width);
  fmt::print("\n");
  for (const Row& row : table.rows()) {
    const std::string mark = row.contender.name == table.task().base ? " *" : "";
    fmt::print("{:{}}", row.contender.name + mark, names);
    for (const auto& [column, width] : shown) fmt::print("  {:>{}}", column.text(row), width);
    fmt::print("\n");
  }
  const auto unknown = [](const Row& row) { return !row.peak_bytes; };
  if (std::any_of(table.rows().begin(), table.rows().end(), unknown)) {
    fmt::print("peak memory: not available here (needs a writable /proc/self/clear_refs)\n");
  }
  std::fflush(stdout);
}

void Report::judge(const Task& task, const std::string& target, const std::string& measure,
                   std::optional<double> value, Bound bound, double limit) {
  if (value) verdicts_.push_back({target, shape(task), measure, *value, limit, bound});
}

void Report::note(const std::string& text) {
  fmt::print("{}\n", text);
  notes_.push_back(text);
}

void Report::finish() {
  if (!verdicts_.empty()) fmt::print("\ntargets\n");
  for (const Verdict& v : verdicts_) {
    fmt::print("{:4} {:34} {:56} {:8.3f} {} {:<6g} {}\n", v.target, v.shape, v.measure, v.value,
               v.bound == Bound::kAtLeast ? ">=" : "<=", v.limit,
               v.passes() ? "PASS" : "short of target");
  }
  if (!options_.json.empty()) write_json();
}

std::ofstream Report::json_file() const {
  std::ofstream file(options_.json);
  if (!file) {
    throw ConfigError("--json: expected a file that can be written, got " + options_.json);
  }
  return file;
}

void Report::write_json() const {
  using Json = nlohmann::ordered_json;
  const auto mib_or_null = [](std::optional<std::int64_t> bytes) {
    return bytes ? Json(static_cast<double>(*bytes) / (1 << 20)) : Json();
  };
  Json rows = Json::array(), targets = Json::array();
  for (const Table& table : tables_) {
    const Task& task = table.task();
    const std::optional<double> base = table.ms(task.base);
    for (const Row& row : table.rows()) {
      const Contender& contender = row.contender;
      rows.push_back(
          {{"part", task.part},
           {"name", contender.name},
           {"N", task.rows},
           {"V", task.vocab > 0 ? Json(task.vocab) : Json()},
           {"H", task.hidden > 0 ? Json(task.hidden) : Json()},
           {"out", task.out > 0 ? Json(task.out) : Json()},
           {"dtype", task.dtype},
           {"median_ms", row.timing.median_ms()},
           {"min_ms", row.timing.min_ms()},
           {"max_ms", row.timing.max_ms()},
           {"samples_ms", row.timing.samples_ms()},
           {"rate", contender.work > 0 ? Json(rate(row)) : Json()},
           {"unit", task.unit},
           {"peak_mib", mib_or_null(row.peak_bytes)},
           {"results_mib", mib_or_null(contender.result_bytes)},
           {"plan_mib", contender.plan_bytes > 0 ? mib_or_null(contender.plan_bytes) : Json()},
           {"ratio", base ? Json(row.timing.median_ms() / *base) : Json()},
           {"ratio_to", task.base}});
    }
  }
  for (const Verdict& v : verdicts_) {
    targets.push_back({{"target", v.target},
                       {"shape", v.shape},
                       {"measure", v.measure},
                       {"value", v.value},
                       {"bound", v.bound == Bound::kAtLeast ? ">=" : "<="},
                       {"limit", v.limit},
                       {"passes", v.passes()}});
  }
  const Json all = {{"benchmark", benchmark_},
                    {"machine",
                     {{"cpu", machine_.cpu},
                      {"threads", machine_.threads},
                      {"kernels", machine_.kernels},
                      {"aten", machine_.aten},
                      {"libtorch", machine_.libtorch},
                      {"environment", machine_.environment}}},
                    {"repeat", options_.repeat},
                    {"oracle_checks", checks_},
                    {"notes", notes_},
                    {"rows", rows},
                    {"targets", targets}};
  json_file() << all.dump(1) << '\n';
}

int bench_main(const std::string& benchmark, CLI::App& app, const Options& options, int argc,
               char** argv, const std::function<void(Report&)>& run) {
  CLI11_PARSE(app, argc, argv);
  try {
    options.apply();
    Report report(benchmark, options);
    run(report);
    report.finish();
    return 0;
  } catch (const std::exception& error) {
    fmt::print(stderr, "{}\n", error.what());
    return 1;
  }
}

}  // namespace prefopt::bench
