// SPDX-License-Identifier: Apache-2.0
#include "prefopt/data/controlled_task.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <iterator>
#include <utility>

#include "core/file.h"
#include "core/json.h"
#include "prefopt/error.h"

namespace prefopt {
namespace {

constexpr std::size_t kPromptLetters = 3;
constexpr std::size_t kMinLetters = 3;
constexpr std::size_t kMaxLetters = 9;
constexpr double kBestLength = 6;
constexpr double kLengthPrice = 0.25;

bool is_letter(char c) { return c >= 'a' && c <= 'z'; }

// Standard distributions differ between libraries; a seed has to give the same file everywhere.
double uniform(std::mt19937_64& rng) { return static_cast<double>(rng() >> 11) * 0x1p-53; }

std::size_t uniform_below(std::mt19937_64& rng, std::size_t count) {
  return static_cast<std::size_t>(uniform(rng) * static_cast<double>(count));
}

char any_letter(std::mt19937_64& rng) { return static_cast<char>('a' + uniform_below(rng, 26)); }

void check_rows(std::int64_t rows, std::string_view where) {
  if (rows < 1) throw ConfigError(fmt::format("{}: expected at least 1 row, got {}", where, rows));
}

}  // namespace

void ControlledTaskOptions::fields(FieldVisitor& v) {
  v.real({"reward_scale", "reward of a response made of the prompt's letters"}, reward_scale,
         Range::above(0));
  v.real({"flip_rate", "probability that a preference label is turned around"}, flip_rate,
         Range::between(0, 1));
  v.real({"prompt_affinity", "chance that a letter of a base response comes from the prompt"},
         prompt_affinity, Range::between(0, 1));
  v.integer({"seed", "seed of all that is drawn"}, seed, Range::at_least(0));
}

ControlledTask::ControlledTask(ControlledTaskOptions options)
    : options_(checked(options, "ControlledTask")),
      rng_(static_cast<std::uint64_t>(options_.seed)) {}

std::string ControlledTask::sample_prompt() {
  std::string prompt;
  while (prompt.size() < kPromptLetters) {
    const char letter = any_letter(rng_);
    if (prompt.find(letter) == std::string::npos) prompt += letter;
  }
  return prompt + '>';
}

std::string ControlledTask::sample_response(std::string_view prompt) {
  std::string letters;
  std::copy_if(prompt.begin(), prompt.end(), std::back_inserter(letters), is_letter);
  const std::size_t length = kMinLetters + uniform_below(rng_, kMaxLetters - kMinLetters + 1);
  std::string response;
  while (response.size() < length) {
    const bool from_prompt = uniform(rng_) < options_.prompt_affinity && !letters.empty();
    response += from_prompt ? letters[uniform_below(rng_, letters.size())] : any_letter(rng_);
  }
  return response;
}

double ControlledTask::reward(std::string_view prompt, std::string_view response) const {
  if (response.empty() || !std::all_of(response.begin(), response.end(), is_letter)) {
    return -options_.reward_scale;
  }
  const auto liked = std::count_if(response.begin(), response.end(), [&](char letter) {
    return prompt.find(letter) != std::string_view::npos;
  });
  const auto length = static_cast<double>(response.size());
  return options_.reward_scale * static_cast<double>(liked) / length -
         kLengthPrice * std::abs(length - kBestLength);
}

bool ControlledTask::prefers_first(std::string_view prompt, std::string_view first,
                                   std::string_view second) {
  const double difference = reward(prompt, first) - reward(prompt, second);
  const bool preferred = uniform(rng_) < 1 / (1 + std::exp(-difference));
  // Drawn even without flips, so that tasks which differ in flip_rate alone draw the same rows.
  const bool flipped = uniform(rng_) < options_.flip_rate;
  return preferred != flipped;
}

void ControlledTask::write_sft(const std::string& path, std::int64_t rows) {
  check_rows(rows, "ControlledTask::write_sft");
  std::string lines;
  for (std::int64_t i = 0; i < rows; ++i) {
    const std::string prompt = sample_prompt();
    const detail::Json row = {{"prompt", prompt}, {"completion", sample_response(prompt)}};
    lines += detail::dump_json(row) + '\n';
  }
  detail::write_file<DataError>(path, lines);
}

void ControlledTask::write_preferences(const std::string& path, std::int64_t rows) {
  check_rows(rows, "ControlledTask::write_preferences");
  std::string lines;
  for (std::int64_t i = 0; i < rows; ++i) {
    const std::string prompt = sample_prompt();
    std::string chosen = sample_response(prompt);
    std::string rejected = sample_response(prompt);
    while (rejected == chosen) rejected = sample_response(prompt);
    if (!prefers_first(prompt, chosen, rejected)) std::swap(chosen, rejected);
    const detail::Json row = {{"prompt", prompt}, {"chosen", chosen}, {"rejected", rejected}};
    lines += detail::dump_json(row) + '\n';
  }
  detail::write_file<DataError>(path, lines);
}

}  // namespace prefopt
