// SPDX-License-Identifier: Apache-2.0
#include "run/stream_rows.h"

#include <ATen/ops/empty.h>
#include <fmt/format.h>

#include <algorithm>
#include <bit>
#include <cstring>
#include <utility>

#include "core/hash.h"
#include "data/chat_writer.h"
#include "data/data_files.h"
#include "data/defect_line.h"
#include "data/row_judgement.h"
#include "prefopt/error.h"

namespace prefopt::detail {
namespace {

RowStream stream_of(const StreamParts& parts, std::int64_t buffer) {
  return RowStream(find_data_files(parts.data.train, DataSplit::kTrain),
                   {.buffer = buffer, .seed = parts.seed, .shuffle = parts.batch.shuffle});
}

double share_of(std::int64_t part, std::size_t all) {
  return static_cast<double>(part) / static_cast<double>(all);
}

}  // namespace

StreamRows::StreamRows(StreamParts parts)
    : parts_(std::move(parts)),
      layout_(parts_.data.columns),
      chat_template_(chat_template_for_rows(parts_.data, *parts_.tokenizer)),
      stream_(stream_of(parts_, parts_.data.stream.buffer)) {
  held_out_.rows = std::move(parts_.held_out);
  for (std::size_t i = 0; i < held_out_.rows.size(); ++i) held_out_prompts_.add(i);
  if (!held_out_.rows.empty()) {
    const auto& cut = parts_.is_held_out_cut;
    held_out_.metrics = {
        {"truncated", share_of(std::count(cut.begin(), cut.end(), true), held_out_.rows.size())}};
  }
  check_columns();
  draw_step();
}

std::vector<PreparedRow> StreamRows::prepare(const std::vector<PlacedRow>& rows) const {
  return prepare_rows(rows, *parts_.tokenizer, parts_.data,
                      {.layout = layout_,
                       .needs = &parts_.needs,
                       .context_length = parts_.needs.context_length,
                       .chat_template = chat_template_.get()});
}

/// A column that no row has is a mistake in its name; that none of the many first rows has it is
/// taken for one.
void StreamRows::check_columns() const {
  constexpr std::size_t kRows = 1000;
  constexpr std::size_t kBlock = 100;
  const std::size_t columns = layout_.mapping().size();
  if (columns == 0) return;
  RowStream rows = stream_of(parts_, static_cast<std::int64_t>(kBlock));
  std::uint64_t found = 0;
  std::string first;
  for (std::size_t seen = 0; seen < kRows && std::popcount(found) < static_cast<int>(columns);
       seen += kBlock) {
    std::vector<StreamedRow> drawn;
    std::vector<PlacedRow> placed;
    for (std::size_t i = 0; i < kBlock; ++i) drawn.push_back(rows.next());
    for (StreamedRow& row : drawn) placed.push_back({&rows.path_of(row), std::move(row.row)});
    first = placed.front().row.text;
    for (const auto& row : prepare(placed)) found |= row.found;
  }
  check_mapping(layout_, found, "data.train", first);
}

std::string StreamRows::fingerprint() const {
  const Tokenizer& tokenizer = *parts_.tokenizer;
  ContentHash hash;
  for (const std::string& part :
       {stream_.fingerprint(), tokenizer.fingerprint(), tokenizer.chat_template(),
        chat_format_for_rows(parts_.data.chat_format, tokenizer)}) {
    hash.update(fmt::format("{} {}\n", part.size(), part));
  }
  return hash.hex();
}

StepRows StreamRows::next(Policy& /*policy*/) {
  if (!is_drawn_ || step_.rows.empty()) draw_step();
  return step_;
}

void StreamRows::finish_step() {
  is_drawn_ = false;
  step_ = {};
}

void StreamRows::draw_step() {
  // Where the last attempt has failed, the same rows are drawn again.
  if (is_drawn_) stream_.load(stream_.state_at_mark());
  stream_.mark();
  is_drawn_ = true;
  step_ = {};
  StepRows step;
  std::int64_t cut = 0;
  std::int64_t of_messages = 0;
  const auto wanted = static_cast<std::size_t>(parts_.batch.rows);
  while (step.rows.size() < wanted) {
    std::vector<StreamedRow> drawn;
    draw_rows(wanted - step.rows.size(), drawn);
    std::vector<PlacedRow> placed;
    for (StreamedRow& row : drawn) placed.push_back({&stream_.path_of(row), std::move(row.row)});
    auto prepared = prepare(placed);
    for (std::size_t i = 0; i < prepared.size(); ++i) {
      const auto& [path, row] = placed[i];
      ++read_;
      if (!keeps(*path, row.number, prepared[i])) continue;
      ++kept_;
      cut += prepared[i].cuts.prompt || prepared[i].cuts.completions > 0 ? 1 : 0;
      of_messages += prepared[i].from_messages ? 1 : 0;
      step.rows.push_back(std::move(prepared[i].pair));
      step.numbers.push_back(row.number);
    }
  }
  parts_.check(step.rows);
  message_rows_ = of_messages;
  step.metrics = {{"truncated", share_of(cut, step.rows.size())},
                  {"epoch", static_cast<double>(stream_.epoch())}};
  step_ = std::move(step);
}

void StreamRows::draw_rows(std::size_t count, std::vector<StreamedRow>& drawn) {
  while (drawn.size() < count) {
    if (stream_.is_at_epoch_end()) {
      if (!drawn.empty()) return;  // these are counted first
      end_epoch();
    }
    drawn.push_back(stream_.next());
  }
}

void StreamRows::end_epoch() {
  const std::int64_t read = std::exchange(read_, 0);
  const std::int64_t kept = std::exchange(kept_, 0);
  const auto counts = std::exchange(counts_, {});
  if (kept == 0 && read > 0) {
    throw DataError(fmt::format("data.train: expected a usable row, got none in {} read{}", read,
                                counts.empty() ? "" : "; " + counts.begin()->first));
  }
  if (std::exchange(has_noted_epoch_, true)) return;
  for (const auto& [remark, rows] : counts) {
    parts_.note(fmt::format("data.train: of {} rows of an epoch {} {}", read, rows, remark));
  }
}

bool StreamRows::keeps(const std::string& path, std::int64_t line, const PreparedRow& row) {
  RowReport report;
  const std::string where = row_place(path, line);
  const bool is_kept = judge_row(path, line, parts_.data, row, report);
  for (const auto& [reason, lines] : report.dropped) count("dropped", reason, where);
  for (const auto& [reason, lines] : report.kept_with) count("kept", reason, where);
  for (const auto& [column, rows] : report.unread) {
    count("kept", fmt::format("text that nothing reads in '{}'", column), where);
  }
  return is_kept && keeps_leak(where, row.pair);
}

bool StreamRows::keeps_leak(const std::string& where, const TokenRow& row) {
  if (!held_out_prompts_.find(row)) return true;
  constexpr std::string_view kReason = "prompt of a held-out row";
  switch (parts_.data.leak) {
    case RowAction::kError:
      throw DataError(fmt::format(
          "{}: expected a prompt that is not held out, got that of a held-out row; the option leak "
          "= 'drop' leaves such rows out of training",
          where));
    case RowAction::kDrop:
      count("dropped", std::string(kReason), where);
      return false;
    case RowAction::kKeep:
      break;
  }
  count("kept", std::string(kReason), where);
  return true;
}

/// Notes the first row with a remark, and counts the others.
void StreamRows::count(std::string_view verb, const std::string& reason, const std::string& where) {
  const std::int64_t before = counts_[fmt::format("{}: {}", verb, reason)]++;
  if (before > 0 || has_noted_epoch_) return;
  parts_.note(
      fmt::format("data.train: {} a row: {} ({}); further ones are counted", verb, reason, where));
}

void StreamRows::visit_state(StateVisitor& visitor) {
  const std::vector<std::int64_t> state = is_drawn_ ? stream_.state_at_mark() : stream_.state();
  const auto size = std::ssize(state);
  at::Tensor places = at::empty({size}, at::kLong);
  if (size > 0)
    std::memcpy(places.mutable_data_ptr(), state.data(), state.size() * sizeof state[0]);
  visitor.array("stream", places);
  if (!visitor.is_loading()) return;
  const auto* begin = places.const_data_ptr<std::int64_t>();
  stream_.load({begin, begin + places.numel()});
  finish_step();
  read_ = kept_ = 0;
  counts_.clear();
}

std::string StreamRows::text_of(const std::vector<std::int64_t>& tokens) const {
  return parts_.tokenizer->decode(tokens);
}

void check_stream_options(const RunOptions& options) {
  const DataOptions usual;
  const auto refuse = [](std::string_view option, std::string_view value, std::string_view why) {
    throw ConfigError(fmt::format("data.{}: expected {} with data.stream, {}", option, value, why));
  };
  const DataOptions& data = options.data;
  if (options.online.is_online()) {
    throw ConfigError(
        "data.stream: expected its default with online.prompts, whose rounds draw from all "
        "prompts, "
        "got another");
  }
  if (data.eval_fraction > 0) {
    refuse("eval_fraction", "0",
           "as the end of the files is not known; data.eval names held-out rows");
  }
  if (data.duplicate != usual.duplicate) {
    refuse("duplicate", "'keep'", "as a row is not compared with those before it");
  }
  if (data.max_rows > 0) refuse("max_rows", "0", "as batch.steps says how many rows are read");
  if (!data.token_cache.empty()) refuse("token_cache", "''", "as no file is tokenized as a whole");
  if (options.batch.steps == 0) {
    throw ConfigError(
        "batch.steps: expected a number of steps with data.stream, got 0; how many rows an epoch "
        "has "
        "is not known");
  }
}

std::int64_t most_stream_tokens(const RunOptions& options, std::int64_t context_length) {
  const std::int64_t limit = options.data.max_length;
  // A short prompt with two completions that are as long as they may be.
  const std::int64_t row = 2 * (limit > 0 ? std::min(limit, context_length) : context_length);
  const auto micro = options.batch.micro_rows > 0 ? options.batch.micro_rows : options.batch.rows;
  const std::int64_t all = micro * row;
  const std::int64_t tokens = options.batch.micro_tokens;
  return tokens > 0 ? std::min(all, std::max(tokens, row)) : all;
}

}  // namespace prefopt::detail
