// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <string>
#include <vector>

#include "prefopt/decoder/decoder.h"

namespace prefopt::detail {

/// Returns what two models that share their weights compute by and do not share, as "window 8 of
/// layer 3 (0 in the file)" where `place` is "in the file"; empty: nothing. A value that all layers
/// differ by is named once. Numbers are alike that differ by no more than float32 rounds.
std::vector<std::string> spec_differences(const DecoderOptions& given, const DecoderOptions& other,
                                          std::string_view place);

}  // namespace prefopt::detail
