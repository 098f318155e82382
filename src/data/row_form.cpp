// SPDX-License-Identifier: Apache-2.0
#include <fmt/format.h>

#include <algorithm>
#include <cstddef>
#include <initializer_list>
#include <optional>
#include <set>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "core/json_text.h"
#include "data/chat_writer.h"
#include "data/row_json.h"
#include "data/row_layout.h"
#include "data/row_recognition.h"
#include "data/row_remarks.h"
#include "data/row_words.h"

namespace prefopt::detail {
namespace {

/// One row on its way to the canonical keys.
class RowForm : private RowRecognition {
 public:
  RowForm(const RowLayout& layout, SortedJson row, std::string_view where, RowUse use,
          RowTrace& trace)
      : RowRecognition(layout, std::move(row), where, use, trace) {}

  SortedJson canonical() && {
    erase_nulls(row_);
    find_mapped();
    find_nested();
    if (is_of_tokens()) return std::move(*this).finished(/*is_of_tokens=*/true);
    const unsigned answers = find_answers();
    read(answers);
    for (const auto& [key, value] : out_.items()) check_finite(trace_.column_of(key), value);
    return std::move(*this).finished(/*is_of_tokens=*/false);
  }

 private:
  /// The prompt as one or several columns give it.
  struct Source {
    std::vector<std::string> paths;
    SortedJson value;       ///< text, or a list of messages
    bool is_plain = false;  ///< a text that is no turn of a conversation
    bool is_talk = false;   ///< a conversation that may be there for another purpose
  };

  struct Answer {
    std::string key, path;
    SortedJson value;
  };

  // --- Prompts

  /// `instruction` and `input`, which follows on its own line, as LLaMA-Factory has it.
  std::optional<Source> instruction_source() const {
    Source source;
    std::string text;
    for (const char* name : {"instruction", "input"}) {
      const FoundColumn found = find(name);
      if (!found || (found.value->is_structured() && !layout_.maps(name))) continue;
      source.paths.push_back(found.path);
      if (!found.value->is_string()) {
        source.value = *found.value;
        return source;
      }
      if (is_blank_text(*found.value)) continue;
      text += (text.empty() ? "" : "\n") + found.value->get<std::string>();
    }
    if (source.paths.empty()) return std::nullopt;
    source.value = std::move(text);
    return source;
  }

  std::optional<Source> prompt_source() {
    const FoundColumn prompt = find("prompt");
    if (!prompt) return std::nullopt;
    return Source{{prompt.path},
                  turns(*prompt.value, prompt.path),
                  /*is_plain=*/!prompt.value->is_structured()};
  }

  static std::optional<Source> text_source(const FoundColumn& found) {
    if (!found) return std::nullopt;
    return Source{{found.path}, *found.value};
  }

  std::optional<Source> list_source(const FoundColumn& found) {
    if (!found) return std::nullopt;
    if (found.value->is_string()) return Source{{found.path}, *found.value};
    return Source{{found.path}, turns(*found.value, found.path)};
  }

  std::optional<Source> input_source() {
    const FoundColumn input = foreign("input");
    if (!input || !input.value->is_object()) return std::nullopt;
    return list_source(at_path("input.messages"));
  }

  /// Returns a conversation that waits for an answer. Where it ends with one of `answers`, that is
  /// left out.
  std::optional<Source> turns_source(const std::vector<Answer>& answers) {
    const FoundColumn found = find_turns();
    if (!found || !found.value->is_structured()) return std::nullopt;
    Source source{.paths = {found.path}, .value = turns(*found.value, found.path), .is_talk = true};
    if (role_at(source.value, /*last=*/true) != "assistant") return source;
    const std::string_view last = content_of(source.value.back());
    const bool is_answer = std::any_of(answers.begin(), answers.end(), [&](const Answer& answer) {
      return (answer.value.is_string() ? stripped(answer.value.get_ref<const std::string&>())
              : answer.value.is_array() && !answer.value.empty() ? content_of(answer.value.back())
                                                                 : std::string_view()) == last;
    });
    if (!is_answer && !is_left_out(answers)) {
      unread_turns_ = std::move(source);
      unread_turns_->value.erase(unread_turns_->value.size() - 1);
      return std::nullopt;
    }
    if (is_left_out(answers)) trace_.answers.push_back(found.path);
    source.value.erase(source.value.size() - 1);
    return source;
  }

