// SPDX-License-Identifier: Apache-2.0
#include <ATen/TensorOperators.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/exp.h>
#include <ATen/ops/full.h>
#include <ATen/ops/zeros.h>
#include <fmt/format.h>

#include <algorithm>
#include <optional>
#include <ostream>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "cli/commands.h"
#include "cli/objective_pages.h"
#include "cli/tables.h"
#include "core/json.h"
#include "prefopt/error.h"
#include "prefopt/losses/pair_fields.h"
#include "prefopt/losses/registry.h"

namespace prefopt::cli {
namespace {

using detail::Json;

/// The arrays of a PairLogps that a loss reads.
std::vector<std::string> inputs_of(const LossRequirements& needs) {
  std::vector<std::string> names;
  for (const auto& field : kPairFields<at::Tensor>) {
    if (field.needed(needs)) names.emplace_back(field.name);
  }
  return names;
}

/// Further inputs of a loss, where an option has another value than by default.
struct FurtherInputs {
  std::string setting;  ///< as in `use_weights`, `weighting = unaligned` or `ld_alpha other than 1`
  std::vector<std::string> inputs;
};

/// Values of an option that may call for further inputs, and how to speak of them.
std::vector<std::pair<Json, std::string>> other_values(const FieldDoc& option) {
  const std::string& name = option.name;
  if (option.type == "flag") {
    const bool usual = option.default_value == "true";
    return {{!usual, usual ? "without " + name : name}};
  }
  if (option.type == "number") {
    return {{0.5, fmt::format("{} other than {}", name, option.default_value)}};
  }
  std::vector<std::pair<Json, std::string>> values;
  if (option.type != "choice") return values;
  std::string names = option.range;
  std::replace(names.begin(), names.end(), '\'', '"');
  for (const Json& value : detail::parse_json<ConfigError>("[" + names + "]", name)) {
    values.emplace_back(value, fmt::format("{} = {}", name, value.get<std::string>()));
  }
  return values;
}

/// The needs of a loss with some options set; nothing where it cannot have them.
std::optional<LossRequirements> needs_with(const LossEntry& entry, const Json& options) {
  try {
    return entry.make(detail::dump_json(options)).requirements();
  } catch (const ConfigError&) {
    return std::nullopt;
  }
}

std::vector<FurtherInputs> further_inputs(const LossEntry& entry) {
  const auto usual = inputs_of(entry.make("{}").requirements());
  std::vector<FurtherInputs> all;
  for (const FieldDoc& option : entry.options) {
    for (const auto& [value, setting] : other_values(option)) {
      const auto needs = needs_with(entry, {{option.name, value}});
      if (!needs) continue;
      FurtherInputs further{.setting = setting, .inputs = {}};
      for (const auto& input : inputs_of(*needs)) {
        if (std::count(usual.begin(), usual.end(), input) == 0) further.inputs.push_back(input);
      }
      if (!further.inputs.empty()) all.push_back(std::move(further));
    }
  }
  return all;
}

/// A value that a loss takes for an option.
struct AcceptedValue {
  Json value;
  std::string with;  ///< the setting of another option that it needs; empty: none
};

/// Values that show whether an option can have others than its default: all of a choice or a flag,
/// some numbers.
std::vector<Json> probes(const FieldDoc& option) {
  std::vector<Json> values;
  if (option.type == "number") {
    for (const double x : {0.5, 0.25, 2.0, -0.5}) {
      if (fmt::format("{}", x) != option.default_value) values.emplace_back(x);
    }
    return values;
  }
  for (const auto& [value, setting] : other_values(option)) values.push_back(value);
  return values;
}

/// Whether a loss takes a value, by itself or with one other setting.
std::optional<AcceptedValue> accepted(const LossEntry& entry, const std::string& option,
                                      const Json& value) {
  if (needs_with(entry, {{option, value}})) return AcceptedValue{value, ""};
  for (const FieldDoc& other : entry.options) {
    if (other.name == option) continue;
    for (const auto& [setting_value, setting] : other_values(other)) {
      if (needs_with(entry, {{option, value}, {other.name, setting_value}})) {
        return AcceptedValue{value, setting};
      }
    }
  }
  return std::nullopt;
}

/// Those of probes() that a loss takes.
std::vector<AcceptedValue> accepted_values(const LossEntry& entry, const FieldDoc& option) {
  std::vector<AcceptedValue> values;
  for (const Json& value : probes(option)) {
    if (auto taken = accepted(entry, option.name, value)) values.push_back(std::move(*taken));
  }
  return values;
}

/// Whether an option is there for its default alone, as margin_scale is in a loss of both sides.
bool is_fixed(const FieldDoc& option, const std::vector<AcceptedValue>& values) {
  const bool is_probed = option.type == "number" || option.type == "flag";
  if (is_probed) return values.empty();
  return option.type == "choice" && values.size() == 1;
}

std::string range_in_words(const FieldDoc& option, const std::vector<AcceptedValue>& values) {
  if (option.type != "choice") return option.range;
  std::string text;
  for (const AcceptedValue& taken : values) {
    text += fmt::format("{}'{}'", text.empty() ? "" : ", ", taken.value.get<std::string>());
    if (!taken.with.empty()) text += fmt::format(" ({})", taken.with);
  }
  return text;
}

/// The further wishes of a loss, in words.
std::vector<std::string> conditions_of(const LossRequirements& needs) {
  std::vector<std::string> conditions;
  if (needs.labels()) conditions.emplace_back("rows of one completion and a label");
  if (needs.advantages()) conditions.emplace_back("rows of one completion and its advantage");
  if (needs.of_own_samples) {
    conditions.emplace_back("rows whose completions are samples of the policy, at temperature 1");
  }
  if (needs.sample_source != SampleSource::kNone) {
    const bool own = needs.sample_source == SampleSource::kPolicy;
    conditions.push_back(fmt::format("fresh samples of the {}, {} a prompt",
                                     own ? "policy" : "reference", needs.samples_per_prompt));
  }
  if (needs.whole_step) conditions.emplace_back("all rows of an optimizer step in one call");
  if (needs.running_mean) conditions.emplace_back("a mean handed on from step to step");
  return conditions;
}

/// Of each token of the chosen completion, where all have the same.
at::Tensor token_probability(const PairLogps& logps) {
  return at::exp(logps.chosen_logps /
                 kInputs[static_cast<std::size_t>(Input::chosen_lens)].neutral);
}

/// One row with the given log-ratios, after many whose rewards were 0 on average.
PairLogps one_row(const LossRequirements& needs, double chosen, double rejected) {
  PairLogps logps;
  logps.samples_per_prompt = needs.samples_per_prompt;
  logps.running = {at::zeros({}, at::kDouble), 1e12};
  for (const auto& field : kPairFields<at::Tensor>) {
    const std::int64_t size = field.per_sample() ? needs.samples_per_prompt : 1;
    logps.*field.value = at::full({size}, field.neutral, at::kDouble);
  }
  logps.chosen_limited_logratios += chosen;
  logps.rejected_limited_logratios += rejected;
  logps.chosen_logps += chosen;
  logps.chosen_confident_logps = logps.chosen_logps * token_probability(logps);
  logps.chosen_overlap_logps += chosen;
  logps.rejected_logps += rejected;
  logps.rejected_overlap_logps += rejected;
  return logps;
}

double sum_of(const std::vector<at::Tensor>& parts) {
  double sum = 0;
  for (const at::Tensor& part : parts) sum += part.defined() ? part.item<double>() : 0;
  return sum;
}

/// [delta, loss, d loss / d delta] of the default options, at log-ratios delta/2 and -delta/2; of
/// an unpaired row, labelled desirable, at log-ratio delta.
Json curve_of(const Loss& loss) {
  constexpr int kPoints = 81;
  const LossRequirements needs = loss.requirements();
  // Log-probs alone stay below 0, where the odds of a completion end.
  const double reach = needs.reference() ? 20 : 16;
  const double share = needs.labels() ? 1 : 0.5;
  Json curve = Json::array();
  for (int i = 0; i < kPoints; ++i) {
    const double delta = reach * (2.0 * i / (kPoints - 1) - 1);
    const PairLogps row = one_row(needs, share * delta, -share * delta);
    const LossOutput out = loss(row);
    const at::Tensor confident =
        out.grad_confident.defined() ? out.grad_confident * token_probability(row) : at::Tensor();
    const double slope =
        share *
        (sum_of({out.grad_chosen, out.grad_chosen_overlap, out.grad_chosen_limited, confident}) -
         sum_of({out.grad_rejected, out.grad_rejected_overlap, out.grad_rejected_limited}));
    curve.push_back({delta, out.loss.item<double>(), slope});
  }
  return curve;
}

Json as_json(const LossEntry& entry) {
  const LossInfo& info = entry.info;
  const Loss loss = entry.make("{}");
  Json anchors = Json::array();
  for (const LossAnchor& anchor : info.anchors) {
    anchors.push_back({{"chosen_logratio", anchor.chosen_logratio},
                       {"rejected_logratio", anchor.rejected_logratio},
                       {"loss", anchor.loss}});
  }
  Json options = Json::array();
  for (const FieldDoc& option : entry.options) {
    const auto values = accepted_values(entry, option);
    Json choices = Json::array();
    for (const AcceptedValue& taken : values) {
      if (option.type == "choice")
        choices.push_back({{"value", taken.value}, {"with", taken.with}});
    }
    options.push_back({{"name", option.name},
                       {"type", option.type},
                       {"default", option.default_value},
                       {"range", option.range},
                       {"choices", std::move(choices)},
                       {"fixed", is_fixed(option, values)},
                       {"doc", option.doc},
                       {"aliases", option.aliases}});
  }
  Json presets = Json::array();
  for (const LossPreset& preset : info.presets) {
    presets.push_back({{"name", preset.name},
                       {"options", detail::parse_json<ConfigError>(preset.options, preset.name)}});
  }
  Json elsewhere = Json::array();
  for (const OtherImplementation& other : info.elsewhere) {
    elsewhere.push_back(
        {{"library", other.library}, {"name", other.name}, {"difference", other.difference}});
  }
  Json further = Json::array();
  for (const FurtherInputs& more : further_inputs(entry)) {
    further.push_back({{"setting", more.setting}, {"inputs", more.inputs}});
  }
  return {{"name", info.name},
          {"aliases", info.aliases},
          {"presets", std::move(presets)},
          {"formula", info.formula},
          {"source", info.source},
          {"when_to_use", info.when_to_use},
          {"elsewhere", std::move(elsewhere)},
          {"inputs", inputs_of(loss.requirements())},
          {"further_inputs", std::move(further)},
          {"conditions", conditions_of(loss.requirements())},
          {"anchors", std::move(anchors)},
          {"options", std::move(options)},
          {"curve", curve_of(loss)}};
}

void print_entry(const LossEntry& entry, std::ostream& out) {
  const LossInfo& info = entry.info;
  std::vector<std::vector<std::string>> facts{{"loss", info.name}};
  if (!info.aliases.empty()) facts.push_back({"aliases", joined(info.aliases)});
  for (const LossPreset& preset : info.presets) {
    facts.push_back({"preset", fmt::format("{}: {}", preset.name, preset.options)});
  }
  facts.push_back({"formula", info.formula});
  facts.push_back({"source", info.source});
  if (!info.when_to_use.empty()) facts.push_back({"when", info.when_to_use});
  const LossRequirements needs = entry.make("{}").requirements();
  facts.push_back({"inputs", joined(inputs_of(needs))});
  for (const FurtherInputs& further : further_inputs(entry)) {
    facts.push_back({"", fmt::format("{}: {}", further.setting, joined(further.inputs))});
  }
  for (const auto& condition : conditions_of(needs)) facts.push_back({"needs", condition});
  for (const OtherImplementation& other : info.elsewhere) {
    facts.push_back({"elsewhere", in_words(other)});
  }
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
    const auto values = accepted_values(entry, option);
    if (is_fixed(option, values)) continue;
    const auto [range, text] = range_and_meaning(range_in_words(option, values), meaning);
    table.push_back({option.name, option.type, option.default_value, range, text});
  }
  out << '\n';
  print_table(table, out);
}

}  // namespace

void run_losses(const LossesArguments& arguments, std::ostream& out, std::ostream& err) {
  if (print_objective_page(arguments.name, arguments.json, out)) return;
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
    err << "prefopt: these are losses on rows; `prefopt losses objectives --json` has those on "
           "tokens\n";
    return;
  }
  std::vector<std::vector<std::string>> table{{"loss", "aliases", "source"}};
  for (const auto& name : registered_losses()) {
    const LossInfo& info = find_loss(name).info;
    std::vector<std::string> others = info.aliases;
    for (const LossPreset& preset : info.presets) others.push_back(preset.name);
    table.push_back({info.name, joined(others), info.source});
  }
  print_table(table, out);
  out << '\n';
  print_presets(out);
}

}  // namespace prefopt::cli
