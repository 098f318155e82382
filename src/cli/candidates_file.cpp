// SPDX-License-Identifier: Apache-2.0
#include "cli/candidates_file.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <limits>
#include <string_view>
#include <utility>

#include "core/json.h"
#include "core/text.h"
#include "core/utf8.h"
#include "prefopt/data/dataset.h"
#include "prefopt/error.h"

namespace prefopt::cli {
namespace {

using detail::Json;

constexpr double kNoAnswer = std::numeric_limits<double>::quiet_NaN();

const std::vector<std::string_view> kLineKeys{"prompt", "completions",  "rewards",
                                              "beats",  "step_rewards", "token_logps",
                                              "ended",  "sources",      "gold_index"};

std::string listed(const SourceNames& names) {
  std::string list;
  for (const std::string& name : names) list += (list.empty() ? "" : ", ") + name;
  return list;
}

/// The line of a prompt, while it is read.
class LineReader {
 public:
  LineReader(std::string_view text, std::string where)
      : object_(detail::parse_json<DataError>(text, where)) {
    line_.where = std::move(where);
  }

  CandidatesLine read() {
    if (!object_.is_object()) fail("expected an object, got {}", detail::shown_json(object_));
    for (const auto& [key, value] : object_.items()) {
      if (detail::contains(kLineKeys, key)) continue;
      fail("expected a known key, got '{}'{}", detail::shown_text(key),
           detail::did_you_mean(key, kLineKeys));
    }
    line_.prompt = text_of(at("prompt"), "prompt");
    read_completions();
    if (has("ended")) read_ends();
    if (has("token_logps")) read_lengths();
    read_sources();
    set_tokens();
    read_feedback();
    return std::move(line_);
  }

 private:
  template <class... Args>
  [[noreturn]] void fail(fmt::format_string<Args...> format, Args&&... args) const {
    throw DataError(
        fmt::format("{}: {}", line_.where, fmt::format(format, std::forward<Args>(args)...)));
  }

  bool has(const char* key) const { return object_.contains(key); }

  const Json& at(const char* key) const {
    const auto found = object_.find(key);
    if (found == object_.end()) fail("expected a key '{}', got a line without it", key);
    return *found;
  }

  std::string text_of(const Json& value, std::string_view name) const {
    if (!value.is_string()) {
      fail("expected '{}' to be text, got {}", name, detail::json_type_name(value));
    }
    return value.get<std::string>();
  }

  /// A list of one value a completion.
  const Json& list(const char* key) const { return list_of(at(key), key); }

  const Json& list_of(const Json& value, std::string_view name) const {
    if (!value.is_array() || value.size() != line_.rollouts.size()) {
      fail("expected '{}' to be a list of {}, one for each completion, got {}", name,
           line_.rollouts.size(),
           value.is_array() ? fmt::format("{}", value.size())
                            : std::string(detail::json_type_name(value)));
    }
    return value;
  }

  void read_completions() {
    const Json& completions = at("completions");
    if (!completions.is_array() || completions.empty()) {
      fail("expected 'completions' to be a list of texts, got {}",
           completions.is_array() ? "an empty one" : detail::json_type_name(completions));
    }
    for (std::size_t i = 0; i < completions.size(); ++i) {
      Rollout& rollout = line_.rollouts.emplace_back();
      rollout.ended = true;
      rollout.prompt_text = line_.prompt;
      rollout.text = text_of(completions[i], fmt::format("completions[{}]", i));
    }
  }

  void read_ends() {
    const Json& ended = list("ended");
    for (std::size_t i = 0; i < ended.size(); ++i) {
      if (!ended[i].is_boolean()) {
        fail("expected 'ended[{}]' to be true or false, got {}", i, detail::shown_json(ended[i]));
      }
      line_.rollouts[i].ended = ended[i].get<bool>();
    }
    line_.has_ends = true;
  }

  void read_lengths() {
    const Json& lists = list("token_logps");
    for (std::size_t i = 0; i < lists.size(); ++i) {
      if (!lists[i].is_array()) {
        fail("expected 'token_logps[{}]' to be a list of numbers, got {}", i,
             detail::shown_json(lists[i]));
      }
      for (const Json& logp : lists[i]) {
        if (!logp.is_number()) {
          fail("expected 'token_logps[{}]' to hold numbers, got {}", i, detail::shown_json(logp));
        }
        line_.rollouts[i].token_logps.push_back(logp.get<double>());
      }
    }
    line_.has_lengths = true;
  }

  void read_sources() {
    if (has("sources") && has("gold_index")) {
      fail("expected one of 'sources' and 'gold_index', got both");
    }
    if (has("sources")) {
      const Json& sources = list("sources");
      for (std::size_t i = 0; i < sources.size(); ++i) {
        const std::string name = text_of(sources[i], fmt::format("sources[{}]", i));
        line_.rollouts[i].source = source_place(name, i);
      }
    }
    if (has("gold_index")) {
      const Json& index = object_["gold_index"];
      if (!index.is_number_unsigned() || index.get<std::uint64_t>() >= line_.rollouts.size()) {
        fail("expected 'gold_index' to be the place of a completion, got {}",
             detail::shown_json(index));
      }
      const auto gold = static_cast<std::size_t>(index.get<std::uint64_t>());
      line_.rollouts[gold].source = source_place("data", gold);
    }
  }