  /// Returns whether there is a prompt alone, with a placeholder for the answer.
  bool is_left_out(const std::vector<Answer>& answers) const {
    return use_ == RowUse::kPrompt && answers.size() == 1 && answers.front().path.empty();
  }

  std::vector<Source> sources(unsigned allowed, const std::vector<Answer>& answers) {
    std::vector<Source> list;
    const auto add = [&](unsigned bit, auto&& make) {
      if ((allowed & bit) == 0) return;
      if (std::optional<Source> source = make()) list.push_back(std::move(*source));
    };
    add(kFromInput, [&] { return input_source(); });
    add(kFromContext, [&] { return list_source(foreign("context")); });
    add(kFromTurns, [&] { return turns_source(answers); });
    add(kFromPrompt, [&] { return prompt_source(); });
    add(kFromQuestion, [&] { return text_source(find("question")); });
    add(kFromInstruction, [&] { return instruction_source(); });
    add(kFromPost, [&] { return text_source(find("history")); });
    // A blank prompt next to another is no prompt.
    const auto is_blank = [](const Source& source) { return is_blank_text(source.value); };
    if (!std::all_of(list.begin(), list.end(), is_blank)) std::erase_if(list, is_blank);
    return list;
  }

  /// `path`: the column, for errors; empty where several make the value.
  void put(const std::string& key, const std::string& path, SortedJson value) {
    out_[key] = std::move(value);
    note_column(key, path);
  }

  void note_column(const std::string& key, const std::string& path) {
    if (!path.empty() && path != key) trace_.columns[key] = path;
  }

  void use_paths(const Source& source) { used_.insert(source.paths.begin(), source.paths.end()); }

  /// Settles the sources that are not read: those whose text is in the one that is need no remark.
  void settle_rest(const std::vector<Source>& sources, std::size_t read, const SortedJson& list) {
    for (std::size_t i = 0; i < sources.size(); ++i) {
      if (i == read) continue;
      const SortedJson& value = sources[i].value;
      const bool is_known = value.is_string()
                                ? is_repeated(value.get_ref<const std::string&>(), list)
                                : is_beginning(value, list);
      if (is_known) {
        use_paths(sources[i]);
      } else {
        doubtful_.insert(sources[i].paths.begin(), sources[i].paths.end());
      }
    }
  }

  static bool is_beginning(const SortedJson& turns, const SortedJson& list) {
    return turns.is_array() && list.is_array() && turns.size() <= list.size() &&
           std::equal(turns.begin(), turns.end(), list.begin());
  }

  /// Returns the turns before the question: messages, or [question, answer] pairs.
  SortedJson earlier_turns() {
    const FoundColumn history = find("history");
    SortedJson list = SortedJson::array();
    if (!history || !history.value->is_array() || history.value->empty()) return list;
    used_.insert(history.path);
    if (history.value->front().is_object()) return turns(*history.value, history.path);
    for (const SortedJson& pair : *history.value) {
      if (!pair.is_array() || pair.size() != 2 || !pair[0].is_string() || !pair[1].is_string()) {
        fail(LineDefect::kMalformed,
             "expected '{}' to be a list of [question, answer] pairs of text, got {} in it",
             history.path, shown_json(pair));
      }
      list.push_back(message_of("user", pair[0].get<std::string>()));
      list.push_back(message_of("assistant", pair[1].get<std::string>()));
    }
    return list;
  }

  // --- System texts and tools

  /// Puts the system text before the turns, unless they have it.
  void put_system(SortedJson& list) {
    const FoundColumn system = find("system", {"system", "system_prompt"});
    if (!system || is_blank_text(*system.value)) return;
    const std::string text = text_of(system);
    if (role_at(list, /*last=*/false) == "system") {
      if (content_of(list.front()) != stripped(text)) return;
    } else {
      list.insert(list.begin(), message_of("system", text));
    }
    used_.insert(system.path);
  }

  bool has_system() const {
    const FoundColumn system = find("system", {"system", "system_prompt"});
    return system && !is_blank_text(*system.value);
  }

