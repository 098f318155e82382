// SPDX-License-Identifier: Apache-2.0
#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <set>
#include <string>
#include <vector>

#include "core/html.h"
#include "report/report_html.h"
#include "report/report_parts.h"

namespace prefopt::detail {
namespace {

// More would make the page large and tell a reader little.
constexpr std::size_t kShownTrees = 3;
constexpr std::int64_t kMostNodes = 400;

constexpr double kColumn = 190, kRow = 22, kMargin = 14, kRadius = 7;

/// The node's text on one line of the figure.
std::string label_of(const StepNode& node) {
  constexpr std::size_t kMost = 22;
  std::string label;
  for (const char c : node.text) label += c == '\n' ? ' ' : c;
  if (label.size() <= kMost) return label;
  // Not in the middle of a character.
  std::size_t end = kMost;
  while (end > 0 && (static_cast<unsigned char>(label[end]) >> 6) == 2) --end;
  return label.substr(0, end) + "…";
}

/// Places of a tree's nodes: depth to the right, the leaves one below the other.
class TreeLayout {
 public:
  explicit TreeLayout(const StepTree& tree) : tree_(tree), ys_(tree.nodes().size()) { place(0); }

  double x(std::int64_t node) const {
    return kMargin + kColumn * static_cast<double>(tree_.node(node).depth);
  }
  double y(std::int64_t node) const { return ys_[static_cast<std::size_t>(node)]; }
  double height() const { return 2 * kMargin + kRow * static_cast<double>(leaves_); }
  double width() const {
    std::int64_t deepest = 0;
    for (const StepNode& node : tree_.nodes()) deepest = std::max(deepest, node.depth);
    return 2 * kMargin + kColumn * static_cast<double>(deepest + 1);
  }

 private:
  double place(std::int64_t node) {
    const auto& children = tree_.node(node).children;
    double& y = ys_[static_cast<std::size_t>(node)];
    if (children.empty()) return y = kMargin + kRow * (static_cast<double>(leaves_++) + 0.5);
    const double first = place(children.front());
    double last = first;
    for (std::size_t i = 1; i < children.size(); ++i) last = place(children[i]);
    return y = (first + last) / 2;
  }

  const StepTree& tree_;
  std::vector<double> ys_;
  std::int64_t leaves_ = 0;
};

/// Values from red over grey to green, by their place among those of the tree.
std::string color_of(const StepNode& node, double low, double high) {
  if (node.visits == 0 || node.is_dead) return "none";
  const double share = high > low ? (node.value - low) / (high - low) : 0.5;
  return fmt::format("hsl({:.0f} 55% 50%)", 120 * share);
}

std::string tree_svg(const StepTree& tree) {
  const TreeLayout layout(tree);
  const std::vector<std::int64_t> path = tree.best_path();
  const std::set<std::int64_t> best(path.begin(), path.end());
  double low = 0;
  double high = 0;
  double most = 1;
  for (const StepNode& node : tree.nodes()) {
    if (node.visits == 0) continue;
    low = std::min(low, node.value);
    high = std::max(high, node.value);
    most = std::max(most, static_cast<double>(node.visits));
  }
  std::string lines;
  std::string points;
  for (std::int64_t place = 0; place < std::ssize(tree.nodes()); ++place) {
    const StepNode& node = tree.node(place);
    const double x = layout.x(place);
    const double y = layout.y(place);
    if (place > 0) {
      lines += fmt::format(
          "<path d=\"M{:.1f} {:.1f}C{:.1f} {:.1f} {:.1f} {:.1f} {:.1f} {:.1f}\" fill=\"none\" "
          "stroke=\"#7d8590\" stroke-width=\"{}\"/>\n",
          layout.x(node.parent), layout.y(node.parent), x - kColumn / 2, layout.y(node.parent),
          x - kColumn / 2, y, x, y, best.contains(place) ? 3 : 1);
    }
    const double radius = 2 + (kRadius - 2) * std::sqrt(static_cast<double>(node.visits) / most);
    points += fmt::format(
        "<circle cx=\"{:.1f}\" cy=\"{:.1f}\" r=\"{:.1f}\" fill=\"{}\" stroke=\"#7d8590\">"
        "<title>Q {}, visits {}, prior {}{}</title></circle>\n",
        x, y, radius, color_of(node, low, high), number_html(node.value), node.visits,
        number_html(node.prior), node.is_rated ? ", reward " + number_html(node.reward) : "");
    if (place > 0) {
      points += fmt::format("<text x=\"{:.1f}\" y=\"{:.1f}\">{}</text>\n", x + kRadius + 3, y + 4,
                            escape_html(label_of(node)));
    }
  }
  return fmt::format(
      "<svg viewBox=\"0 0 {:.0f} {:.0f}\" role=\"img\" font-size=\"12\" fill=\"currentColor\">\n"
      "<title>Search tree of a prompt</title>\n{}{}</svg>\n",
      layout.width(), layout.height(), lines, points);
}

}  // namespace

std::string trees_html(const RunRecord& record) {
  if (record.trees.empty()) return {};
  std::string html = heading_html("Trees");
  html +=
      "<p class=\"quiet\">Of the newest round that searched. A point is a step: large where it was "
      "visited often, green where its value is high, empty where it was not tried. The best "
      "completion is the thick line.</p>\n";
  for (std::size_t i = 0; i < std::min(kShownTrees, record.trees.size()); ++i) {
    const StepTree& tree = record.trees[i];
    const auto nodes = std::ssize(tree.nodes());
    html += fmt::format(
        "<figure>\n<p class=\"text prompt\">{}</p>\n{}<figcaption>{} iterations, {} "
        "steps, {} tokens drawn{}</figcaption>\n</figure>\n",
        escape_html(tree.prompt_text()), nodes <= kMostNodes ? tree_svg(tree) : "",
        tree.iterations(), nodes - 1, tree.drawn_tokens(),
        nodes <= kMostNodes ? "" : "; too many to draw");
  }
  return html;
}

}  // namespace prefopt::detail
