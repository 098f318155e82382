// SPDX-License-Identifier: Apache-2.0
#pragma once

// What several commands read in the same way.

#include <ATen/core/Tensor.h>

#include <iosfwd>
#include <memory>
#include <string>
#include <vector>

#include "cli/commands.h"
#include "prefopt/data/batch.h"
#include "prefopt/data/dataset.h"
#include "prefopt/data/tokenizer.h"
#include "prefopt/decoder/decoder.h"
#include "prefopt/losses/loss.h"
#include "prefopt/policy/sampling.h"

namespace prefopt::cli {

/// The model with its adapter, where one is named. What there is to say of its weights goes to
/// `err`.
std::shared_ptr<Decoder> load_model(const ModelArguments& arguments, std::ostream& err);
std::shared_ptr<const Tokenizer> load_tokenizer(const ModelArguments& arguments);

/// `options` with the end tokens that `names` lists, ids or texts of one token, or those of
/// end_tokens() where it lists none. Throws ConfigError for a name that is neither.
SamplingOptions with_end_tokens(SamplingOptions options, const std::vector<std::string>& names,
                                const Decoder& model, const Tokenizer& tokenizer,
                                const std::string& chat_format);

/// `argument`, or what the file holds that an @ names.
std::string read_json_argument(const std::string& argument);
/// `argument` is a loss config, or @FILE that holds one.
Loss read_loss(const std::string& argument);

/// Every row of the file, whole and in its order: a row that cannot be used is an error and none is
/// truncated, so that results can be matched with rows by position. What there is to say of rows
/// goes to `err`.
std::vector<TokenRow> read_pairs(const std::string& path, const Tokenizer& tokenizer,
                                 const std::string& chat_format, const RowNeeds& needs,
                                 const ColumnArguments& columns, std::ostream& err);

/// Puts what was given of them into the options of rows. Throws ConfigError.
void read_columns(const ColumnArguments& arguments, DataOptions& options);

/// Elements in row-major order, as float64.
std::vector<double> values(const at::Tensor& tensor);

}  // namespace prefopt::cli