  /// `functions`, the old name, is left to the reader of rows, who refuses it.
  void put_tools() {
    if (const FoundColumn functions = foreign("functions")) used_.insert(functions.path);
    FoundColumn tools = find("tools");
    if (!tools && foreign("input") && foreign("input").value->is_object()) {
      tools = at_path("input.tools");
    }
    if (!tools) return;
    SortedJson value = *tools.value;
    if (value.is_string() && !is_blank_text(value)) {
      try {
        value = parse_json_or_throw<SortedJson>(value.get_ref<const std::string&>());
      } catch (const JsonDefect&) {
        value = *tools.value;
      }
    }
    used_.insert(tools.path);
    if (!value.empty() && !is_blank_text(value)) out_["tools"] = std::move(value);
  }

  // --- Answers

  void read(unsigned answers) {
    const unsigned allowed = allowed_sources(answers);
    switch (answers) {
      case kPairOfAnswers:
        return read_answers({given("chosen"), given("rejected"), given("gold")}, allowed, false);
      case kPreferredOutput:
        return read_answers({taken("chosen", "preferred_output"),
                             taken("rejected", "non_preferred_output"), given("gold")},
                            allowed, true);
      case kResponses:
        return read_better("response_0", "response_1", "better_response_id", 0, allowed);
      case kHumanRefs:
        return read_better("human_ref_A", "human_ref_B", "labels", 1, allowed);
      case kRanked:
        return read_ranked(allowed);
      case kOneCompletion:
        return read_answers({given("completion"), given("gold")}, allowed, false);
      case kOneOutput:
        return read_output(allowed);
      case kReplacedAnswer:
        return read_replaced(allowed);
      case kWholeTurns:
        return read_turns(allowed);
      case kWholeText:
        return read_text(allowed);
      default:
        return read_none(allowed);
    }
  }

  /// Returns an answer under a key that records.cpp knows; without a value where the row has none.
  Answer given(const char* key) {
    const FoundColumn found = find(key);
    if (!found) return {key, key, SortedJson(SortedJson::value_t::discarded)};
    used_.insert(found.path);
    return {key, found.path, turns(*found.value, found.path)};
  }

  Answer taken(const char* key, const char* name) { return {key, name, turns(needed(name), name)}; }

  void read_better(const char* first, const char* second, const char* which, int chosen_is_first,
                   unsigned allowed) {
    const SortedJson& better = needed(which);
    check_finite(which, better);
    if (better != 0 && better != 1) {
      fail(LineDefect::kMalformed, "expected '{}' to be 0 or 1, got {}", which,
           better.is_primitive() ? shown_json(better) : std::string(json_type_name(better)));
    }
    const bool is_first = better == chosen_is_first;
    read_answers({taken("chosen", is_first ? first : second),
                  taken("rejected", is_first ? second : first), given("gold")},
                 allowed, true);
  }

  /// The answers of the best and of the worst rank; the best has the lowest number.
  void read_ranked(unsigned allowed) {
    const SortedJson& list = needed("completions");
    const SortedJson* best = nullptr;
    const SortedJson* worst = nullptr;
    for (const SortedJson& item : list) {
      const SortedJson& rank = item["rank"];
      check_finite("completions", rank);
      if (!rank.is_number()) {
        fail(LineDefect::kMalformed, "expected each 'rank' of 'completions' to be a number, got {}",
             json_type_name(rank));
      }
      if (best == nullptr || rank < (*best)["rank"]) best = &item;
      if (worst == nullptr || rank > (*worst)["rank"]) worst = &item;
    }
    if ((*best)["rank"] == (*worst)["rank"]) {
      fail(LineDefect::kMalformed, "expected 'completions' of two ranks at least, got one");
    }
    const std::string path = "completions[].completion";
    read_answers({{"chosen", path, turns((*best)["completion"], path)},
                  {"rejected", path, turns((*worst)["completion"], path)}},
                 allowed, true);
  }

  std::string only_output() const {
    const auto names = outputs();
    if (names.size() > 1) fail_two_answers(fmt::format("'{}'", names[0]), names[1]);
    return names.front();
  }

  void read_output(unsigned allowed) {
    read_answers({taken("completion", only_output().c_str())}, allowed, true);
  }

