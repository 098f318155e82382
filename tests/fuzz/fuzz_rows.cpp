// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <cstdint>

#include "fuzz/input_files.h"
#include "fuzz/targets.h"
#include "fuzz/verdict.h"
#include "prefopt/data/dataset.h"
#include "prefopt/data/tokenizer.h"

namespace prefopt::fuzz {
namespace {

constexpr std::int64_t kMaxLength = 24;

void check_counts(const RowReport& report) {
  std::size_t dropped = 0;
  for (const auto& [reason, lines] : report.dropped) dropped += lines.size();
  expect(report.rows_read == report.rows_kept + static_cast<std::int64_t>(dropped),
         "a row that is neither kept nor dropped");
}

void check_lengths(const TokenRow& pair) {
  const std::size_t completion = std::max(pair.chosen.size(), pair.rejected.size());
  expect(pair.prompt.size() + completion <= kMaxLength, "a row over its budget");
  expect(!pair.prompt.empty() && !pair.chosen.empty(), "an empty row that was kept");
}

}  // namespace

void read_rows(std::string_view bytes) {
  const MemoryFile file(bytes);
  const DataOptions strict{.max_length = kMaxLength};
  DataOptions lenient = strict;
  lenient.unusable = lenient.identical = lenient.long_prompt = RowAction::kDrop;
  lenient.unused = UnusedColumns::kNote;
  DataOptions mapped = lenient;
  mapped.invalid_utf8 = DefectPolicy::kKeep;
  mapped.columns = R"({"messages": "conversations", "system": "system", "label": "kto_tag"})";
  DataOptions other = strict;
  other.truncation = Truncation::kKeepStart;
  other.end_of_cut = EndOfCut::kMask;
  other.loss_on = LossOn::kLast;
  other.repeated_prompt = RepeatedPrompt::kKeep;
  other.tool_calls = other.ends_with_user = RowAction::kKeep;
  other.reasoning = other.different_prompts = RowAction::kKeep;
  other.chat_format = "plain";
  for (const RowNeeds& needs : {RowNeeds{}, RowNeeds{.rejected = false}}) {
    for (const DataOptions& options : {strict, lenient, mapped, other}) {
      accepts(file.path(), [&] {
        const Dataset dataset = load_dataset(file.path(), ByteTokenizer(), options, needs);
        check_counts(dataset.report);
        for (const TokenRow& pair : dataset.pairs) check_lengths(pair);
        static_cast<void>(dataset.report.summary());
      });
    }
  }
}

}  // namespace prefopt::fuzz
