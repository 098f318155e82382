// SPDX-License-Identifier: Apache-2.0
#include "data/row_remarks.h"

#include <algorithm>
#include <vector>

#include "data/row_columns.h"
#include "data/row_json.h"
#include "data/row_words.h"

namespace prefopt::detail {
namespace {

/// Returns the texts with what the model is asked; of pairs without a prompt, both answers.
std::vector<const SortedJson*> asking_texts(const SortedJson& texts_of_row) {
  for (const char* key : {"prompt", "messages", "text"}) {
    if (const auto found = texts_of_row.find(key); found != texts_of_row.end()) return {&*found};
  }
  std::vector<const SortedJson*> texts;
  for (const char* key : {"chosen", "rejected"}) {
    if (const auto found = texts_of_row.find(key); found != texts_of_row.end())
      texts.push_back(&*found);
  }
  return texts;
}

/// Returns whether a text is in what the model is asked, so that it is not lost.
bool is_asked_again(std::string_view text, const ReadRow& read) {
  text = stripped(text);
  const auto holds = [&](std::string_view other) {
    return stripped(other) == text ||
           (is_telling(text) && find_apart(other, text) != std::string_view::npos);
  };
  const auto texts = asking_texts(read.texts);
  return !texts.empty() && std::all_of(texts.begin(), texts.end(), [&](const SortedJson* value) {
    if (value->is_string()) return holds(value->get_ref<const std::string&>());
    return value->is_array() &&
           std::any_of(value->begin(), value->end(), [&](const SortedJson& message) {
             return text_at(message, "role") != "assistant" && holds(content_of(message));
           });
  });
}

/// Returns whether a text could be the prompt that the row seems to lack.
bool could_be_prompt(const SortedJson& value, const ReadRow& read) {
  if (!read.lacks_prompt || !value.is_string()) return false;
  const auto texts = asking_texts(read.texts);
  const bool has_words = count_words(value.get_ref<const std::string&>()) >= 3;
  if (has_words || texts.size() < 2 || !texts[0]->is_string() || !texts[1]->is_string()) {
    return true;
  }
  const auto& a = texts[0]->get_ref<const std::string&>();
  const auto& b = texts[1]->get_ref<const std::string&>();
  const auto shared = std::mismatch(a.begin(), a.end(), b.begin(), b.end());
  return !is_telling(
      std::string_view(a).substr(0, static_cast<std::size_t>(shared.first - a.begin())));
}

void note_unread_of(const SortedJson& object, const std::string& prefix, const ReadRow& read,
                    std::set<std::string>& doubtful, RowTrace& trace) {
  for (const auto& [key, value] : object.items()) {
    const std::string path = prefix + key;
    if (read.used.contains(path)) continue;
    const auto inner = read.used.lower_bound(path + ".");
    if (value.is_object() && inner != read.used.end() && inner->starts_with(path + ".")) {
      note_unread_of(value, path + ".", read, doubtful, trace);
    } else if (holds_text(value)) {
      const bool is_doubtful = doubtful.contains(path) || could_be_prompt(value, read);
      if (is_doubtful) doubtful.insert(path);
      const bool is_lost = !value.is_string() || !(is_doubtful || is_prompt_column(key)) ||
                           !is_asked_again(value.get_ref<const std::string&>(), read);
      if (is_lost) note_unread_column(path, key, doubtful, trace);
    }
  }
}

}  // namespace

bool is_repeated(std::string_view text, const SortedJson& list) {
  text = stripped(text);
  std::string rest(text);
  bool holds_all = true;
  for (const SortedJson& message : list) {
    const std::string_view content = content_of(message);
    const bool is_asked = text_at(message, "role") != "assistant";
    if (is_asked && content == text) return true;
    if (is_asked && 2 * text.size() >= content.size() &&
        find_apart(content, text) != std::string_view::npos) {
      return true;
    }
    const std::size_t place = find_apart(rest, content);
    if (place != std::string_view::npos) {
      rest.replace(place, content.size(), "\n");
    } else {
      holds_all &= !is_asked;
    }
  }
  return holds_all && is_of_labels(rest);
}

void note_unread_columns(const ReadRow& read, std::set<std::string>& doubtful, RowTrace& trace) {
  note_unread_of(read.row, "", read, doubtful, trace);
}

void note_unread_column(const std::string& name, std::string_view key,
                        const std::set<std::string>& doubtful, RowTrace& trace) {
  const bool is_known =
      std::any_of(trace.unread.begin(), trace.unread.end(),
                  [&](const UnreadColumn& column) { return column.name == name; });
  if (is_known) return;
  trace.unread.push_back({name, doubtful.contains(name) || is_prompt_column(key)});
}

}  // namespace prefopt::detail
