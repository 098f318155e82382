// SPDX-License-Identifier: Apache-2.0
#include "data/rendered_row.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstddef>
#include <optional>
#include <string>
#include <string_view>
#include <utility>

#include "core/json.h"
#include "data/chat_template.h"
#include "data/line_error.h"
#include "data/row_columns.h"
#include "data/row_words.h"

namespace prefopt::detail {
namespace {

using Part = RenderedChat::Part;

bool is_of_assistant(const Turn& turn) { return turn.role == "assistant"; }

bool has_field(const Json& fields, std::string_view key) {
  const auto found = fields.find(std::string(key));
  return found != fields.end() && !found->empty();
}

bool reasons(const Turn& turn) {
  return std::any_of(kTemplateReasoningKeys.begin(), kTemplateReasoningKeys.end(),
                     [&](std::string_view key) { return has_field(turn.fields, key); });
}

bool calls(const Turn& turn) {
  return has_field(turn.fields, "tool_calls") || has_field(turn.fields, "function_call");
}

/// A part of a text around a place, for an error.
std::string around(std::string_view text, std::size_t place) {
  constexpr std::size_t kBefore = 30, kAfter = 30;
  const std::size_t begin = place > kBefore ? place - kBefore : 0;
  return shown_text(std::string(text.substr(begin, place - begin + kAfter)));
}

class RenderedRowWriter {
 public:
  RenderedRowWriter(const Conversation& talk, bool continues, const ConversationRules& rules,
                    PreferenceRow row)
      : talk_(talk),
        continues_(continues),
        rules_(rules),
        chat_(*rules.chat_template),
        row_(std::move(row)) {}

  PreferenceRow write() {
    row_.from_messages = true;
    row_.rendered = true;
    row_.end_of_turn = chat_.end_of_turn();
    if (rules_.prompt_alone) {
      write_prompt_alone();
      return std::move(row_);
    }
    write_completion(talk_.chosen, row_.chosen, row_.chosen_parts);
    if (talk_.rejected) write_completion(*talk_.rejected, row_.rejected, row_.rejected_parts);
    if (talk_.gold) write_completion(*talk_.gold, row_.gold, row_.gold_parts);
    return std::move(row_);
  }

 private:
  [[noreturn]] void fail(const std::string& what) const {
    throw LineError(LineDefect::kMalformed, fmt::format("{}: {}", rules_.where, what));
  }

  RenderedChat render(const Turns& turns, bool opens_answer) const {
    return chat_.render(turns, *rules_.template_row, opens_answer, rules_.where);
  }

  /// Returns the turns of the prompt and of a completion, of which the first may be one turn.
  Turns joined(const Turns& completion) const {
    Turns all = talk_.prompt;
    auto first = completion.begin();
    if (continues_) {
      Turn& begun = all.back();
      begun.begun = begun.content.size();
      begun.content += first->content;
      begun.counts = first->counts;
      if (first->content_kind == Turn::ContentKind::kText) begun.content_kind = first->content_kind;
      for (const auto& [key, value] : first->fields.items()) begun.fields[key] = value;
      ++first;
    }
    all.insert(all.end(), first, completion.end());
    return all;
  }

  std::size_t first_turn() const { return talk_.prompt.size() - (continues_ ? 1 : 0); }

  void write_prompt_alone() {
    if (!continues_ && !talk_.prompt.empty()) {
      const RenderedChat chat = render(talk_.prompt, is_of_assistant(talk_.chosen.front()));
      check_written(chat, talk_.prompt);
      return take_prompt(chat, chat.size());
    }
    const Turns all = joined(talk_.chosen);
    const RenderedChat chat = render(all, false);
    check_written(chat, all);
    take_prompt(chat, prompt_end(chat, all));
  }

  /// Returns the place where the prompt ends in the text of the whole conversation.
  std::size_t prompt_end(const RenderedChat& whole, const Turns& all) const {
    if (continues_) return begun_end(whole, all.size());
    if (talk_.prompt.empty()) return whole.begin_of(0).value_or(0);
    const RenderedChat prompt = render(talk_.prompt, is_of_assistant(all[first_turn()]));
    check_begins(prompt.text(), whole.text(), "the prompt");
    return prompt.size();
  }

