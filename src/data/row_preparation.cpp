// SPDX-License-Identifier: Apache-2.0
#include "data/row_preparation.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>
#include <optional>
#include <utility>

#include "core/json_text.h"
#include "core/parallel.h"
#include "core/text.h"
#include "core/utf8.h"
#include "data/chat_template.h"
#include "data/chat_writer.h"
#include "data/line_error.h"
#include "data/lines.h"
#include "data/text_ranges.h"
#include "prefopt/error.h"

namespace prefopt::detail {
namespace {

using Ids = std::vector<std::int64_t>;

std::string_view policy_name(RowAction policy) {
  constexpr std::array<std::string_view, 3> kNames = {"error", "drop", "keep"};
  return kNames[static_cast<std::size_t>(policy)];
}

AppliedPolicy applied(RowAction policy, std::string_view option) {
  return {policy, option, policy_name(policy)};
}

AppliedPolicy or_unusable(DefectPolicy policy, std::string_view option,
                          const DataOptions& options) {
  switch (policy) {
    case DefectPolicy::kError:
      return applied(RowAction::kError, option);
    case DefectPolicy::kDrop:
      return applied(RowAction::kDrop, option);
    case DefectPolicy::kKeep:
      return applied(RowAction::kKeep, option);
    case DefectPolicy::kUnusable:
      break;
  }
  return applied(options.unusable, "unusable");
}

AppliedPolicy of_repeated_prompt(RepeatedPrompt policy) {
  constexpr std::string_view kOption = "repeated_prompt";
  switch (policy) {
    case RepeatedPrompt::kRemove:
      return {RowAction::kKeep, kOption, "remove"};
    case RepeatedPrompt::kKeep:
      break;
    case RepeatedPrompt::kDrop:
      return applied(RowAction::kDrop, kOption);
    case RepeatedPrompt::kError:
      return applied(RowAction::kError, kOption);
  }
  return applied(RowAction::kKeep, kOption);
}

AppliedPolicy of_special_tokens(SpecialTokens policy) {
  constexpr std::string_view kOption = "special_tokens_in_text";
  switch (policy) {
    case SpecialTokens::kSplit:
      return {RowAction::kKeep, kOption, "split"};
    case SpecialTokens::kError:
      return applied(RowAction::kError, kOption);
    case SpecialTokens::kKeep:
      break;
  }
  return applied(RowAction::kKeep, kOption);
}

RowDefect defect_of(LineDefect defect) {
  switch (defect) {
    case LineDefect::kMissingKey:
      return RowDefect::kMissingKey;
    case LineDefect::kInvalidUtf8:
      return RowDefect::kInvalidUtf8;
    case LineDefect::kNotANumber:
      return RowDefect::kNotANumber;
    case LineDefect::kToolTurn:
      return RowDefect::kToolTurn;
    case LineDefect::kMalformed:
      break;
  }
  return RowDefect::kMalformed;
}

/// Throws LineError, led by `where`, where the row lacks something.
void check_needs(const PreferenceRow& row, const RowNeeds& needs, std::string_view where) {
  const auto fail = [&](LineDefect defect, std::string_view expected, std::string_view got) {
    throw LineError(defect, fmt::format("{}: {}, got {}", where, expected, got));
  };
  if (needs.rejected && !row.has_rejected) {
    fail(LineDefect::kMissingKey, "expected a key 'rejected'", "a row with one completion");
  }
  if (needs.unpaired() && row.has_rejected) {
    fail(LineDefect::kMalformed, "expected one completion and a label", "a pair");
  }
  if (needs.has(Column::kAdvantage) && row.has_rejected) {
    fail(LineDefect::kMalformed, "expected one completion and its advantage", "a pair");
  }
  if (needs.gold && row.gold.empty() && row.gold_ids.empty()) {
    fail(LineDefect::kMissingKey, "expected a key 'gold'", "a row without it");
  }
  for (const Column column : needs.columns) {
    if (!std::isnan(row.columns[column])) continue;
    const std::string_view key = kColumnKeys[static_cast<std::size_t>(column)];
    fail(LineDefect::kMissingKey, fmt::format("expected a key '{}'", key), "a row without it");
  }
}

RowDefect defect_of(RowRemark remark) {
  switch (remark) {
    case RowRemark::kEndsWithUser:
      return RowDefect::kEndsWithUser;
    case RowRemark::kRepeatedPrompt:
      return RowDefect::kRepeatedPrompt;
    case RowRemark::kDifferentPrompts:
      return RowDefect::kDifferentPrompts;
    case RowRemark::kToolCalls:
      return RowDefect::kToolCalls;
    case RowRemark::kReasoning:
      return RowDefect::kReasoning;
    case RowRemark::kSystemTurn:
      break;
  }
  return RowDefect::kSystemTurn;
}

/// Returns whether a remark is about what the completions hold, not about the prompt.
bool is_of_completions(RowRemark remark) {
  return remark == RowRemark::kEndsWithUser || remark == RowRemark::kRepeatedPrompt;
}

std::string_view without_end_space(std::string_view text) {
  return text.substr(0, text.find_last_not_of(" \t\r\n") + 1);
}

/// Makes tokens of a row's texts.
class RowEncoder {
 public:
  RowEncoder(const PreferenceRow& row, const Tokenizer& tokenizer, const DataOptions& options,
             PreparedRow& result)
      : row_(row), tokenizer_(tokenizer), options_(options), result_(result) {}

