// SPDX-License-Identifier: Apache-2.0
#include "data/tokenizers/normalizer.h"

#include <fmt/format.h>

#include <memory>
#include <utility>

#include "core/utf8.h"
#include "data/tokenizers/charsmap.h"
#include "data/tokenizers/unicode.h"
#include "prefopt/error.h"

namespace prefopt::detail {
namespace {

bool is_dropped_by_nmt(char32_t code) {
  return (code >= 0x1 && code <= 0x8) || code == 0xB || (code >= 0xE && code <= 0x1F) ||
         code == 0x7F || code == 0x8F || code == 0x9F;
}

bool is_space_of_nmt(char32_t code) {
  switch (code) {
    case 0x9:
    case 0xA:
    case 0xC:
    case 0xD:
    case 0x1680:
    case 0x2028:
    case 0x2029:
    case 0x2581:
    case 0xFEFF:
    case 0xFFFD:
      return true;
    default:
      return code >= 0x200B && code <= 0x200F;
  }
}

std::string by_nmt(std::string_view text) {
  std::string result;
  result.reserve(text.size());
  for (std::size_t at = 0; at < text.size();) {
    const Utf8Character character = utf8_character(text, at);
    if (is_space_of_nmt(character.code)) {
      result += ' ';
    } else if (!is_dropped_by_nmt(character.code)) {
      result += text.substr(at, character.length);
    }
    at += character.length;
  }
  return result;
}

std::size_t first_length(std::string_view text) {
  return text.empty() ? 0 : utf8_character(text, 0).length;
}

/// Returns whether a filter that leaves the characters that `keeps` left the first one.
bool keeps_first(std::string_view text,
                 const std::function<std::string(std::string_view)>& filter) {
  return !filter(text.substr(0, first_length(text))).empty();
}

}  // namespace

Replacement::Replacement(const Replace& rule, std::string_view where) : content_(rule.content) {
  if (rule.pattern.empty()) {
    throw CheckpointError(
        fmt::format("{}: expected a pattern of one character at least, got none", where));
  }
  if (rule.is_regex) {
    pattern_.emplace(rule.pattern, where);
  } else {
    literal_ = rule.pattern;
  }
}

std::string Replacement::apply(std::string_view text, SplitPattern::Scratch& scratch,
                               bool* starts_moved) const {
  std::string result;
  result.reserve(text.size() + text.size() / 4);
  std::size_t done = 0;
  while (done < text.size()) {
    std::size_t begin = text.size(), end = begin;
    if (pattern_) {
      if (const auto match = pattern_->find(text, done, scratch)) {
        begin = match->begin;
        end = match->end;
      }
    } else if (const std::size_t at = text.find(literal_, done); at != std::string_view::npos) {
      begin = at;
      end = at + literal_.size();
    }
    result += text.substr(done, begin - done);
    if (begin == text.size()) break;
    // Characters are aligned with the last one that they replace.
    if (begin == 0 && starts_moved != nullptr) {
      *starts_moved = content_.empty() || first_length(text) != end;
    }
    result += content_;
    done = end;
  }
  return result;
}

namespace {

/// Makes the function of each step.
struct NormalizerMaker {
  using Step = std::function<void(Normalizer::Text&, Normalizer::Place, SplitPattern::Scratch&)>;
  using Text = Normalizer::Text;
  using Place = Normalizer::Place;
  using Scratch = SplitPattern::Scratch;
  std::string_view where;

  Step operator()(const Prepend& step) const {
    return [prefix = step.text](Text& text, Place place, Scratch&) {
      if (place.begins && !text.text.empty()) text.text.insert(0, prefix);
    };
  }
  Step operator()(const Replace& step) const {
    return [rule = Replacement(step, where)](Text& text, Place, Scratch& scratch) {
      bool moved = false;
      text.text = rule.apply(text.text, scratch, &moved);
      text.keeps_start &= !moved;
    };
  }
  Step operator()(const UnicodeForm& form) const {
    return [form](Text& text, Place, Scratch&) {
      if (!is_plainly_in_form(text.text, form)) text.text = unicode_form(text.text, form);
    };
  }
  Step operator()(const Lowercase&) const {
    return [](Text& text, Place, Scratch&) { text.text = lowercase(text.text); };
  }
  Step operator()(const Strip& step) const {
    return [step](Text& text, Place place, Scratch&) {
      const std::size_t begin = step.left && place.begins ? white_space_end(text.text, 0) : 0;
      const std::size_t size = text.text.size();
      const std::size_t end =
          step.right && place.ends ? white_space_begin(text.text, size, begin) : size;
      text.text = text.text.substr(begin, end - begin);
      text.keeps_start &= begin == 0;
    };
  }
  Step operator()(const StripAccents&) const { return filter(without_marks); }
  Step operator()(const Nmt&) const { return filter(by_nmt); }
  Step operator()(const Charsmap& step) const {
    return [table = std::make_shared<const CharsmapTable>(step.bytes, where)](
               Text& text, Place, Scratch&) { text.text = table->apply(text.text); };
  }

  static Step filter(std::string (*filtered)(std::string_view)) {
    return [filtered](Text& text, Place, Scratch&) {
      text.keeps_start &= keeps_first(text.text, filtered);
      text.text = filtered(text.text);
    };
  }
};

}  // namespace

Normalizer::Normalizer(const std::vector<NormalizerStep>& steps, std::string_view where) {
  for (const NormalizerStep& step : steps) {
    steps_.push_back(std::visit(NormalizerMaker{fmt::format("{}: normalizer", where)}, step));
  }
}

Normalizer::Text Normalizer::apply(std::string_view text, Place place,
                                   SplitPattern::Scratch& scratch) const {
  Text result{.text = std::string(text)};
  for (const Step& step : steps_) step(result, place, scratch);
  return result;
}

}  // namespace prefopt::detail
