// SPDX-License-Identifier: Apache-2.0
#include "data/tokenizers/pre_tokenizer.h"

#include <fmt/format.h>

#include <algorithm>
#include <utility>

namespace prefopt::detail {
namespace {

/// Joins matches and what lies between them to pieces, as a behavior has it.
template <class Emit>
class PieceJoiner {
 public:
  PieceJoiner(SplitBehavior behavior, Emit emit) : behavior_(behavior), emit_(std::move(emit)) {}

  void add(std::size_t begin, std::size_t end, bool is_match) {
    if (begin == end) return;
    if (behavior_ == SplitBehavior::kRemoved) {
      if (!is_match) emit_(begin, end);
      return;
    }
    if (joins(is_match)) {
      end_ = end;
    } else {
      flush();
      begin_ = begin;
      end_ = end;
    }
    last_is_match_ = is_match;
    if (behavior_ == SplitBehavior::kIsolated) flush();
  }

  void flush() {
    if (end_ > begin_) emit_(begin_, end_);
    begin_ = end_;
  }

 private:
  bool joins(bool is_match) const {
    if (begin_ == end_) return false;  // there is nothing to join
    switch (behavior_) {
      case SplitBehavior::kMergedWithPrevious:
        return is_match && !last_is_match_;
      case SplitBehavior::kMergedWithNext:
        return !is_match && last_is_match_;
      case SplitBehavior::kContiguous:
        return is_match == last_is_match_;
      case SplitBehavior::kIsolated:
      case SplitBehavior::kRemoved:
        break;
    }
    return false;
  }

  const SplitBehavior behavior_;
  Emit emit_;
  std::size_t begin_ = 0, end_ = 0;
  bool last_is_match_ = false;
};

/// Returns whether the step puts something before each part of a text.
bool puts_before(const PreTokenizerStep& rule) {
  if (const auto* metaspace = std::get_if<Metaspace>(&rule)) {
    return metaspace->scheme == PrependScheme::kAlways;
  }
  const auto* bytes = std::get_if<ByteLevel>(&rule);
  return bytes != nullptr && bytes->add_prefix_space;
}

/// The piece of a text that begins at `begin` starts as the text does, or within it.
PartStart start_at(std::size_t begin, PartStart whole) {
  return begin == 0 ? whole : PartStart{.is_text_start = false, .takes_prefix = true};
}

}  // namespace

PreTokenizer::PreTokenizer(const std::vector<PreTokenizerStep>& steps, bool gives_bytes,
                           std::string_view where)
    : gives_bytes_(gives_bytes) {
  const std::string place = fmt::format("{}: pre_tokenizer", where);
  for (const PreTokenizerStep& rule : steps) {
    Step step{.rule = rule, .pattern = {}};
    if (const auto* split = std::get_if<Split>(&rule)) {
      step.pattern.emplace(split->is_regex ? split->pattern : quote_pattern(split->pattern), place);
    } else if (const auto* bytes = std::get_if<ByteLevel>(&rule); bytes && bytes->uses_regex) {
      step.pattern.emplace(kGpt2Pattern, place);
    }
    puts_before_words_ |= !steps_.empty() && puts_before(rule);
    steps_.push_back(std::move(step));
  }
}

void PreTokenizer::cut(std::string_view text, PartStart start, std::size_t stage,
                       SplitPattern::Scratch& scratch, WordSink& sink) const {
  if (text.empty()) return;
  if (stage == steps_.size()) return sink.word(text);
  std::visit([&](const auto& rule) { cut(text, start, rule, stage, scratch, sink); },
             steps_[stage].rule);
}

void PreTokenizer::cut(std::string_view text, PartStart start, const Split& rule, std::size_t stage,
                       SplitPattern::Scratch& scratch, WordSink& sink) const {
  if (!start.takes_prefix && puts_before_words_) {
    start.takes_prefix = begins_piece(text, start.before, rule, stage, scratch);
  }
  split(text, rule, stage, scratch, [&](std::size_t begin, std::size_t end) {
    cut(text.substr(begin, end - begin), start_at(begin, start), stage + 1, scratch, sink);
  });
}

bool PreTokenizer::begins_piece(std::string_view text, std::string_view before, const Split& rule,
                                std::size_t stage, SplitPattern::Scratch& scratch) const {
  bool begins = false;
  split(std::string(before).append(text), rule, stage, scratch,
        [&](std::size_t begin, std::size_t end) {
          begins |= begin == before.size() || end == before.size();
        });
  return begins;
}

template <class Emit>
void PreTokenizer::split(std::string_view text, const Split& rule, std::size_t stage,
                         SplitPattern::Scratch& scratch, Emit emit) const {
  PieceJoiner pieces(rule.behavior, std::move(emit));
  std::size_t done = 0;
  while (done < text.size()) {
    const auto match = steps_[stage].pattern->find(text, done, scratch);
    if (!match) break;
    pieces.add(done, match->begin, rule.invert);
    pieces.add(match->begin, match->end, !rule.invert);
    done = match->end;
  }
  pieces.add(done, text.size(), rule.invert);
  pieces.flush();
}

void PreTokenizer::cut(std::string_view text, PartStart start, const Metaspace& rule,
                       std::size_t stage, SplitPattern::Scratch& scratch, WordSink& sink) const {
  std::string replaced;
  replaced.reserve(text.size() + text.size() / 2 + rule.replacement.size());
  const bool prefixes = rule.scheme == PrependScheme::kAlways
                            ? start.takes_prefix
                            : rule.scheme == PrependScheme::kFirst && start.is_text_start;
  if (prefixes && !text.starts_with(' ') && !text.starts_with(rule.replacement)) {
    replaced = rule.replacement;
  }
  for (char c : text) {
    if (c == ' ') {
      replaced += rule.replacement;
    } else {
      replaced += c;
    }
  }
  const std::string_view words = replaced;
  if (!rule.splits) return cut(words, start, stage + 1, scratch, sink);
  std::size_t begin = 0;
  while (begin < words.size()) {
    const std::size_t end = std::min(words.find(rule.replacement, begin + 1), words.size());
    cut(words.substr(begin, end - begin), start_at(begin, start), stage + 1, scratch, sink);
    begin = end;
  }
}

void PreTokenizer::cut(std::string_view text, PartStart start, const ByteLevel& rule,
                       std::size_t stage, SplitPattern::Scratch& scratch, WordSink& sink) const {
  std::string prefixed;
  if (rule.add_prefix_space && start.takes_prefix && !text.starts_with(' ')) {
    prefixed.append(1, ' ').append(text);
    text = prefixed;
  }
  const bool leaves_bytes = gives_bytes_ && stage + 1 == steps_.size();
  const auto emit = [&](std::size_t begin, std::size_t end) {
    const std::string_view piece = text.substr(begin, end - begin);
    if (leaves_bytes) return sink.word(piece);
    cut(in_alphabet(piece), start_at(begin, start), stage + 1, scratch, sink);
  };
  if (!rule.uses_regex) return emit(0, text.size());
  for (std::size_t done = 0; done < text.size();) {
    const auto match = steps_[stage].pattern->find(text, done, scratch);
    if (!match) return emit(done, text.size());
    if (match->begin > done) emit(done, match->begin);
    emit(match->begin, match->end);
    done = match->end;
  }
}

std::string PreTokenizer::in_alphabet(std::string_view text) const {
  std::string result;
  result.reserve(2 * text.size());
  for (char c : text) result += alphabet_.character_of(static_cast<unsigned char>(c));
  return result;
}

}  // namespace prefopt::detail
