// SPDX-License-Identifier: Apache-2.0
#pragma once

// Inputs that several commands read in the same way.

#include <ATen/core/Tensor.h>

#include <iosfwd>
#include <memory>
#include <string>
#include <vector>

#include "cli/commands.h"
#include "cli/row_options.h"
#include "prefopt/data/dataset.h"
#include "prefopt/data/tokenizer.h"
#include "prefopt/decoder/decoder.h"
#include "prefopt/decoder/reward_model.h"
#include "prefopt/losses/loss.h"
#include "prefopt/policy/sampling.h"

namespace prefopt::cli {

/// Returns `dtype`, which may also say what becomes of blocks. Throws ConfigError, led by --dtype,
/// where the weights of `path` cannot be kept so. Those under an adapter are looked at when it is
/// loaded.
const std::string& dtype_for(const std::string& path, const std::string& dtype);

/// The model with its adapter, where one is named. What there is to say of its weights goes to
/// `err`.
std::shared_ptr<Decoder> load_model(const ModelArguments& arguments, std::ostream& err);
/// Returns the model with the guides that `arguments` name, MODEL:WEIGHT each; without any, the
/// model itself. Throws ConfigError for another form, and for a guide of other tokens.
std::shared_ptr<Policy> with_guides(std::shared_ptr<Decoder> model,
                                    const std::vector<std::string>& guides,
                                    const std::string& dtype, const Tokenizer& tokenizer,
                                    std::ostream& err);
/// The same for a reward model. Its adapter may bring the score head.
std::shared_ptr<RewardModel> load_reward_model(const ModelArguments& arguments,
                                               const Tokenizer& tokenizer, std::ostream& err);
/// Returns whether the model or its adapter is that of a reward model.
bool names_reward_model(const ModelArguments& arguments);
std::shared_ptr<const Tokenizer> load_tokenizer(const ModelArguments& arguments);

/// Returns the chat format that is recorded with a model that is written: the one asked for, for
/// "auto" that of the run that made it; empty if that is not recorded.
std::string recorded_format(const std::string& asked, const Tokenizer& tokenizer);

/// Returns the format for end_tokens() of a model that is written: `format`; if that is empty,
/// "auto" for a tokenizer's template that is rendered, else "plain".
std::string format_of_ends(const std::string& format, const Tokenizer& tokenizer);

/// `options` with the end tokens that `names` lists, ids or texts of one token, or those of
/// end_tokens() where it lists none. Throws ConfigError for a name that is neither.
SamplingOptions with_end_tokens(SamplingOptions options, const std::vector<std::string>& names,
                                const Decoder& model, const Tokenizer& tokenizer,
                                const std::string& chat_format);

/// `argument`, or what the file holds that an @ names.
std::string read_json_argument(const std::string& argument);
/// `argument` is a loss config, or @FILE that holds one.
Loss read_loss(const std::string& argument);

/// The memory of the adapter's run, else of the model's.
RowMemory row_memory(const ModelArguments& arguments);

/// The rows of the file in their order, as noted_row_options has them. What there is to say of rows
/// goes to `err`.
Dataset read_pairs(const std::string& path, const Tokenizer& tokenizer, const DataOptions& options,
                   const RowNeeds& needs, const RowMemory& memory, std::ostream& err);

/// Throws ConfigError where `model` brings a tokenizer that gives texts other tokens than
/// `tokenizer`, whose tokens both models get; only says so if the user named that one (`named`).
void check_same_tokens(const Tokenizer& tokenizer, const std::string& model, bool named,
                       std::ostream& err);

/// Elements in row-major order, as float64.
std::vector<double> values(const at::Tensor& tensor);

}  // namespace prefopt::cli
