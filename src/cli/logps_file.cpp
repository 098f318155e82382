// SPDX-License-Identifier: Apache-2.0
#include "cli/logps_file.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <utility>

#include "core/json.h"
#include "core/json_text.h"
#include "core/text.h"
#include "prefopt/data/dataset.h"
#include "prefopt/error.h"
#include "prefopt/losses/inputs.h"
#include "prefopt/options.h"

namespace prefopt::cli {
namespace {

using detail::Json;

/// One key that a row may have.
struct Key {
  std::string_view name;
  std::string field;  ///< of a PairLogps; of a length, the completion that it belongs to
  InputKind kind;
  bool is_list_of_samples = false;

  bool is_length() const { return kind == InputKind::kCount; }
};

/// Returns `chosen_logps` of `chosen_lens`.
std::string logps_of(std::string_view lens) {
  return std::string(lens.substr(0, lens.rfind("_lens"))) + "_logps";
}

std::vector<Key> make_keys() {
  std::vector<Key> keys;
  for (const InputInfo& info : kInputs) {
    if (info.key.empty()) continue;
    const bool is_length = info.kind == InputKind::kCount;
    keys.push_back({info.key, is_length ? logps_of(info.name) : std::string(info.name), info.kind,
                    info.of == InputOf::kSample});
  }
  // Rows of one completion have names for it that do not call it chosen.
  keys.push_back({"completion_logps", "chosen_logps", InputKind::kLogps});
  keys.push_back({"ref_completion_logps", "ref_chosen_logps", InputKind::kReferenceLogps});
  keys.push_back({"completion_len", "chosen_logps", InputKind::kCount});
  return keys;
}

const std::vector<Key>& known_keys() {
  static const std::vector<Key> keys = make_keys();
  return keys;
}

bool is_number(InputKind kind) {
  return kind == InputKind::kNumber || kind == InputKind::kWeight ||
         kind == InputKind::kProbability || kind == InputKind::kGroup;
}

Range range_of(InputKind kind) {
  if (kind == InputKind::kWeight) return Range::at_least(0);
  return kind == InputKind::kProbability ? Range::between(0, 1) : Range::any();
}

/// Pairs of fields whose numbers belong to the same tokens: the policy's log-probs, and others that
/// a row gives of them.
std::vector<std::pair<std::string_view, std::string_view>> make_fields_of_same_tokens() {
  std::vector<std::pair<std::string_view, std::string_view>> pairs;
  for (const InputInfo& logps : kInputs) {
    if (logps.kind != InputKind::kLogps || logps.key.empty()) continue;
    for (const InputInfo& other : kInputs) {
      const bool is_of_tokens = other.kind == InputKind::kReferenceLogps ||
                                other.kind == InputKind::kByProduct ||
                                other.kind == InputKind::kComparison;
      if (is_of_tokens && other.of == logps.of && !other.key.empty()) {
        pairs.emplace_back(logps.name, other.name);
      }
    }
  }
  return pairs;
}

const std::vector<std::pair<std::string_view, std::string_view>>& fields_of_same_tokens() {
  static const auto fields = make_fields_of_same_tokens();
  return fields;
}

const std::vector<std::string_view> kNonFiniteNames{"NaN", "-Infinity", "Infinity"};

bool holds(const std::vector<std::string_view>& names, std::string_view name) {
  return std::find(names.begin(), names.end(), name) != names.end();
}

// As it stood in the file.
std::string shown(const Json& value) {
  const bool quoted_here = value.is_string() && holds(kNonFiniteNames, value.get<std::string>());
  return quoted_here ? value.get<std::string>() : detail::shown_json(value);
}

CompletionLogps read_completion(const Json& value, std::string_view where) {
  if (value.is_number()) return {.sum = value.get<double>()};
  if (!value.is_array() || value.empty()) {
    throw DataError(fmt::format("{}: expected a finite number or a list of them, got {}", where,
                                value.is_array() ? "an empty list" : shown(value)));
  }
  CompletionLogps completion{.tokens = static_cast<std::int64_t>(value.size())};
  for (std::size_t token = 0; token < value.size(); ++token) {
    if (!value[token].is_number()) {
      throw DataError(fmt::format("{}: expected finite numbers, got {} at token {}", where,
                                  shown(value[token]), token));
    }
    completion.each.push_back(value[token].get<double>());
    completion.sum += completion.each.back();
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

// A length given with the log-probs.
void set_length(CompletionLogps& completion, const Json& value, std::string_view where) {
  constexpr std::uint64_t kMostTokens = std::uint64_t{1} << 53;  // a double counts so far
  const auto given = value.is_number_unsigned() ? value.get<std::uint64_t>() : 0;
  if (given == 0 || given > kMostTokens) {
    throw DataError(fmt::format("{}: expected a count of tokens, got {}", where, shown(value)));
  }
  const auto tokens = static_cast<std::int64_t>(given);
  if (completion.tokens && *completion.tokens != tokens) {
    throw DataError(fmt::format("{}: expected {}, the length of the list, got {}", where,
                                *completion.tokens, tokens));
  }
  completion.tokens = tokens;
}

double read_label(const Json& value, std::string_view where) {
  if (value.is_boolean()) return value.get<bool>() ? 1 : 0;
  if (value == 0 || value == 1) return value.get<double>();
  throw DataError(fmt::format("{}: expected true, false, 1 or 0, got {}", where, shown(value)));
}

double read_side(const Json& value, std::string_view where) {
  if (value == 0 || value == 1 || value == 2) return value.get<double>();
  throw DataError(
      fmt::format("{}: expected 0, 1 (chosen) or 2 (rejected), got {}", where, shown(value)));
}

double read_number(const Json& value, const Range& range, std::string_view where) {
  const double x = value.is_number() ? value.get<double>() : std::nan("");
  if (std::isfinite(x) && range.contains(x)) return x;
  const char* const expected = std::isfinite(range.max)   ? "a number in [0, 1]"
                               : std::isfinite(range.min) ? "a number of at least 0"
                                                          : "a finite number";
  throw DataError(fmt::format("{}: expected {}, got {}", where, expected, shown(value)));
}

/// The line of a row, while it is read.
class RowReader {
 public:
  RowReader(std::string_view text, std::int64_t line, std::string where)
      : where_(std::move(where)),
        object_(detail::parse_json<DataError>(detail::quote_non_finite(text), where_)),
        row_{.line = line} {}

  LogpsRow read() {
    if (!object_.is_object()) {
      throw DataError(fmt::format("{}: expected an object, got {}", where_, shown(object_)));
    }
    for (const auto& [name, value] : object_.items()) read_value(known_key(name), value);
    for (const Key& key : known_keys()) {
      if (key.is_length()) read_length(key);
    }
    for (const auto& [field, other] : fields_of_same_tokens()) check_same_tokens(field, other);
    return std::move(row_);
  }

 private:
  const Key& known_key(std::string_view name) const {
    std::vector<std::string_view> known;
    for (const Key& key : known_keys()) {
      if (key.name == name) return key;
      known.push_back(key.name);
    }
    throw DataError(fmt::format("{}: expected a known key, got '{}'{}", where_,
                                detail::shown_text(std::string(name)),
                                detail::did_you_mean(name, known)));
  }

  void read_value(const Key& key, const Json& value) {
    if (key.is_length()) return;  // once its completion is there
    const std::string at = fmt::format("{}: {}", where_, key.name);
    const std::string& field = key.field;
    if (key.kind == InputKind::kLabel) {
      row_.numbers[field] = read_label(value, at);
    } else if (key.kind == InputKind::kSide) {
      row_.numbers[field] = read_side(value, at);
    } else if (is_number(key.kind)) {
      row_.numbers[field] = read_number(value, range_of(key.kind), at);
    } else {
      if (row_.completions.contains(field)) {
        throw DataError(fmt::format("{}: expected one of {} and {}, got both", where_,
                                    row_key(field, false), row_key(field, true)));
      }
      row_.completions[field] = key.is_list_of_samples ? read_samples(value, at)
                                                       : std::vector{read_completion(value, at)};
    }
  }

  void read_length(const Key& key) {
    const auto completion = row_.completions.find(key.field);
    const auto length = object_.find(key.name);
    if (completion != row_.completions.end() && length != object_.end()) {
      set_length(completion->second.front(), *length, fmt::format("{}: {}", where_, key.name));
    }
  }

  void check_same_tokens(std::string_view field, std::string_view other) const {
    const auto first = row_.completions.find(field);
    const auto second = row_.completions.find(other);
    if (first == row_.completions.end() || second == row_.completions.end()) return;
    const auto& ours = first->second;
    const auto& theirs = second->second;
    if (ours.size() != theirs.size()) {
      throw DataError(fmt::format("{}: expected {} samples in {} as in {}, got {}", where_,
                                  ours.size(), key_here(other), key_here(field), theirs.size()));
    }
    for (std::size_t i = 0; i < ours.size(); ++i) {
      if (ours[i].tokens && theirs[i].tokens && *ours[i].tokens != *theirs[i].tokens) {
        throw DataError(fmt::format("{}: expected {} tokens in {} as in {}, got {}", where_,
                                    *ours[i].tokens, key_here(other), key_here(field),
                                    *theirs[i].tokens));
      }
    }
  }

  /// The one of its keys under which this row has the field.
  std::string_view key_here(std::string_view field) const {
    const std::string_view unpaired = row_key(field, true);
    return object_.contains(unpaired) ? unpaired : row_key(field, false);
  }

  std::string where_;
  Json object_;
  LogpsRow row_;
};

}  // namespace

std::string_view row_key(std::string_view field, bool unpaired) {
  std::string_view found;
  for (const Key& key : known_keys()) {
    if (key.field != field || key.is_length()) continue;
    if (found.empty() || unpaired) found = key.name;
  }
  return found;
}

std::vector<LogpsRow> read_logps(const std::string& path) {
  std::vector<LogpsRow> rows;
  for_each_line(path, [&](std::int64_t line, std::string_view text) {
    rows.push_back(RowReader(text, line, fmt::format("{}:{}", path, line)).read());
  });
  if (rows.empty()) throw DataError(path + ": expected at least one row, got none");
  return rows;
}

}  // namespace prefopt::cli
