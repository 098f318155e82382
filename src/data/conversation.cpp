// SPDX-License-Identifier: Apache-2.0
#include "data/conversation.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstddef>
#include <optional>
#include <string>
#include <utility>

#include "data/line_error.h"
#include "data/rendered_row.h"
#include "data/row_words.h"

namespace prefopt::detail {
namespace {

/// Outer white space makes no other message.
bool is_same(const Turn& a, const Turn& b) {
  return a.role == b.role && stripped(a.content) == stripped(b.content) && a.fields == b.fields;
}

bool is_answer(const Message& message) { return message.role == "assistant"; }

/// Writes one text and keeps account of whose bytes are whose.
class PartsWriter {
 public:
  explicit PartsWriter(const ChatWriter& chat) : chat_(chat) {}

  void write(std::string_view text) { text_ += text; }
  std::size_t size() const { return text_.size(); }
  bool counts_some() const { return !parts_.counted.empty(); }

  /// Writes the content and the end of the turn, without the text between turns.
  void write_turn(const Message& message, bool counts) {
    const std::size_t begin = text_.size();
    text_ += chat_.before_content(message);
    write_content(chat_.content(message), is_answer(message));
    text_ += chat_.end_of_turn();
    if (counts) count_from(begin);
  }

  void write_opened_turn(const Message& message) {
    write(chat_.opening_of(message.role));
    write_turn(message, false);
    write(chat_.between_turns());
  }

  /// Writes a turn that the completions continue.
  void write_begun_turn(const Message& message) {
    write(chat_.opening_of(message.role));
    const std::string_view content = chat_.begun_content(message);
    if (!content.empty()) write(chat_.before_content(message));
    write_content(content, is_answer(message));
  }

  /// Writes what continues it, up to the end of the turn.
  void write_continuation(const Message& begun, const Message& message, bool counts) {
    const std::size_t begin = text_.size();
    if (chat_.begun_content(begun).empty()) write(chat_.before_content(message));
    write_content(chat_.continued_content(begun, message), is_answer(message));
    text_ += chat_.end_of_turn();
    if (counts) count_from(begin);
  }

  /// Makes the text from there on count.
  void count_from(std::size_t begin) {
    auto& counted = parts_.counted;
    if (!counted.empty() && counted.back().end == begin) {
      counted.back().end = text_.size();
    } else {
      counted.push_back({begin, text_.size()});
    }
  }

  void take(std::string& text, TextParts& parts) {
    // All of the text counts where no range says otherwise.
    const bool is_whole = parts_.counted.size() == 1 && parts_.counted[0].begin == 0 &&
                          parts_.counted[0].end == text_.size();
    if (is_whole) parts_.counted.clear();
    text = std::move(text_);
    parts = std::move(parts_);
  }

 private:
  void write_content(std::string_view content, bool is_of_assistant) {
    if (content.empty()) return;
    const TextRange range{text_.size(), text_.size() + content.size()};
    text_ += content;
    parts_.contents.push_back(range);
    if (is_of_assistant) parts_.answers.push_back(range);
  }

  const ChatWriter& chat_;
  std::string text_;
  TextParts parts_;
};

/// Turns the messages of a row into its texts.
class RowWriter {
 public:
  explicit RowWriter(const ConversationRules& rules) : rules_(rules), chat_(rules.chat) {}

  PreferenceRow row(Conversation talk) {
    note_system(talk.prompt);
    for (Turns* completion : completions_of(talk)) note_system(*completion);
    const bool has_prompt = !talk.prompt.empty();
    if (has_prompt) take_repeats(talk);
    for (Turns* completion : completions_of(talk)) leave_out_end(*completion);
    if (!has_prompt) share_beginning(talk);
    check_question(talk.prompt);
    note_questions(talk);
    continues_ = has_prompt && continues(talk);
    if (continues_) take_beginning(talk);
    return write(talk);
  }

