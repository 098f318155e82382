// SPDX-License-Identifier: Apache-2.0
#include <fmt/format.h>
#include <fmt/ranges.h>

#include <cmath>
#include <cstddef>
#include <utility>

#include "lab/experiment.h"

namespace prefopt::lab {
namespace {

std::string to_cell(const Data::Cell& cell) {
  if (const double* number = std::get_if<double>(&cell)) return fmt::format("{:.10g}", *number);
  const std::string& text = std::get<std::string>(cell);
  if (text.find_first_of(",\"\n") == std::string::npos) return text;
  std::string quoted = "\"";
  for (const char c : text) quoted += c == '"' ? "\"\"" : std::string(1, c);
  return quoted + '"';
}

/// With the sign of printed text.
std::string to_limit(double limit) {
  return limit < 0 ? fmt::format("−{:g}", -limit) : fmt::format("{:g}", limit);
}

}  // namespace

Verdict above(std::string claim, const Estimate& measured, double limit) {
  return {std::move(claim), measured, "above " + to_limit(limit), measured.low > limit};
}

Verdict below(std::string claim, const Estimate& measured, double limit) {
  return {std::move(claim), measured, "below " + to_limit(limit), measured.high < limit};
}

Verdict within(std::string claim, const Estimate& measured, double middle, double distance) {
  return {std::move(claim), measured, fmt::format("{} within {:g}", to_limit(middle), distance),
          std::abs(measured.value - middle) < distance};
}

std::string to_line(const Verdict& verdict) {
  const auto& [value, low, high] = verdict.measured;
  const std::string interval = low == high ? "" : fmt::format(" [{:.4g}, {:.4g}]", low, high);
  return fmt::format("{}: {}: {:.4g}{}, expected {}", verdict.holds ? "holds" : "fails",
                     verdict.claim, value, interval, verdict.expected);
}

void add_point(detail::Series& series, double x, const Estimate& y) {
  series.xs.push_back(x);
  series.ys.push_back(y.value);
  series.low.push_back(y.low);
  series.high.push_back(y.high);
}

void add_curve(Report& report, const std::string& name, const std::vector<double>& xs,
               const std::vector<Estimate>& ys) {
  detail::Series series{.name = name};
  for (std::size_t i = 0; i < xs.size(); ++i) {
    add_point(series, xs[i], ys[i]);
    report.data.back().rows.push_back({name, xs[i], ys[i].value, ys[i].low, ys[i].high});
  }
  report.pictures.back().chart.series.push_back(std::move(series));
}

std::string to_csv(const Data& data) {
  std::string text = fmt::format("{}\n", fmt::join(data.columns, ","));
  for (const auto& row : data.rows) {
    std::vector<std::string> cells;
    for (const Data::Cell& cell : row) cells.push_back(to_cell(cell));
    text += fmt::format("{}\n", fmt::join(cells, ","));
  }
  return text;
}

}  // namespace prefopt::lab
