// SPDX-License-Identifier: Apache-2.0
#include "report.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstdint>

namespace demo {
namespace {

constexpr std::size_t kColumn = 46;

// What `value` of a response is on average over all of them.
template <class Value>
double mean_over(const Responses& responses, Value&& value) {
  double sum = 0;
  double count = 0;
  for (const auto& to_prompt : responses) {
    for (const Response& response : to_prompt) sum += value(response);
    count += static_cast<double>(to_prompt.size());
  }
  return sum / count;
}

std::vector<double> rewards(const std::vector<Response>& responses) {
  std::vector<double> values;
  for (const Response& response : responses) values.push_back(response.reward);
  return values;
}

double mean_tokens(const Responses& responses) {
  return mean_over(responses, [](const Response& r) { return static_cast<double>(r.ids.size()); });
}

bool continues_character(char c) { return (static_cast<unsigned char>(c) & 0xC0) == 0x80; }

std::size_t width_of(std::string_view text) {
  return static_cast<std::size_t>(
      std::count_if(text.begin(), text.end(), [](char c) { return !continues_character(c); }));
}

// Bytes of the longest beginning of at most `width` characters.
std::size_t beginning(std::string_view text, std::size_t width) {
  std::size_t at = 0;
  while (at < text.size() && (width > 0 || continues_character(text[at]))) {
    if (!continues_character(text[at])) --width;
    ++at;
  }
  return at;
}

void wrap_line(std::string_view line, std::size_t width, std::vector<std::string>& lines) {
  while (width_of(line) > width) {
    const std::size_t most = beginning(line, width);
    std::size_t cut = line.rfind(' ', most);
    const bool between_words = cut != line.npos && cut > 0;
    if (!between_words) cut = most;
    lines.emplace_back(line.substr(0, cut));
    line.remove_prefix(between_words ? cut + 1 : cut);
  }
  lines.emplace_back(line);
}

std::vector<std::string> column(std::string_view title, const Response& response) {
  std::vector<std::string> lines{fmt::format("{}, reward {:.2f}", title, response.reward)};
  auto text = wrapped(response.text + (response.ended ? "" : " …"), kColumn);
  lines.insert(lines.end(), text.begin(), text.end());
  return lines;
}

std::string percent_interval(const prefopt::Estimate& estimate) {
  return fmt::format("{:.0f} to {:.0f}", 100 * estimate.low, 100 * estimate.high);
}

}  // namespace

double mean_reward(const Responses& responses) {
  return mean_over(responses, [](const Response& r) { return r.reward; });
}

Comparison compare(const Responses& before, const Responses& after, const Divergence& kl,
                   std::uint64_t seed) {
  std::vector<double> gains;
  double wins = 0;
  for (std::size_t i = 0; i < before.size(); ++i) {
    gains.push_back(mean_reward({after[i]}) - mean_reward({before[i]}));
    wins += prefopt::win_rate(rewards(after[i]), rewards(before[i]));
  }
  Comparison result{.reward_before = mean_reward(before),
                    .reward_after = mean_reward(after),
                    .gain = prefopt::bootstrap_mean(gains, seed),
                    .wins = prefopt::wilson_rate(wins / static_cast<double>(before.size()),
                                                 static_cast<double>(before.size())),
                    .terms = {},
                    .tokens_before = mean_tokens(before),
                    .tokens_after = mean_tokens(after),
                    .kl = kl};
  const auto names = RewardTerms{}.named();
  for (std::size_t term = 0; term < names.size(); ++term) {
    const auto value = [&](const Response& r) { return r.terms.named()[term].second; };
    result.terms.push_back({names[term].first, mean_over(before, value), mean_over(after, value)});
  }
  return result;
}

std::string comparison_table(const Comparison& c) {
  std::string table = fmt::format("{:<22} {:>8} {:>8}   {}\n", "held-out prompts", "before",
                                  "after", "95 % interval");
  table += fmt::format("{:<22} {:>8.3f} {:>8.3f}   gain {:+.3f}, {:+.3f} to {:+.3f}\n", "reward",
                       c.reward_before, c.reward_after, c.gain.mean, c.gain.low, c.gain.high);
  for (const auto& [name, before, after] : c.terms) {
    table += fmt::format("  {:<20} {:>8.3f} {:>8.3f}\n", name, before, after);
  }
  table += fmt::format("{:<22} {:>8} {:>7.0f}%   {} %\n", "wins against reference", "",
                       100 * c.wins.mean, percent_interval(c.wins));
  table += fmt::format("{:<22} {:>8.1f} {:>8.1f}\n", "tokens a response", c.tokens_before,
                       c.tokens_after);
  table += fmt::format("{:<22} {:>8} {:>8.2f}   nats a response, {:.3f} a token\n",
                       "KL to reference", "", c.kl.per_response, c.kl.per_token);
  return table;
}

std::vector<std::string> wrapped(std::string_view text, std::size_t width) {
  std::vector<std::string> lines;
  while (true) {
    const std::size_t end = std::min(text.find('\n'), text.size());
    wrap_line(text.substr(0, end), width, lines);
    if (end == text.size()) return lines;
    text.remove_prefix(end + 1);
  }
}

std::string side_by_side(std::span<const Prompt> prompts, const Responses& before,
                         const Responses& after) {
  std::string text;
  for (std::size_t i = 0; i < prompts.size(); ++i) {
    const auto left = column("before", before[i].front());
    const auto right = column("after", after[i].front());
    text += fmt::format("\n» {}\n", prompts[i].text);
    for (std::size_t row = 0; row < std::max(left.size(), right.size()); ++row) {
      std::string line = "  " + (row < left.size() ? left[row] : "");
      line.append(kColumn + 2 - std::min(kColumn + 2, width_of(line)), ' ');
      line += " │";
      if (row < right.size() && !right[row].empty()) line += " " + right[row];
      text += line + '\n';
    }
  }
  return text;
}

}  // namespace demo
