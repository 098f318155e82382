// SPDX-License-Identifier: Apache-2.0
#include "prefopt/data/data_check.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <ostream>
#include <span>
#include <string_view>

#include "cli/commands.h"
#include "cli/inputs.h"
#include "core/json.h"
#include "core/utf8.h"
#include "data/data_files.h"
#include "data/defect_line.h"
#include "decoder/decoder_files.h"
#include "prefopt/data/tokenizer.h"
#include "prefopt/error.h"
#include "prefopt/train/trainer.h"

namespace prefopt::cli {
namespace {

using detail::counted;
using detail::Json;

DataCheckOptions read_options(const DataCheckArguments& arguments, std::ostream& err) {
  DataCheckOptions options;
  options.data =
      arguments.options.empty()
          ? noted_run_options(detail::remembered_rows({arguments.model}), err)
          : options_from_json<DataOptions>(read_json_argument(arguments.options), "--options");
  if (!arguments.chat_format.empty()) options.data.chat_format = arguments.chat_format;
  read_columns(arguments.columns, options.data);
  if (arguments.max_prompt_length) options.data.max_prompt_length = *arguments.max_prompt_length;
  if (arguments.max_completion_length) {
    options.data.max_completion_length = *arguments.max_completion_length;
  }
  if (arguments.max_length) options.data.max_length = *arguments.max_length;
  options.data = checked(options.data, "check");
  if (!arguments.loss.empty()) {
    options.needs = row_needs(read_loss(arguments.loss).requirements());
  }
  return options;
}

std::string_view policy_name(RowAction policy) {
  switch (policy) {
    case RowAction::kError:
      return "error";
    case RowAction::kDrop:
      return "drop";
    case RowAction::kKeep:
      break;
  }
  return "keep";
}

/// That of the model; 0 where there is none, or none that prefopt loads: its tokenizer may be all
/// that is wanted.
std::int64_t known_context(const std::string& model) {
  if (model.empty()) return 0;
  try {
    return detail::context_length_of(model);
  } catch (const CheckpointError&) {
    return 0;
  }
}

/// Tokens of a row that belong together.
struct Part {
  std::string name;
  std::span<const std::int64_t> ids;
  std::span<const std::uint8_t> mask;  ///< as of a TokenSequence
  bool is_prompt = false;
};

std::vector<Part> parts_of(const TokenRow& pair) {
  std::vector<Part> parts{{"prompt", pair.prompt, {}, true}};
  const bool is_pair = !pair.rejected.empty();
  parts.push_back({is_pair ? "chosen" : "completion", pair.chosen, pair.chosen_mask});
  if (is_pair) parts.push_back({"rejected", pair.rejected, pair.rejected_mask});
  if (!pair.gold.empty()) parts.push_back({"gold", pair.gold, pair.gold_mask});
  return parts;
}

/// Tokens in a row that all count, or all do not.
struct Run {
  bool counts;
  std::span<const std::int64_t> ids;
};

std::vector<Run> runs_of(const Part& part) {
  if (part.mask.empty()) return {{true, part.ids}};
  std::vector<Run> runs;
  for (std::size_t begin = 0; begin < part.ids.size();) {
    std::size_t end = begin;
    while (end < part.ids.size() && part.mask[end] == part.mask[begin]) ++end;
    runs.push_back({part.mask[begin] != 0, part.ids.subspan(begin, end - begin)});
    begin = end;
  }
  return runs;
}

std::string spelled(const Tokenizer& tokenizer, std::span<const std::int64_t> ids) {
  std::string text;
  for (const std::int64_t id : ids) text += tokenizer.spelling(id);
  return detail::replace_invalid_utf8(text);
}

/// For a terminal: what would move its cursor, change its state or the order of its text is
/// written as an escape of C.
std::string escaped(std::string_view text) {
  const auto is_hidden = [](char32_t code) {
    return code < 0x20 || (code >= 0x7F && code < 0xA0) || (code >= 0x200B && code <= 0x200F) ||
           (code >= 0x2028 && code <= 0x202E) || (code >= 0x2060 && code <= 0x206F) ||
           code == 0xFEFF;
  };
  std::string result;
  for (std::size_t at = 0; at < text.size();) {
    const detail::Utf8Character character = detail::utf8_character(text, at);
    if (character.code == '\n') {
      result += "\\n";
    } else if (character.code == '\t') {
      result += "\\t";
    } else if (is_hidden(character.code)) {
      result += fmt::format("\\u{:04x}", static_cast<std::uint32_t>(character.code));
    } else {
      result += text.substr(at, character.length);
    }
    at += character.length;
  }
  return result;
}

/// The report of one check, for people.
class Report {
 public:
  Report(const DataCheck& check, const Tokenizer& tokenizer, std::int64_t context_length,
         std::ostream& out)
      : check_(check), tokenizer_(tokenizer), context_length_(context_length), out_(out) {}

