// SPDX-License-Identifier: Apache-2.0
#pragma once

// The names of a decoder's parts in ggml, and where it keeps them otherwise than Hugging Face.

#include <ATen/core/Tensor.h>

#include <string>
#include <string_view>
#include <vector>

#include "decoder/decoder_config.h"
#include "prefopt/files/gguf.h"

namespace prefopt::detail {

/// The score head of a reward model.
inline constexpr std::string_view kGgufScore = "cls.output.weight";

/// Divisors of the rotary frequencies, the form that Llama 3's scaling has in GGUF.
inline constexpr std::string_view kGgufRopeFactors = "rope_freqs.weight";

/// Returns the config of a model of the families that have a GGUF architecture. Throws
/// CheckpointError for another one and, by name, for metadata that would change results.
DecoderConfig read_gguf_config(const GgufFile& file);

/// Divisors of Phi-3's frequencies beyond its original context, and within it.
inline constexpr std::string_view kGgufLongFactors = "rope_factors_long.weight";
inline constexpr std::string_view kGgufShortFactors = "rope_factors_short.weight";

/// Hugging Face's names of what a tensor of the file holds: one, or one for each expert. Empty for
/// a tensor that is not of the decoder.
std::vector<std::string> hugging_face_names(std::string_view gguf_name,
                                            const DecoderOptions& options);

/// Returns a tensor of the file in Hugging Face's layout, of experts all of them; its shape must be
/// that of `options`.
at::Tensor read_gguf_weight(const GgufFile& file, const std::string& gguf_name,
                            const DecoderOptions& options, at::ScalarType dtype);

/// Returns a matrix of the file in its blocks, in Hugging Face's order; undefined for a tensor that
/// is not one.
at::Tensor read_gguf_blocks(const GgufFile& file, const std::string& gguf_name,
                            const DecoderOptions& options);

/// The name in GGUF files of a decoder's tensor, which is that of all experts for one of them;
/// empty for any other.
std::string gguf_name(std::string_view hugging_face_name, const DecoderOptions& options);
/// Whether a tensor of this name holds a matrix of each expert.
bool holds_experts(std::string_view gguf_name);

/// Returns a weight in the layout that files of the architecture have.
at::Tensor gguf_weight(const at::Tensor& weight, std::string_view gguf_name,
                       std::string_view architecture, const DecoderOptions& options);

/// Returns the tensor kGgufRopeFactors of Llama 3's scaling.
at::Tensor gguf_rope_factors(const DecoderOptions& options);

}  // namespace prefopt::detail
