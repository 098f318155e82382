// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <string>
#include <utility>

#include "online/selections/candidates.h"
#include "online/selections/selection_of.h"

namespace prefopt::detail {

struct AgainstDataOptions {
  std::string data_source = "data";
  PromptWeightOptions weights = {};

  void fields(FieldVisitor& v) {
    v.text({"data_source", "source of the chosen completion"}, data_source);
    weights.fields(v);
  }
};

/// The completion of the data against each sample, without a question: SPIN (2401.01335), SePPO
/// (2410.05255).
class AgainstDataSelection final : public SelectionOf<AgainstDataSelection, AgainstDataOptions> {
 public:
  AgainstDataSelection(Options options, SourceNames sources)
      : SelectionOf(std::move(options), std::move(sources)) {
    require_source("data_source", options_.data_source);
  }
  static constexpr std::string_view kName = "against_data";
  static constexpr std::string_view kRows = "the completion of the data against each sample";

  Questions questions() const override { return Questions::kNone; }

  SelectedRows select(Rater& rater, exact::Random& /*random*/) const override {
    SelectedRows result;
    Places data, samples;
    for (const std::int64_t i : usable_places(rater, result)) {
      (is_from(rater.rollout(i), options_.data_source) ? data : samples).push_back(i);
    }
    if (data.size() != 1) {
      throw ConfigError(
          fmt::format("against_data: expected one completion of the source '{}', got {}",
                      options_.data_source, data.size()));
    }
    for (const std::int64_t sample : samples) {
      if (!are_distinct(rater, data.front(), sample, result)) continue;
      result.rows.push_back({.chosen = data.front(), .rejected = sample});
    }
    if (options_.weights.weigh_prompts) weigh_prompt(result);
    return result;
  }
};

}  // namespace prefopt::detail
