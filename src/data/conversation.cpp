// SPDX-License-Identifier: Apache-2.0
#include "data/conversation.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstddef>
#include <string>
#include <utility>

#include "data/line_error.h"

namespace prefopt::detail {
namespace {

bool is_same(const Message& a, const Message& b) {
  return a.role == b.role && a.content == b.content;
}

bool is_answer(const Message& message) { return message.role == "assistant"; }

/// Writes one text and keeps account of whose bytes are whose.
class PartsWriter {
 public:
  explicit PartsWriter(const ChatWriter& chat) : chat_(chat) {}

  void write(std::string_view text) { text_ += text; }

  /// The content and the end of the turn, without what stands between turns.
  void write_turn(const Message& message, bool counts) {
    const std::size_t begin = text_.size();
    text_ += chat_.before_content(message);
    const std::size_t content = text_.size();
    text_ += chat_.content(message);
    if (text_.size() > content) parts_.contents.push_back({content, text_.size()});
    text_ += chat_.end_of_turn();
    if (counts) parts_.counted.push_back({begin, text_.size()});
  }

  void write_opened_turn(const Message& message) {
    write(chat_.opening_of(message.role));
    write_turn(message, false);
    write(chat_.between_turns());
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
    for (Messages* completion : completions_of(talk)) note_system(*completion);
    const bool has_prompt = !talk.prompt.empty();
    if (has_prompt) take_repeats(talk);
    for (Messages* completion : completions_of(talk)) leave_out_end(*completion);
    if (!has_prompt) share_beginning(talk);
    return write(talk);
  }

