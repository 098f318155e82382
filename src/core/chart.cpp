// SPDX-License-Identifier: Apache-2.0
#include "core/chart.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <iterator>
#include <limits>
#include <string_view>

#include "prefopt/error.h"

namespace prefopt::detail {
namespace {

constexpr double kWidth = 680, kHeight = 360;  // without the legend
constexpr double kLeft = 68, kRight = 664, kTop = 34, kBottom = 312;
constexpr double kLegendRow = 18, kLegendLine = 24, kCharacter = 6.6;
constexpr std::string_view kInk = "#7d8590";
constexpr std::array<std::string_view, 8> kColors{"#3b82f6", "#d97706", "#16a34a", "#dc2626",
                                                  "#9333ea", "#0891b2", "#db2777", "#78716c"};
constexpr std::array<std::string_view, 4> kDashes{"", "6 3", "2 3", "9 3 2 3"};

void append(std::string& out, std::string_view text) { out.append(text); }

template <class... Args>
void append(std::string& out, fmt::format_string<Args...> format, Args&&... args) {
  fmt::format_to(std::back_inserter(out), format, std::forward<Args>(args)...);
}

std::string escaped(std::string_view text) {
  std::string out;
  for (const char c : text) {
    switch (c) {
      case '&':
        out += "&amp;";
        break;
      case '<':
        out += "&lt;";
        break;
      case '>':
        out += "&gt;";
        break;
      case '"':
        out += "&quot;";
        break;
      default:
        out += c;
    }
  }
  return out;
}

std::size_t characters(std::string_view utf8) {
  return static_cast<std::size_t>(std::count_if(
      utf8.begin(), utf8.end(), [](char c) { return (static_cast<unsigned char>(c) >> 6) != 2; }));
}

/// Data to pixels. The range is in the axis's own units: log10 of the data where `log`.
class Axis {
 public:
  Axis(bool log, double from, double to) : log_(log), from_(from), to_(to) {}

  bool shows(double x) const { return std::isfinite(x) && (!log_ || x > 0); }

  void include(double x) {
    if (!shows(x)) return;
    low_ = std::min(low_, unit(x));
    high_ = std::max(high_, unit(x));
  }

  /// To be called once all data are included: never an empty range, and a margin around it.
  void close(double margin) {
    if (low_ > high_) low_ = high_ = 0;
    const double least = log_ ? 0.05 : std::max(1e-12, 1e-9 * std::abs(low_));
    const double pad = std::max(margin * (high_ - low_), least);
    low_ -= pad;
    high_ += pad;
  }

  double pixel(double x) const { return from_ + (unit(x) - low_) / (high_ - low_) * (to_ - from_); }

  std::vector<double> ticks() const { return log_ ? log_ticks() : linear_ticks(); }

 private:
  double unit(double x) const { return log_ ? std::log10(x) : x; }

  std::vector<double> linear_ticks() const {
    const double rough = (high_ - low_) / 5;
    const double power = std::pow(10, std::floor(std::log10(rough)));
    double step = 10 * power;
    for (const double nice : {1.0, 2.0, 5.0}) {
      if (nice * power >= rough) {
        step = nice * power;
        break;
      }
    }
    std::vector<double> places;
    for (double k = std::ceil(low_ / step); k * step <= high_; ++k) places.push_back(k * step);
    return places;
  }

  // Powers of ten, and 2 and 5 between them where there are few.
  std::vector<double> log_ticks() const {
    const double decades = high_ - low_;
    const double stride = std::max(1.0, std::ceil(decades / 7));
    std::vector<double> places;
    for (double k = std::floor(low_); k <= high_; k += stride) {
      for (const double digit : {1.0, 2.0, 5.0}) {
        const double place = digit * std::pow(10, k);
        const bool inside = std::log10(place) >= low_ && std::log10(place) <= high_;
        if (inside && (digit == 1 || decades < 2)) places.push_back(place);
      }
    }
    return places;
  }