  void check_begins(std::string_view text, std::string_view whole, std::string_view what) const {
    if (whole.starts_with(text)) return;
    const auto apart = std::mismatch(text.begin(), text.end(), whole.begin(), whole.end());
    const auto place = static_cast<std::size_t>(apart.first - text.begin());
    fail(
        fmt::format("expected a template under which the text of {} begins that of the whole "
                    "conversation, got '{}' and '{}' at byte {}",
                    what, around(text, place), around(whole, place), place));
  }

  /// Returns the place before what continues a begun turn.
  std::size_t begun_end(const RenderedChat& whole, std::size_t turns) const {
    const std::size_t begun = whole.end_of(first_turn()).value_or(0);
    const std::size_t place = whole.begin_of(turns).value_or(begun > 0 ? begun : whole.size());
    if (begun > place) {
      fail(
          "expected a template that writes the begun turn before what continues it, got one that "
          "does not");
    }
    return place;
  }

  void write_completion(const Turns& completion, std::string& text, TextParts& parts) {
    const Turns all = joined(completion);
    const RenderedChat whole = render(all, false);
    check_written(whole, all);
    const std::size_t begin = prompt_end(whole, all);
    take_prompt(whole, begin);
    const std::size_t spoken = std::max(begin, after_turn(whole, all, all.size() - 1));
    ChatTemplate::End end = chat_.end_in(std::string_view(whole.text()).substr(spoken));
    const std::size_t stop = spoken + end.place;
    text = whole.text().substr(begin, stop - begin);
    take_origins(whole, all, begin, stop, parts);
    count_turns(whole, all, begin, stop, parts);
    parts.end = std::move(end.token);
  }

  /// Returns the place after the last byte of a turn; 0 where it has none.
  std::size_t after_turn(const RenderedChat& whole, const Turns& all, std::size_t turn) const {
    const std::size_t end = whole.end_of(turn).value_or(0);
    const bool is_continued = continues_ && turn == first_turn();
    return is_continued ? std::max(end, whole.end_of(all.size()).value_or(0)) : end;
  }

  /// All rows of a prompt are answers to one text.
  void take_prompt(const RenderedChat& chat, std::size_t end) {
    std::string prompt = chat.text().substr(0, end);
    if (has_prompt_ && prompt != row_.prompt) {
      check_begins(row_.prompt, prompt, "the prompt before one completion");
      fail("expected one text of the prompt before all completions, got two");
    }
    if (std::exchange(has_prompt_, true)) return;
    row_.prompt = std::move(prompt);
    take_origins(chat, talk_.prompt, 0, end, row_.prompt_parts);
  }

  void check_written(const RenderedChat& whole, const Turns& all) {
    const TemplateRow& given = *rules_.template_row;
    if (!given.tools.empty() && !whole.holds_tools()) add_remark(row_, RowRemark::kToolCalls);
    for (std::size_t i = 0; i < all.size(); ++i) {
      const Turn& turn = all[i];
      const bool is_continued = continues_ && i == first_turn();
      const bool is_written = whole.holds(i, Part::kContent) ||
                              (is_continued && whole.holds(all.size(), Part::kContent));
      if (!stripped(turn.content).empty() && !is_written) {
        fail(
            fmt::format("expected a template that writes each message, got one that leaves out "
                        "message {}, of the role '{}'",
                        i + 1, turn.role));
      }
      if (calls(turn) && !whole.holds(i, Part::kFields)) add_remark(row_, RowRemark::kToolCalls);
      // Of earlier turns a template leaves it out on purpose.
      if (i >= first_turn() && reasons(turn) && !whole.holds(i, Part::kReasoning)) {
        add_remark(row_, RowRemark::kReasoning);
      }
    }
  }

  /// Notes which bytes of [begin, end) are the row's, in ranges of one turn.
  static void take_origins(const RenderedChat& chat, const Turns& all, std::size_t begin,
                           std::size_t end, TextParts& parts) {
    for (std::size_t i = begin; i < end;) {
      if (!chat.is_given(i)) {
        ++i;
        continue;
      }
      const std::size_t start = i;
      const auto turn = chat.turn_of(i);
      while (i < end && chat.is_given(i) && chat.turn_of(i) == turn) ++i;
      const TextRange range{start - begin, i - begin};
      parts.contents.push_back(range);
      const bool continues = turn && *turn >= all.size();
      if (turn && (continues || is_of_assistant(all[*turn]))) parts.answers.push_back(range);
    }
  }

  // --- What counts

