// SPDX-License-Identifier: Apache-2.0
#include "cli/objective_pages.h"

#include <fmt/format.h>

#include <algorithm>
#include <ostream>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "cli/tables.h"
#include "core/json.h"
#include "prefopt/error.h"
#include "prefopt/objectives/token_loss.h"
#include "prefopt/objectives/token_objective.h"

namespace prefopt::cli {
namespace {

using detail::Json;
using Rows = std::vector<std::vector<std::string>>;

constexpr std::string_view kAllPieces = "objectives";

Json options_json(const std::vector<FieldDoc>& options) {
  Json all = Json::array();
  for (const FieldDoc& option : options) {
    all.push_back({{"name", option.name},
                   {"type", option.type},
                   {"default", option.default_value},
                   {"range", option.range},
                   {"doc", option.doc}});
  }
  return all;
}

Json piece_json(const PieceEntry& entry) {
  Json elsewhere = Json::array();
  for (const OtherImplementation& other : entry.info.elsewhere) {
    elsewhere.push_back(
        {{"library", other.library}, {"name", other.name}, {"difference", other.difference}});
  }
  return {{"kind", entry.info.kind},
          {"formula", entry.info.formula},
          {"source", entry.info.source},
          {"elsewhere", std::move(elsewhere)},
          {"options", options_json(entry.options)}};
}

std::string kind_only(const PieceEntry& entry) {
  return detail::dump_json({{"kind", entry.info.kind}});
}

std::vector<std::string> needs_of(const Advantage& advantage) {
  const AdvantageNeeds needs = advantage.needs();
  std::vector<std::string> names;
  for (const auto& [is_needed, name] :
       {std::pair{needs.groups, "groups of two or more"},
        std::pair{needs.greedy_rewards, "greedy_reward"}, std::pair{needs.values, "values"},
        std::pair{needs.given, "advantage"}, std::pair{needs.per_token, "rewards of tokens"}}) {
    if (is_needed) names.emplace_back(name);
  }
  return names;
}

Json advantage_json(const AdvantageEntry& entry) {
  const Advantage advantage = make_advantage(kind_only(entry));
  Json piece = piece_json(entry);
  piece["reads"] = needs_of(advantage);
  piece["shift_free"] = advantage.properties().shift_free;
  piece["scales"] = advantage.properties().scales;
  return piece;
}

Json rule_json(const RuleEntry& entry) {
  const TokenRule rule = make_rule(kind_only(entry));
  Json piece = piece_json(entry);
  piece["stops_ratio"] = rule.properties().stops_ratio;
  piece["of_completions"] = rule.of_completions();
  return piece;
}

Json preset_json(const ObjectivePreset& preset) {
  return {{"name", preset.name},
          {"options", detail::parse_json<ConfigError>(preset.options, preset.name)},
          {"source", preset.source},
          {"when_to_use", preset.when_to_use},
          {"recipe", preset.recipe}};
}

TokenObjective objective_of(const ObjectivePreset& preset) {
  return make_token_objective(detail::dump_json({{"type", preset.name}}));
}

/// The registered piece of a kind.
template <class Entry>
Entry entry_of(const std::vector<Entry>& all, const PieceInfo& info) {
  return *std::find_if(all.begin(), all.end(),
                       [&](const Entry& entry) { return entry.info.kind == info.kind; });
}

Json all_pieces_json() {
  Json presets = Json::array();
  for (const ObjectivePreset& preset : objective_presets()) presets.push_back(preset_json(preset));
  Json advantages = Json::array();
  for (const auto& entry : registered_advantages()) advantages.push_back(advantage_json(entry));
  Json rules = Json::array();
  for (const auto& entry : registered_rules()) rules.push_back(rule_json(entry));
  return {{"presets", std::move(presets)},
          {"options", options_json(describe_options<TokenObjectiveOptions>())},
          {"advantages", std::move(advantages)},
          {"advantage_options", options_json(describe_options<AdvantageOptions>())},
          {"rules", std::move(rules)}};
}

Json objective_json(const ObjectivePreset& preset) {
  const TokenObjective objective = objective_of(preset);
  Json json = preset_json(preset);
  json["config"] = detail::parse_json<ConfigError>(objective.config(), preset.name);
  json["advantage"] =
      advantage_json(entry_of(registered_advantages(), objective.advantage().info()));
  json["rule"] = rule_json(entry_of(registered_rules(), objective.rule().info()));
  return json;
}

/// Option, value in `config`, range and meaning; `path` leads to the options.
void add_option_rows(const std::vector<FieldDoc>& options, const Json& config,
                     const std::string& prefix, Rows& rows) {
  for (const FieldDoc& option : options) {
    std::string path = "/" + option.name;
    std::replace(path.begin(), path.end(), '.', '/');
    const Json& value = config.at(Json::json_pointer(path));
    if (value.is_object()) continue;  // a piece, whose options follow
    const auto [range, meaning] = range_and_meaning(option.range, option.doc);
    rows.push_back({prefix + option.name, detail::dump_json(value), range, meaning});
  }
}

void print_objective(const ObjectivePreset& preset, std::ostream& out) {
  const TokenObjective objective = objective_of(preset);
  const auto advantage = entry_of(registered_advantages(), objective.advantage().info());
  const auto rule = entry_of(registered_rules(), objective.rule().info());
  Rows facts{{"objective", preset.name}, {"source", preset.source}, {"when", preset.when_to_use}};
  if (!preset.recipe.empty()) facts.push_back({"recipe", preset.recipe});
  facts.push_back({"advantage", advantage.info.kind + ": A = " + advantage.info.formula});
  facts.push_back({"rule", rule.info.kind + ": loss = " + rule.info.formula});
  for (const auto& [part, info] : {std::pair{"advantage", &advantage.info}, {"rule", &rule.info}}) {
    for (const OtherImplementation& other : info->elsewhere) {
      facts.push_back({"elsewhere", fmt::format("{} of {}", part, in_words(other))});
    }
  }
  print_table(facts, out);
  out << '\n';
  const Json config = detail::parse_json<ConfigError>(objective.config(), preset.name);
  Rows table{{"option", "value", "range", "meaning"}};
  auto of_advantage = advantage.options;
  for (FieldDoc& option : describe_options<AdvantageOptions>()) of_advantage.push_back(option);
  add_option_rows(of_advantage, config.at("advantage"), "advantage.", table);
  add_option_rows(rule.options, config.at("rule"), "rule.", table);
  add_option_rows(describe_options<TokenObjectiveOptions>(), config, "", table);
  print_table(table, out);
}

void print_token_loss(const TokenLossEntry& entry, std::ostream& out) {
  Rows facts{{"loss on tokens", entry.info.kind},
             {"formula", entry.info.formula},
             {"source", entry.info.source}};
  for (const OtherImplementation& other : entry.info.elsewhere) {
    facts.push_back({"elsewhere", in_words(other)});
  }
  print_table(facts, out);
  Rows table{{"option", "type", "default", "range", "meaning"}};
  for (const FieldDoc& option : entry.options) {
    const auto [range, meaning] = range_and_meaning(option.range, option.doc);
    table.push_back({option.name, option.type, option.default_value, range, meaning});
  }
  out << '\n';
  print_table(table, out);
}

template <class Entry>
Rows piece_rows(const char* part, const std::vector<Entry>& entries) {
  Rows rows{{part, "formula", "source"}};
  for (const Entry& entry : entries) {
    rows.push_back({entry.info.kind, entry.info.formula, entry.info.source});
  }
  return rows;
}

}  // namespace

bool print_objective_page(const std::string& name, bool as_json, std::ostream& out) {
  if (name == kAllPieces) {
    if (as_json) {
      out << detail::dump_json(all_pieces_json()) << '\n';
      return true;
    }
    print_presets(out);
    out << '\n';
    print_table(piece_rows("advantage", registered_advantages()), out);
    out << '\n';
    print_table(piece_rows("rule", registered_rules()), out);
    return true;
  }
  for (const TokenLossEntry& entry : token_losses()) {
    if (entry.info.kind != name) continue;
    if (as_json) {
      out << detail::dump_json(piece_json(entry)) << '\n';
    } else {
      print_token_loss(entry, out);
    }
    return true;
  }
  for (const ObjectivePreset& preset : objective_presets()) {
    if (preset.name != name) continue;
    if (as_json) {
      out << detail::dump_json(objective_json(preset)) << '\n';
    } else {
      print_objective(preset, out);
    }
    return true;
  }
  return false;
}

void print_presets(std::ostream& out) {
  Rows rows{{"objective", "source", "when"}};
  for (const ObjectivePreset& preset : objective_presets()) {
    rows.push_back({preset.name, preset.source, preset.when_to_use});
  }
  print_table(rows, out);
  out << '\n';
  print_table(piece_rows("loss on tokens", token_losses()), out);
}

}  // namespace prefopt::cli
