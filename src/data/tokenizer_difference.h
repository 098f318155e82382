// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <string>

#include "prefopt/data/tokenizer.h"

namespace prefopt::detail {

/// Returns what a text becomes otherwise under `b` than under `a`, as in "token 7 is 'x' in place
/// of 'y'"; empty where texts get the same tokens. Begin and end tokens and chat templates may
/// differ: models of one family have one vocabulary and several of these.
std::string tokenizer_difference(const Tokenizer& a, const Tokenizer& b);

/// Returns the same of `tokenizer` and that of `model`; empty where the model brings none.
std::string tokenizer_difference(const Tokenizer& tokenizer, const std::string& model);

}  // namespace prefopt::detail
