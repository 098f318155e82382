// SPDX-License-Identifier: Apache-2.0
#include "data/row_columns.h"

#include <string>

#include "data/row_json.h"

namespace prefopt::detail {

std::string_view answers_text(unsigned answers) {
  switch (answers) {
    case kPairOfAnswers:
      return "'chosen' and 'rejected'";
    case kPreferredOutput:
      return "'preferred_output' and 'non_preferred_output' (openai)";
    case kResponses:
      return "'response_0', 'response_1' and 'better_response_id' (pku)";
    case kHumanRefs:
      return "'human_ref_A', 'human_ref_B' and 'labels' (shp)";
    case kRanked:
      return "'completions' with ranks (completions)";
    case kOneCompletion:
      return "'completion'";
    case kOneOutput:
      return "an instruction or question with its answer (alpaca, orca)";
    case kReplacedAnswer:
      return "'rejected_response' next to another answer (ms-swift)";
    case kWholeTurns:
      return "a whole conversation (messages, sharegpt)";
    default:
      return "'text'";
  }
}

bool is_prompt_column(std::string_view key) {
  const std::string name = lower_case(key);
  return is_among(kPromptColumns, name) || name.ends_with("_prompt");
}

std::vector<std::string_view> preset_names() {
  std::vector<std::string_view> names;
  for (const Preset& preset : kPresets) names.push_back(preset.name);
  return names;
}

}  // namespace prefopt::detail
