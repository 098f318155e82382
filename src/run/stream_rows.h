// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "data/chat_template.h"
#include "data/pair_index.h"
#include "data/row_preparation.h"
#include "data/row_stream.h"
#include "prefopt/data/dataset.h"
#include "prefopt/data/tokenizer.h"
#include "prefopt/run/run.h"
#include "prefopt/train/row_source.h"
#include "run/run_folder.h"

namespace prefopt::detail {

struct StreamParts {
  DataOptions data;  ///< `chat_format` is what chat_format_for_rows gives
  RowNeeds needs;
  std::shared_ptr<const Tokenizer> tokenizer;
  std::vector<TokenRow> held_out;
  std::vector<bool> is_held_out_cut;
  BatchOptions batch;
  std::int64_t seed = 0;
  std::function<void(const std::vector<TokenRow>&)>
      check;  ///< throws for what the model cannot read
  Note note;
};

/// The rows of `data.train`, read and tokenized as steps need them: see RowStream. Rows have the
/// policies of the options, each noted where it first applies; whether a row equals an earlier one
/// is not known.
class StreamRows final : public RowSource {
 public:
  /// Reads the first rows. Throws as find_data_files, ConfigError for a column of the mapping that
  /// none of them has, and as `next`.
  explicit StreamRows(StreamParts parts);

  /// Throws DataError where a policy asks for it, and for an epoch without a usable row.
  StepRows next(Policy& policy) override;
  void finish_step() override;
  const StepRows& held_out() const override { return held_out_; }
  /// Throws CheckpointError if the files have other rows at the saved places.
  void visit_state(StateVisitor& visitor) override;
  /// Of the files, and of what makes tokens of their rows.
  std::string fingerprint() const override;
  std::string text_of(const std::vector<std::int64_t>& tokens) const override;

  /// Returns how many rows of the first step were written in the chat format.
  std::int64_t message_rows() const { return message_rows_; }

 private:
  std::vector<PreparedRow> prepare(const std::vector<PlacedRow>& rows) const;
  void check_columns() const;
  void draw_step();
  /// Up to `count` rows, all of one epoch.
  void draw_rows(std::size_t count, std::vector<StreamedRow>& drawn);
  void end_epoch();
  bool keeps(const std::string& path, std::int64_t line, const PreparedRow& row);
  bool keeps_leak(const std::string& where, const TokenRow& row);
  void count(std::string_view verb, const std::string& reason, const std::string& where);

  StreamParts parts_;
  RowLayout layout_;
  std::unique_ptr<const ChatTemplate> chat_template_;  ///< null: none is rendered
  RowStream stream_;
  StepRows held_out_;
  PairIndex held_out_prompts_{held_out_.rows, PairIndex::Key::kPrompt};
  bool is_drawn_ =
      false;  ///< whether `step_` waits for finish_step; the stream is marked before it
  StepRows step_;
  std::int64_t message_rows_ = 0;
  std::int64_t read_ = 0, kept_ = 0;            ///< rows of the epoch
  std::map<std::string, std::int64_t> counts_;  ///< of remarks, of the epoch
  bool has_noted_epoch_ = false;
};

/// Throws ConfigError for options that need all rows at once.
void check_stream_options(const RunOptions& options);

/// Returns the most tokens of a micro-batch that the options let pass; `context_length` of the
/// model.
std::int64_t most_stream_tokens(const RunOptions& options, std::int64_t context_length);

}  // namespace prefopt::detail
