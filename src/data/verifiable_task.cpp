// SPDX-License-Identifier: Apache-2.0
#include "prefopt/data/verifiable_task.h"

#include <fmt/format.h>

#include <cstddef>

#include "core/file.h"
#include "core/json.h"
#include "core/text.h"
#include "prefopt/error.h"

namespace prefopt {
namespace {

constexpr int kBase = 10;

char digit_of(int value) { return static_cast<char>('0' + ((value % kBase) + kBase) % kBase); }

/// Returns the numbers of a prompt with their signs.
std::vector<int> terms_of(std::string_view prompt) {
  std::vector<int> terms;
  int sign = 1;
  for (std::size_t i = 0; i + 1 < prompt.size(); ++i) {
    const char c = prompt[i];
    const bool is_sign = i % 2 == 1;
    if (is_sign ? c != '+' && c != '-' : !detail::is_digit(c)) break;
    if (is_sign) {
      sign = c == '+' ? 1 : -1;
    } else {
      terms.push_back(sign * (c - '0'));
    }
  }
  const bool is_whole =
      terms.size() >= 2 && prompt.size() == 2 * terms.size() && prompt.back() == ':';
  if (is_whole) return terms;
  throw DataError(fmt::format("VerifiableTask: expected a prompt such as '7+5-3+4:', got '{}'",
                              detail::shown_text(std::string(prompt))));
}

std::string solution_of(const std::vector<int>& results) {
  std::string text;
  for (std::size_t i = 0; i < results.size(); ++i) {
    text += digit_of(results[i]);
    text += i + 1 == results.size() ? '.' : VerifiableTask::kSeparator.front();
  }
  return text;
}

// Standard distributions differ between libraries; a seed has to give the same file everywhere.
double uniform_share(std::mt19937_64& rng) { return static_cast<double>(rng() >> 11) * 0x1p-53; }

int below(std::mt19937_64& rng, int count) {
  return static_cast<int>(uniform_share(rng) * static_cast<double>(count));
}

void check_count(std::int64_t rows, std::string_view where) {
  if (rows < 1) throw ConfigError(fmt::format("{}: expected at least 1 row, got {}", where, rows));
}

}  // namespace

void VerifiableTaskOptions::fields(FieldVisitor& v) {
  v.integer({"terms", "numbers of a prompt"}, terms, Range::between(2, 100));
  v.real({"error_rate", "probability that a step of a demonstration is wrong"}, error_rate,
         Range::between(0, 1));
  v.integer({"seed", "seed of all that is drawn"}, seed, Range::at_least(0));
}

VerifiableTask::VerifiableTask(VerifiableTaskOptions options)
    : options_(checked(options, "VerifiableTask")),
      rng_(static_cast<std::uint64_t>(options_.seed)) {}

std::string VerifiableTask::sample_prompt() {
  std::string prompt(1, digit_of(below(rng_, kBase)));
  for (std::int64_t i = 1; i < options_.terms; ++i) {
    prompt += below(rng_, 2) == 0 ? '+' : '-';
    prompt += digit_of(below(rng_, kBase));
  }
  return prompt + ':';
}

std::string VerifiableTask::sample_solution(std::string_view prompt) {
  const std::vector<int> terms = terms_of(prompt);
  std::vector<int> results;
  int sum = terms.front();
  for (std::size_t i = 1; i < terms.size(); ++i) {
    sum += terms[i];
    if (uniform_share(rng_) < options_.error_rate) sum += 1 + below(rng_, kBase - 1);
    results.push_back(sum);
  }
  return solution_of(results);
}

std::string VerifiableTask::solve(std::string_view prompt) {
  const std::vector<int> terms = terms_of(prompt);
  std::vector<int> results;
  int sum = terms.front();
  for (std::size_t i = 1; i < terms.size(); ++i) results.push_back(sum += terms[i]);
  return solution_of(results);
}

bool VerifiableTask::is_right(std::string_view prompt, std::string_view solution) {
  const std::string right = solve(prompt);
  if (solution.size() != right.size()) return false;
  for (std::size_t i = 0; i < right.size(); ++i) {
    const bool is_last_digit = i + 2 == right.size();
    const bool fits = detail::is_digit(right[i]) && !is_last_digit ? detail::is_digit(solution[i])
                                                                   : solution[i] == right[i];
    if (!fits) return false;
  }
  return true;
}

void VerifiableTask::write_sft(const std::string& path, std::int64_t rows) {
  check_count(rows, "VerifiableTask::write_sft");
  std::string lines;
  for (std::int64_t i = 0; i < rows; ++i) {
    const std::string prompt = sample_prompt();
    const detail::Json row = {{"prompt", prompt}, {"completion", sample_solution(prompt)}};
    lines += detail::dump_json(row) + '\n';
  }
  detail::write_file<DataError>(path, lines);
}

void VerifiableTask::write_prompts(const std::string& path, std::int64_t rows) {
  check_count(rows, "VerifiableTask::write_prompts");
  std::string lines;
  for (std::int64_t i = 0; i < rows; ++i) {
    lines += detail::dump_json(detail::Json{{"prompt", sample_prompt()}}) + '\n';
  }
  detail::write_file<DataError>(path, lines);
}

}  // namespace prefopt