  void encode() {
    TokenRow& pair = result_.pair;
    pair.columns = row_.columns;
    if (row_.tokenized) {
      result_.ends.add(tokenizer_.eos_id());
      return take_ids();
    }
    encode_prompt();
    encode_completion(row_.chosen, row_.chosen_parts, pair.chosen, pair.chosen_mask);
    if (row_.has_rejected) {
      encode_completion(row_.rejected, row_.rejected_parts, pair.rejected, pair.rejected_mask);
    }
    if (!row_.gold.empty()) {
      encode_completion(row_.gold, row_.gold_parts, pair.gold, pair.gold_mask);
    }
    add_defects();
  }

  void encode_prompt_alone() {
    if (row_.tokenized) {
      result_.pair.prompt = row_.prompt_ids;
      return;
    }
    encode_prompt();
    add_defects();
  }

 private:
  /// A text and the owners of its parts.
  struct Text {
    std::string text;
    TextParts parts;
  };

  void add_defects() {
    if (spells_control_) result_.defects.push_back(RowDefect::kControlToken);
    if (begins_) result_.defects.push_back(RowDefect::kGivenBegin);
    if (ends_) result_.defects.push_back(RowDefect::kGivenEnd);
  }

  /// Returns the token that ends a completion in its text; empty: the tokenizer's is put after it.
  const std::string& end_of(const TextParts& parts) const {
    return row_.rendered ? parts.end : row_.end_of_turn;
  }
  bool splits() const { return options_.special_tokens_in_text == SpecialTokens::kSplit; }

  void add_end(const std::string& end) {
    if (end.empty()) return result_.ends.add(tokenizer_.eos_id());
    const Ids ids = tokenizer_.encode(end);
    if (ids.size() != 1) {
      throw ConfigError(fmt::format(
          "chat_format: expected a format whose end of turn is one token of the tokenizer '{}', "
          "got '{}', which is {}",
          tokenizer_.name(), end, ids.size()));
    }
    result_.ends.add(ids.front());
  }

  void take_ids() {
    TokenRow& pair = result_.pair;
    pair.prompt = row_.prompt_ids;
    pair.chosen = row_.chosen_ids;
    pair.rejected = row_.rejected_ids;
    pair.gold = row_.gold_ids;
    pair.chosen_weights = row_.chosen_weights;
    pair.rejected_weights = row_.rejected_weights;
    pair.gold_weights = row_.gold_weights;
    pair.chosen_mask = row_.chosen_mask;
    pair.rejected_mask = row_.rejected_mask;
    pair.gold_mask = row_.gold_mask;
  }

  void encode_prompt() {
    const Text prompt =
        noted({row_.prompt, row_.prompt_parts}, row_.end_of_turn, /*is_completion=*/false);
    Ids& ids = result_.pair.prompt;
    ids = tokenizer_.encode_part(prompt.text, plain_of(prompt), {.is_last = false});
    prompt_text_ = prompt.text;
    const std::int64_t begin = tokenizer_.bos_id();
    const bool is_bare = !row_.rendered && row_.end_of_turn.empty();
    if (!is_bare || !options_.add_bos || begin < 0) return;
    if (!ids.empty() && ids.front() == begin) {
      begins_ = true;
    } else {
      ids.insert(ids.begin(), begin);
    }
  }

