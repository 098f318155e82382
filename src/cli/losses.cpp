// SPDX-License-Identifier: Apache-2.0
#include <fmt/format.h>

#include <algorithm>
#include <ostream>
#include <utility>

#include "cli/commands.h"
#include "core/json.h"
#include "prefopt/losses/registry.h"

namespace prefopt::cli {
namespace {

using detail::Json;

// A longer list of choices would push all meanings off the screen, so it follows its own.
constexpr std::size_t kWidestRange = 24;

std::string joined(const std::vector<std::string>& names) {
  std::string text;
  for (const auto& name : names) text += (text.empty() ? "" : ", ") + name;
  return text;
}

/// Left-aligned columns as wide as their widest cell; the last one is left as it is.
void print_table(const std::vector<std::vector<std::string>>& rows, std::ostream& out) {
  std::vector<std::size_t> widths(rows.front().size());
  for (const auto& row : rows) {
    for (std::size_t i = 0; i < row.size(); ++i) widths[i] = std::max(widths[i], row[i].size());
  }
  for (const auto& row : rows) {
    std::string line;
    for (std::size_t i = 0; i < row.size(); ++i) line += fmt::format("{:<{}}  ", row[i], widths[i]);
    out << line.substr(0, line.find_last_not_of(' ') + 1) << '\n';
  }
}

Json as_json(const LossEntry& entry) {
  Json anchors = Json::array();
  for (const LossAnchor& anchor : entry.info.anchors) {
    anchors.push_back({{"chosen_logratio", anchor.chosen_logratio},
                       {"rejected_logratio", anchor.rejected_logratio},
                       {"loss", anchor.loss}});
  }
  Json options = Json::array();
  for (const FieldDoc& option : entry.options) {
    options.push_back({{"name", option.name},
                       {"type", option.type},
                       {"default", option.default_value},
                       {"range", option.range},
                       {"doc", option.doc},
                       {"aliases", option.aliases}});
  }
  return {{"name", entry.info.name},       {"aliases", entry.info.aliases},
          {"formula", entry.info.formula}, {"source", entry.info.source},
          {"anchors", std::move(anchors)}, {"options", std::move(options)}};
}

void print_entry(const LossEntry& entry, std::ostream& out) {
  const LossInfo& info = entry.info;
  std::vector<std::vector<std::string>> facts{{"loss", info.name}};
  if (!info.aliases.empty()) facts.push_back({"aliases", joined(info.aliases)});
  facts.push_back({"formula", info.formula});
  facts.push_back({"source", info.source});
  for (const LossAnchor& anchor : info.anchors) {
    facts.push_back(
        {"anchor", fmt::format("{:.10g} at log-ratios {} (chosen), {} (rejected)", anchor.loss,
                               anchor.chosen_logratio, anchor.rejected_logratio)});
  }
  print_table(facts, out);
  if (entry.options.empty()) return;

  std::vector<std::vector<std::string>> table{{"option", "type", "default", "range", "meaning"}};
  for (const FieldDoc& option : entry.options) {
    std::string meaning = option.doc;
    if (!option.aliases.empty()) meaning += " (also " + joined(option.aliases) + ")";
    std::string range = option.range;
    if (range.size() > kWidestRange) meaning += "; one of " + std::exchange(range, "");
    table.push_back({option.name, option.type, option.default_value, range, meaning});
  }
  out << '\n';
  print_table(table, out);
}

}  // namespace

void run_losses(const LossesArguments& arguments, std::ostream& out) {
  if (!arguments.name.empty()) {
    const LossEntry& entry = find_loss(arguments.name);
    if (arguments.json) {
      out << detail::dump_json(as_json(entry)) << '\n';
    } else {
      print_entry(entry, out);
    }
    return;
  }
  if (arguments.json) {
    Json all = Json::array();
    for (const auto& name : registered_losses()) all.push_back(as_json(find_loss(name)));
    out << detail::dump_json(all) << '\n';
    return;
  }
  std::vector<std::vector<std::string>> table{{"loss", "aliases", "source"}};
  for (const auto& name : registered_losses()) {
    const LossInfo& info = find_loss(name).info;
    table.push_back({info.name, joined(info.aliases), info.source});
  }
  print_table(table, out);
}

}  // namespace prefopt::cli
