// SPDX-License-Identifier: Apache-2.0
#include "prefopt/online/rollout_file.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>
#include <string_view>
#include <utility>

#include "core/file.h"
#include "core/json.h"
#include "core/text.h"
#include "prefopt/data/dataset.h"
#include "prefopt/error.h"

namespace prefopt {
namespace {

using detail::Json;

constexpr std::array<std::string_view, 12> kKeys = {
    "prompt_ids", "completion_ids", "prompt",  "text",  "token_logps", "token_rewards",
    "acted",      "turn_ends",      "rewards", "ended", "group",       "source"};

Json json_of(const Rollout& rollout) {
  Json line = {{"prompt", rollout.prompt_text},
               {"text", rollout.text},
               {"prompt_ids", rollout.prompt},
               {"completion_ids", rollout.completion}};
  const auto add = [&](std::string_view key, const auto& values) {
    if (!values.empty()) line[std::string(key)] = values;
  };
  add("token_logps", rollout.token_logps);
  add("token_rewards", rollout.token_rewards);
  add("acted", rollout.acted);
  add("turn_ends", rollout.turn_ends);
  add("rewards", rollout.rewards);  // JSON has no NaN, it is written as null
  line["ended"] = rollout.ended;
  line["group"] = rollout.group;
  line["source"] = rollout.source;
  return line;
}

/// Reads the keys of a line.
class SavedRollout {
 public:
  SavedRollout(std::string_view text, std::string where)
      : line_(detail::parse_json<DataError>(text, where)), where_(std::move(where)) {
    if (!line_.is_object()) refuse("an object", line_);
    for (const auto& [key, value] : line_.items()) {
      if (detail::contains(kKeys, key)) continue;
      throw DataError(fmt::format("{}: expected keys of a rollout, got '{}'{}", where_,
                                  detail::shown_text(key),
                                  detail::did_you_mean(key, {kKeys.begin(), kKeys.end()})));
    }
  }

  Rollout read() const {
    Rollout rollout{.prompt = ids("prompt_ids"), .completion = ids("completion_ids")};
    const std::size_t tokens = rollout.completion.size();
    rollout.prompt_text = text("prompt");
    rollout.text = text("text");
    rollout.token_logps = numbers("token_logps", tokens);
    rollout.token_rewards = numbers("token_rewards", tokens);
    rollout.acted = acted(tokens);
    rollout.turn_ends = turn_ends(static_cast<std::int64_t>(tokens));
    rollout.rewards = rewards();
    if (const Json* ended = find("ended")) {
      if (!ended->is_boolean()) refuse("ended to be true or false", *ended);
      rollout.ended = ended->get<bool>();
    }
    rollout.group = integer("group");
    rollout.source = integer("source");
    return rollout;
  }

 private:
  [[noreturn]] void refuse(std::string_view expected, const Json& got) const {
    throw DataError(
        fmt::format("{}: expected {}, got {}", where_, expected, detail::shown_json(got)));
  }

  const Json* find(std::string_view key) const {
    const auto found = line_.find(std::string(key));
    return found == line_.end() ? nullptr : &*found;
  }

  static bool is_place(const Json& value) {
    return value.is_number_integer() && value >= 0 &&
           value <= std::numeric_limits<std::int64_t>::max();
  }

  const Json& list(std::string_view key) const {
    static const Json kNone = Json::array();
    const Json* found = find(key);
    if (found == nullptr) return kNone;
    if (!found->is_array()) refuse(fmt::format("a list in {}", key), *found);
    return *found;
  }

  std::vector<std::int64_t> ids(std::string_view key) const {
    std::vector<std::int64_t> values;
    for (const Json& value : list(key)) {
      if (!is_place(value)) refuse(fmt::format("token ids in {}", key), value);
      values.push_back(value.get<std::int64_t>());
    }
    if (!values.empty()) return values;
    throw DataError(fmt::format("{}: expected at least one token in {}, got none", where_, key));
  }

  std::string text(std::string_view key) const {
    const Json* found = find(key);
    if (found == nullptr) return {};
    if (!found->is_string()) refuse(fmt::format("{} to be a text", key), *found);
    return found->get<std::string>();
  }

  std::int64_t integer(std::string_view key) const {
    const Json* found = find(key);
    if (found == nullptr) return 0;
    if (!is_place(*found)) refuse(fmt::format("{} to be an integer of at least 0", key), *found);
    return found->get<std::int64_t>();
  }

  void check_length(std::string_view key, std::size_t length, std::size_t tokens) const {
    if (length == 0 || length == tokens) return;
    throw DataError(fmt::format("{}: expected {} of the {} tokens of completion_ids, got {}",
                                where_, key, tokens, length));
  }

  std::vector<double> numbers(std::string_view key, std::size_t tokens) const {
    std::vector<double> values;
    for (const Json& value : list(key)) {
      if (!value.is_number()) refuse(fmt::format("numbers in {}", key), value);
      values.push_back(value.get<double>());
    }
    check_length(key, values.size(), tokens);
    return values;
  }

  std::vector<std::uint8_t> acted(std::size_t tokens) const {
    std::vector<std::uint8_t> values;
    for (const Json& value : list("acted")) {
      if (value != 0 && value != 1) refuse("0 or 1 in acted", value);
      values.push_back(value.get<std::uint8_t>());
    }
    check_length("acted", values.size(), tokens);
    return values;
  }

  std::vector<std::int64_t> turn_ends(std::int64_t tokens) const {
    std::vector<std::int64_t> values;
    for (const Json& value : list("turn_ends")) {
      const std::int64_t before = values.empty() ? 0 : values.back();
      if (!is_place(value) || value <= before || value > tokens) {
        refuse(fmt::format("ascending places of up to {} in turn_ends", tokens), value);
      }
      values.push_back(value.get<std::int64_t>());
    }
    if (!values.empty() && values.back() != tokens) {
      refuse(fmt::format("turn_ends to end at {}, the last token", tokens), values.back());
    }
    return values;
  }

  std::vector<double> rewards() const {
    std::vector<double> values;
    for (const Json& value : list("rewards")) {
      if (!value.is_number() && !value.is_null()) refuse("numbers or null in rewards", value);
      values.push_back(value.is_null() ? std::nan("") : value.get<double>());
    }
    return values;
  }

  Json line_;
  std::string where_;
};

}  // namespace

void save_rollouts(const std::vector<Rollout>& rollouts, const std::string& path) {
  std::string text;
  for (const Rollout& rollout : rollouts) text += detail::dump_json(json_of(rollout)) + "\n";
  detail::write_file<DataError>(path, text);
}

std::vector<Rollout> load_rollouts(const std::string& path) {
  std::vector<Rollout> rollouts;
  for_each_line(path, [&](std::int64_t number, std::string_view text) {
    rollouts.push_back(SavedRollout(text, fmt::format("{}:{}", path, number)).read());
  });
  if (rollouts.empty()) {
    throw DataError(fmt::format("{}: expected at least one rollout, got none", path));
  }
  return rollouts;
}

}  // namespace prefopt