  void encode_completion(const std::string& text, const TextParts& parts, Ids& ids,
                         TokenMask& mask) {
    const std::string& own_end = end_of(parts);
    add_end(own_end);
    const Text completion = noted({text, parts}, own_end, /*is_completion=*/true);
    const std::vector<TextRange>& counted = completion.parts.counted;
    const std::vector<TextRange> plain = plain_of(completion);
    std::size_t done = 0;
    // Apart, as prompt and completion are: a token lies in one of the parts.
    const std::string whole = prompt_text_ + completion.text;
    const auto take = [&](std::size_t end, bool counts) {
      if (end <= done) return;
      const std::size_t begin = prompt_text_.size() + done;
      const TextPlace place{.before = std::string_view(whole).substr(0, begin),
                            .is_last = end == completion.text.size()};
      const Ids more = tokenizer_.encode_part(std::string_view(whole).substr(begin, end - done),
                                              within(plain, done, end), place);
      ids.insert(ids.end(), more.begin(), more.end());
      mask.insert(mask.end(), more.size(), counts ? 1 : 0);
      done = end;
    };
    for (const TextRange& range : counted) {
      take(range.begin, false);
      take(range.end, true);
    }
    take(completion.text.size(), counted.empty());
    const std::int64_t end = tokenizer_.eos_id();
    if (own_end.empty() && options_.add_eos && end >= 0 && !result_.ends.end(ids)) {
      ids.push_back(end);
      mask.push_back(1);
    }
    if (counted.empty()) mask.clear();
  }

  /// Returns the ranges in which control tokens are plain text.
  std::vector<TextRange> plain_of(const Text& text) const {
    if (!splits()) return {};
    if (row_.from_messages) return text.parts.contents;
    return {{0, text.text.size()}};
  }

  struct GivenEnd {
    std::size_t begin, end;
    std::int64_t id;
  };

  /// Returns the token that ends `text`, but for white space, if its spelling does.
  std::optional<GivenEnd> given_end(std::string_view text) const {
    const std::string_view trimmed = without_end_space(text);
    const std::int64_t eos = tokenizer_.eos_id();
    const auto found = [&](std::string_view spelled) -> std::optional<GivenEnd> {
      if (spelled.empty() || !trimmed.ends_with(spelled)) return std::nullopt;
      const Ids ids = tokenizer_.encode(spelled);
      const bool is_end = ids.size() == 1 &&
                          (ids.front() == eos || ids.front() == tokenizer_.find_control(spelled));
      if (!is_end) return std::nullopt;
      return GivenEnd{trimmed.size() - spelled.size(), trimmed.size(), ids.front()};
    };
    if (eos >= 0) {
      if (const auto end = found(tokenizer_.spelling(eos))) return end;
    }
    for (const std::string_view spelled : ends_of_turns()) {
      if (const auto end = found(spelled)) return end;
    }
    return std::nullopt;
  }

  /// Removes bytes and moves up the rest.
  static void erase(Text& text, std::size_t begin, std::size_t end) {
    text.text.erase(begin, end - begin);
    const auto move = [&](std::size_t& place) {
      place = place >= end ? place - (end - begin) : std::min(place, begin);
    };
    for (auto* ranges : {&text.parts.contents, &text.parts.answers, &text.parts.counted}) {
      for (TextRange& range : *ranges) {
        move(range.begin);
        move(range.end);
      }
    }
  }

  /// Notes the control tokens of the text and drops an end that another one follows. `own_end`:
  /// that of its answers, or empty.
  Text noted(Text text, const std::string& own_end, bool is_completion) {
    std::size_t own = text.text.size();  // without an end that takes the place of the usual one
    if (row_.from_messages && !own_end.empty() && !splits()) {
      for (std::size_t i = text.parts.answers.size(); i > 0; --i) erase_ends(text, i - 1);
      own = text.text.size();
    } else if (is_completion && own_end.empty() && options_.add_eos && !splits()) {
      own = keep_one_end(text);
    }
    note_control(text, own);
    return text;
  }

  /// An answer ends where its turn does. In other turns such a token ends nothing.
  void erase_ends(Text& text, std::size_t answer) {
    while (true) {
      const TextRange content = text.parts.answers[answer];
      const auto given =
          given_end(std::string_view(text.text).substr(content.begin, content.end - content.begin));
      if (!given) return;
      erase(text, content.begin + given->begin, content.end);
      ends_ = true;
    }
  }

  /// Returns the place of the one that is left.
  std::size_t keep_one_end(Text& text) {
    auto given = given_end(text.text);
    if (!given) return text.text.size();
    erase(text, given->end, text.text.size());
    result_.ends.add(given->id);
    ends_ = true;
    std::size_t begin = given->begin;
    while ((given = given_end(std::string_view(text.text).substr(0, begin)))) {
      erase(text, given->begin, begin);
      begin = given->begin;
    }
    return begin;
  }

