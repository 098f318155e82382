// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "prefopt/data/tokenizer.h"
#include "prefopt/decoder/decoder.h"
#include "prefopt/export.h"
#include "prefopt/policy/sampling.h"

namespace prefopt {

/// Returns all tokens that end a completion, each once: those of `config.json` and
/// `generation_config.json` (or of a GGUF file), the tokenizer's end token, and the end of turn of
/// `chat_format` ("auto": as resolve_chat_format; none for a template that is not known). Ids that
/// the model does not have are left out.
PREFOPT_API std::vector<std::int64_t> end_tokens(const Decoder& model, const Tokenizer& tokenizer,
                                                 std::string_view chat_format = "auto");

/// Returns `options` with those end tokens, unless they name an end token themselves.
PREFOPT_API SamplingOptions with_end_tokens(SamplingOptions options, const Decoder& model,
                                            const Tokenizer& tokenizer,
                                            std::string_view chat_format = "auto");

/// Returns the text of a `generation_config.json` that ends completions in `ids` as well as where
/// the model's own does; empty if what save() writes does so already.
PREFOPT_API std::string generation_config_with(const Decoder& model,
                                               const std::vector<std::int64_t>& ids);

}  // namespace prefopt