  bool log_;
  double from_, to_;
  double low_ = std::numeric_limits<double>::infinity();
  double high_ = -std::numeric_limits<double>::infinity();
};

void check(const Series& series) {
  const auto same = [&](std::size_t length, const char* array) {
    if (length == series.xs.size()) return;
    throw ShapeError(fmt::format("chart: expected {} of '{}' to have length {}, got {}", array,
                                 series.name, series.xs.size(), length));
  };
  same(series.ys.size(), "ys");
  if (series.low.empty() && series.high.empty()) return;
  same(series.low.size(), "low");
  same(series.high.size(), "high");
}

class Drawing {
 public:
  explicit Drawing(const Chart& chart) : chart_(chart) {
    for (const Series& series : chart.series) {
      check(series);
      for (const double value : series.xs) x_.include(value);
      for (const auto* values : {&series.ys, &series.low, &series.high}) {
        for (const double value : *values) y_.include(value);
      }
    }
    x_.close(0.02);
    y_.close(0.05);
  }

  std::string svg() {
    const std::string legend_text = legend();
    append(out_,
           "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {:g} {:g}\" role=\"img\" "
           "font-family=\"sans-serif\" font-size=\"12\" fill=\"{}\">\n<title>{}</title>\n",
           kWidth, kHeight + legend_height_, kInk, escaped(chart_.title));
    frame();
    for (std::size_t i = 0; i < chart_.series.size(); ++i) curve(i);
    append(out_, legend_text);
    append(out_, "</svg>\n");
    return std::move(out_);
  }

 private:
  void frame() {
    std::string grid, labels;
    for (const double place : x_.ticks()) {
      append(grid, "M{:.1f} {:g}V{:g}", x_.pixel(place), kTop, kBottom);
      append(labels, "<text x=\"{:.1f}\" y=\"{:g}\" text-anchor=\"middle\">{}</text>\n",
             x_.pixel(place), kBottom + 17, number(place));
    }
    for (const double place : y_.ticks()) {
      append(grid, "M{:g} {:.1f}H{:g}", kLeft, y_.pixel(place), kRight);
      append(labels, "<text x=\"{:g}\" y=\"{:.1f}\" text-anchor=\"end\">{}</text>\n", kLeft - 6,
             y_.pixel(place) + 4, number(place));
    }
    append(out_, "<path d=\"{}\" stroke=\"{}\" stroke-opacity=\".3\" fill=\"none\"/>\n", grid,
           kInk);
    append(out_,
           "<rect x=\"{:g}\" y=\"{:g}\" width=\"{:g}\" height=\"{:g}\" stroke=\"{}\" "
           "fill=\"none\"/>\n",
           kLeft, kTop, kRight - kLeft, kBottom - kTop, kInk);
    append(out_, labels);
    const double middle = (kLeft + kRight) / 2, center = (kTop + kBottom) / 2;
    append(out_,
           "<text x=\"{:g}\" y=\"20\" text-anchor=\"middle\" font-size=\"14\">{}</text>\n"
           "<text x=\"{:g}\" y=\"{:g}\" text-anchor=\"middle\">{}</text>\n"
           "<text transform=\"translate(14 {:g}) rotate(-90)\" text-anchor=\"middle\">{}</text>\n",
           middle, escaped(chart_.title), middle, kBottom + 38, escaped(chart_.x_label), center,
           escaped(chart_.y_label));
  }

  static std::string number(double value) {
    if (std::abs(value) < 1e-12) return "0";
    std::string text = fmt::format("{:.6g}", value);
    if (text.front() == '-') text.replace(0, 1, "−");
    return text;
  }

  static std::string_view color(std::size_t i) { return kColors[i % kColors.size()]; }
  static std::string_view dash(std::size_t i) {
    return kDashes[i / kColors.size() % kDashes.size()];
  }

  static std::string stroke(std::size_t i) {
    std::string text = fmt::format("stroke=\"{}\" stroke-width=\"2\"", color(i));
    if (!dash(i).empty()) append(text, " stroke-dasharray=\"{}\"", dash(i));
    return text;
  }