  void print() {
    if (check_.train.message_rows + check_.held_out.message_rows > 0) {
      out_ << fmt::format("chat format: {}\n", check_.chat_format);
    }
    if (!check_.chat_note.empty()) line("remark", check_.chat_note);
    print_rows("train", check_.train);
    if (check_.held_out.rows > 0) print_rows("eval", check_.held_out);
    if (check_.held_out.rows > 0) print_leaks();
    print_shown();
  }

 private:
  void line(std::string_view label, const std::string& text) {
    out_ << fmt::format("  {:<11} {}\n", label, text);
  }

  std::string place(const RowPlace& at) const {
    return fmt::format("{}:{}", check_.files[at.file], at.line);
  }

  // `a.jsonl:2, b.jsonl:7`; five at most.
  std::string places(const std::vector<RowPlace>& rows) const {
    constexpr std::size_t kMaxRows = 5;
    std::vector<std::string> names;
    for (std::size_t i = 0; i < std::min(rows.size(), kMaxRows); ++i) {
      names.push_back(place(rows[i]));
    }
    if (rows.size() > kMaxRows) names.emplace_back("…");
    return fmt::format("{}", fmt::join(names, ", "));
  }

  void print_rows(std::string_view purpose, const RowsCheck& rows) {
    out_ << fmt::format("{}: {} of {} can be used\n", purpose, rows.usable,
                        counted(rows.rows, "row"));
    print_kinds(rows);
    if (rows.assumed_labelled > 0) {
      line("remark", fmt::format("{} with a label read as a prompt and its last answer, as for "
                                 "'kto'; --loss says what they are for",
                                 counted(rows.assumed_labelled, "conversation")));
    }
    for (const DefectRows& defect : rows.defects) {
      line(defect.policy == RowAction::kKeep ? "remark" : "refused",
           fmt::format("{}: {} ({} = '{}'; {})",
                       counted(static_cast<std::int64_t>(defect.rows.size()), "row"), defect.defect,
                       defect.option, defect.value, places(defect.rows)));
    }
    print_columns(rows.read);
    if (!rows.unread.empty()) line("remark", detail::unread_line(rows.unread, rows.rows));
    if (rows.usable == 0) return;
    line("prompts", fmt::format("{} different, {} with that of an earlier one", rows.prompts,
                                counted(rows.shared_prompts, "row")));
    if (context_length_ > 0) {
      line("context", fmt::format("the model is made for {}", counted(context_length_, "token")));
    }
    if (rows.counted_tokens < rows.completion_tokens) {
      line("counted", fmt::format("{} of {} of completions, the others are read",
                                  rows.counted_tokens, counted(rows.completion_tokens, "token")));
    }
    print_cuts(rows);
    print_sharing(rows.sharing);
    print_lengths("prompt", rows.prompt);
    print_lengths("chosen", rows.chosen);
    print_lengths("rejected", rows.rejected);
  }

