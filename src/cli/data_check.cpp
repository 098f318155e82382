// SPDX-License-Identifier: Apache-2.0
#include "prefopt/data/data_check.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <cmath>
#include <ostream>
#include <string_view>

#include "cli/commands.h"
#include "cli/inputs.h"
#include "core/json.h"
#include "data/defect_line.h"
#include "prefopt/data/tokenizer.h"
#include "prefopt/error.h"
#include "prefopt/train/trainer.h"

namespace prefopt::cli {
namespace {

using detail::counted;
using detail::Json;

DataCheckOptions read_options(const DataCheckArguments& arguments) {
  DataCheckOptions options;
  options.data = options_from_json<DataOptions>(read_json_argument(arguments.options), "--options");
  if (!arguments.chat_format.empty()) options.data.chat_format = arguments.chat_format;
  read_columns(arguments.columns, options.data);
  if (arguments.max_prompt_length) options.data.max_prompt_length = *arguments.max_prompt_length;
  if (arguments.max_completion_length) {
    options.data.max_completion_length = *arguments.max_completion_length;
  }
  if (arguments.max_length) options.data.max_length = *arguments.max_length;
  if (!arguments.loss.empty()) {
    options.needs = row_needs(read_loss(arguments.loss).requirements());
  }
  return options;
}

std::string_view policy_name(RowPolicy policy) {
  switch (policy) {
    case RowPolicy::kError:
      return "error";
    case RowPolicy::kDrop:
      return "drop";
    case RowPolicy::kKeep:
      break;
  }
  return "keep";
}

/// The report of one check, for people.
class Report {
 public:
  Report(const DataCheck& check, std::ostream& out) : check_(check), out_(out) {}

  void print() {
    print_rows("train", check_.train);
    if (check_.held_out.rows > 0) print_rows("eval", check_.held_out);
    if (check_.held_out.rows > 0) print_leaks();
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
    for (const DefectRows& defect : rows.defects) {
      line(defect.policy == RowPolicy::kKeep ? "remark" : "refused",
           fmt::format("{}: {} ({} = '{}'; {})",
                       counted(static_cast<std::int64_t>(defect.rows.size()), "row"), defect.defect,
                       defect.option, policy_name(defect.policy), places(defect.rows)));
    }
    if (!rows.unread.empty()) line("remark", detail::unread_line(rows.unread, rows.rows));
    if (rows.usable == 0) return;
    line("prompts", fmt::format("{} different, {} with that of an earlier one", rows.prompts,
                                counted(rows.shared_prompts, "row")));
    print_cuts(rows);
    print_sharing(rows.sharing);
    print_lengths("prompt", rows.prompt);
    print_lengths("chosen", rows.chosen);
    print_lengths("rejected", rows.rejected);
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
    line(check_.leak_policy == RowPolicy::kKeep ? "remark" : "refused",
         fmt::format("{} (leak = '{}'; {})", counted(std::ssize(rows), "row"),
                     policy_name(check_.leak_policy), places(rows)));
  }

  const DataCheck& check_;
  std::ostream& out_;
};

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
                       {"policy", policy_name(defect.policy)},
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
          {"desirable", rows.desirable},
          {"defects", std::move(defects)},
          {"unread_columns", std::move(unread)},
          {"prompts", rows.prompts},
          {"shared_prompts", rows.shared_prompts},
          {"truncated",
           {{"prompts", rows.truncated_prompts},
            {"completions", rows.truncated_completions},
            {"tokens", rows.truncated_tokens},
            {"rows", to_json(check, rows.truncated)}}},
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

Json to_json(const DataCheck& check) {
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
  return json;
}

}  // namespace

void run_data_check(const DataCheckArguments& arguments, std::ostream& out) {
  const DataCheckOptions options = read_options(arguments);
  const std::string own = arguments.model.empty() ? "byte" : tokenizer_of_model(arguments.model);
  const auto tokenizer = make_tokenizer(arguments.tokenizer.empty() ? own : arguments.tokenizer);
  const DataCheck check = check_data(arguments.data, arguments.eval, *tokenizer, options);
  if (arguments.json) {
    out << detail::dump_json(to_json(check)) << '\n';
  } else {
    Report(check, out).print();
  }
  if (check.refused() == 0) return;
  out.flush();
  throw DataError(
      fmt::format("{}: expected rows that can all be used, got {} of {} that would be "
                  "refused",
                  arguments.data.front(), check.refused(), check.train.rows + check.held_out.rows));
}

}  // namespace prefopt::cli
