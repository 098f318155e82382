// SPDX-License-Identifier: Apache-2.0
#include "online/program_pool.h"

#include <fmt/format.h>

#include <algorithm>
#include <future>
#include <limits>
#include <map>
#include <mutex>
#include <stdexcept>
#include <utility>

#include "evaluation/json_program.h"
#include "prefopt/error.h"

namespace prefopt::detail {
namespace {

/// A line in place of an answer; what came, for messages.
struct BadLine : std::runtime_error {
  using std::runtime_error::runtime_error;
};

/// Throws BadLine.
double read_answer(const std::string& line, const AnswerForm& form) {
  try {
    if (const auto value = form.read(parse_json_or_throw<Json>(line))) return *value;
  } catch (const JsonDefect&) {
    // The line says more than the place of its defect.
  }
  throw BadLine(shown_text(line));
}

}  // namespace

/// Questions of one call, handed out in runs, and their answers.
class ProgramPool::Batch {
 public:
  Batch(const std::vector<std::string>& questions, std::size_t workers, std::int64_t allowed)
      : questions_(questions),
        answers_(questions.size(), std::numeric_limits<double>::quiet_NaN()),
        workers_(workers),
        allowed_(allowed) {}

  /// The next questions, [first, last), at most `most`; less towards the end, so that no worker
  /// has many left when the others have none.
  std::pair<std::size_t, std::size_t> take(std::size_t most) {
    const std::scoped_lock lock(mutex_);
    const std::size_t left = is_over_ ? 0 : questions_.size() - next_;
    const std::size_t share = (left + 2 * workers_ - 1) / (2 * workers_);
    const std::size_t first = next_;
    next_ += std::min(share, most);
    return {first, next_};
  }

  const std::string& question(std::size_t i) const { return questions_[i]; }
  void answer(std::size_t i, double value) { answers_[i] = value; }

  void fail(std::size_t i, const std::string& got) {
    const std::scoped_lock lock(mutex_);
    failures_[i] = got;
    if (failure_count() > allowed_) is_over_ = true;
  }
  void stop() {
    const std::scoped_lock lock(mutex_);
    is_over_ = true;
  }
  bool is_over() const {
    const std::scoped_lock lock(mutex_);
    return is_over_;
  }

  std::int64_t failure_count() const { return std::ssize(failures_); }
  /// The text in place of the answer to the last of the failed questions.
  const std::string& last_failure() const { return failures_.rbegin()->second; }
  std::vector<double> take_answers() { return std::move(answers_); }

 private:
  const std::vector<std::string>& questions_;
  std::vector<double> answers_;
  const std::size_t workers_;
  const std::int64_t allowed_;
  mutable std::mutex mutex_;
  std::size_t next_ = 0;
  bool is_over_ = false;
  std::map<std::size_t, std::string> failures_;
};

/// A process and how far ahead of its answers it is asked. That grows from 1, so that a program
/// which gives two lines to a question is noticed before a second line passes for an answer.
class ProgramPool::Worker {
 public:
  Worker(const JudgeProgram& program, const AnswerForm& form, std::int64_t retries)
      : program_(program, form.kind), form_(form), retries_(retries) {}

  std::string where() const { return program_.where(); }

  void serve(Batch& batch) {
    try {
      for (;;) {
        const auto [first, last] = batch.take(ahead_);
        if (first == last) return;
        answer(batch, first, last);
      }
    } catch (...) {
      batch.stop();
      throw;
    }
  }

 private:
  /// Asks [first, last) until each question has its answer or has failed.
  void answer(Batch& batch, std::size_t first, std::size_t last) {
    std::int64_t tries = 0;  // of the question `first`
    while (first < last && !batch.is_over()) {
      const std::size_t before = first;
      try {
        answer_some(batch, first, std::min(last, first + ahead_));
        tries = 0;
      } catch (const BadLine& line) {
        batch.fail(first++, line.what());
        tries = 0;
        restart();
      } catch (const ProcessFailure& failure) {
        if (first > before) tries = 0;
        if (++tries > retries_) {
          batch.fail(first++, failure.what());
          tries = 0;
        }
        restart();
      }
    }
  }

  /// Moves `first` up to the question that was not answered.
  void answer_some(Batch& batch, std::size_t& first, std::size_t last) {
    expect_no_more();
    for (std::size_t i = first; i < last; ++i) program_.send(batch.question(i));
    for (; first < last; ++first) {
      if (batch.is_over()) return restart();  // leaves questions without waiting for answers
      const std::string line = program_.receive();
      const double value = read_answer(line, form_);
      batch.answer(first, value);
      if (std::isnan(value)) batch.fail(first, shown_text(line));
    }
    expect_no_more();
    ahead_ = std::min(2 * ahead_, kMostAhead);
  }

  void expect_no_more() {
    try {
      program_.expect_no_more();
    } catch (const ProcessFailure& failure) {
      restart();
      throw DataError(fmt::format("{}: expected an answer, got {}", where(), failure.what()));
    }
  }

  void restart() {
    ahead_ = 1;
    program_.restart();
  }

  JsonProgram program_;
  AnswerForm form_;
  std::int64_t retries_;
  std::size_t ahead_ = 1;
};

ProgramPool::ProgramPool(const PoolOptions& options, const AnswerForm& form)
    : form_(form), retries_(options.retries), max_failures_(options.max_failures) {
  for (std::int64_t i = 0; i < options.workers; ++i) {
    workers_.push_back(std::make_unique<Worker>(options.program, form_, retries_));
  }
}

ProgramPool::~ProgramPool() = default;

std::vector<double> ProgramPool::ask(const std::vector<std::string>& questions) {
  Batch batch(questions, workers_.size(), max_failures_ - failures_);
  {
    std::vector<std::future<void>> others;
    for (std::size_t i = 1; i < std::min(workers_.size(), questions.size()); ++i) {
      others.push_back(std::async(std::launch::async, [&, i] { workers_[i]->serve(batch); }));
    }
    workers_.front()->serve(batch);
    for (auto& other : others) other.get();
  }
  failures_ += batch.failure_count();
  if (batch.failure_count() > 0 && failures_ > max_failures_) {
    throw DataError(fmt::format("{}: expected {}, got {}; failure {} where max_failures is {}",
                                workers_.front()->where(), form_.expected, batch.last_failure(),
                                failures_, max_failures_));
  }
  return batch.take_answers();
}

}  // namespace prefopt::detail