  /// Nothing is to say of rows under the keys that are named in the tutorial first.
  void print_columns(const std::map<std::string, std::int64_t>& columns) {
    constexpr std::array<std::string_view, 7> kOwnKeys = {
        "prompt", "chosen", "rejected", "gold", "completion", "messages", "text"};
    const bool are_own = std::all_of(columns.begin(), columns.end(), [&](const auto& column) {
      return std::find(kOwnKeys.begin(), kOwnKeys.end(), column.first) != kOwnKeys.end();
    });
    if (are_own) return;
    std::vector<std::string> names;
    for (const auto& [name, rows] : columns) {
      names.push_back(fmt::format("'{}' ({})", detail::shown_text(name), counted(rows, "row")));
    }
    line("read", fmt::format("{}", fmt::join(names, ", ")));
  }

  void print_kinds(const RowsCheck& rows) {
    std::vector<std::string> kinds;
    const std::int64_t single = rows.usable - rows.pairs - rows.labelled;
    if (rows.pairs > 0) kinds.push_back(counted(rows.pairs, "pair"));
    if (rows.labelled > 0) {
      kinds.push_back(fmt::format(
          "{} with a label, {} desirable ({:.1f} %)", counted(rows.labelled, "completion"),
          rows.desirable,
          100.0 * static_cast<double>(rows.desirable) / static_cast<double>(rows.labelled)));
    }
    if (single > 0) kinds.push_back(counted(single, "single completion"));
    if (kinds.empty()) return;
    line("kinds", fmt::format("{}", fmt::join(kinds, ", ")));
    if (kinds.size() > 1) line("remark", "rows of several kinds: a loss takes one of them");
  }

  void print_cuts(const RowsCheck& rows) {
    if (rows.truncated.empty()) {
      line("truncated", "none");
    } else {
      line("truncated",
           fmt::format("{}, {}, {} in all ({})", counted(rows.truncated_prompts, "prompt"),
                       counted(rows.truncated_completions, "completion"),
                       counted(rows.truncated_tokens, "token"), places(rows.truncated)));
    }
    const EndTokens& ends = rows.end_tokens;
    line("end tokens",
         fmt::format("of {} {} before truncation, {} after",
                     counted(ends.completions, "completion"), ends.ended, ends.ended_after));
  }

  void print_sharing(const PrefixSharing& sharing) {
    const auto saved = [&](std::int64_t tokens) {
      return 100.0 * static_cast<double>(sharing.apart - tokens) /
             static_cast<double>(sharing.apart);
    };
    line("sharing",
         fmt::format("{} apart, {} with prompts once ({:.1f} % saved), {} with what completions "
                     "begin with once ({:.1f} % saved)",
                     counted(sharing.apart, "token"), sharing.prompt_once,
                     saved(sharing.prompt_once), sharing.shared, saved(sharing.shared)));
  }

  void print_lengths(std::string_view part, const LengthSummary& lengths) {
    if (lengths.count == 0) return;
    line(part, fmt::format("{}, {} to {} a row, mean {:.1f}, median {}, 95 % up to {}, 99 % up to "
                           "{}",
                           counted(lengths.total, "token"), lengths.min, lengths.max, lengths.mean,
                           lengths.median, lengths.p95, lengths.p99));
    constexpr double kWidest = 40;
    const auto most =
        static_cast<double>(*std::max_element(lengths.bins.begin(), lengths.bins.end()));
    for (std::size_t i = 0; i < lengths.bins.size(); ++i) {
      const auto count = static_cast<double>(lengths.bins[i]);
      // A bin that is not empty shows.
      const auto width = static_cast<std::size_t>(std::ceil(kWidest * count / most));
      out_ << fmt::format("  {:>18} {:<40} {}\n",
                          fmt::format("{}+", static_cast<std::int64_t>(i) * lengths.bin_width),
                          std::string(width, '#'), lengths.bins[i]);
    }
  }

  void print_leaks() {
    const auto whole = std::count_if(check_.leaks.begin(), check_.leaks.end(),
                                     [](const LeakedRow& row) { return row.whole_row; });
    out_ << fmt::format("leaks: {} with a held-out prompt, {} of them equal to a held-out row\n",
                        counted(std::ssize(check_.leaks), "training row"), whole);
    if (check_.leaks.empty()) return;
    std::vector<RowPlace> rows;
    for (const LeakedRow& row : check_.leaks) rows.push_back(row.train);
    line(check_.leak_policy == RowAction::kKeep ? "remark" : "refused",
         fmt::format("{} (leak = '{}'; {})", counted(std::ssize(rows), "row"),
                     policy_name(check_.leak_policy), places(rows)));
  }