  PreferenceRow whole(Turns messages) {
    note_system(messages);
    leave_out_end(messages);
    if (!is_rendered()) chat_.check_system(messages, rules_.where);
    row_.has_rejected = false;
    const Conversation talk = split(std::move(messages));
    check_question(talk.prompt);
    if (rules_.loss_on != LossOn::kAll || is_rendered()) return write(talk);

    row_.end_of_turn = chat_.end_of_turn();
    row_.from_messages = true;
    const Turns& all = talk.chosen;
    const std::string opening = chat_.opening(all.front()) + chat_.opening_of(all.front().role);
    PartsWriter text(chat_);
    // Nothing predicts a text's first token, so the opening is the prompt where it has some.
    if (row_.end_of_turn.empty()) {
      text.write(opening);
    } else {
      row_.prompt = opening;
    }
    write_turns(all, text);
    text.take(row_.chosen, row_.chosen_parts);
    return std::move(row_);
  }

 private:
  static std::vector<Turns*> completions_of(Conversation& talk) {
    std::vector<Turns*> all{&talk.chosen};
    if (talk.rejected) all.push_back(&*talk.rejected);
    if (talk.gold) all.push_back(&*talk.gold);
    return all;
  }

  [[noreturn]] void fail(std::string_view expected, std::string_view got) const {
    throw LineError(LineDefect::kMalformed,
                    fmt::format("{}: expected {}, got {}", rules_.where, expected, got));
  }

  bool is_rendered() const { return rules_.chat_template != nullptr; }

  void note_system(const Turns& messages) {
    if (is_rendered()) return;
    const auto is_system = [](const Message& message) { return message.role == "system"; };
    if (!chat_.has_system_turn() && std::any_of(messages.begin(), messages.end(), is_system)) {
      add_remark(row_, RowRemark::kSystemTurn);
    }
  }

  /// The end of a conversation that no answer follows trains nothing.
  void leave_out_end(Turns& messages) {
    if (is_answer(messages.back())) return;
    add_remark(row_, RowRemark::kEndsWithUser);
    if (rules_.loss_on == LossOn::kAll) return;
    while (!messages.empty() && !is_answer(messages.back())) messages.pop_back();
    if (messages.empty()) fail("a turn of the assistant in each completion", "one without");
  }

  /// Returns how many messages of `completion` the end of `prompt` has already.
  static std::size_t repeated(const Turns& prompt, const Turns& completion) {
    for (std::size_t count = std::min(prompt.size(), completion.size()); count > 0; --count) {
      const auto tail = prompt.end() - static_cast<std::ptrdiff_t>(count);
      if (std::equal(tail, prompt.end(), completion.begin(), is_same)) return count;
    }
    return 0;
  }

  /// A model that is asked nothing has nothing to answer.
  void check_question(const Turns& prompt) const {
    if (prompt.empty() || prompt.back().role != "user") return;
    if (stripped(prompt.back().content).empty()) {
      fail("a prompt whose last turn has a text", "an empty turn of the user");
    }
  }

  /// Counts the messages of `completion` before all of `prompt`; none if it lacks that.
  static std::optional<std::size_t> before_prompt(const Turns& prompt, const Turns& completion) {
    const auto place =
        std::search(completion.begin(), completion.end(), prompt.begin(), prompt.end(), is_same);
    if (place == completion.end()) return std::nullopt;
    return static_cast<std::size_t>(place - completion.begin());
  }

  /// Returns whether a completion begins with what only a prompt can hold at this place.
  static bool begins_before(const Turns& prompt, const Turns& completion) {
    const std::string& role = completion.front().role;
    return role == "system" || (role == "user" && prompt.back().role == "user");
  }

  /// A system message or earlier turns that the completions alone have belong before the prompt
  /// that they repeat. Completions that begin with their answer have no say in it.
  void complete_prompt(Conversation& talk) {
    const Turns* fullest = nullptr;
    std::size_t before = 0;
    for (const Turns* completion : completions_of(talk)) {
      if (!begins_before(talk.prompt, *completion)) continue;
      const auto place = before_prompt(talk.prompt, *completion);
      if (!place) return;
      if (fullest == nullptr) {
        fullest = completion;
        before = *place;
        continue;
      }
      const auto end = completion->begin() + static_cast<std::ptrdiff_t>(*place);
      if (*place != before || !std::equal(completion->begin(), end, fullest->begin(), is_same)) {
        return;
      }
    }
    if (before == 0) return;
    talk.prompt.insert(talk.prompt.begin(), fullest->begin(),
                       fullest->begin() + static_cast<std::ptrdiff_t>(before));
  }

