// SPDX-License-Identifier: Apache-2.0
#include <limits>
#include <regex>

#include "core/chart.h"
#include "prefopt/error.h"
#include "support/catch.h"
#include "support/errors.h"

namespace prefopt::detail {
namespace {

std::size_t count(const std::string& text, const std::string& part) {
  std::size_t found = 0;
  for (auto at = text.find(part); at != std::string::npos; at = text.find(part, at + 1)) ++found;
  return found;
}

std::vector<std::vector<double>> groups(const std::string& text, const std::string& pattern) {
  const std::regex regex(pattern);
  std::vector<std::vector<double>> found;
  for (std::sregex_iterator it(text.begin(), text.end(), regex), end; it != end; ++it) {
    std::vector<double> numbers;
    for (std::size_t i = 1; i < it->size(); ++i) numbers.push_back(std::stod((*it)[i]));
    found.push_back(numbers);
  }
  return found;
}

const std::string kCircle = "<circle cx=\"([-0-9.]+)\" cy=\"([-0-9.]+)\"";

std::vector<std::vector<double>> circles_of(std::vector<double> xs, std::vector<double> ys,
                                            bool log_x, bool log_y) {
  return groups(
      to_svg({.log_x = log_x,
              .log_y = log_y,
              .series = {{.name = "a", .xs = xs, .ys = ys, .style = Series::Style::kPoints}}}),
      kCircle);
}

TEST_CASE("chart: points are placed in proportion", "[core]") {
  for (const bool log : {false, true}) {
    const std::vector<double> data =
        log ? std::vector<double>{1, 10, 1000} : std::vector<double>{0, 1, 3};
    const auto at = circles_of(data, data, log, log);
    REQUIRE(at.size() == 3);
    for (const std::size_t axis : {0, 1}) {
      const double ratio = (at[1][axis] - at[0][axis]) / (at[2][axis] - at[0][axis]);
      CHECK(ratio == Approx(1.0 / 3).epsilon(2e-3));
    }
    CHECK(at[2][0] > at[0][0]);
    CHECK(at[2][1] < at[0][1]);  // y grows downwards in SVG
    for (const auto& point : at) {
      CHECK((point[0] > 68 && point[0] < 664));
      CHECK((point[1] > 34 && point[1] < 312));
    }
  }
}

TEST_CASE("chart: text is escaped, ticks and legend are there", "[core]") {
  const std::string svg = to_svg(
      {.title = "a < b & \"c\"",
       .x_label = "<script>",
       .y_label = "y",
       .series = {{"one", {0, 10}, {-1, 1}, {}, {}}, {"two>", {0, 10}, {1, -1}, {0, -2}, {2, 0}}}});
  CHECK(count(svg, "<title>a &lt; b &amp; &quot;c&quot;</title>") == 1);
  CHECK(count(svg, "<script>") == 0);
  CHECK(count(svg, ">&lt;script&gt;</text>") == 1);
  CHECK(count(svg, ">two&gt;</text>") == 1);
  // Steps of 1, 2 or 5 times a power of ten.
  for (const char* tick : {">0</text>", ">2</text>", ">5</text>", ">10</text>", ">−2</text>"}) {
    CHECK(count(svg, tick) >= 1);
  }
  CHECK(count(svg, "<polygon ") == 1);
  CHECK(count(svg, "<svg ") == count(svg, "</svg>"));
  CHECK(count(svg, "<g>") == count(svg, "</g>"));
}

TEST_CASE("chart: what an axis cannot show breaks the line", "[core]") {
  const double nan = std::numeric_limits<double>::quiet_NaN();
  const std::string broken =
      to_svg({.series = {{"a", {0, 1, 2, 3, 4}, {0, 1, nan, 1, 0}, {}, {}}}});
  CHECK(groups(broken, "<path d=\"M([0-9.]+) [0-9.]+L[0-9. ]+M([0-9.]+) ").size() == 1);
  CHECK(count(broken, "nan") == 0);
  CHECK(circles_of({0, 1, 2}, {1, -1, 2}, true, true).size() == 1);
  // Nothing to show, or one value only: still a chart.
  for (const std::vector<double>& xs : {std::vector<double>{}, std::vector<double>{7}}) {
    const std::string svg = to_svg({.series = {{"a", xs, xs, {}, {}}}});
    CHECK(count(svg, "</svg>") == 1);
    CHECK(count(svg, "nan") == 0);
    CHECK(count(svg, "inf") == 0);
  }
}

TEST_CASE("chart: arrays of unequal length are refused", "[core]") {
  CHECK_THROWS_TEXT(to_svg({.series = {{"loss", {1, 2, 3}, {1, 2}, {}, {}}}}), ShapeError,
                    "chart: expected ys of 'loss' to have length 3, got 2");
  CHECK_THROWS_TEXT(to_svg({.series = {{"loss", {1, 2}, {1, 2}, {1, 2}, {}}}}), ShapeError,
                    "chart: expected high of 'loss' to have length 2, got 0");
}

}  // namespace
}  // namespace prefopt::detail