  bool counts(const Turns& all, std::size_t i) const {
    const Turn& turn = all[i];
    return is_of_assistant(turn) && turn.counts &&
           (rules_.loss_on == LossOn::kAssistant || i + 1 == all.size()) &&
           (all.size() == first_turn() + 1 || !stripped(turn.content).empty() || calls(turn));
  }

  void count_turns(const RenderedChat& whole, const Turns& all, std::size_t begin, std::size_t stop,
                   TextParts& parts) const {
    const bool is_of_all = rules_.loss_on == LossOn::kAll;
    const bool all_count = std::all_of(all.begin() + static_cast<std::ptrdiff_t>(first_turn()),
                                       all.end(), [](const Turn& turn) { return turn.counts; });
    if (is_of_all && all_count) return;
    if (!is_of_all && chat_.has_generation()) {
      count_generated(whole, all, begin, stop, parts);
    } else {
      for (std::size_t i = first_turn(); i < all.size(); ++i) {
        if (is_of_all ? !all[i].counts : !counts(all, i)) continue;
        const std::size_t from = std::max(begin, turn_begin(whole, all, i, begin));
        count({from, turn_end(whole, all, i, from, stop)}, begin, parts);
      }
    }
    if (parts.counted.empty()) {
      fail("expected a turn of the assistant that counts in each completion, got one without");
    }
    const TextRange first = parts.counted.front();
    if (parts.counted.size() == 1 && first.begin == 0 && first.end == stop - begin) {
      parts.counted.clear();  // all of it
    }
  }

  static void count(TextRange range, std::size_t begin, TextParts& parts) {
    if (range.begin >= range.end) return;
    const TextRange moved{range.begin - begin, range.end - begin};
    if (!parts.counted.empty() && parts.counted.back().end == moved.begin) {
      parts.counted.back().end = moved.end;
    } else {
      parts.counted.push_back(moved);
    }
  }

  /// Counts what the template's own blocks mark, of turns that count.
  void count_generated(const RenderedChat& whole, const Turns& all, std::size_t begin,
                       std::size_t stop, TextParts& parts) const {
    for (std::size_t i = begin; i < stop;) {
      const std::size_t start = i;
      std::optional<std::size_t> turn;
      while (i < stop && whole.is_generated(i)) {
        if (!turn) turn = whole.turn_of(i);
        ++i;
      }
      if (i == start) {
        ++i;
        continue;
      }
      // The continuation of a begun turn is numbered after all turns.
      const bool continues = turn && *turn >= all.size();
      const std::size_t of = continues ? first_turn() : turn.value_or(all.size() - 1);
      if (counts(all, of)) count({start, i}, begin, parts);
    }
  }

  /// Returns where a turn of a completion begins, after its opening.
  std::size_t turn_begin(const RenderedChat& whole, const Turns& all, std::size_t turn,
                         std::size_t begin) const {
    if (turn == first_turn()) return begin;
    const Turns before(all.begin(), all.begin() + static_cast<std::ptrdiff_t>(turn));
    const RenderedChat opened = render(before, is_of_assistant(all[turn]));
    check_begins(opened.text(), whole.text(), fmt::format("the turns before message {}", turn + 1));
    return opened.size();
  }

  /// Returns where it ends, after the token that ends it.
  std::size_t turn_end(const RenderedChat& whole, const Turns& all, std::size_t turn,
                       std::size_t from, std::size_t stop) const {
    if (turn + 1 == all.size()) return stop;
    const std::size_t spoken = std::max(from, after_turn(whole, all, turn));
    const std::size_t next = whole.begin_of(turn + 1).value_or(stop);
    const std::string& end = chat_.end_of_turn();
    if (!end.empty()) {
      const std::size_t place = whole.text().find(end, spoken);
      if (place != std::string::npos && place < next) return place + end.size();
    }
    const Turns through(all.begin(), all.begin() + static_cast<std::ptrdiff_t>(turn) + 1);
    const RenderedChat text = render(through, false);
    check_begins(text.text(), whole.text(), fmt::format("the turns up to message {}", turn + 1));
    return text.size();
  }

  const Conversation& talk_;
  const bool continues_;
  const ConversationRules& rules_;
  const ChatTemplate& chat_;
  PreferenceRow row_;
  bool has_prompt_ = false;
};

}  // namespace

PreferenceRow rendered_row(const Conversation& talk, bool continues, const ConversationRules& rules,
                           PreferenceRow row) {
  return RenderedRowWriter(talk, continues, rules, std::move(row)).write();
}

}  // namespace prefopt::detail
