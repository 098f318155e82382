// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "core/file.h"

namespace prefopt::detail {

/// A file of events that TensorBoard reads: records of TFRecord's framing (length, masked CRC-32C
/// of it, bytes, masked CRC-32C of them), each an `Event` of tensorflow/core/util/event.proto.
/// TensorBoard takes all files of a folder together, so a run that is resumed opens another one.
///
/// Throws CheckpointError, here and below, where a record cannot be written.
class EventFile {
 public:
  using Scalars = std::vector<std::pair<std::string, double>>;

  /// A new file in `folder`, which is made if it is not there. `wall_time`, here and below, is in
  /// seconds since 1970.
  EventFile(const std::string& folder, double wall_time);

  /// One event with a value a tag, kept as float32.
  void add_scalars(std::int64_t step, double wall_time, const Scalars& values);
  /// Text in Markdown, for the text tab.
  void add_text(std::int64_t step, double wall_time, std::string_view tag, std::string_view text);
  /// Events of `step` and later in files of earlier processes do not count any more.
  void add_restart(std::int64_t step, double wall_time);

  const std::string& path() const { return path_; }

 private:
  void append(std::string_view event);

  std::string path_;
  AppendedFile file_;
};

/// `event` as a record of a TFRecord file.
std::string tfrecord(std::string_view event);

}  // namespace prefopt::detail