  void note_control(const Text& text, std::size_t end) {
    const auto look = [&](TextRange range) {
      const std::size_t last = std::min(range.end, end);
      spells_control_ |=
          range.begin < last && tokenizer_.find_control(std::string_view(text.text).substr(
                                    range.begin, last - range.begin)) >= 0;
    };
    if (row_.from_messages) {
      for (const TextRange& content : text.parts.contents) look(content);
    } else if (options_.special_tokens_in_text != SpecialTokens::kKeep) {
      look({0, text.text.size()});
    }
  }

  const PreferenceRow& row_;
  const Tokenizer& tokenizer_;
  const DataOptions& options_;
  PreparedRow& result_;
  std::string prompt_text_;  // what its completions follow
  bool spells_control_ = false, begins_ = false, ends_ = false;
};

std::size_t budget(std::int64_t option) {
  return option == 0 ? std::numeric_limits<std::size_t>::max() : static_cast<std::size_t>(option);
}

/// A completion of a pair with what there is for each of its tokens.
struct Completion {
  Ids& ids;
  TokenWeights& weights;
  TokenMask& mask;
};

std::array<Completion, 3> completions_of(TokenRow& pair) {
  return {{{pair.chosen, pair.chosen_weights, pair.chosen_mask},
           {pair.rejected, pair.rejected_weights, pair.rejected_mask},
           {pair.gold, pair.gold_weights, pair.gold_mask}}};
}

template <class T>
void cut_to(std::vector<T>& values, std::size_t limit, bool keeps_last) {
  if (values.empty()) return;
  const T last = values.back();
  values.resize(limit);
  if (keeps_last) values.back() = last;
}

/// Returns the number of tokens cut.
std::int64_t cut_completion(Completion completion, std::size_t limit, const EndIds& ends,
                            EndOfCut end_of_cut) {
  if (completion.ids.size() <= limit) return 0;
  const auto cut = static_cast<std::int64_t>(completion.ids.size() - limit);
  // An end within a turn that does not count would end somebody else's words.
  const bool is_within_other =
      limit > 1 && !completion.mask.empty() && completion.mask[limit - 2] == 0;
  const bool keeps_end =
      limit > 0 && end_of_cut != EndOfCut::kDrop && ends.end(completion.ids) && !is_within_other;
  cut_to(completion.ids, limit, keeps_end);
  cut_to(completion.weights, limit, keeps_end);
  cut_to(completion.mask, limit, keeps_end);
  if (keeps_end && end_of_cut == EndOfCut::kMask) {
    completion.mask.resize(limit, 1);
    completion.mask.back() = 0;
  }
  return cut;
}

std::int64_t cut_prompt(Ids& ids, std::size_t limit, std::int64_t bos, Truncation truncation) {
  if (ids.size() <= limit) return 0;
  const auto cut = static_cast<std::int64_t>(ids.size() - limit);
  if (truncation == Truncation::kKeepStart) {
    ids.resize(limit);
    return cut;
  }
  const bool begun = ids.front() == bos;
  ids.erase(ids.begin(), ids.begin() + cut);
  if (begun) ids.front() = bos;
  return cut;
}

Cuts apply_budgets(TokenRow& pair, const EndIds& ends, std::int64_t bos_id,
                   const DataOptions& options) {
  const bool keeps_start = options.truncation == Truncation::kKeepStart;
  const std::size_t total = budget(options.max_length);
  Cuts cuts;
  const auto cut_prompt_to = [&](std::size_t limit) {
    const std::int64_t cut = cut_prompt(pair.prompt, limit, bos_id, options.truncation);
    cuts.prompt = cut > 0;
    cuts.tokens += cut;
  };
  if (keeps_start) cut_prompt_to(std::min(budget(options.max_prompt_length), total));
  // One token is the least that the prompt gives way to.
  const std::size_t completion_limit = std::min(
      budget(options.max_completion_length), keeps_start ? total - pair.prompt.size() : total - 1);
  std::size_t longest = 0;
  for (const Completion& completion : completions_of(pair)) {
    const std::int64_t cut = cut_completion(completion, completion_limit, ends, options.end_of_cut);
    cuts.completions += cut > 0 ? 1 : 0;
    cuts.tokens += cut;
    longest = std::max(longest, completion.ids.size());
  }
  if (!keeps_start) cut_prompt_to(std::min(budget(options.max_prompt_length), total - longest));
  return cuts;
}

/// Returns whether `a`, without the token that ends it, begins `b`.
bool begins(const Ids& a, const Ids& b, const EndIds& ends) {
  const std::ptrdiff_t size = std::ssize(a) - (ends.end(a) ? 1 : 0);
  return size > 0 && size < std::ssize(b) && std::equal(a.begin(), a.begin() + size, b.begin());
}

/// Finds the defects that the tokens of a row show.
void find_defects(const RowNeeds& needs, std::int64_t context_length, PreparedRow& row) {
  const TokenRow& pair = row.pair;
  const auto any_completion = [&](const auto& holds) {
    return holds(pair.chosen, pair.chosen_mask) ||
           (needs.rejected && holds(pair.rejected, pair.rejected_mask)) ||
           (needs.gold && holds(pair.gold, pair.gold_mask));
  };
  const auto is_empty = [](const Ids& ids, const TokenMask&) { return ids.empty(); };
  const auto is_end_alone = [&](const Ids& ids, const TokenMask&) {
    return ids.size() == 1 && row.ends.has(ids[0]);
  };
  const auto counts_nothing = [](const Ids& ids, const TokenMask& mask) {
    return counted_tokens(ids, mask) == 0;
  };
  if (any_completion(is_empty)) {
    row.defects.push_back(row.cuts.completions > 0 ? RowDefect::kNoCountedToken
                                                   : RowDefect::kNoToken);
  } else if (any_completion(counts_nothing)) {
    row.defects.push_back(RowDefect::kNoCountedToken);
  } else if (any_completion(is_end_alone)) {
    row.defects.push_back(RowDefect::kEmptyCompletion);
  }
  if (pair.prompt.empty()) row.defects.push_back(RowDefect::kEmptyPrompt);
  if (needs.rejected && pair.chosen == pair.rejected && !pair.chosen.empty()) {
    row.defects.push_back(RowDefect::kIdentical);
  } else if (needs.rejected && (begins(pair.chosen, pair.rejected, row.ends) ||
                                begins(pair.rejected, pair.chosen, row.ends))) {
    row.defects.push_back(RowDefect::kPrefixAnswer);
  }
  if (row.cuts.prompt) row.defects.push_back(RowDefect::kLongPrompt);
  const std::size_t longest =
      pair.prompt.size() + std::max({pair.chosen.size(), pair.rejected.size(), pair.gold.size()});
  if (context_length > 0 && longest > static_cast<std::size_t>(context_length)) {
    row.defects.push_back(RowDefect::kLongContext);
  }
}

RowNeeds needs_of(const PreferenceRow& row) {
  return {.rejected = row.has_rejected, .gold = !row.gold.empty() || !row.gold_ids.empty()};
}

PreferenceRow read_line(const std::string& path, const FileRow& line, const DataOptions& options,
                        const LineReading& reading, std::vector<RowDefect>& defects,
                        RowTrace& trace) {
  const std::string where = row_place(path, line.number);
  const auto read = [&](std::string_view text) {
    PreferenceRow row = parse_line(text, where, options, reading, trace);
    if (reading.needs != nullptr) check_needs(row, *reading.needs, where);
    return row;
  };
  const bool mends_utf8 = policy_for(RowDefect::kInvalidUtf8, options).policy == RowAction::kKeep &&
                          (find_invalid_utf8(line.text) != std::string_view::npos ||
                           find_lone_surrogate(line.text) != std::string_view::npos);
  if (!mends_utf8) return read(line.text);
  defects.push_back(RowDefect::kInvalidUtf8);
  return read(replace_lone_surrogates(replace_invalid_utf8(line.text)));
}

PreparedRow prepare_line(const std::string& path, const FileRow& line, const Tokenizer& tokenizer,
                         const DataOptions& options, const LineReading& reading) {
  PreparedRow result;
  PreferenceRow row;
  std::vector<RowDefect> mended;
  RowTrace trace;
  try {
    row = read_line(path, line, options, reading, mended, trace);
  } catch (const LineError& error) {
    result.defects = {defect_of(error.defect())};
    result.refusal = error.what();
    result.found = trace.found;
    return result;
  } catch (const ConfigError&) {  // no chat format for messages
    result.error = std::current_exception();
    return result;
  }
  try {
    result = prepare_row(row, tokenizer, options, reading.needs, reading.context_length);
  } catch (...) {
    result.error = std::current_exception();
  }
  result.defects.insert(result.defects.begin(), mended.begin(), mended.end());
  result.unread = std::move(trace.unread);
  result.read = std::move(trace.read);
  result.found = trace.found;
  result.assumes_label = trace.assumes_label;
  return result;
}

std::vector<PreparedRow> prepare_lines(const std::string& path, const std::vector<FileRow>& lines,
                                       const Tokenizer& tokenizer, const DataOptions& options,
                                       const LineReading& reading) {
  std::vector<PreparedRow> rows(lines.size());
  parallel_for(0, std::ssize(rows), /*grain=*/1, [&](std::int64_t first, std::int64_t last) {
    for (auto i = static_cast<std::size_t>(first); i < static_cast<std::size_t>(last); ++i) {
      rows[i] = prepare_line(path, lines[i], tokenizer, options, reading);
    }
  });
  return rows;
}

/// Returns the columns of the mapping that hold completions or say something of them, as bits.
std::uint64_t columns_of_completions(const RowLayout& layout) {
  constexpr std::array<std::string_view, 4> kTexts = {"chosen", "rejected", "gold", "completion"};
  constexpr std::array<std::string_view, 2> kScores = {"score_chosen", "score_rejected"};
  const auto is_among = [](const auto& names, std::string_view name) {
    return std::find(names.begin(), names.end(), name) != names.end();
  };
  std::uint64_t bits = 0;
  const auto& mapping = layout.mapping();
  for (std::size_t i = 0; i < mapping.size(); ++i) {
    const std::string& field = mapping[i].first;
    const bool is_of_completions =
        is_among(kTexts, field) || is_among(kScores, field) || is_among(kColumnKeys, field);
    if (is_of_completions) bits |= std::uint64_t{1} << i;
  }
  return bits;
}

/// Throws DataError for a defect of the prompt that the policies do not keep: a row to be answered
/// can be neither dropped nor changed.
void check_prompt(const PreferenceRow& row, const DataOptions& options, std::string_view where) {
  for (const RowRemark remark : row.remarks) {
    if (is_of_completions(remark)) continue;
    const RowDefect defect = defect_of(remark);
    const AppliedPolicy applied = policy_for(defect, options);
    if (applied.policy == RowAction::kKeep) continue;
    throw DataError(
        fmt::format("{}: expected a usable prompt, got one with '{}'; the option {} = '{}'", where,
                    defect_name(defect), applied.option, applied.value));
  }
}

}  // namespace

std::string_view defect_name(RowDefect defect) {
  switch (defect) {
    case RowDefect::kMalformed:
      return "malformed row";
    case RowDefect::kMissingKey:
      return "missing key";
    case RowDefect::kInvalidUtf8:
      return "invalid UTF-8";
    case RowDefect::kNotANumber:
      return "not a number";
    case RowDefect::kNoToken:
    case RowDefect::kEmptyCompletion:
      return "empty completion";
    case RowDefect::kEmptyPrompt:
      return "empty prompt";
    case RowDefect::kNoCountedToken:
      return "no token of a completion that counts";
    case RowDefect::kIdentical:
      return "chosen equals rejected";
    case RowDefect::kPrefixAnswer:
      return "one answer begins the other";
    case RowDefect::kLongPrompt:
      return "long prompt";
    case RowDefect::kLongContext:
      return "longer than the model's context";
    case RowDefect::kEndsWithUser:
      return "conversation that ends with the user";
    case RowDefect::kRepeatedPrompt:
      return "completion that begins with the prompt";
    case RowDefect::kDifferentPrompts:
      return "completions of different prompts";
    case RowDefect::kReasoning:
      return "reasoning, for which the chat format has no text";
    case RowDefect::kToolCalls:
    case RowDefect::kToolTurn:
      return "tool_calls or tools, for which the chat format has no text";
    case RowDefect::kSystemTurn:
      return "system turn, which the chat format has not";
    case RowDefect::kControlToken:
      return "control token spelled in the text";
    case RowDefect::kGivenBegin:
      return "prompt with its own begin token";
    case RowDefect::kGivenEnd:
      return "completion with its own end token";
    case RowDefect::kDuplicate:
      return "same as an earlier row";
    case RowDefect::kUnreadColumn:
      return "unread column of a prompt";
  }
  return "";
}

AppliedPolicy policy_for(RowDefect defect, const DataOptions& options) {
  switch (defect) {
    case RowDefect::kMissingKey:
      return or_unusable(options.missing_key, "missing_key", options);
    case RowDefect::kInvalidUtf8:
      return or_unusable(options.invalid_utf8, "invalid_utf8", options);
    case RowDefect::kEmptyCompletion:
      return or_unusable(options.empty_completion, "empty_completion", options);
    case RowDefect::kNoToken:
    case RowDefect::kNoCountedToken: {
      const AppliedPolicy given = policy_for(RowDefect::kEmptyCompletion, options);
      if (given.policy != RowAction::kKeep) return given;
      break;  // nothing to keep
    }
    case RowDefect::kToolTurn:
      if (options.tool_calls != RowAction::kKeep) return applied(options.tool_calls, "tool_calls");
      break;  // likewise
    case RowDefect::kIdentical:
      return applied(options.identical, "identical");
    case RowDefect::kPrefixAnswer:
      return applied(options.prefix_answer, "prefix_answer");
    case RowDefect::kLongPrompt:
      return applied(options.long_prompt, "long_prompt");
    case RowDefect::kLongContext:
      return applied(options.long_context, "long_context");
    case RowDefect::kDuplicate:
      return applied(options.duplicate, "duplicate");
    case RowDefect::kUnreadColumn:
      if (options.unused == UnusedColumns::kNote) return {RowAction::kKeep, "unused", "note"};
      return applied(RowAction::kError, "unused");
    case RowDefect::kEndsWithUser:
      return applied(options.ends_with_user, "ends_with_user");
    case RowDefect::kRepeatedPrompt:
      return of_repeated_prompt(options.repeated_prompt);
    case RowDefect::kDifferentPrompts:
      return applied(options.different_prompts, "different_prompts");
    case RowDefect::kToolCalls:
      return applied(options.tool_calls, "tool_calls");
    case RowDefect::kReasoning:
      return applied(options.reasoning, "reasoning");
    case RowDefect::kSystemTurn:
      return applied(options.system_turn, "system_turn");
    case RowDefect::kControlToken:
      return of_special_tokens(options.special_tokens_in_text);
    case RowDefect::kGivenBegin:
      return {RowAction::kKeep, "add_bos", "true"};
    case RowDefect::kGivenEnd:
      return {RowAction::kKeep, "add_eos", "true"};
    case RowDefect::kNotANumber:
    case RowDefect::kMalformed:
    case RowDefect::kEmptyPrompt:
      break;
  }
  return applied(options.unusable, "unusable");
}

void EndIds::add(std::int64_t id) {
  if (id >= 0 && !has(id)) ids_.push_back(id);
}

bool EndIds::has(std::int64_t id) const {
  return std::find(ids_.begin(), ids_.end(), id) != ids_.end();
}

void check_data_options(const DataOptions& options, std::string_view where) {
  const auto nothing_to_keep = [&](std::string_view option) {
    return ConfigError(
        fmt::format("{}: expected {} to be 'error' or 'drop', got 'keep'; there is nothing to keep",
                    where, option));
  };
  if (options.unusable == RowAction::kKeep) throw nothing_to_keep("unusable");
  if (options.missing_key == DefectPolicy::kKeep) throw nothing_to_keep("missing_key");
  checked(options, where);
  RowLayout(options.columns, fmt::format("{}: columns", where));
  if (options.max_length == 1) {
    throw ConfigError(fmt::format(
        "{}: expected max_length 0 or at least 2, got 1; a row is a prompt and a completion token",
        where));
  }
}

PreparedRow prepare_row(const PreferenceRow& row, const Tokenizer& tokenizer,
                        const DataOptions& options, const RowNeeds* needs,
                        std::int64_t context_length) {
  const RowNeeds wanted = needs != nullptr ? *needs : needs_of(row);
  PreparedRow result;
  for (const RowRemark remark : row.remarks) result.defects.push_back(defect_of(remark));
  RowEncoder(row, tokenizer, options, result).encode();
  result.from_messages = row.from_messages;
  TokenRow& pair = result.pair;
  // A completion that the loss never sees must not cost the others their budget.
  if (!wanted.rejected) {
    pair.rejected.clear();
    pair.rejected_weights.clear();
    pair.rejected_mask.clear();
  }
  if (!wanted.gold) {
    pair.gold.clear();
    pair.gold_weights.clear();
    pair.gold_mask.clear();
  }
  result.uncut = {.prompt = std::ssize(pair.prompt),
                  .chosen = std::ssize(pair.chosen),
                  .rejected = std::ssize(pair.rejected)};
  for (const Ids* completion : {&pair.chosen, &pair.rejected}) {
    result.ended_before += result.ends.end(*completion) ? 1 : 0;
  }
  // Before defects are looked for: completions that the budget makes equal, or empty, are some.
  result.cuts = apply_budgets(pair, result.ends, tokenizer.bos_id(), options);
  find_defects(wanted, context_length, result);
  return result;
}

PreparedRow prepare_prompt(const PreferenceRow& row, const Tokenizer& tokenizer,
                           const DataOptions& options) {
  PreparedRow result;
  for (const RowRemark remark : row.remarks) result.defects.push_back(defect_of(remark));
  RowEncoder(row, tokenizer, options, result).encode_prompt_alone();
  result.from_messages = row.from_messages;
  return result;
}

std::string refusal_of(RowDefect defect, const DataOptions& options, std::string_view where) {
  return fmt::format("{}: expected a usable row, got one with '{}'; the option {} = {}", where,
                     defect_name(defect), policy_for(defect, options).option,
                     defect == RowDefect::kControlToken ? "'split' takes it as text"
                                                        : "'drop' leaves such rows out");
}

void prepare_file(const std::string& path, const Tokenizer& tokenizer, const DataOptions& options,
                  const RowNeeds* needs, std::int64_t context_length,
                  const std::function<void(std::int64_t line, PreparedRow row)>& take) {
  // Lines that are prepared at a time: enough for all threads, few enough for memory.
  constexpr std::size_t kMaxLines = 4096;
  constexpr std::size_t kMaxBytes = std::size_t{16} << 20;
  const RowLayout layout(options.columns);
  const auto chat_template = chat_template_for_rows(options, tokenizer);
  const LineReading reading{.layout = layout,
                            .needs = needs,
                            .context_length = context_length,
                            .chat_template = chat_template.get()};
  std::vector<FileRow> lines;
  std::size_t bytes = 0;
  std::uint64_t found = 0;
  std::string first;
  const auto take_lines = [&] {
    auto rows = prepare_lines(path, lines, tokenizer, options, reading);
    if (first.empty() && !lines.empty()) first = lines.front().text;
    for (std::size_t i = 0; i < rows.size(); ++i) {
      found |= rows[i].found;
      take(lines[i].number, std::move(rows[i]));
    }
    lines.clear();
    bytes = 0;
  };
  std::int64_t count = 0;
  read_rows(path, [&](std::int64_t number, std::string_view text) {
    lines.push_back({.number = number, .text = std::string(text)});
    bytes += text.size();
    if (lines.size() == kMaxLines || bytes >= kMaxBytes) take_lines();
    return ++count != options.max_rows;
  });
  take_lines();
  if (count > 0) check_mapping(layout, found, path, first);
}

void check_mapping(const RowLayout& layout, std::uint64_t found, const std::string& where,
                   const std::string& row) {
  const auto& mapping = layout.mapping();
  for (std::size_t i = 0; i < mapping.size(); ++i) {
    if ((found >> i & 1) != 0) continue;
    const auto& [field, column] = mapping[i];
    const SortedJson json = SortedJson::parse(row, nullptr, /*allow_exceptions=*/false);
    std::vector<std::string> keys;
    if (json.is_object()) {
      for (const auto& item : json.items()) keys.push_back(item.key());
    }
    throw ConfigError(
        fmt::format("{}: expected a column '{}', which data.columns.{} names, got no "
                    "row that has it{}",
                    where, column, field, did_you_mean(column, {keys.begin(), keys.end()})));
  }
}

std::vector<PreparedRow> prepare_rows(const std::vector<PlacedRow>& rows,
                                      const Tokenizer& tokenizer, const DataOptions& options,
                                      const LineReading& reading) {
  std::vector<PreparedRow> prepared(rows.size());
  parallel_for(0, std::ssize(rows), /*grain=*/1, [&](std::int64_t first, std::int64_t last) {
    for (auto i = static_cast<std::size_t>(first); i < static_cast<std::size_t>(last); ++i) {
      prepared[i] = prepare_line(*rows[i].path, rows[i].row, tokenizer, options, reading);
    }
  });
  return prepared;
}

void read_prompts(
    const std::string& path, const Tokenizer& tokenizer, const DataOptions& options,
    const std::function<void(const PreferenceRow& row, const RowTrace& trace)>& take) {
  const RowLayout layout(options.columns);
  const auto chat_template = chat_template_for_rows(options, tokenizer);
  std::uint64_t found = columns_of_completions(layout);
  std::string first;
  read_rows(path, [&](std::int64_t number, std::string_view text) {
    if (first.empty()) first = text;
    const std::string where = row_place(path, number);
    RowTrace trace;
    PreferenceRow row;
    try {
      row = parse_line(
          text, where, options,
          {.layout = layout, .prompt_alone = true, .chat_template = chat_template.get()}, trace);
    } catch (const LineError& error) {
      throw DataError(error.what());
    }
    row.line = number;
    check_unread(trace.unread, options, where);
    check_prompt(row, options, where);
    take(row, trace);
    found |= trace.found;
    return true;
  });
  if (!first.empty()) check_mapping(layout, found, path, first);
}

std::string refusal_reason(const std::string& refusal, const std::string& path, std::int64_t line) {
  const std::string_view expected =
      std::string_view(refusal).substr(row_place(path, line).size() + 2);
  return std::string(expected.substr(0, expected.find(", got ")));
}

std::string row_place(const std::string& path, std::int64_t line) {
  return fmt::format("{}:{}", path, line);
}

}  // namespace prefopt::detail
