// SPDX-License-Identifier: Apache-2.0
#include "dist/meeting.h"

#include <algorithm>

#include "prefopt/error.h"

namespace prefopt::detail {
namespace {

// The first byte of a message.
constexpr char kWell = '+';
constexpr char kTrouble = '!';

bool has_trouble(const std::string& message) { return message.front() == kTrouble; }

/// The error of another rank that this one has thrown last: all know it, whatever Meeting it came
/// by.
thread_local std::exception_ptr t_known;

/// `own`: the error that the message of this rank has; null: none.
void throw_trouble_in(const std::vector<std::string>& messages, const std::exception_ptr& own) {
  std::vector<std::string> troubles;
  for (const std::string& message : messages) {
    troubles.push_back(has_trouble(message) ? message.substr(1) : "");
  }
  try {
    throw_trouble(troubles, own);
  } catch (...) {
    t_known = std::current_exception();
    throw;
  }
}

bool is_of_lost_rank(const std::exception_ptr& error) {
  try {
    std::rethrow_exception(error);
  } catch (const LostRankError&) {
    return true;
  } catch (...) {
    return false;
  }
}

}  // namespace

std::vector<std::string> Meeting::texts(const std::string& own) {
  if (size() == 1) return {own};
  std::vector<std::string> texts = exchange(kWell + own);
  throw_trouble_in(texts, nullptr);
  for (std::string& text : texts) text.erase(0, 1);
  return texts;
}

bool Meeting::all(bool is_true) {
  const std::vector<std::string> answers = texts(is_true ? "" : "no");
  return std::all_of(answers.begin(), answers.end(),
                     [](const std::string& answer) { return answer.empty(); });
}

void Meeting::on_first(const std::function<void()>& work) {
  if (is_first()) work();
  wait();
}

std::string Meeting::from_first(const std::function<std::string()>& work) {
  return texts(is_first() ? work() : std::string()).front();
}

std::exception_ptr Meeting::settle(const std::exception_ptr& own) {
  if (size() == 1 || is_settled_ || is_broken_ || own == t_known) return own;
  is_settled_ = true;
  is_broken_ = is_of_lost_rank(own);
  if (is_broken_) return own;
  try {
    const std::vector<std::string> messages = exchange(kTrouble + trouble_text(own));
    const auto first = std::find_if(messages.begin(), messages.end(), has_trouble);
    if (first - messages.begin() != rank()) throw_trouble_in(messages, own);
  } catch (...) {
    // Of two reasons to end, the first one says more than that others have ended too.
    if (!is_broken_) return std::current_exception();
  }
  return own;
}

std::vector<std::string> Meeting::exchange(const std::string& own) {
  try {
    return ranks_->gather_text(own);
  } catch (const LostRankError&) {
    is_broken_ = true;
    throw;
  }
}

Portion portion_of(std::int64_t count, const Ranks& ranks) {
  return {count * ranks.rank() / ranks.size(), count * (ranks.rank() + 1) / ranks.size()};
}

}  // namespace prefopt::detail