  /// The rejected answer takes the place of another one, which may be the conversation's last turn.
  void read_replaced(unsigned allowed) {
    const FoundColumn talk = find_turns();
    const bool is_answered = talk && !last_answer(*talk.value).is_discarded();
    Answer rejected = taken("rejected", "rejected_response");
    if (!is_answered) {
      return read_answers({taken("chosen", only_output().c_str()), std::move(rejected)}, allowed,
                          true);
    }
    settle_outputs(talk);
    const SortedJson list = turns(*talk.value, talk.path);
    read_answers({{"chosen", talk.path, SortedJson::array({list.back()})}, std::move(rejected)},
                 allowed, true);
  }

  /// Answers next to a conversation that has one: no other text is lost.
  void settle_outputs(const FoundColumn& talk) {
    for (const std::string& name : outputs()) {
      if (!says_again(name, talk)) fail_two_answers(fmt::format("that of '{}'", talk.path), name);
      used_.insert(name);
    }
  }

  /// A prompt and what answers it. `is_chat`: plain texts are turns of a conversation.
  void read_answers(std::vector<Answer> answers, unsigned allowed, bool is_chat) {
    std::erase_if(answers, [](const Answer& answer) { return answer.value.is_discarded(); });
    for (const Answer& answer : answers) {
      if (!answer.path.empty()) trace_.answers.push_back(answer.path);
    }
    const bool has_list = std::any_of(answers.begin(), answers.end(),
                                      [](const Answer& a) { return a.value.is_array(); });
    const bool has_text = std::any_of(answers.begin(), answers.end(),
                                      [](const Answer& a) { return a.value.is_string(); });
    // Pairs may bring their prompt along.
    const auto own = std::find_if(answers.begin(), answers.end(), [](const Answer& answer) {
      return answer.key != "completion" && asks_first(answer.value);
    });
    std::vector<Source> candidates = sources(allowed, answers);
    std::optional<Source> source;
    const bool is_said_again =
        own != answers.end() &&
        std::all_of(candidates.begin(), candidates.end(), [&](const Source& candidate) {
          return candidate.is_talk ? is_beginning(candidate.value, own->value)
                                   : !candidate.value.is_array();
        });
    if (is_said_again) {
      settle_rest(candidates, kNoSource, own->value);
      settle_unread_turns(own->value);
    } else if (!candidates.empty()) {
      check_source(candidates.front());
      settle_rest(candidates, 0, as_list(candidates.front()));
      settle_unread_turns(as_list(candidates.front()));
      use_paths(candidates.front());
      source = std::move(candidates.front());
    } else if (own == answers.end()) {
      if (is_chat || preset_ != nullptr) fail_without_prompt(answers.front().path);
      lacks_prompt_ = !is_of_dialogues(answers);
      settle_unread_turns(SortedJson::array());
    }
    if (source && source->value.is_array()) is_chat = true;
    if (source && source->value.is_string()) {
      // Lists that begin with the answer, or a system text, make the prompt a turn.
      const bool of_one_kind = has_list != has_text;
      is_chat |= !source->is_plain || (of_one_kind && (has_list || has_system()));
      const SortedJson earlier = earlier_turns();
      if (!earlier.empty() || is_chat) {
        is_chat = true;
        if (is_blank_text(source->value)) fail_blank(source->paths.front());
        SortedJson list = earlier;
        list.push_back(message_of("user", source->value.get<std::string>()));
        source->value = std::move(list);
      }
    }
    if (is_chat) {
      for (Answer& answer : answers) {
        if (!answer.value.is_string()) continue;
        answer.value =
            SortedJson::array({message_of("assistant", answer.value.get<std::string>())});
      }
    }
    if (source && source->value.is_array()) {
      put_system(source->value);
    } else if (!source && has_list && !has_text) {
      SortedJson list = SortedJson::array();
      if (own == answers.end()) put_system(list);
      if (!list.empty()) source = Source{{}, std::move(list)};
      for (Answer& answer : answers) {
        if (asks_first(answer.value)) put_system(answer.value);
      }
    }
    if (source) {
      put("prompt", source->paths.size() == 1 ? source->paths.front() : "",
          std::move(source->value));
    }
    for (Answer& answer : answers) put(answer.key, answer.path, std::move(answer.value));
    if (is_chat || (has_list && !has_text)) put_tools();
  }

