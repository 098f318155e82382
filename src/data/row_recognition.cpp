// SPDX-License-Identifier: Apache-2.0
#include "data/row_recognition.h"

#include <algorithm>
#include <bit>

#include "data/row_json.h"
#include "data/row_words.h"

namespace prefopt::detail {

bool RowRecognition::is_of_tokens() const {
  for (const auto& item : row_.items()) {
    const std::string_view key = item.key();
    for (const std::string_view name : {"prompt", "chosen", "rejected", "completion", "gold"}) {
      if (!key.starts_with(name)) continue;
      const std::string_view rest = key.substr(name.size());
      if (rest == "_ids" || rest == "_token_weights" || rest == "_token_mask") return true;
    }
  }
  return false;
}

bool RowRecognition::has_ranks() const {
  const FoundColumn list = foreign("completions");
  return list && list.value->is_array() && !list.value->empty() &&
         std::all_of(list.value->begin(), list.value->end(), [](const SortedJson& item) {
           return item.is_object() && item.contains("rank") && item.contains("completion");
         });
}

bool RowRecognition::has_question() const {
  return find("question") || find("instruction") ||
         (find("input") && find("input").value->is_string());
}

FoundColumn RowRecognition::conversation() const {
  return find("messages", {"messages", "conversations", "conversation"});
}

std::vector<std::string> RowRecognition::outputs() const {
  const FoundColumn talk = conversation();
  const bool is_asked = has_question() || (talk && talk.value->is_structured());
  std::vector<std::string> names;
  for (const char* name : {"output", "response", "answer"}) {
    if (is_asked && foreign(name)) names.emplace_back(name);
  }
  return names;
}

unsigned RowRecognition::allowed_answers() const {
  if (preset_ != nullptr) return preset_->answers;
  if (maps_any({"chosen", "rejected"})) return kPairOfAnswers;
  if (layout_.maps("completion")) return kOneCompletion;
  if (layout_.maps("text")) return kWholeText;
  if (layout_.maps("messages")) return kPairLayouts | kWholeTurns;
  return kAnyAnswers;
}

unsigned RowRecognition::allowed_sources(unsigned answers) const {
  unsigned allowed = preset_ != nullptr ? preset_->sources : kFromAnywhere;
  unsigned mapped = 0;
  if (layout_.maps("prompt")) mapped |= kFromPrompt;
  if (layout_.maps("question")) mapped |= kFromQuestion;
  if (maps_any({"instruction", "input"})) mapped |= kFromInstruction;
  if (layout_.maps("messages")) mapped |= kFromTurns;
  if (mapped != 0) allowed &= mapped;
  if (answers != kRanked) allowed &= ~kFromContext;
  if (answers != kHumanRefs) allowed &= ~kFromPost;
  return allowed;
}

void RowRecognition::fail_ambiguous(unsigned first, unsigned second) const {
  fail(LineDefect::kMalformed,
       "expected the columns of one layout, got {} and {}; name one in data.columns",
       answers_text(first), answers_text(second));
}

unsigned RowRecognition::find_answers() const {
  unsigned found = 0;
  if (find("chosen") || find("rejected")) found |= kPairOfAnswers;
  if (foreign("preferred_output") || foreign("non_preferred_output")) found |= kPreferredOutput;
  if (foreign("response_0") && foreign("response_1") && foreign("better_response_id")) {
    found |= kResponses;
  }
  if (foreign("human_ref_A") && foreign("human_ref_B") && foreign("labels")) found |= kHumanRefs;
  if (has_ranks()) found |= kRanked;
  if (find("completion")) found |= kOneCompletion;
  if (!outputs().empty()) found |= kOneOutput;
  const FoundColumn talk = conversation();
  const bool is_answered = talk && !last_answer(*talk.value).is_discarded();
  if (foreign("rejected_response") && (is_answered || !outputs().empty())) {
    found |= kReplacedAnswer;
  }
  if (talk) found |= kWholeTurns;
  if (find("text")) found |= kWholeText;
  found &= allowed_answers();
  if (const unsigned pairs = found & kPairLayouts; pairs != 0) {
    const unsigned first = pairs & (~pairs + 1);
    if (pairs != first) fail_ambiguous(first, std::bit_floor(pairs));
    return first;
  }
  if ((found & kOneOutput) != 0 && !layout_.maps("completion")) {
    if ((found & kOneCompletion) != 0 && outputs().front() == "output") {
      fail_ambiguous(kOneCompletion, kOneOutput);
    }
    if ((found & kWholeTurns) != 0 && is_answered) {
      if (!says_again(outputs().front(), talk)) {
        if (has_question()) fail_ambiguous(kOneOutput, kWholeTurns);
        fail_two_answers(fmt::format("that of '{}'", talk.path), outputs().front());
      }
      found &= ~kOneOutput;
    }
  }
  for (const unsigned answers : {kOneCompletion, kOneOutput, kWholeTurns, kWholeText}) {
    if ((found & answers) != 0) return answers;
  }
  return 0;
}

SortedJson RowRecognition::last_answer(const SortedJson& list) const {
  SortedJson none(SortedJson::value_t::discarded);
  if (!list.is_array() || list.empty() || !list.back().is_object()) return none;
  const auto of_first = [&](const std::vector<std::string>& keys) {
    for (const std::string& key : keys) {
      const auto found = list.back().find(key);
      if (found != list.back().end() && !found->is_null()) return *found;
    }
    return none;
  };
  const SortedJson role = of_first(layout_.role_keys());
  if (!role.is_string() || layout_.role_of(role.get<std::string>()) != "assistant") return none;
  const SortedJson content = of_first(layout_.content_keys());
  return content.is_discarded() ? SortedJson() : content;
}

bool RowRecognition::says_again(const std::string& name, const FoundColumn& talk) const {
  const SortedJson answer = last_answer(*talk.value);
  const FoundColumn column = foreign(name.c_str());
  return answer.is_string() && column && column.value->is_string() &&
         stripped(answer.get_ref<const std::string&>()) ==
             stripped(column.value->get_ref<const std::string&>());
}

void RowRecognition::fail_two_answers(const std::string& first, const std::string& second) const {
  fail(LineDefect::kMalformed, "expected one answer, got {} and '{}'; name one in data.columns",
       first, second);
}

FoundColumn RowRecognition::find_turns() const {
  const FoundColumn first = conversation();
  if (!first || layout_.maps("messages")) return first;
  for (const char* name : {"conversations", "conversation"}) {
    const FoundColumn other = foreign(name);
    if (other && other.path != first.path && *other.value != *first.value) {
      fail(LineDefect::kMalformed,
           "expected one conversation, got '{}' and '{}'; name one in data.columns", first.path,
           name);
    }
  }
  return first;
}

}  // namespace prefopt::detail
