// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <vector>

#include "core/json.h"
#include "data/tokenizers/spec.h"

namespace prefopt::detail {

/// Return the parts of a `tokenizer.json`, as json_parts.h reads them.
SortedJson written_normalizer(const std::vector<NormalizerStep>& steps);
SortedJson written_pre_tokenizer(const std::vector<PreTokenizerStep>& steps);
SortedJson written_decoder(const std::vector<DecoderStep>& steps);

}  // namespace prefopt::detail