  /// A turn has to say something, while a plain prompt is judged when it is tokens.
  void check_source(const Source& source) const {
    if (source.is_plain || source.value.is_array()) return;
    const std::string& path = source.paths.back();
    check_finite(path, source.value);
    if (!source.value.is_string()) {
      fail(LineDefect::kMalformed, "expected '{}' to be text, got {}", path,
           json_type_name(source.value));
    }
    if (is_blank_text(source.value)) fail_blank(source.paths.front());
  }

  [[noreturn]] void fail_blank(const std::string& path) const {
    fail(LineDefect::kMalformed, "expected '{}' to have a text, got none", path);
  }

  /// Text that holds turns of a known form, and so its question.
  static bool is_of_dialogues(const std::vector<Answer>& answers) {
    return std::all_of(answers.begin(), answers.end(), [](const Answer& answer) {
      return answer.value.is_string() && is_dialogue(answer.value.get_ref<const std::string&>());
    });
  }

  /// A conversation with another answer than the row's: its turns may be the prompt that is meant.
  void settle_unread_turns(const SortedJson& prompt) {
    if (!unread_turns_ ||
        (!unread_turns_->value.empty() && is_beginning(unread_turns_->value, prompt))) {
      return;
    }
    doubtful_.insert(unread_turns_->paths.begin(), unread_turns_->paths.end());
  }

  [[noreturn]] void fail_without_prompt(const std::string& answer) const {
    if (preset_ != nullptr) {
      fail(LineDefect::kMissingKey, "expected the columns of the layout '{}' ({}), got no prompt",
           preset_->name, preset_->columns);
    }
    fail(LineDefect::kMissingKey, "expected a column with the prompt of '{}', got none", answer);
  }

  static SortedJson as_list(const Source& source) {
    if (source.value.is_array()) return source.value;
    return SortedJson::array({{{"role", "user"}, {"content", source.value}}});
  }

  void read_turns(unsigned allowed) {
    const FoundColumn found = find_turns();
    if (use_ == RowUse::kPrompt) {
      return read_answers({{"completion", "", SortedJson("")}}, kFromTurns, true);
    }
    used_.insert(found.path);
    SortedJson list = turns(*found.value, found.path);
    settle_rest(sources(allowed & ~kFromTurns, {}), kNoSource, list);
    if (list.is_array()) {
      put_system(list);
      put_tools();
    }
    note_answers_beside(found, list);
    const FoundColumn label = find("label", {"label", "kto_tag"});
    const std::size_t answer = list.is_array() ? last_answer_place(list) : 0;
    const bool assumes_label =
        use_ == RowUse::kAny && answer > 0 && label && is_label(*label.value);
    trace_.assumes_label = assumes_label;
    if (!list.is_array() || (use_ != RowUse::kLabelled && !assumes_label)) {
      put("messages", found.path, std::move(list));
      return;
    }
    if (answer == 0 || text_at(list[answer - 1], "role") == "assistant") {
      fail(LineDefect::kMalformed,
           "expected '{}' to end with the assistant's answer to another turn, got {}", found.path,
           list.size() < 2 ? "fewer turns"
           : answer == 0   ? "another role at its end"
                           : "two of its turns");
    }
    // The reader drops and names what follows the answer.
    const auto place = list.begin() + static_cast<std::ptrdiff_t>(answer);
    put("completion", found.path, SortedJson(SortedJson::array_t(place, list.end())));
    list.erase(place, list.end());
    put("prompt", found.path, std::move(list));
  }

  /// 0 where no turn of the assistant follows another one.
  static std::size_t last_answer_place(const SortedJson& list) {
    std::size_t place = list.size();
    while (place > 1 && text_at(list[place - 1], "role") != "assistant") --place;
    return place > 1 ? place - 1 : 0;
  }

  /// An answer that the conversation has already is no loss. Where it waits for one, a column that
  /// nothing reads may be that.
  void note_answers_beside(const FoundColumn& talk, const SortedJson& list) {
    const bool waits = role_at(list, /*last=*/true) != "assistant";
    for (const std::string_view name : kAnswerColumns) {
      const std::string column(name);
      if (!foreign(column.c_str())) continue;
      if (says_again(column, talk)) used_.insert(column);
      if (waits) doubtful_.insert(column);
    }
  }

