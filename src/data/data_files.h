// SPDX-License-Identifier: Apache-2.0
#pragma once

// The files that an option of rows names: a file, a folder, a pattern, or a list of them.

#include <string>
#include <string_view>
#include <vector>

#include "prefopt/data/dataset.h"

namespace prefopt::detail {

/// One path of an option, and its files in their order.
struct DataPart {
  std::vector<std::string> files;
  double weight = 1;                          ///< how often an epoch has each of its rows
  std::vector<std::string> passed_over = {};  ///< files and folders of the folder, of no split
};

/// Returns the files that `rows` names. Throws ConfigError for an invalid list, and DataError,
/// led by the path, for a folder or a pattern without files, with files of several splits of which
/// `split` tells none, or without one of the files that a name `…-00000-of-00005` promises.
std::vector<DataPart> find_data_files(const std::string& rows, DataSplit split);

/// The same without parts. Throws ConfigError for a weight, which only training rows have.
std::vector<std::string> find_files_of_rows(const std::string& rows, DataSplit split);

/// Returns a note on what lies in the folders that `rows` names and is not read, as "not read:
/// 'rows/notes.txt'"; empty where there is nothing. Throws as find_data_files.
std::string note_on_folders(const std::string& rows, DataSplit split);

/// Returns whether `a` comes before `b` where numbers in names count as numbers.
bool is_before(std::string_view a, std::string_view b);

}  // namespace prefopt::detail