  void take_repeats(Conversation& talk) {
    if (rules_.removes_repeats) complete_prompt(talk);
    for (Turns* completion : completions_of(talk)) {
      const std::size_t known = repeated(talk.prompt, *completion);
      const bool holds_prompt = begins_before(talk.prompt, *completion) &&
                                before_prompt(talk.prompt, *completion).has_value();
      if (known > 0 || (holds_prompt && !rules_.removes_repeats)) {
        add_remark(row_, RowRemark::kRepeatedPrompt);
        if (!rules_.removes_repeats) continue;
        if (known == completion->size()) fail("a completion beyond the prompt", "the prompt alone");
        completion->erase(completion->begin(),
                          completion->begin() + static_cast<std::ptrdiff_t>(known));
      }
      if (!begins_before(talk.prompt, *completion)) continue;
      fail("completions that follow their prompt",
           completion->front().role == "system" ? "one that begins with a system turn"
                                                : "one that begins with another turn of the user");
    }
  }

  /// Returns whether the completions continue the turn that the prompt ends with.
  bool continues(Conversation& talk) const {
    if (!is_answer(talk.prompt.back())) return false;
    const auto completions = completions_of(talk);
    const auto answers =
        std::count_if(completions.begin(), completions.end(),
                      [](const Turns* completion) { return is_answer(completion->front()); });
    if (answers != 0 && answers != std::ssize(completions)) {
      fail("completions that begin with one role after a turn of the assistant", "two roles");
    }
    return answers != 0;
  }

  /// A turn that is continued may be in the completions from its beginning again.
  void take_beginning(Conversation& talk) {
    const std::string& begun = talk.prompt.back().content;
    const auto completions = completions_of(talk);
    const auto repeats = [&](const Turns* completion) {
      return after_prompt(completion->front().content, begun).has_value();
    };
    const bool all = std::all_of(completions.begin(), completions.end(), repeats);
    if (!all && !(repeats(&talk.chosen) && is_telling(begun))) return;
    add_remark(row_, RowRemark::kRepeatedPrompt);
    if (!rules_.removes_repeats) return;
    for (Turns* completion : completions) {
      std::string& content = completion->front().content;
      if (const auto rest = after_prompt(content, begun)) content = std::string(*rest);
    }
  }

  /// Completions that begin with turns of others answer those.
  void note_questions(Conversation& talk) {
    const auto asked = [](const Turns& completion) {
      return std::find_if(completion.begin(), completion.end(), is_answer);
    };
    const Turns& chosen = talk.chosen;
    for (const Turns* completion : completions_of(talk)) {
      if (!std::equal(chosen.begin(), asked(chosen), completion->begin(), asked(*completion),
                      is_same)) {
        add_remark(row_, RowRemark::kDifferentPrompts);
      }
    }
  }

  static void share_beginning(Conversation& talk) {
    if (!talk.rejected) return;
    Turns& chosen = talk.chosen;
    Turns& rejected = *talk.rejected;
    // One message at least is left to complete with.
    const auto limit = static_cast<std::ptrdiff_t>(std::min(chosen.size(), rejected.size())) - 1;
    const auto apart =
        std::mismatch(chosen.begin(), chosen.begin() + limit, rejected.begin(), is_same);
    talk.prompt.assign(chosen.begin(), apart.first);
    chosen.erase(chosen.begin(), apart.first);
    rejected.erase(rejected.begin(), apart.second);
  }

  Conversation split(Turns messages) const {
    if (rules_.loss_on == LossOn::kAll) return {.prompt = {}, .chosen = std::move(messages)};
    const auto first =
        rules_.loss_on == LossOn::kLast
            ? messages.end() - 1
            : std::find_if(messages.begin(), messages.end(), [](const Message& message) {
                return is_answer(message) && message.counts;
              });
    if (first == messages.end()) fail(kCounting, "one without");
    return {.prompt = Turns(messages.begin(), first), .chosen = Turns(first, messages.end())};
  }

