// SPDX-License-Identifier: Apache-2.0
#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <future>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <utility>

#include "core/json.h"
#include "core/subprocess.h"
#include "prefopt/error.h"
#include "prefopt/online/environment.h"

namespace prefopt {
namespace {

using detail::Json;
using detail::LineProcess;
using detail::ProcessFailure;

constexpr std::string_view kStartForm = R"({"observation": text})";
constexpr std::string_view kStepForm =
    R"({"observation": text, "reward": number, "done": true or false})";
constexpr std::string_view kEndForm = "an object";

/// A question about an episode, and its answer.
struct Exchange {
  std::int64_t episode = 0;  ///< its number
  std::string question;
  std::string_view form;  ///< of the answer, for messages
  std::string answer = {};
};

/// A process and the episodes that it has.
class EnvironmentWorker {
 public:
  EnvironmentWorker(const EnvironmentProgram& program, std::string where)
      : program_(program),
        where_(std::move(where)),
        limit_(std::chrono::ceil<std::chrono::milliseconds>(
            std::chrono::duration<double>(program.timeout))) {
    try {
      start();
    } catch (const ProcessFailure& failure) {
      throw ConfigError(
          fmt::format("{}: expected a program that starts, got {}", where_, failure.what()));
    }
  }

  /// Forgets episodes that a failure left open.
  void clear() {
    if (open_.empty()) return;
    open_.clear();
    process_.reset();
  }

  /// Asks questions of different episodes and fills in their answers.
  void ask(const std::vector<Exchange*>& exchanges) {
    if (process_) expect_no_more(*exchanges.front());
    std::size_t next = 0;
    for (std::int64_t tries = 0; next < exchanges.size();) {
      const std::size_t before = next;
      try {
        if (!process_) revive();
        for (std::size_t i = next; i < exchanges.size(); ++i) {
          process_->send(exchanges[i]->question);
        }
        for (; next < exchanges.size(); ++next) {
          exchanges[next]->answer = process_->receive(limit_);
          auto& history = open_[exchanges[next]->episode];
          if (program_.retries > 0) history.push_back(*exchanges[next]);
        }
      } catch (const ProcessFailure& failure) {
        process_.reset();
        tries = next > before ? 1 : tries + 1;
        if (tries > program_.retries) refuse(*exchanges[next], failure.what());
      }
    }
    expect_no_more(*exchanges.back());
  }

  void forget(std::int64_t episode) { open_.erase(episode); }

 private:
  void start() { process_ = std::make_unique<LineProcess>(program_.command); }

  void expect_no_more(const Exchange& nearest) {
    try {
      process_->expect_no_more();
    } catch (const ProcessFailure& failure) {
      process_.reset();
      refuse(nearest, failure.what());
    }
  }

  [[noreturn]] void refuse(const Exchange& of, std::string_view got) const {
    throw DataError(fmt::format("{}: expected {}, got {}; the question was {}", where_, of.form,
                                got, detail::shown_text(of.question)));
  }

  /// Starts it again and brings its open episodes to where they were.
  void revive() {
    start();
    for (const auto& [episode, exchanges] : open_) {
      for (const Exchange& before : exchanges) {
        const std::string answer = process_->ask(before.question, limit_);
        if (answer == before.answer) continue;
        throw DataError(fmt::format(
            "{}: expected the same answer after a new start, {}, got {}; the question was {}",
            where_, detail::shown_text(before.answer), detail::shown_text(answer),
            detail::shown_text(before.question)));
      }
    }
  }

  EnvironmentProgram program_;
  std::string where_;
  std::chrono::milliseconds limit_;
  std::unique_ptr<LineProcess> process_;
  /// By the number of the episode, what it was asked, if that may be needed again.
  std::map<std::int64_t, std::vector<Exchange>> open_;
};

class ProgramEnvironments final : public Environments {
 public:
  explicit ProgramEnvironments(const EnvironmentProgram& program)
      : where_(fmt::format("environment '{}'", fmt::join(program.command, " "))) {
    check(program);
    for (std::int64_t i = 0; i < program.workers; ++i) {
      workers_.push_back(std::make_unique<EnvironmentWorker>(program, where_));
    }
  }

  std::vector<std::string> start(const std::vector<Episode>& episodes) override {
    for (auto& worker : workers_) worker->clear();
    base_ = next_number_;
    next_number_ += std::ssize(episodes);
    std::vector<Exchange> exchanges;
    for (std::size_t i = 0; i < episodes.size(); ++i) {
      const Episode& of = episodes[i];
      const std::int64_t number = base_ + static_cast<std::int64_t>(i);
      exchanges.push_back(exchange(
          number,
          {{"episode", number}, {"prompt", of.prompt}, {"seed", of.seed}, {"index", of.index}},
          kStartForm));
    }
    std::vector<std::string> observations;
    for (const Json& answer : ask(exchanges)) {
      const Exchange& of = exchanges[observations.size()];
      observations.push_back(text(answer, of));
    }
    return observations;
  }

