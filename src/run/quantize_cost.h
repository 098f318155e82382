// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "prefopt/data/batch.h"
#include "prefopt/decoder/decoder.h"
#include "prefopt/run/run.h"
#include "run/run_folder.h"

namespace prefopt::detail {

/// The cost of model.quantize: the loss of held-out rows before and after. Does nothing without it.
class QuantizeCost {
 public:
  /// Measures the model in float32, which is let go again. `rows` and the head's budget are used by
  /// `tell`, too. Throws ConfigError for a quantize that does not fit the other options.
  QuantizeCost(const ModelOptions& options, const std::vector<TokenRow>& rows,
               std::int64_t head_budget_bytes);

  /// Notes the loss of the same rows by the quantized model under `policy`'s adapter.
  void tell(const Decoder& policy, const Note& note) const;

 private:
  std::string encoding_;
  const std::vector<TokenRow>& rows_;
  std::int64_t head_budget_bytes_;
  std::optional<double> before_;  ///< nats a token; empty: no rows
};

}  // namespace prefopt::detail