  void print_shown() {
    if (check_.train.shown.empty()) return;
    out_ << "rows as the model sees them:\n";
    for (const ShownRow& row : check_.train.shown) {
      out_ << fmt::format("  {}\n", place(row.place));
      for (const Part& part : parts_of(row.pair)) print_part(part);
    }
  }

  /// `counts` and `read` take turns in a completion.
  void print_part(const Part& part) {
    std::string_view label = part.name;
    for (const Run& run : runs_of(part)) {
      const std::string_view kind = part.is_prompt ? "read" : run.counts ? "counts" : "read";
      out_ << fmt::format("    {:<9} {:<7} {}: \"{}\"\n", label, kind,
                          counted(std::ssize(run.ids), "token"),
                          shortened(escaped(spelled(tokenizer_, run.ids))));
      out_ << fmt::format("    {:<17} {}\n", "", shown_ids(run.ids));
      label = "";
    }
  }

  static std::string shown_ids(std::span<const std::int64_t> ids) {
    constexpr std::size_t kEachEnd = 12;
    if (ids.size() <= 2 * kEachEnd) return fmt::format("{}", fmt::join(ids, " "));
    return fmt::format("{} … {}", fmt::join(ids.first(kEachEnd), " "),
                       fmt::join(ids.last(kEachEnd), " "));
  }

  /// Its beginning and its end, where what matters lies.
  static std::string shortened(const std::string& text) {
    constexpr std::size_t kEachEnd = 160;
    if (text.size() <= 2 * kEachEnd) return text;
    std::size_t first = kEachEnd;
    std::size_t last = text.size() - kEachEnd;
    const auto within_character = [&](std::size_t at) {
      return (static_cast<unsigned char>(text[at]) & 0xC0) == 0x80;
    };
    while (within_character(first)) --first;
    while (within_character(last)) ++last;
    return text.substr(0, first) + " … " + text.substr(last);
  }

