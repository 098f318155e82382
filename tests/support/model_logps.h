// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "prefopt/decoder/decoder.h"
#include "prefopt/policy/sequence_logps.h"
#include "support/catch.h"
#include "support/files.h"

namespace prefopt::testing_support {

inline const std::string kGgufModels = PREFOPT_TEST_DATA_DIR "/gguf/";

/// Largest difference of `decoder`'s token log-probs from those that transformers gave for the
/// model of this name (tests/data/gguf).
inline double worst_difference(Decoder& decoder, const std::string& name) {
  const auto expected = nlohmann::json::parse(bytes_of(kGgufModels + name + ".json"));
  double worst = 0;
  const at::NoGradGuard no_grad;
  for (std::size_t row = 0; row < expected.at("tokens").size(); ++row) {
    const auto tokens = expected.at("tokens")[row].get<std::vector<std::int64_t>>();
    const auto logps = expected.at("logps")[row].get<std::vector<double>>();
    const std::vector<std::int64_t> prompt(tokens.begin(), tokens.begin() + 1);
    const std::vector<std::int64_t> completion(tokens.begin() + 1, tokens.end());
    const at::Tensor got =
        sequence_logps(decoder, make_batch({{prompt, completion}})).token_logps.to(at::kDouble);
    REQUIRE(got.size(0) == std::ssize(logps));
    worst = std::max(worst, (got - at::tensor(logps, at::kDouble)).abs().max().item<double>());
  }
  return worst;
}

}  // namespace prefopt::testing_support
