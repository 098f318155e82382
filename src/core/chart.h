// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <string>
#include <vector>

namespace prefopt::detail {

/// One curve. Points that are not finite, or not positive on a logarithmic axis, break the line.
struct Series {
  enum class Style { kLine, kPoints, kLineAndPoints };

  std::string name = {};
  std::vector<double> xs = {}, ys = {};
  std::vector<double> low = {},
                      high = {};  ///< a band around ys, as a confidence interval; empty: none
  Style style = Style::kLine;
};

struct Chart {
  std::string title = {};
  std::string x_label = {}, y_label = {};
  bool log_x = false;
  bool log_y = false;
  std::vector<Series> series = {};
  /// Pixels of 12-pixel text, without the legend; a page scales the picture to its place.
  double width = 680, height = 360;
};

/// Returns a standalone SVG: axes with ticks, a legend below where there is more than one
/// series. Text is escaped; colours are readable on white and on black, and series beyond the eight
/// colours are dashed. Throws ShapeError for a series whose arrays differ in length.
std::string to_svg(const Chart& chart);

}  // namespace prefopt::detail
