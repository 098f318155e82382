// SPDX-License-Identifier: Apache-2.0
#include "cli/row_options.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <array>
#include <cstdint>
#include <ostream>
#include <string_view>

#include "cli/inputs.h"
#include "core/json.h"
#include "data/defect_line.h"
#include "data/row_layout.h"
#include "prefopt/error.h"

namespace prefopt::cli {
namespace {

using detail::Json;

constexpr std::string_view kGiven = "--data-options";

/// Options that cut rows; where a row gives a result, it is whole unless one of them is given.
constexpr std::array<std::string_view, 7> kBudgets = {"max_prompt_length", "max_completion_length",
                                                      "max_length",        "truncation",
                                                      "truncation_mode",   "end_of_cut",
                                                      "long_prompt"};

/// Options without a say in what a prompt becomes.
constexpr std::array<std::string_view, 11> kOfCompletions = {
    "add_eos",   "loss_on",   "unusable",      "missing_key",  "invalid_utf8",  "empty_completion",
    "identical", "duplicate", "prefix_answer", "long_context", "ends_with_user"};

template <class Names>
bool is_among(const Names& names, std::string_view name) {
  return std::find(std::begin(names), std::end(names), name) != std::end(names);
}

bool has_use(std::string_view name, RowPart part) {
  if (is_among(detail::kNotOfRows, name)) return false;
  return part == RowPart::kAll || !(is_among(kBudgets, name) || is_among(kOfCompletions, name));
}

/// Whether a value says which rows train, and not what they become.
bool selects(std::string_view name, const Json& value) {
  if (name == "special_tokens_in_text") return false;
  return value == "drop" || value == "error" || value == "unusable";
}

void put(std::string_view json, std::string_view where, DataOptions& options) {
  read_fields([&](FieldVisitor& v) { options.fields(v); }, json, where);
}

void put_remembered(const RowMemory& memory, RowPart part, DataOptions& options) {
  if (memory.options.empty()) return;
  const Json remembered = detail::parse_json<ConfigError>(memory.options, memory.folder);
  Json taken = Json::object();
  for (const auto& [name, value] : remembered.items()) {
    const bool is_taken = has_use(name, part) && !is_among(kBudgets, name) && !selects(name, value);
    if (is_taken) taken[name] = value;
  }
  put(detail::dump_json(taken), memory.folder, options);
}

void put_given(const std::string& given, RowPart part, DataOptions& options) {
  if (given.empty()) return;
  const std::string json = read_json_argument(given);
  put(json, kGiven, options);
  const Json options_given = detail::parse_json<ConfigError>(json, kGiven);
  for (const auto& [name, value] : options_given.items()) {
    if (has_use(name, part)) continue;
    throw ConfigError(fmt::format("{}: expected options that say how {} are read, got '{}'", kGiven,
                                  part == RowPart::kPrompts ? "prompts" : "rows", name));
  }
}

Json json_of(const DataOptions& options) {
  return detail::parse_json<ConfigError>(options_to_json(options), kGiven);
}

void note_remembered(const RowMemory& memory, const DataOptions& used, const DataOptions& otherwise,
                     std::string_view option, std::ostream& err) {
  const std::string differing = differing_options(used, otherwise);
  if (differing.empty()) return;
  err << fmt::format("prefopt: rows are read as the run of {} did: {}; {} says otherwise\n",
                     memory.folder, differing, option);
}

bool is_over(std::size_t tokens, std::int64_t budget) {
  return budget > 0 && tokens > static_cast<std::size_t>(budget);
}

bool would_be_cut(const TokenRow& pair, const DataOptions& run) {
  const std::size_t longest =
      std::max({pair.chosen.size(), pair.rejected.size(), pair.gold.size()});
  return is_over(pair.prompt.size(), run.max_prompt_length) ||
         is_over(longest, run.max_completion_length) ||
         is_over(pair.prompt.size() + longest, run.max_length);
}

}  // namespace

DataOptions row_options(const RowArguments& arguments, const std::string& chat_format,
                        const RowMemory& memory, RowPart part) {
  DataOptions options;
  options.max_prompt_length = 0;
  options.max_completion_length = 0;
  options.max_length = 0;
  options.unusable = RowAction::kError;
  options.identical = RowAction::kKeep;
  options.tool_calls = RowAction::kError;
  options.reasoning = RowAction::kError;
  options.different_prompts = RowAction::kError;
  options.chat_format = chat_format;
  put_remembered(memory, part, options);
  put_given(arguments.options, part, options);
  read_columns(arguments, options);
  return options;
}

DataOptions noted_row_options(const RowArguments& arguments, const std::string& chat_format,
                              const RowMemory& memory, RowPart part, std::ostream& err) {
  DataOptions options = row_options(arguments, chat_format, memory, part);
  note_remembered(memory, options, row_options(arguments, chat_format, {}, part), kGiven, err);
  return options;
}

DataOptions run_options(const RowMemory& memory) {
  DataOptions options;
  if (!memory.options.empty()) put(memory.options, memory.folder, options);
  return options;
}

DataOptions noted_run_options(const RowMemory& memory, std::ostream& err) {
  DataOptions options = run_options(memory);
  note_remembered(memory, options, {}, "--options", err);
  return options;
}

std::string differing_options(const DataOptions& a, const DataOptions& b) {
  const Json own = json_of(a);
  const Json other = json_of(b);
  std::vector<std::string> differing;
  for (const auto& [name, value] : own.items()) {
    if (value == other[name]) continue;
    differing.push_back(
        value.is_string()
            ? fmt::format("{} = '{}'", name, detail::shown_text(value.get<std::string>()))
            : fmt::format("{} = {}", name, detail::shown_json(value)));
  }
  return fmt::format("{}", fmt::join(differing, ", "));
}

void note_uncut(const std::vector<TokenRow>& pairs, const RowMemory& memory,
                const DataOptions& options, std::ostream& err) {
  const bool cuts =
      options.max_prompt_length > 0 || options.max_completion_length > 0 || options.max_length > 0;
  if (cuts || memory.options.empty()) return;
  const DataOptions run = run_options(memory);
  const auto count = std::count_if(pairs.begin(), pairs.end(),
                                   [&](const TokenRow& pair) { return would_be_cut(pair, run); });
  if (count == 0) return;
  err << fmt::format(
      "prefopt: {} read whole that the run of {} cut (max_prompt_length {}, max_completion_length "
      "{}, max_length {}); {} cuts likewise\n",
      detail::counted(count, "row"), memory.folder, run.max_prompt_length,
      run.max_completion_length, run.max_length, kGiven);
}

void read_columns(const ColumnArguments& arguments, DataOptions& options) {
  if (!arguments.columns.empty()) {
    const std::string given = read_json_argument(arguments.columns);
    options.columns =
        given.find_first_of("{\"") == std::string::npos ? detail::dump_json(Json(given)) : given;
    detail::RowLayout(options.columns, "--columns");
  }
  if (arguments.unused.empty()) return;
  if (arguments.unused != "error" && arguments.unused != "note") {
    throw ConfigError(fmt::format("--unused: expected 'error' or 'note', got '{}'",
                                  detail::shown_text(arguments.unused)));
  }
  options.unused = arguments.unused == "note" ? UnusedColumns::kNote : UnusedColumns::kError;
}

}  // namespace prefopt::cli