  const DataCheck& check_;
  const Tokenizer& tokenizer_;
  std::int64_t context_length_;
  std::ostream& out_;
};

Json to_json(const Tokenizer& tokenizer, const Part& part) {
  Json json{{"text", spelled(tokenizer, part.ids)},
            {"ids", std::vector<std::int64_t>(part.ids.begin(), part.ids.end())}};
  if (part.is_prompt) return json;
  Json counts = Json::array();
  for (std::size_t i = 0; i < part.ids.size(); ++i) {
    counts.push_back(part.mask.empty() || part.mask[i] != 0 ? 1 : 0);
  }
  json["counts"] = std::move(counts);
  return json;
}

Json to_json(const LengthSummary& lengths) {
  return {{"rows", lengths.count},
          {"tokens", lengths.total},
          {"min", lengths.min},
          {"mean", lengths.mean},
          {"median", lengths.median},
          {"p95", lengths.p95},
          {"p99", lengths.p99},
          {"max", lengths.max},
          {"histogram", {{"bin_width", lengths.bin_width}, {"counts", lengths.bins}}}};
}

Json to_json(const DataCheck& check, const std::vector<RowPlace>& rows) {
  Json list = Json::array();
  for (const RowPlace& at : rows) {
    list.push_back({{"file", check.files[at.file]}, {"line", at.line}});
  }
  return list;
}

Json to_json(const DataCheck& check, const RowsCheck& rows) {
  Json defects = Json::array();
  for (const DefectRows& defect : rows.defects) {
    defects.push_back({{"defect", defect.defect},
                       {"option", defect.option},
                       {"policy", defect.value},
                       {"rows", to_json(check, defect.rows)}});
  }
  Json unread = Json::array();
  for (const auto& [column, count] : rows.unread) {
    unread.push_back({{"column", column},
                      {"rows", count},
                      {"share", static_cast<double>(count) / static_cast<double>(rows.rows)}});
  }
  return {{"rows", rows.rows},
          {"usable", rows.usable},
          {"refused", rows.refused()},
          {"pairs", rows.pairs},
          {"labelled", rows.labelled},
          {"assumed_labelled", rows.assumed_labelled},
          {"desirable", rows.desirable},
          {"defects", std::move(defects)},
          {"read_columns", rows.read},
          {"unread_columns", std::move(unread)},
          {"prompts", rows.prompts},
          {"shared_prompts", rows.shared_prompts},
          {"truncated",
           {{"prompts", rows.truncated_prompts},
            {"completions", rows.truncated_completions},
            {"tokens", rows.truncated_tokens},
            {"rows", to_json(check, rows.truncated)}}},
          {"counted_tokens",
           {{"completions", rows.completion_tokens}, {"counted", rows.counted_tokens}}},
          {"end_tokens",
           {{"completions", rows.end_tokens.completions},
            {"before", rows.end_tokens.ended},
            {"after", rows.end_tokens.ended_after}}},
          {"sharing",
           {{"apart", rows.sharing.apart},
            {"prompt_once", rows.sharing.prompt_once},
            {"shared", rows.sharing.shared}}},
          {"lengths",
           {{"prompt", to_json(rows.prompt)},
            {"chosen", to_json(rows.chosen)},
            {"rejected", to_json(rows.rejected)}}}};
}

Json to_json(const DataCheck& check, const Tokenizer& tokenizer, std::int64_t context_length) {
  Json leaks = Json::array();
  for (const LeakedRow& row : check.leaks) {
    leaks.push_back({{"train", to_json(check, {row.train})[0]},
                     {"eval", to_json(check, {row.held_out})[0]},
                     {"whole_row", row.whole_row}});
  }
  Json json{{"files", check.files}, {"train", to_json(check, check.train)}};
  if (check.held_out.rows > 0) json["eval"] = to_json(check, check.held_out);
  json["leaks"] = std::move(leaks);
  json["leak_policy"] = policy_name(check.leak_policy);
  json["refused"] = check.refused();
  if (context_length > 0) json["context_length"] = context_length;
  json["shown"] = Json::array();
  for (const ShownRow& row : check.train.shown) {
    Json shown = to_json(check, {row.place})[0];
    for (const Part& part : parts_of(row.pair)) shown[part.name] = to_json(tokenizer, part);
    json["shown"].push_back(std::move(shown));
  }
  json["chat_format"] = check.chat_format;
  json["chat_note"] = check.chat_note;
  return json;
}

void note_passed_over(const std::vector<std::string>& paths, DataSplit split, std::ostream& err) {
  for (const std::string& path : paths) {
    const std::string note = detail::note_on_folders(path, split);
    if (!note.empty()) err << "prefopt: " << note << '\n';
  }
}

}  // namespace

void run_data_check(const DataCheckArguments& arguments, std::ostream& out, std::ostream& err) {
  DataCheckOptions options = read_options(arguments, err);
  options.context_length = known_context(arguments.model);
  const bool names_none = arguments.model.empty() && arguments.tokenizer.empty();
  const auto tokenizer = open_tokenizer(names_none ? "byte" : arguments.tokenizer, arguments.model);
  const DataCheck check = check_data(arguments.data, arguments.eval, *tokenizer, options);
  note_passed_over(arguments.data, DataSplit::kTrain, err);
  note_passed_over(arguments.eval, DataSplit::kHeldOut, err);
  if (arguments.json) {
    out << detail::dump_json(to_json(check, *tokenizer, options.context_length)) << '\n';
  } else {
    Report(check, *tokenizer, options.context_length, out).print();
  }
  if (check.refused() == 0) return;
  out.flush();
  throw DataError(
      fmt::format("{}: expected rows that can all be used, got {} of {} that would be "
                  "refused",
                  arguments.data.front(), check.refused(), check.train.rows + check.held_out.rows));
}

}  // namespace prefopt::cli
