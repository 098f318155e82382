// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <CLI/CLI.hpp>
#include <cstdint>
#include <fstream>
#include <functional>
#include <initializer_list>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "support/measure.h"

namespace prefopt::bench {

/// The options of all benchmarks.
struct Options {
  std::vector<std::int64_t> rows;
  std::vector<std::int64_t> vocab;
  int threads = 0;  ///< 0: LibTorch's default
  int repeat = 10;
  int warmup = 1;
  std::vector<std::string> only;  ///< parts of contenders' names; empty: all
  std::string simd = "auto";
  std::string json;
  bool check = true;

  void add_to(CLI::App& app);
  /// Sets threads and instructions.
  void apply() const;
  bool selects(std::string_view contender) const;
};

/// The work that the contenders of one table do.
struct Task {
  std::string part;   ///< "k1"
  std::string title;  ///< one line
  std::string dtype;
  std::int64_t rows = 0;
  std::int64_t vocab = 0;   ///< 0: it has none
  std::int64_t hidden = 0;  ///< 0: it has none
  std::int64_t out = 0;     ///< of a linear layer, whose input is `hidden` wide; 0: it is not one
  std::string unit;         ///< of the rate: "GB/s" or "GFLOP/s"
  std::string base;         ///< the contender that the ratios are relative to
};

struct Row {
  Contender contender;
  Timing timing;
  std::optional<std::int64_t> peak_bytes;
};

class Table {
 public:
  Table(Task task, std::vector<Row> rows) : task_(std::move(task)), rows_(std::move(rows)) {}

  const Task& task() const { return task_; }
  const std::vector<Row>& rows() const { return rows_; }
  /// Null where the contender was not asked for.
  const Row* find(std::string_view name) const;
  std::optional<double> ms(std::string_view name) const;
  std::optional<double> fastest_ms(std::initializer_list<std::string_view> names) const;

 private:
  Task task_;
  std::vector<Row> rows_;
};

/// a / b where there are both.
std::optional<double> quotient(std::optional<double> a, std::optional<double> b);

enum class Bound { kAtLeast, kAtMost };

/// Prints as it goes; what it printed becomes the JSON file.
class Report {
 public:
  Report(std::string benchmark, const Options& options);

  /// An oracle's finding; throws OracleError where `error` is above `tolerance`.
  void check(const std::string& what, double error, double tolerance);

  Table measure(Task task, std::vector<Contender> contenders,
                const std::function<void()>& prepare = {});

  /// Measures the same without the peaks of memory and without printing, for a benchmark of many
  /// small tasks that prints its own table.
  Table measure_quietly(Task task, std::vector<Contender> contenders);

  /// A target of the specification. Nothing where `value` could not be measured.
  void judge(const Task& task, const std::string& target, const std::string& measure,
             std::optional<double> value, Bound bound, double limit);
  void note(const std::string& text);

  /// Prints the targets and writes the JSON file.
  void finish();

 private:
  struct Verdict {
    std::string target, shape, measure;
    double value, limit;
    Bound bound;
    bool passes() const { return bound == Bound::kAtLeast ? value >= limit : value <= limit; }
  };

  void print(const Table& table) const;
  std::ofstream json_file() const;
  void write_json() const;

  std::string benchmark_;
  const Options& options_;
  Machine machine_;
  std::vector<Table> tables_;
  std::vector<Verdict> verdicts_;
  std::vector<std::string> notes_;
  int checks_ = 0;
};

/// Calls `run(report)` after the command line is read. Returns the exit code: 1 where a result is
/// wrong or the work fails; a target that is missed changes nothing.
int bench_main(const std::string& benchmark, CLI::App& app, const Options& options, int argc,
               char** argv, const std::function<void(Report&)>& run);

}  // namespace prefopt::bench
