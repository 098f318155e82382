// SPDX-License-Identifier: Apache-2.0
#include "cli/rollouts_file.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <functional>
#include <limits>
#include <set>
#include <utility>

#include "core/json.h"
#include "core/text.h"
#include "data/lines.h"
#include "prefopt/error.h"

namespace prefopt::cli {
namespace {

using detail::Json;

/// Keys whose value is one number a token.
constexpr std::array<std::string_view, 13> kTokenKeys = {
    "logps",     "old_logps", "ref_logps",      "sampler_logps", "extra_logps",
    "acted",     "values",    "old_values",     "token_rewards", "advantage",
    "entropies", "exact_kls", "log_normalizers"};

constexpr std::string_view kActed = "acted";  // whose numbers may be true and false

constexpr std::array<std::string_view, 6> kOtherKeys = {"group",    "reward",    "greedy_reward",
                                                        "finished", "turn_ends", "step_ends"};

template <class Keys>
bool is_one_of(const Keys& keys, std::string_view key) {
  return std::find(keys.begin(), keys.end(), key) != keys.end();
}

/// The values of a line.
class RolloutLine {
 public:
  RolloutLine(const Json& line, std::string where) : line_(line), where_(std::move(where)) {}

  [[noreturn]] void refuse(std::string_view expected, const Json& got) const {
    throw DataError(
        fmt::format("{}: expected {}, got {}", where_, expected, detail::shown_json(got)));
  }

  void check_keys() const {
    for (const auto& [key, value] : line_.items()) {
      if (is_one_of(kTokenKeys, key) || is_one_of(kOtherKeys, key)) continue;
      std::vector<std::string_view> known(kTokenKeys.begin(), kTokenKeys.end());
      known.insert(known.end(), kOtherKeys.begin(), kOtherKeys.end());
      throw DataError(fmt::format("{}: expected keys of a rollout, got '{}'{}", where_, key,
                                  detail::did_you_mean(key, known)));
    }
  }

  double number(std::string_view name, const Json& value) const {
    if (name == kActed && value.is_boolean()) return value.get<bool>() ? 1 : 0;
    const bool is_finite = value.is_number() && std::isfinite(value.get<double>());
    if (!is_finite) refuse(fmt::format("finite numbers in {}", name), value);
    return value.get<double>();
  }

  std::vector<double> numbers(const std::string& key) const {
    const Json& value = line_.at(key);
    if (!value.is_array()) refuse(fmt::format("a list in {}", key), value);
    std::vector<double> numbers;
    for (const Json& item : value) numbers.push_back(number(key, item));
    return numbers;
  }

  /// Null is a reward that nobody could say.
  std::optional<double> reward(const std::string& key) const {
    const auto value = line_.find(key);
    if (value == line_.end()) return {};
    if (value->is_null()) return std::numeric_limits<double>::quiet_NaN();
    return number(key, *value);
  }

  std::int64_t integer(std::string_view name, const Json& value) const {
    const bool is_too_large =
        value.is_number_unsigned() &&
        value.get<std::uint64_t>() > std::uint64_t{std::numeric_limits<std::int64_t>::max()};
    if (!value.is_number_integer() || is_too_large) {
      refuse(fmt::format("whole numbers in {}", name), value);
    }
    return value.get<std::int64_t>();
  }

  /// Ascending ends of parts, the last of them the end of the completion.
  std::vector<std::int64_t> ends(const std::string& key, std::int64_t length) const {
    const auto value = line_.find(key);
    std::vector<std::int64_t> ends;
    if (value == line_.end()) return ends;
    if (!value->is_array()) refuse(fmt::format("a list in {}", key), *value);
    for (const Json& item : *value) ends.push_back(integer(key, item));
    const bool ascends =
        std::adjacent_find(ends.begin(), ends.end(), std::greater_equal<>()) == ends.end();
    if (ends.empty() || !ascends || ends.front() < 1 || ends.back() != length) {
      refuse(fmt::format("ascending ends in {}, the last of them {}", key, length), *value);
    }
    return ends;
  }

 private:
  const Json& line_;
  std::string where_;
};

RolloutRow row_of(const Json& line, std::int64_t number, const std::string& where) {
  if (!line.is_object()) {
    throw DataError(fmt::format("{}: expected an object, got {}", where, detail::shown_json(line)));
  }
  const RolloutLine of(line, where);
  of.check_keys();
  RolloutRow row{.line = number};
  if (!line.contains("logps")) {
    throw DataError(fmt::format("{}: expected logps, got a row without it", where));
  }
  const std::int64_t length = std::ssize(of.numbers("logps"));
  for (const std::string_view name : kTokenKeys) {
    const std::string key(name);
    if (!line.contains(key)) continue;
    // One advantage of a completion is that of each of its tokens.
    auto numbers =
        key == "advantage" && line[key].is_number()
            ? std::vector<double>(static_cast<std::size_t>(length), of.number(key, line[key]))
            : of.numbers(key);
    if (std::ssize(numbers) != length) {
      throw DataError(fmt::format("{}: expected {} of the {} tokens of logps, got {}", where, key,
                                  length, numbers.size()));
    }
    row.tokens.emplace(key, std::move(numbers));
  }
  if (length == 0) {
    throw DataError(fmt::format("{}: expected at least one token in logps, got none", where));
  }
  for (const double flag : row.numbers(kActed)) {
    if (flag != 0 && flag != 1) of.refuse("0 or 1 in acted", flag);
  }
  if (const auto group = line.find("group"); group != line.end()) {
    row.group = of.integer("group", *group);
  }
  row.reward = of.reward("reward");
  row.greedy_reward = of.reward("greedy_reward");
  if (const auto finished = line.find("finished"); finished != line.end()) {
    if (!finished->is_boolean()) of.refuse("true or false in finished", *finished);
    row.finished = finished->get<bool>();
  }
  row.turn_ends = of.ends("turn_ends", length);
  row.step_ends = of.ends("step_ends", length);
  return row;
}

}  // namespace

const std::vector<double>& RolloutRow::numbers(std::string_view key) const {
  static const std::vector<double> kNone;
  const auto found = tokens.find(key);
  return found == tokens.end() ? kNone : found->second;
}

std::vector<RolloutRow> read_rollouts(const std::string& path) {
  std::vector<RolloutRow> rows;
  detail::read_rows(path, [&](std::int64_t number, std::string_view text) {
    const std::string where = fmt::format("{}:{}", path, number);
    rows.push_back(row_of(detail::parse_json<DataError>(text, where), number, where));
    return true;
  });
  if (rows.empty()) throw DataError(fmt::format("{}: expected at least one row, got none", path));
  return rows;
}

std::set<std::string> unread_keys(const std::vector<RolloutRow>& rows,
                                  const std::set<std::string_view>& read) {
  std::set<std::string> keys;
  const auto add = [&](std::string_view key, bool is_there) {
    if (is_there && !read.contains(key)) keys.emplace(key);
  };
  for (const RolloutRow& row : rows) {
    for (const auto& [key, numbers] : row.tokens) add(key, true);
    add("group", row.group.has_value());
    add("reward", row.reward.has_value());
    add("greedy_reward", row.greedy_reward.has_value());
    add("turn_ends", !row.turn_ends.empty());
    add("step_ends", !row.step_ends.empty());
  }
  return keys;
}

}  // namespace prefopt::cli
