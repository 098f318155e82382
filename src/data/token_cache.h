// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <functional>
#include <string>

#include "prefopt/data/dataset.h"

namespace prefopt::detail {

/// One tokenized file in a folder: `KEY.tokens`, whose key is a hash of the rows' file, the
/// tokenizer and the options. Several processes may read and write it at a time: a file comes
/// into being whole, by renaming.
class TokenCache {
 public:
  /// Reads the file of rows. Throws DataError where it cannot.
  TokenCache(const std::string& folder, const std::string& rows, const Tokenizer& tokenizer,
             const DataOptions& options, const RowNeeds& needs);

  /// Returns what is kept, else what `make` gives, which is then kept. Replaces a damaged file, and
  /// keeps nothing if the folder cannot be written or the rows changed while they were read: see
  /// cache_note of the report.
  Dataset get_or_make(const std::function<Dataset()>& make) const;

 private:
  std::string folder_, rows_, rows_hash_, path_;
};

}  // namespace prefopt::detail
