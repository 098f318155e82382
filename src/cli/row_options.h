// SPDX-License-Identifier: Apache-2.0
#pragma once

// How a command reads rows: as the run that made the model did, as far as that says what a row
// means, or as the command line says.

#include <iosfwd>
#include <string>
#include <vector>

#include "cli/commands.h"
#include "data/model_memory.h"
#include "prefopt/data/batch.h"
#include "prefopt/data/dataset.h"

namespace prefopt::cli {

using detail::RowMemory;

/// The part of rows that a command reads.
enum class RowPart {
  kAll,      ///< each row gives a result: it is whole, and one that cannot be used is an error
  kPrompts,  ///< prompts alone
};

/// The options that `memory` holds, but those that cut, drop or refuse rows, with the given ones in
/// their place. Throws ConfigError for options that the command has no use for.
DataOptions row_options(const RowArguments& arguments, const std::string& chat_format,
                        const RowMemory& memory, RowPart part);

/// The same, with a line to `err` where what is remembered makes a difference.
DataOptions noted_row_options(const RowArguments& arguments, const std::string& chat_format,
                              const RowMemory& memory, RowPart part, std::ostream& err);

/// All options that `memory` holds, as those of a run.
DataOptions run_options(const RowMemory& memory);

/// The same, with a line to `err` if they are not the defaults.
DataOptions noted_run_options(const RowMemory& memory, std::ostream& err);

/// The options of `a` that `b` has otherwise, as in "loss_on = 'last', add_bos = false"; empty:
/// none.
std::string differing_options(const DataOptions& a, const DataOptions& b);

/// Writes a line to `err` if the run that `memory` is of would have cut some of the pairs, which
/// `options` leave whole.
void note_uncut(const std::vector<TokenRow>& pairs, const RowMemory& memory,
                const DataOptions& options, std::ostream& err);

/// Puts what was given of them into the options of rows. Throws ConfigError.
void read_columns(const ColumnArguments& arguments, DataOptions& options);

}  // namespace prefopt::cli