  std::vector<EnvironmentStep> step(const std::vector<EpisodeAction>& actions) override {
    std::vector<Exchange> exchanges;
    for (const EpisodeAction& action : actions) {
      const std::int64_t number = base_ + action.episode;
      exchanges.push_back(
          exchange(number, {{"episode", number}, {"action", action.text}}, kStepForm));
    }
    std::vector<EnvironmentStep> steps;
    for (const Json& answer : ask(exchanges)) {
      const Exchange& of = exchanges[steps.size()];
      const bool is_step = answer.contains("reward") && answer["reward"].is_number() &&
                           answer.contains("done") && answer["done"].is_boolean() &&
                           std::isfinite(answer["reward"].get<double>());
      if (!is_step) refuse(of);
      steps.push_back({.observation = text(answer, of),
                       .reward = answer["reward"].get<double>(),
                       .done = answer["done"].get<bool>()});
      if (steps.back().done) worker(of.episode).forget(of.episode);
    }
    return steps;
  }

  void end(const std::vector<std::int64_t>& episodes) override {
    std::vector<Exchange> exchanges;
    for (const std::int64_t episode : episodes) {
      const std::int64_t number = base_ + episode;
      exchanges.push_back(exchange(number, {{"episode", number}, {"end", true}}, kEndForm));
    }
    ask(exchanges);
    for (const Exchange& of : exchanges) worker(of.episode).forget(of.episode);
  }

 private:
  void check(const EnvironmentProgram& program) const {
    constexpr double kDay = 86400;
    constexpr std::int64_t kMostWorkers = 32;
    if (program.command.empty()) {
      throw ConfigError("environment: expected a program, got none");
    }
    if (program.workers < 1 || program.workers > kMostWorkers) {
      throw ConfigError(fmt::format("{}: expected workers in [1, {}], got {}", where_, kMostWorkers,
                                    program.workers));
    }
    if (!(program.timeout > 0 && program.timeout <= kDay)) {
      throw ConfigError(fmt::format("{}: expected a timeout above 0 and up to {} s, got {}", where_,
                                    kDay, program.timeout));
    }
    if (program.retries < 0) {
      throw ConfigError(
          fmt::format("{}: expected retries of at least 0, got {}", where_, program.retries));
    }
  }

  static Exchange exchange(std::int64_t number, const Json& question, std::string_view form) {
    return {.episode = number, .question = detail::dump_json(question), .form = form};
  }

  EnvironmentWorker& worker(std::int64_t number) {
    return *workers_[static_cast<std::size_t>((number - base_) % std::ssize(workers_))];
  }

  /// Returns the answers, objects, in the order of the questions. Workers are asked side by side.
  std::vector<Json> ask(std::vector<Exchange>& exchanges) {
    std::map<EnvironmentWorker*, std::vector<Exchange*>> shares;
    for (Exchange& of : exchanges) shares[&worker(of.episode)].push_back(&of);
    std::vector<std::future<void>> others;
    for (auto& [asked, share] : shares) {
      others.push_back(
          std::async(std::launch::async, [asked = asked, share = &share] { asked->ask(*share); }));
    }
    for (auto& other : others) other.wait();
    for (auto& other : others) other.get();
    std::vector<Json> answers;
    for (const Exchange& of : exchanges) answers.push_back(read(of));
    return answers;
  }

  Json read(const Exchange& of) const {
    try {
      Json answer = detail::parse_json_or_throw<Json>(of.answer);
      const auto episode = answer.find("episode");
      if (answer.is_object() && (episode == answer.end() || *episode == of.episode)) return answer;
    } catch (const detail::JsonDefect&) {
      // The line says more than the place of its defect.
    }
    refuse(of);
  }

  std::string text(const Json& answer, const Exchange& of) const {
    const auto found = answer.find("observation");
    if (found == answer.end() || !found->is_string()) refuse(of);
    return found->get<std::string>();
  }

  [[noreturn]] void refuse(const Exchange& of) const {
    throw DataError(fmt::format("{}: expected {}, got {}; the question was {}", where_, of.form,
                                detail::shown_text(of.answer), detail::shown_text(of.question)));
  }

  std::string where_;
  std::vector<std::unique_ptr<EnvironmentWorker>> workers_;
  std::int64_t base_ = 0;         ///< number of the episode at place 0
  std::int64_t next_number_ = 0;  ///< that no episode has had
};

}  // namespace

std::unique_ptr<Environments> make_program_environments(const EnvironmentProgram& program) {
  return std::make_unique<ProgramEnvironments>(program);
}

}  // namespace prefopt