  std::int64_t source_place(const std::string& name, std::size_t i) const {
    const SourceNames& names = candidate_sources();
    const auto found = std::find(names.begin(), names.end(), name);
    if (found != names.end()) return found - names.begin();
    const std::vector<std::string_view> known(names.begin(), names.end());
    fail("expected 'sources[{}]' to be one of {}, got '{}'{}", i, listed(names),
         detail::shown_text(name), detail::did_you_mean(name, known));
  }

  /// A number for each different text stands for its tokens. The end token makes an empty text a
  /// completion.
  void set_tokens() {
    for (Rollout& rollout : line_.rollouts) {
      const auto same =
          std::find_if(line_.rollouts.begin(), line_.rollouts.end(),
                       [&](const Rollout& other) { return other.text == rollout.text; });
      const bool is_nothing = rollout.text.empty() && !rollout.ended;
      const std::size_t tokens = is_nothing ? 0 : line_.has_lengths ? same->token_logps.size() : 1;
      rollout.completion.assign(tokens, same - line_.rollouts.begin());
    }
  }

  void read_feedback() {
    if (has("rewards") && has("beats")) fail("expected one of 'rewards' and 'beats', got both");
    if (has("rewards")) {
      const Json& rewards = list("rewards");
      for (std::size_t i = 0; i < rewards.size(); ++i) {
        line_.rewards.push_back(answer(rewards[i], fmt::format("rewards[{}]", i)));
      }
    }
    if (has("beats")) read_beats();
  }

  void read_beats() {
    const Json& rows = list("beats");
    for (std::size_t i = 0; i < rows.size(); ++i) {
      const Json& row = list_of(rows[i], fmt::format("beats[{}]", i));
      std::vector<double>& values = line_.beats.emplace_back();
      for (std::size_t j = 0; j < row.size(); ++j) {
        const std::string name = fmt::format("beats[{}][{}]", i, j);
        values.push_back(answer(row[j], name));
        if (values.back() < 0 || values.back() > 1) {
          fail("expected '{}' to be a probability in [0, 1], got {}", name, values.back());
        }
      }
    }
    for (std::size_t i = 0; i < rows.size(); ++i) {
      for (std::size_t j = 0; j <= i; ++j) check_both_orders(i, j);
    }
  }

  void check_both_orders(std::size_t i, std::size_t j) const {
    constexpr double kTolerance = 1e-9;
    const double here = line_.beats[i][j], there = line_.beats[j][i];
    if (std::isnan(here) && std::isnan(there)) return;
    if (std::abs(here + there - 1) <= kTolerance) return;
    if (i == j) {
      fail("expected 'beats[{}][{}]', of a completion with itself, to be 0.5, got {}", i, i,
           shown(here));
    }
    fail("expected 'beats[{}][{}]' to be 1 - beats[{}][{}] = {}, got {}", i, j, j, i,
         shown(1 - there), shown(here));
  }

  static std::string shown(double probability) {
    return std::isnan(probability) ? "null" : fmt::format("{:.10g}", probability);
  }

  double answer(const Json& value, const std::string& name) const {
    if (value.is_null()) return kNoAnswer;
    const double x = value.is_number() ? value.get<double>() : kNoAnswer;
    if (!std::isfinite(x)) {
      fail("expected '{}' to be a number or null, got {}", name, detail::shown_json(value));
    }
    return x;
  }

  Json object_;
  CandidatesLine line_;
};

}  // namespace

const SourceNames& candidate_sources() {
  static const SourceNames names{"policy",  "reference", "last",    "past",
                                 "mixture", "data",      "program", "queue"};
  return names;
}

void read_candidates(const std::string& path,
                     const std::function<void(const CandidatesLine&)>& take) {
  bool is_empty = true;
  for_each_line(path, [&](std::int64_t line, std::string_view text) {
    is_empty = false;
    const std::string where = fmt::format("{}:{}", path, line);
    if (const std::size_t at = detail::find_invalid_utf8(text); at != std::string_view::npos) {
      throw DataError(fmt::format("{}: expected UTF-8 text, got the byte 0x{:02x} at offset {}",
                                  where, static_cast<unsigned char>(text[at]), at));
    }
    take(LineReader(text, where).read());
  });
  if (is_empty) throw DataError(path + ": expected at least one prompt, got none");
}

LinePreference::LinePreference(const CandidatesLine& line, double temperature)
    : RewardPreference(temperature), line_(line) {}

std::vector<double> LinePreference::rewards(const std::vector<const Rollout*>& rollouts) {
  if (line_.rewards.empty()) return Preference::rewards(rollouts);
  std::vector<double> answers;
  for (const Rollout* rollout : rollouts) {
    const auto last =
        std::find_if(line_.rollouts.rbegin(), line_.rollouts.rend(),
                     [&](const Rollout& other) { return other.completion == rollout->completion; });
    answers.push_back(line_.rewards[place(&*last)]);
  }
  return answers;
}

std::vector<double> LinePreference::beats(const std::vector<Comparison>& comparisons) {
  if (!line_.rewards.empty()) return RewardPreference::beats(comparisons);
  std::vector<double> answers;
  for (const Comparison& comparison : comparisons) {
    answers.push_back(line_.beats.empty()
                          ? kNoAnswer
                          : line_.beats[place(comparison.first)][place(comparison.second)]);
  }
  return answers;
}

}  // namespace prefopt::cli