  PreferenceRow whole(Messages messages) {
    note_system(messages);
    leave_out_end(messages);
    chat_.check_system(messages, rules_.where);
    row_.has_rejected = false;
    const Conversation talk = split(std::move(messages));
    if (rules_.loss_on != LossOn::kAll) return write(talk);

    row_.end_of_turn = chat_.end_of_turn();
    row_.from_messages = true;
    const Messages& all = talk.chosen;
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
  static std::vector<Messages*> completions_of(Conversation& talk) {
    std::vector<Messages*> all{&talk.chosen};
    if (talk.rejected) all.push_back(&*talk.rejected);
    if (talk.gold) all.push_back(&*talk.gold);
    return all;
  }

  [[noreturn]] void fail(std::string_view expected, std::string_view got) const {
    throw LineError(LineDefect::kMalformed,
                    fmt::format("{}: expected {}, got {}", rules_.where, expected, got));
  }

  void note_system(const Messages& messages) {
    const auto is_system = [](const Message& message) { return message.role == "system"; };
    if (!chat_.has_system_turn() && std::any_of(messages.begin(), messages.end(), is_system)) {
      add_remark(row_, RowRemark::kSystemTurn);
    }
  }

  /// The end of a conversation that no answer follows trains nothing.
  void leave_out_end(Messages& messages) {
    if (is_answer(messages.back())) return;
    add_remark(row_, RowRemark::kEndsWithUser);
    if (rules_.loss_on == LossOn::kAll) return;
    while (!messages.empty() && !is_answer(messages.back())) messages.pop_back();
    if (messages.empty()) fail("a turn of the assistant in each completion", "one without");
  }

  /// How many messages of `completion` the end of `prompt` has already.
  static std::size_t repeated(const Messages& prompt, const Messages& completion) {
    for (std::size_t count = std::min(prompt.size(), completion.size()); count > 0; --count) {
      const auto tail = prompt.end() - static_cast<std::ptrdiff_t>(count);
      if (std::equal(tail, prompt.end(), completion.begin(), is_same)) return count;
    }
    return 0;
  }

  /// System messages that `completion` has before all of `prompt`.
  static std::size_t systems_before(const Messages& prompt, const Messages& completion) {
    std::size_t count = 0;
    while (count < completion.size() && completion[count].role == "system") ++count;
    const bool follows =
        completion.size() >= count + prompt.size() &&
        std::equal(prompt.begin(), prompt.end(),
                   completion.begin() + static_cast<std::ptrdiff_t>(count), is_same);
    return follows ? count : 0;
  }

  void take_repeats(Conversation& talk) {
    const auto completions = completions_of(talk);
    // A system message that the completions alone have belongs before the prompt they repeat.
    const std::size_t systems = systems_before(talk.prompt, talk.chosen);
    const auto count = static_cast<std::ptrdiff_t>(systems);
    const auto has_them = [&](const Messages* completion) {
      return systems_before(talk.prompt, *completion) == systems &&
             std::equal(completion->begin(), completion->begin() + count, talk.chosen.begin(),
                        is_same);
    };
    if (systems > 0 && rules_.removes_repeats &&
        std::all_of(completions.begin(), completions.end(), has_them)) {
      talk.prompt.insert(talk.prompt.begin(), talk.chosen.begin(), talk.chosen.begin() + count);
    }
    for (Messages* completion : completions) {
      const std::size_t known = repeated(talk.prompt, *completion);
      if (known == 0) continue;
      add_remark(row_, RowRemark::kRepeatedPrompt);
      if (!rules_.removes_repeats) continue;
      if (known == completion->size()) fail("a completion beyond the prompt", "the prompt alone");
      completion->erase(completion->begin(),
                        completion->begin() + static_cast<std::ptrdiff_t>(known));
    }
  }

  static void share_beginning(Conversation& talk) {
    if (!talk.rejected) return;
    Messages& chosen = talk.chosen;
    Messages& rejected = *talk.rejected;
    // One message at least is left to complete with.
    const auto limit = static_cast<std::ptrdiff_t>(std::min(chosen.size(), rejected.size())) - 1;
    const auto apart =
        std::mismatch(chosen.begin(), chosen.begin() + limit, rejected.begin(), is_same);
    talk.prompt.assign(chosen.begin(), apart.first);
    chosen.erase(chosen.begin(), apart.first);
    rejected.erase(rejected.begin(), apart.second);
  }

  Conversation split(Messages messages) const {
    if (rules_.loss_on == LossOn::kAll) return {.prompt = {}, .chosen = std::move(messages)};
    const auto first = rules_.loss_on == LossOn::kLast
                           ? messages.end() - 1
                           : std::find_if(messages.begin(), messages.end(), is_answer);
    return {.prompt = Messages(messages.begin(), first), .chosen = Messages(first, messages.end())};
  }

  PreferenceRow write(const Conversation& talk) {
    row_.end_of_turn = chat_.end_of_turn();
    row_.from_messages = true;
    // Completions that go on with the person's turn differ from there on. Without a prompt, though,
    // nothing else would predict their first token, where the format has tokens to begin with.
    const std::string& role = talk.chosen.front().role;
    const auto begins_alike = [&](const std::optional<Messages>& completion) {
      return !completion || completion->front().role == role;
    };
    const bool may_open =
        is_answer(talk.chosen.front()) || (talk.prompt.empty() && !row_.end_of_turn.empty());
    opens_ = may_open && begins_alike(talk.rejected) && begins_alike(talk.gold);
    PartsWriter prompt(chat_);
    if (!talk.prompt.empty() || opens_) {
      prompt.write(chat_.opening(talk.prompt.empty() ? talk.chosen.front() : talk.prompt.front()));
    }
    for (const Message& message : talk.prompt) prompt.write_opened_turn(message);
    if (opens_) prompt.write(chat_.opening_of(role));
    prompt.take(row_.prompt, row_.prompt_parts);

    write_completion(talk.prompt, talk.chosen, row_.chosen, row_.chosen_parts);
    if (talk.rejected) {
      write_completion(talk.prompt, *talk.rejected, row_.rejected, row_.rejected_parts);
    }
    if (talk.gold) write_completion(talk.prompt, *talk.gold, row_.gold, row_.gold_parts);
    return std::move(row_);
  }

  void write_completion(const Messages& prompt, const Messages& messages, std::string& text,
                        TextParts& parts) const {
    Messages all = prompt;
    all.insert(all.end(), messages.begin(), messages.end());
    chat_.check_system(all, rules_.where);
    PartsWriter writer(chat_);
    if (prompt.empty() && !opens_) writer.write(chat_.opening(messages.front()));
    if (!opens_) writer.write(chat_.opening_of(messages.front().role));
    write_turns(messages, writer);
    writer.take(text, parts);
  }

  /// All of the turns but what opens the first, up to the end of the last.
  void write_turns(const Messages& messages, PartsWriter& text) const {
    for (std::size_t i = 0; i < messages.size(); ++i) {
      const bool is_last = i + 1 == messages.size();
      if (i > 0) text.write(chat_.opening_of(messages[i].role));
      text.write_turn(messages[i], rules_.loss_on != LossOn::kAll && is_answer(messages[i]) &&
                                       (rules_.loss_on == LossOn::kAssistant || is_last));
      if (!is_last) text.write(chat_.between_turns());
    }
  }

  const ConversationRules& rules_;
  const ChatWriter& chat_;
  PreferenceRow row_;
  bool opens_ = false;  ///< the prompt opens the first turn of the completions
};

}  // namespace

PreferenceRow conversation_row(Conversation conversation, const ConversationRules& rules) {
  return RowWriter(rules).row(std::move(conversation));
}

PreferenceRow whole_conversation_row(Messages messages, const ConversationRules& rules) {
  return RowWriter(rules).whole(std::move(messages));
}

void add_remark(PreferenceRow& row, RowRemark remark) {
  if (std::find(row.remarks.begin(), row.remarks.end(), remark) == row.remarks.end()) {
    row.remarks.push_back(remark);
  }
}

}  // namespace prefopt::detail