  static bool is_label(const SortedJson& value) {
    return value.is_boolean() || value == 0 || value == 1;
  }

  void read_text(unsigned allowed) {
    const FoundColumn found = find("text");
    used_.insert(found.path);
    trace_.answers.push_back(found.path);
    put("text", found.path, *found.value);
    if (!found.value->is_string()) return;
    const std::string_view text = found.value->get_ref<const std::string&>();
    for (const Source& source : sources(allowed & ~kFromTurns, {})) {
      const bool is_known =
          source.value.is_string() &&
          text.find(stripped(source.value.get_ref<const std::string&>())) != std::string_view::npos;
      if (is_known) use_paths(source);
    }
    const FoundColumn system = find("system", {"system", "system_prompt"});
    if (system && system.value->is_string() &&
        text.find(stripped(system.value->get_ref<const std::string&>())) !=
            std::string_view::npos) {
      used_.insert(system.path);
    }
  }

  /// Nothing answers: a row of a prompt alone, if that is all that is wanted.
  void read_none(unsigned allowed) {
    if (preset_ != nullptr && use_ != RowUse::kPrompt) {
      fail(LineDefect::kMissingKey, "expected the columns of the layout '{}' ({}), got others",
           preset_->name, preset_->columns);
    }
    if (use_ == RowUse::kPrompt && !sources(allowed, {}).empty()) {
      return read_answers({{"completion", "", SortedJson("")}}, allowed, false);
    }
    is_unknown_ = true;
  }

  // --- The end

  SortedJson finished(bool is_of_tokens) && {
    if (is_unknown_) return std::move(row_);
    if (is_of_tokens) {
      for (const auto& [key, value] : row_.items()) {
        if (key.ends_with("_ids") || key.ends_with("_token_weights")) check_finite(key, value);
      }
      for (const char* key : {"chosen_ids", "rejected_ids", "completion_ids"}) {
        if (row_.contains(key)) trace_.answers.emplace_back(key);
      }
    }
    note_unread_columns({.row = row_, .texts = out_, .used = used_, .lacks_prompt = lacks_prompt_},
                        doubtful_, trace_);
    trace_.read.assign(used_.begin(), used_.end());
    if (is_of_tokens) {
      // The texts are for people only: the ids are the row.
      for (UnreadColumn& column : trace_.unread) column.is_prompt = false;
    }
    put_numbers();
    if (is_of_tokens && use_ == RowUse::kPrompt && trace_.answers.empty()) {
      row_["completion_ids"] = SortedJson::array();
    }
    if (!is_of_tokens) {
      for (const char* key :
           {"prompt", "chosen", "rejected", "gold", "completion", "messages", "text", "tools"}) {
        row_.erase(key);
      }
      for (auto& [key, value] : out_.items()) row_[key] = std::move(value);
    }
    return std::move(row_);
  }

  void put_numbers() {
    SortedJson numbers = SortedJson::object();
    for (const std::string_view field : kNumberFields) {
      const auto mapped = mapped_.find(field);
      if (mapped == mapped_.end()) continue;
      const std::string key(field);
      numbers[key] = mapped->second ? *mapped->second.value : SortedJson();
      note_column(key, mapped->second.path);
    }
    if (!layout_.maps("label") && !row_.contains("label")) {
      if (const FoundColumn tag = foreign("kto_tag")) {
        numbers["label"] = *tag.value;
        note_column("label", tag.path);
      }
    }
    for (auto& [key, value] : numbers.items()) row_[key] = std::move(value);
    erase_nulls(row_);
  }

  static constexpr std::size_t kNoSource = static_cast<std::size_t>(-1);

  std::optional<Source> unread_turns_;  // before their own answer
  bool lacks_prompt_ = false;           // but for what the answers begin with alike
  SortedJson out_ = SortedJson::object();
  bool is_unknown_ = false;
};

}  // namespace

SortedJson RowLayout::canonical(SortedJson row, std::string_view where, RowUse use,
                                RowTrace& trace) const {
  return RowForm(*this, std::move(row), where, use, trace).canonical();
}

}  // namespace prefopt::detail
