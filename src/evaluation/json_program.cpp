// SPDX-License-Identifier: Apache-2.0
#include "evaluation/json_program.h"

#include <fmt/format.h>

#include <utility>

#include "prefopt/error.h"

namespace prefopt::detail {
namespace {

std::chrono::milliseconds checked_limit(double timeout, const std::string& where) {
  constexpr double kDay = 86400;
  if (!(timeout > 0 && timeout <= kDay)) {
    throw ConfigError(
        fmt::format("{}: expected a timeout above 0 and up to {} s, got {}", where, kDay, timeout));
  }
  return std::chrono::ceil<std::chrono::milliseconds>(std::chrono::duration<double>(timeout));
}

}  // namespace

JsonProgram::JsonProgram(JudgeProgram program, std::string_view kind)
    : program_(std::move(program)), kind_(kind), limit_(checked_limit(program_.timeout, where())) {
  if (program_.command.empty()) {
    throw ConfigError(fmt::format("{}: expected a program, got none", where()));
  }
  restart();
}

Json JsonProgram::ask(const Json& question) {
  try {
    return parse_json<DataError>(process_->ask(dump_json(question), limit_), where());
  } catch (const ProcessFailure& failure) {
    throw DataError(fmt::format("{}: expected an answer, got {}", where(), failure.what()));
  }
}

void JsonProgram::refuse(std::string_view expected, const Json& answer) const {
  constexpr std::size_t kMaxShown = 80;
  std::string shown = dump_json(answer);
  if (shown.size() > kMaxShown) shown = shown.substr(0, kMaxShown) + "…";
  throw DataError(fmt::format("{}: expected {}, got {}", where(), expected, shown));
}

void JsonProgram::restart() {
  process_.reset();  // the former one has ended before the next one starts
  try {
    process_ = std::make_unique<LineProcess>(program_.command);
  } catch (const ProcessFailure& failure) {
    throw ConfigError(
        fmt::format("{}: expected a program that starts, got {}", where(), failure.what()));
  }
}

std::string JsonProgram::where() const {
  const bool has_name = !program_.name.empty() || program_.command.empty();
  return fmt::format("{} '{}'", kind_, has_name ? program_.name : program_.command.front());
}

}  // namespace prefopt::detail
