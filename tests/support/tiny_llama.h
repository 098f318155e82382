// SPDX-License-Identifier: Apache-2.0
#pragma once

// Two models of 512 tokens, pairs of ids for them, and what transformers makes of these.

#include <nlohmann/json.hpp>
#include <string>

#include "support/text_files.h"

namespace prefopt::testing_support {

inline const std::string kTinyLlama = PREFOPT_TEST_DATA_DIR "/tiny-llama/";
inline const std::string kPolicy = kTinyLlama + "policy";
inline const std::string kReference = kTinyLlama + "reference";
inline const std::string kPairs = kTinyLlama + "pairs.jsonl";

inline const nlohmann::json& tiny_llama() {
  static const auto expected = nlohmann::json::parse(read_text(kTinyLlama + "expected.json"));
  return expected;
}

}  // namespace prefopt::testing_support
