// SPDX-License-Identifier: Apache-2.0
#include "cli/logps_file.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "core/json.h"
#include "core/text.h"
#include "prefopt/data/dataset.h"
#include "prefopt/error.h"

namespace prefopt::cli {
namespace {

using detail::Json;

const std::vector<std::string_view> kCompletionKeys{"chosen_logps", "rejected_logps",
                                                    "ref_chosen_logps", "ref_rejected_logps"};
const std::vector<std::string_view> kSampleKeys{"sample_logps", "ref_sample_logps"};
const std::vector<std::string_view> kLengthKeys{"chosen_len", "rejected_len"};
// Golden rows carry these for losses that weigh tokens; no loss here reads them.
const std::vector<std::string_view> kIgnoredKeys{"chosen_log_sum_sq_probs",
                                                 "rejected_log_sum_sq_probs"};
const std::vector<std::string_view> kNonFinite{"NaN", "-Infinity", "Infinity"};

bool holds(const std::vector<std::string_view>& names, std::string_view name) {
  return std::find(names.begin(), names.end(), name) != names.end();
}

// Python's json writes NaN and Infinity bare, which is not JSON. In quotes they get past the
// parser, so that the complaint can name key and token.
std::string quote_non_finite(std::string_view line) {
  std::string quoted;
  bool in_text = false;
  for (std::size_t i = 0; i < line.size(); ++i) {
    const auto literal =
        in_text ? kNonFinite.end()
                : std::find_if(kNonFinite.begin(), kNonFinite.end(),
                               [&](auto name) { return line.substr(i).starts_with(name); });
    if (literal != kNonFinite.end()) {
      quoted += fmt::format("\"{}\"", *literal);
      i += literal->size() - 1;
      continue;
    }
    quoted += line[i];
    if (line[i] == '"') {
      in_text = !in_text;
    } else if (in_text && line[i] == '\\' && i + 1 < line.size()) {
      quoted += line[++i];
    }
  }
  return quoted;
}

// As it stood in the file.
std::string shown(const Json& value) {
  const bool quoted_here = value.is_string() && holds(kNonFinite, value.get<std::string>());
  return quoted_here ? value.get<std::string>() : detail::dump_json(value);
}

CompletionLogps read_completion(const Json& value, std::string_view where) {
  if (value.is_number()) return {.sum = value.get<double>()};
  if (!value.is_array() || value.empty()) {
    throw DataError(fmt::format("{}: expected a finite number or a list of them, got {}", where,
                                value.is_array() ? "an empty list" : shown(value)));
  }
  CompletionLogps completion{.entries = value.size(),
                             .tokens = static_cast<std::int64_t>(value.size())};
  for (std::size_t token = 0; token < value.size(); ++token) {
    if (!value[token].is_number()) {
      throw DataError(fmt::format("{}: expected finite numbers, got {} at token {}", where,
                                  shown(value[token]), token));
    }
    completion.sum += value[token].get<double>();
  }
  if (!std::isfinite(completion.sum)) {
    throw DataError(fmt::format("{}: expected a finite sum, got {}", where, completion.sum));
  }
  return completion;
}

std::vector<CompletionLogps> read_samples(const Json& value, std::string_view where) {
  if (!value.is_array() || value.empty()) {
    throw DataError(fmt::format("{}: expected a list of samples, got {}", where, shown(value)));
  }
  std::vector<CompletionLogps> samples;
  for (std::size_t i = 0; i < value.size(); ++i) {
    samples.push_back(read_completion(value[i], fmt::format("{}: sample {}", where, i)));
  }
  return samples;
}

// A length given beside the log-probs.
void set_length(CompletionLogps& completion, const Json& value, std::string_view where) {
  if (!value.is_number_unsigned() || value.get<std::uint64_t>() == 0) {
    throw DataError(fmt::format("{}: expected a count of tokens, got {}", where, shown(value)));
  }
  const auto tokens = value.get<std::int64_t>();
  if (completion.tokens && *completion.tokens != tokens) {
    throw DataError(fmt::format("{}: expected {}, the length of the list, got {}", where,
                                *completion.tokens, tokens));
  }
  completion.tokens = tokens;
}

// Policy and reference score the same tokens.
void check_reference(const LogpsRow& row, const std::string& key, std::string_view where) {
  const auto policy = row.completions.find(key);
  const auto reference = row.completions.find("ref_" + key);
  if (policy == row.completions.end() || reference == row.completions.end()) return;
  const auto& ours = policy->second;
  const auto& theirs = reference->second;
  if (ours.size() != theirs.size()) {
    throw DataError(fmt::format("{}: expected {} samples in ref_{} as in {}, got {}", where,
                                ours.size(), key, key, theirs.size()));
  }
  for (std::size_t i = 0; i < ours.size(); ++i) {
    if (ours[i].tokens && theirs[i].tokens && *ours[i].tokens != *theirs[i].tokens) {
      throw DataError(fmt::format("{}: expected {} tokens in ref_{} as in {}, got {}", where,
                                  *ours[i].tokens, key, key, *theirs[i].tokens));
    }
  }
}

LogpsRow read_row(std::string_view text, std::int64_t line, const std::string& where) {
  const Json object = detail::parse_json<DataError>(quote_non_finite(text), where);
  if (!object.is_object()) {
    throw DataError(fmt::format("{}: expected an object, got {}", where, shown(object)));
  }
  LogpsRow row{.line = line};
  for (const auto& [key, value] : object.items()) {
    const std::string at = where + ": " + key;
    if (holds(kCompletionKeys, key)) {
      row.completions[key] = {read_completion(value, at)};
    } else if (holds(kSampleKeys, key)) {
      row.completions[key] = read_samples(value, at);
    } else if (!holds(kLengthKeys, key) && !holds(kIgnoredKeys, key)) {
      auto known = kCompletionKeys;
      known.insert(known.end(), kSampleKeys.begin(), kSampleKeys.end());
      known.insert(known.end(), kLengthKeys.begin(), kLengthKeys.end());
      throw DataError(fmt::format("{}: expected a known key, got '{}'{}", where, key,
                                  detail::did_you_mean(key, known)));
    }
  }
  for (const std::string name : {"chosen", "rejected"}) {
    const auto completion = row.completions.find(name + "_logps");
    const auto length = object.find(name + "_len");
    if (completion != row.completions.end() && length != object.end()) {
      set_length(completion->second.front(), *length, fmt::format("{}: {}_len", where, name));
    }
  }
  for (const std::string key : {"chosen_logps", "rejected_logps", "sample_logps"}) {
    check_reference(row, key, where);
  }
  return row;
}

}  // namespace

std::vector<LogpsRow> read_logps(const std::string& path) {
  std::vector<LogpsRow> rows;
  for_each_line(path, [&](std::int64_t line, std::string_view text) {
    rows.push_back(read_row(text, line, fmt::format("{}:{}", path, line)));
  });
  if (rows.empty()) throw DataError(path + ": expected at least one row, got none");
  return rows;
}

}  // namespace prefopt::cli
