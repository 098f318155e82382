// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <cstring>
#include <map>
#include <protozero/pbf_reader.hpp>
#include <stdexcept>
#include <string>
#include <string_view>
#include <vector>

#include "core/crc32c.h"
#include "core/file.h"
#include "prefopt/error.h"

namespace prefopt::testing_support {

struct ReadEvent {
  double wall_time = 0;
  std::int64_t step = 0;
  std::string file_version;
  std::map<std::string, float> scalars;
  std::map<std::string, std::string> texts;
  bool restart = false;
};

inline void read_value(protozero::pbf_reader value, ReadEvent& event) {
  std::string tag;
  while (value.next()) {
    if (value.tag() == 1) {
      tag = value.get_string();
    } else if (value.tag() == 2) {
      event.scalars[tag] = value.get_float();
    } else if (value.tag() == 8) {
      protozero::pbf_reader tensor = value.get_message();
      while (tensor.next(8)) event.texts[tag] = tensor.get_bytes();
    } else {
      value.skip();
    }
  }
}

inline ReadEvent read_event(std::string_view bytes) {
  ReadEvent event;
  protozero::pbf_reader reader(bytes.data(), bytes.size());
  while (reader.next()) {
    if (reader.tag() == 1) {
      event.wall_time = reader.get_double();
    } else if (reader.tag() == 2) {
      event.step = reader.get_int64();
    } else if (reader.tag() == 3) {
      event.file_version = reader.get_string();
    } else if (reader.tag() == 5) {
      protozero::pbf_reader summary = reader.get_message();
      while (summary.next(1)) read_value(summary.get_message(), event);
    } else if (reader.tag() == 7) {
      protozero::pbf_reader log = reader.get_message();
      while (log.next(1)) event.restart = log.get_enum() == 1;
    } else {
      reader.skip();
    }
  }
  return event;
}

/// The events of a TensorBoard file. Throws std::runtime_error for a record whose length or
/// checksums are not right.
inline std::vector<ReadEvent> read_events(const std::string& path) {
  const std::string file = detail::read_file<DataError>(path);
  std::string_view left = file;
  const auto take = [&](std::uint64_t bytes) {
    if (bytes > left.size()) throw std::runtime_error(path + ": record is cut off");
    const std::string_view taken = left.substr(0, bytes);
    left.remove_prefix(bytes);
    return taken;
  };
  const auto check = [&](std::string_view bytes) {
    std::uint32_t masked = 0;
    std::memcpy(&masked, take(sizeof masked).data(), sizeof masked);
    const std::uint32_t rotated = masked - 0xa282ead8;
    if ((rotated << 15 | rotated >> 17) != detail::crc32c(bytes)) {
      throw std::runtime_error(path + ": checksum does not fit");
    }
  };
  std::vector<ReadEvent> events;
  while (!left.empty()) {
    std::uint64_t length = 0;
    const std::string_view length_bytes = take(sizeof length);
    check(length_bytes);
    std::memcpy(&length, length_bytes.data(), sizeof length);
    const std::string_view event = take(length);
    check(event);
    events.push_back(read_event(event));
  }
  return events;
}

}  // namespace prefopt::testing_support