  PreferenceRow write(const Conversation& talk) {
    if (is_rendered()) return rendered_row(talk, continues_, rules_, std::move(row_));
    row_.end_of_turn = chat_.end_of_turn();
    row_.from_messages = true;
    // Completions that continue the person's turn differ from there on. Without a prompt, though,
    // nothing else would predict their first token, where the format has tokens to begin with.
    const std::string& role = talk.chosen.front().role;
    const auto begins_alike = [&](const std::optional<Turns>& completion) {
      return !completion || completion->front().role == role;
    };
    const bool may_open =
        is_answer(talk.chosen.front()) || (talk.prompt.empty() && !row_.end_of_turn.empty());
    opens_ = !continues_ && may_open && begins_alike(talk.rejected) && begins_alike(talk.gold);
    PartsWriter prompt(chat_);
    if (!talk.prompt.empty() || opens_) {
      prompt.write(chat_.opening(talk.prompt.empty() ? talk.chosen.front() : talk.prompt.front()));
    }
    for (const Message& message : talk.prompt) {
      if (continues_ && &message == &talk.prompt.back()) {
        prompt.write_begun_turn(message);
      } else {
        prompt.write_opened_turn(message);
      }
    }
    if (opens_) prompt.write(chat_.opening_of(role));
    prompt.take(row_.prompt, row_.prompt_parts);

    write_completion(talk.prompt, talk.chosen, row_.chosen, row_.chosen_parts);
    if (talk.rejected) {
      write_completion(talk.prompt, *talk.rejected, row_.rejected, row_.rejected_parts);
    }
    if (talk.gold) write_completion(talk.prompt, *talk.gold, row_.gold, row_.gold_parts);
    return std::move(row_);
  }

  void write_completion(const Turns& prompt, const Turns& messages, std::string& text,
                        TextParts& parts) const {
    Turns all = prompt;
    all.insert(all.end(), messages.begin(), messages.end());
    chat_.check_system(all, rules_.where);
    PartsWriter writer(chat_);
    if (prompt.empty() && !opens_) writer.write(chat_.opening(messages.front()));
    if (!opens_ && !continues_) writer.write(chat_.opening_of(messages.front().role));
    write_turns(messages, writer, continues_ ? &prompt.back() : nullptr);
    writer.take(text, parts);
  }

  /// Returns whether a turn counts apart from others. An empty one would only teach to end at once.
  bool counts(const Turns& messages, std::size_t i) const {
    const Message& message = messages[i];
    const bool is_last = i + 1 == messages.size();
    return rules_.loss_on != LossOn::kAll && is_answer(message) && message.counts &&
           (rules_.loss_on == LossOn::kAssistant || is_last) &&
           (messages.size() == 1 || !stripped(message.content).empty());
  }

  /// Writes all of the turns but what opens the first, up to the end of the last. `begun`: the turn
  /// that the first one continues, or null.
  void write_turns(const Turns& messages, PartsWriter& text, const Message* begun = nullptr) const {
    const bool leaves_out =
        rules_.loss_on == LossOn::kAll &&
        !std::all_of(messages.begin(), messages.end(), [](const Message& m) { return m.counts; });
    for (std::size_t i = 0; i < messages.size(); ++i) {
      const std::size_t begin = text.size();
      if (i > 0) text.write(chat_.opening_of(messages[i].role));
      if (i == 0 && begun != nullptr) {
        text.write_continuation(*begun, messages[i], counts(messages, i));
      } else {
        text.write_turn(messages[i], counts(messages, i));
      }
      if (i + 1 < messages.size()) text.write(chat_.between_turns());
      if (leaves_out && messages[i].counts) text.count_from(begin);
    }
    // Where no part is said to count, all of them do.
    const bool counts_parts = rules_.loss_on != LossOn::kAll || leaves_out;
    if (counts_parts && !text.counts_some()) fail(kCounting, "one without");
  }

  static constexpr std::string_view kCounting =
      "a turn of the assistant that counts in each completion";

  const ConversationRules& rules_;
  const ChatWriter& chat_;
  PreferenceRow row_;
  bool opens_ = false;      ///< the prompt opens the first turn of the completions
  bool continues_ = false;  ///< the completions continue the last turn of the prompt
};

}  // namespace

PreferenceRow conversation_row(Conversation conversation, const ConversationRules& rules) {
  return RowWriter(rules).row(std::move(conversation));
}

PreferenceRow whole_conversation_row(Turns messages, const ConversationRules& rules) {
  return RowWriter(rules).whole(std::move(messages));
}

void add_remark(PreferenceRow& row, RowRemark remark) {
  if (std::find(row.remarks.begin(), row.remarks.end(), remark) == row.remarks.end()) {
    row.remarks.push_back(remark);
  }
}

}  // namespace prefopt::detail
