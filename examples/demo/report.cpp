// SPDX-License-Identifier: Apache-2.0
#include "report.h"

#include <fmt/format.h>

namespace demo {

using prefopt::Estimate;

namespace {

// Mean of `value` over all responses.
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
  for (const Response& response : responses) values.push_back(response.reward());
  return values;
}

double mean_tokens(const Responses& responses) {
  return mean_over(responses, [](const Response& r) { return static_cast<double>(r.ids.size()); });
}

std::string shown(std::string_view when, const Response& response) {
  std::string text = fmt::format("  {}, reward {:.2f}: ", when, response.reward());
  for (const char c : response.text) text += c == '\n' ? "\n    " : std::string(1, c);
  return text + (response.ended ? "\n" : " …\n");
}

}  // namespace

double mean_reward(const Responses& responses) {
  return mean_over(responses, [](const Response& r) { return r.reward(); });
}

Comparison compare(const Responses& before, const Responses& after) {
  std::vector<double> gains;
  double wins = 0;
  for (std::size_t i = 0; i < before.size(); ++i) {
    gains.push_back(mean_reward({after[i]}) - mean_reward({before[i]}));
    wins += prefopt::win_rate(rewards(after[i]), rewards(before[i]));
  }
  const auto prompts = static_cast<double>(before.size());
  Comparison result{.reward_before = mean_reward(before),
                    .reward_after = mean_reward(after),
                    .gain = prefopt::bootstrap_mean(gains, /*seed=*/0),
                    .wins = prefopt::wilson_rate(wins / prompts, prompts),
                    .terms = {},
                    .tokens_before = mean_tokens(before),
                    .tokens_after = mean_tokens(after)};
  const auto names = RewardTerms{}.named();
  for (std::size_t term = 0; term < names.size(); ++term) {
    const auto value = [&](const Response& r) { return r.terms.named()[term].second; };
    result.terms.push_back({names[term].first, mean_over(before, value), mean_over(after, value)});
  }
  return result;
}

std::string comparison_table(const Comparison& c, const Estimate& kl) {
  std::string table = fmt::format("{:<22} {:>8} {:>8}   {}\n", "held-out prompts", "before",
                                  "after", "95 % interval");
  table += fmt::format("{:<22} {:>8.3f} {:>8.3f}   gain {:+.3f}, {:+.3f} to {:+.3f}\n", "reward",
                       c.reward_before, c.reward_after, c.gain.mean, c.gain.low, c.gain.high);
  for (const auto& [name, before, after] : c.terms) {
    table += fmt::format("  {:<20} {:>8.3f} {:>8.3f}\n", name, before, after);
  }
  table += fmt::format("{:<22} {:>8} {:>7.0f}%   {:.0f} to {:.0f} %\n", "wins against reference",
                       "", 100 * c.wins.mean, 100 * c.wins.low, 100 * c.wins.high);
  table += fmt::format("{:<22} {:>8.1f} {:>8.1f}\n", "tokens a response", c.tokens_before,
                       c.tokens_after);
  table += fmt::format("{:<22} {:>8} {:>8.2f}   {:.2f} to {:.2f} nats a response\n",
                       "KL to reference", "", kl.mean, kl.low, kl.high);
  return table;
}

std::string shown_responses(std::span<const prefopt::Prompt> prompts, const Responses& before,
                            const Responses& after) {
  std::string text;
  for (std::size_t i = 0; i < prompts.size(); ++i) {
    text += fmt::format("\n» {}\n", prompts[i].question);
    text += shown("before", before[i].front()) + shown("after", after[i].front());
  }
  return text;
}

}  // namespace demo
