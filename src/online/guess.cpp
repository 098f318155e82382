// SPDX-License-Identifier: Apache-2.0
#include "prefopt/online/guess.h"

#include <fmt/format.h>

#include <charconv>
#include <optional>
#include <string>
#include <string_view>

#include "core/random.h"
#include "core/text.h"
#include "prefopt/error.h"

namespace prefopt {
namespace {

using detail::is_digit;

/// FNV-1a of 64 bits.
std::uint64_t hash_of_text(std::string_view text) {
  std::uint64_t hash = 0xcbf29ce484222325U;
  for (const char byte : text) {
    hash ^= static_cast<unsigned char>(byte);
    hash *= 0x100000001b3U;
  }
  return hash;
}

/// Returns the first run of digits, with a minus directly before it; nothing without one, or for a
/// number of more than 9 digits.
std::optional<std::int64_t> first_number(std::string_view text) {
  constexpr std::size_t kMostDigits = 9;
  std::size_t begin = 0;
  while (begin < text.size() && !is_digit(text[begin])) ++begin;
  std::size_t end = begin;
  while (end < text.size() && is_digit(text[end])) ++end;
  if (begin == end || end - begin > kMostDigits) return std::nullopt;
  if (begin > 0 && text[begin - 1] == '-') --begin;
  std::int64_t value = 0;
  std::from_chars(text.data() + begin, text.data() + end, value);
  return value;
}

class GuessEnvironment final : public Environment {
 public:
  GuessEnvironment(const GuessOptions& options, const Episode& episode)
      : options_(options), hidden_(hidden_number(options, episode)) {}

  std::string start() override {
    return fmt::format(
        "\nI have a number from {} to {} in mind. Which one is it? Answer with a number alone.\n",
        options_.low, options_.high);
  }

  EnvironmentStep step(const std::string& action) override {
    const auto guess = first_number(action);
    if (!guess || *guess < options_.low || *guess > options_.high) {
      return {.observation = fmt::format("\nAnswer with a number from {} to {} alone.\n",
                                         options_.low, options_.high),
              .reward = -options_.cost};
    }
    if (*guess == hidden_) return {.observation = "\nThat is it.\n", .reward = 1, .done = true};
    return {.observation = hidden_ > *guess ? "\nIt is higher.\n" : "\nIt is lower.\n",
            .reward = -options_.cost};
  }

 private:
  GuessOptions options_;
  std::int64_t hidden_;
};

}  // namespace

void GuessOptions::fields(FieldVisitor& v) {
  constexpr double kMost = 999999999;
  v.integer({"low", "Least number"}, low, Range::between(-kMost, kMost));
  v.integer({"high", "Largest number"}, high, Range::between(-kMost, kMost));
  v.real({"cost", "Subtracted for each action that is not the right number"}, cost,
         Range::at_least(0));
}

std::int64_t hidden_number(const GuessOptions& options, const Episode& episode) {
  const auto seed = static_cast<std::uint64_t>(episode.seed);
  const auto count = static_cast<std::uint64_t>(options.high - options.low + 1);
  return options.low +
         static_cast<std::int64_t>(splitmix64(seed ^ hash_of_text(episode.prompt)) % count);
}

EnvironmentFactory make_guess_factory(const GuessOptions& given) {
  const GuessOptions options = checked(given, "guess");
  if (options.high < options.low) {
    throw ConfigError(
        fmt::format("guess: expected high of at least low, {}, got {}", options.low, options.high));
  }
  return [options](const Episode& episode) {
    return std::make_unique<GuessEnvironment>(options, episode);
  };
}

}  // namespace prefopt