  bool shows(const Series& series, std::size_t k) const {
    return x_.shows(series.xs[k]) && y_.shows(series.ys[k]);
  }

  void curve(std::size_t i) {
    const Series& series = chart_.series[i];
    append(out_, "<g><title>{}</title>\n", escaped(series.name));
    if (!series.low.empty()) band(series, color(i));
    if (series.style != Series::Style::kPoints) line(series, stroke(i));
    if (series.style != Series::Style::kLine) points(series, i);
    append(out_, "</g>\n");
  }

  void line(const Series& series, const std::string& stroke) {
    std::string path;
    bool drawing = false;
    for (std::size_t k = 0; k < series.xs.size(); ++k) {
      const bool seen = shows(series, k);
      if (seen) {
        append(path, "{}{:.1f} {:.1f}", drawing ? 'L' : 'M', x_.pixel(series.xs[k]),
               y_.pixel(series.ys[k]));
      }
      drawing = seen;
    }
    if (!path.empty()) append(out_, "<path d=\"{}\" {} fill=\"none\"/>\n", path, stroke);
  }

  void points(const Series& series, std::size_t i) {
    for (std::size_t k = 0; k < series.xs.size(); ++k) {
      if (!shows(series, k)) continue;
      append(out_, "<circle cx=\"{:.1f}\" cy=\"{:.1f}\" r=\"3.5\" {} fill=\"{}\"/>\n",
             x_.pixel(series.xs[k]), y_.pixel(series.ys[k]), stroke(i),
             dash(i).empty() ? color(i) : "none");
    }
  }

  void band(const Series& series, std::string_view fill) {
    std::string there, back;
    for (std::size_t k = 0; k < series.xs.size(); ++k) {
      if (!x_.shows(series.xs[k]) || !y_.shows(series.low[k]) || !y_.shows(series.high[k])) {
        continue;
      }
      const double x = x_.pixel(series.xs[k]);
      append(there, "{:.1f},{:.1f} ", x, y_.pixel(series.high[k]));
      back.insert(0, fmt::format("{:.1f},{:.1f} ", x, y_.pixel(series.low[k])));
    }
    if (there.empty()) return;
    append(out_, "<polygon points=\"{}{}\" fill=\"{}\" fill-opacity=\".18\"/>\n", there, back,
           fill);
  }

  // In columns that the longest name fits into.
  std::string legend() {
    if (chart_.series.size() < 2) return {};
    std::size_t longest = 0;
    for (const Series& series : chart_.series) {
      longest = std::max(longest, characters(series.name));
    }
    const double wanted = kLegendLine + 18 + kCharacter * static_cast<double>(longest);
    const double columns = std::max(1.0, std::floor((kRight - kLeft) / wanted));
    const auto per_row = static_cast<std::size_t>(columns);
    const double width = (kRight - kLeft) / columns;
    std::string text;
    for (std::size_t i = 0; i < chart_.series.size(); ++i) {
      const double x = kLeft + width * static_cast<double>(i % per_row);
      const double y = kHeight + 6 + kLegendRow * static_cast<double>(i / per_row);
      append(text, "<path d=\"M{:.1f} {:.1f}h{:g}\" {}/>\n", x, y, kLegendLine, stroke(i));
      append(text, "<text x=\"{:.1f}\" y=\"{:.1f}\">{}</text>\n", x + kLegendLine + 6, y + 4,
             escaped(chart_.series[i].name));
    }
    const std::size_t rows = (chart_.series.size() + per_row - 1) / per_row;
    legend_height_ = kLegendRow * static_cast<double>(rows) + 4;
    return text;
  }

  const Chart& chart_;
  Axis x_{chart_.log_x, kLeft, kRight};
  Axis y_{chart_.log_y, kBottom, kTop};
  double legend_height_ = 0;
  std::string out_;
};

}  // namespace

std::string to_svg(const Chart& chart) { return Drawing(chart).svg(); }

}  // namespace prefopt::detail
