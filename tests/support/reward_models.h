// SPDX-License-Identifier: Apache-2.0
#pragma once

// Small reward models, rows of ids for them, and what transformers makes of these
// (tools/make_reward_model_cases).

#include <exception>
#include <nlohmann/json.hpp>
#include <sstream>
#include <string>
#include <vector>

#include "prefopt/data/batch.h"
#include "support/catch.h"
#include "support/errors.h"
#include "support/text_files.h"

namespace prefopt::testing_support {

inline const std::string kRewardModels = PREFOPT_TEST_DATA_DIR "/reward-models/";

inline const nlohmann::json& reward_goldens() {
  static const auto expected = nlohmann::json::parse(read_text(kRewardModels + "expected.json"));
  return expected;
}

inline std::vector<TokenRow> reward_rows() {
  std::istringstream text(read_text(kRewardModels + "rows.jsonl"));
  std::vector<TokenRow> rows;
  for (std::string line; std::getline(text, line);) {
    const auto json = nlohmann::json::parse(line);
    rows.push_back({.prompt = json["prompt_ids"],
                    .chosen = json["chosen_ids"],
                    .rejected = json["rejected_ids"]});
    rows.back().columns[Column::kMargin] = json["margin"];
  }
  return rows;
}

/// Checks that `run` throws exactly an `E` whose text holds `part`.
template <class E, class Run>
void check_throws_part(Run&& run, const std::string& part) {
  std::exception_ptr thrown;
  try {
    run();
  } catch (...) {
    thrown = std::current_exception();
  }
  const std::string text = thrown_text<E>(thrown);
  INFO(text << "\nexpected: " << part);
  CHECK(text.find(part) != std::string::npos);
}

}  // namespace prefopt::testing_support
