// SPDX-License-Identifier: Apache-2.0
#pragma once

// The rows of files in a shuffled order, while a part of them is in memory.

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "data/data_files.h"
#include "data/row_file.h"

namespace prefopt::detail {

struct RowStreamOptions {
  std::int64_t buffer = 1;  ///< rows in memory, of which the next one is drawn
  std::int64_t seed = 0;
  bool shuffle = true;
};

/// A row of the stream and its place: the item of the list, the file of it and the row there, from
/// 0.
struct StreamedRow {
  std::int64_t part = 0, file = 0, index = 0;
  FileRow row = {};
  std::uint32_t sum = 0;  ///< CRC-32 of its text
};

/// The endless stream of rows, epoch after epoch. An epoch reads the files of each part in another
/// order; the part of the next row is drawn by weight and bytes, and each row that is read
/// takes its place in a buffer from which the next row of the stream is drawn. A row of a part of
/// weight w is in floor((e + 1) w + f) - floor(e w + f) passes of epoch e, where f in [0, 1) is its
/// own: in w of them on average, and in w exactly where it is a whole number.
///
/// All draws are functions of seed, epoch and their number, so that the state is the place in each
/// part and the places of the rows in the buffer, whose texts are read again. Without shuffling the
/// parts follow each other as they are.
class RowStream {
 public:
  RowStream(std::vector<DataPart> parts, const RowStreamOptions& options);
  ~RowStream();
  RowStream(RowStream&&) noexcept;

  /// Throws DataError as open_rows, and for an epoch without a row.
  StreamedRow next();

  /// Returns whether `next` begins another epoch.
  bool is_at_epoch_end();
  /// Returns the epoch of the row that `next` gave last, from 0.
  std::int64_t epoch() const { return epoch_; }
  const std::string& path_of(const StreamedRow& row) const;

  std::vector<std::int64_t> state() const;
  /// Remembers this place, at the cost of the rows that `next` gives from here on, not of the
  /// buffer.
  void mark();
  /// Returns what `state` returned at the last mark, of which there has to be one.
  std::vector<std::int64_t> state_at_mark() const;
  /// Forgets the mark. Throws CheckpointError where `state` is not one of a stream
  /// of these files, or where the rows of the buffer are others now.
  void load(const std::vector<std::int64_t>& state);
  /// Returns a hash of the files and the options. Of a file over 64 MiB it has the size and 1024
  /// blocks of 64 KiB.
  std::string fingerprint() const;

 private:
  class PartReader;

  /// A row of the buffer without its text.
  struct StoredRow {
    std::int64_t part, file, index;
    std::uint32_t sum;
  };
  /// A row that `next` gave, its place in the buffer, and how many rows were read before it since
  /// the one before.
  struct GivenRow {
    StoredRow row;
    std::size_t place, read;
  };

  static std::int64_t sum_of_rows(const std::vector<StoredRow>& rows);
  static std::vector<std::int64_t> state_of(std::vector<std::int64_t> head,
                                            const std::vector<StoredRow>& buffer);
  void begin_epoch();
  void fill_buffer();
  bool read_row();
  std::size_t draw_part();
  void read_buffer();
  std::uint64_t draw(std::int64_t purpose, std::int64_t number) const;
  std::vector<StoredRow> stored_buffer() const;
  std::vector<std::int64_t> head() const;

  RowStreamOptions options_;
  std::vector<PartReader> parts_;
  std::vector<StreamedRow> buffer_;
  std::int64_t epoch_ = 0;
  std::int64_t read_ = 0;   ///< rows of the epoch that were read
  std::int64_t given_ = 0;  ///< rows of the epoch that `next` gave
  bool is_marked_ = false;
  std::vector<std::int64_t> marked_head_;
  std::vector<GivenRow> given_since_;  ///< since the mark
  std::size_t read_since_ = 0;         ///< since the last row that was given, or the mark
};

}  // namespace prefopt::detail
