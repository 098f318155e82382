// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <functional>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "core/chart.h"
#include "lab/statistics.h"

// An experiment of the lab: a claim of a paper, measured with exact policies. To add one, write
// `Report run(const Settings&)` in its own file and namespace, declare it in experiments.h and add
// its line to the list in experiments.cpp; the command, the files and the tests follow.
namespace prefopt::lab {

struct Settings {
  bool quick = false;  ///< fewer points, for a test
  SeedRange seeds;     ///< instances that an interval is over
};

/// One claim and what was measured. A control is a claim as well: that the effect is absent where
/// it should be.
struct Verdict {
  std::string claim;
  Estimate measured;
  std::string expected;  ///< in words, as in "-0.5 within 0.1"
  bool holds = false;
};

/// Holds where the whole interval is above, or below, the limit.
Verdict above(std::string claim, const Estimate& measured, double limit);
Verdict below(std::string claim, const Estimate& measured, double limit);

/// Holds where the value is nearer than `distance` to `middle`.
Verdict within(std::string claim, const Estimate& measured, double middle, double distance);

/// Rows of a CSV file.
struct Data {
  using Cell = std::variant<double, std::string>;

  std::string name;  ///< of the file, without its ending
  std::vector<std::string> columns;
  std::vector<std::vector<Cell>> rows = {};
};

struct Picture {
  std::string name;  ///< of the file, without its ending
  detail::Chart chart;
};

struct Report {
  std::vector<Verdict> verdicts = {};
  std::vector<Data> data = {};
  std::vector<Picture> pictures = {};
};

struct Experiment {
  std::string name;
  std::string question;  ///< one line for the list of experiments
  std::string source;    ///< the paper
  std::function<Report(const Settings&)> run;
  int seeds = 40, quick_seeds = 20;  ///< instances that are usual
};

/// In the order of the documentation.
const std::vector<Experiment>& experiments();

/// Throws ConfigError that names the nearest known experiment.
const Experiment& find_experiment(std::string_view name);

/// "holds: CLAIM: 0.51 [0.48, 0.54], expected …"
std::string to_line(const Verdict& verdict);

/// Adds a curve to the last picture, and its points to the last data, whose columns are case, x,
/// mean, low and high.
void add_curve(Report& report, const std::string& name, const std::vector<double>& xs,
               const std::vector<Estimate>& ys);

/// With its interval, as a part of the band.
void add_point(detail::Series& series, double x, const Estimate& y);

/// With a header; text is quoted where it has to be.
std::string to_csv(const Data& data);

}  // namespace prefopt::lab
