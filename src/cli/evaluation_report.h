// SPDX-License-Identifier: Apache-2.0
#pragma once

// The findings of `prefopt eval` as a table, as JSON and as a picture.

#include <optional>
#include <string>
#include <vector>

#include "prefopt/evaluation/judge.h"
#include "prefopt/evaluation/preferences.h"
#include "prefopt/evaluation/sampled_kl.h"

namespace prefopt::cli {

struct ModelReport {
  std::string model = {};
  PreferenceEvaluation preferences = {};
  std::optional<double> loss = {};
  std::optional<SampledKl> kl = {};
  std::optional<ContestResult> contests = {};
  std::optional<Estimate> reward = {}, reference_reward = {};  ///< of the sampled completions
};

struct EvaluationReport {
  std::string reference;  ///< empty: the models are reward models
  std::string data;
  double beta = 0;
  std::vector<ModelReport> models;
};

/// A column a model.
std::string to_table(const EvaluationReport& report);
std::string to_json(const EvaluationReport& report);
/// Accuracy by confidence, as SVG; what is calibrated lies on the diagonal.
std::string reliability_chart(const EvaluationReport& report);

}  // namespace prefopt::cli
