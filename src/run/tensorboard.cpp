// SPDX-License-Identifier: Apache-2.0
#include "run/tensorboard.h"

#include <fmt/format.h>
#include <unistd.h>

#include <array>
#include <atomic>
#include <filesystem>
#include <protozero/pbf_writer.hpp>

#include "core/crc32c.h"
#include "prefopt/error.h"

namespace prefopt::detail {
namespace {

namespace fs = std::filesystem;
using protozero::pbf_writer;

// Field numbers of event.proto, summary.proto and tensor.proto.
namespace event {
enum : protozero::pbf_tag_type {
  kWallTime = 1,
  kStep = 2,
  kFileVersion = 3,
  kSummary = 5,
  kSessionLog = 7
};
}  // namespace event
namespace session_log {
enum : protozero::pbf_tag_type { kStatus = 1 };
constexpr int kStart = 1;
}  // namespace session_log
namespace summary {
enum : protozero::pbf_tag_type { kValue = 1 };
}  // namespace summary
namespace value {
enum : protozero::pbf_tag_type { kTag = 1, kSimpleValue = 2, kTensor = 8, kMetadata = 9 };
}  // namespace value
namespace metadata {
enum : protozero::pbf_tag_type { kPlugin = 1, kDataClass = 4 };
constexpr int kTensorClass = 2;
}  // namespace metadata
namespace plugin {
enum : protozero::pbf_tag_type { kName = 1 };
}  // namespace plugin
namespace tensor {
enum : protozero::pbf_tag_type { kDtype = 1, kShape = 2, kStrings = 8 };
constexpr int kStringDtype = 7;
}  // namespace tensor

std::string little_endian(std::uint64_t number, int bytes) {
  std::string text;
  for (int i = 0; i < bytes; ++i) text += static_cast<char>(number >> (8 * i) & 0xff);
  return text;
}

// A CRC of bytes that hold their own CRC says little, so TFRecord stores it rotated and shifted.
std::string masked_crc(std::string_view bytes) {
  const std::uint32_t crc = crc32c(bytes);
  return little_endian(static_cast<std::uint32_t>((crc >> 15 | crc << 17) + 0xa282ead8U), 4);
}

std::string host_name() {
  std::array<char, 256> name{};
  return ::gethostname(name.data(), name.size() - 1) == 0 ? name.data() : "localhost";
}

// TensorBoard finds files by `tfevents` and reads them in the order of their names, so the time
// leads; a process may open several a second.
std::string file_name(double wall_time) {
  static std::atomic<int> files{0};
  return fmt::format("events.out.tfevents.{:010}.{}.{}.{:06}", static_cast<std::int64_t>(wall_time),
                     host_name(), ::getpid(), files++);
}

void begin_event(pbf_writer& writer, std::int64_t step, double wall_time) {
  writer.add_double(event::kWallTime, wall_time);
  writer.add_int64(event::kStep, step);
}

}  // namespace

std::string tfrecord(std::string_view event) {
  const std::string length = little_endian(event.size(), 8);
  std::string record = length + masked_crc(length);
  record += event;
  return record + masked_crc(event);
}

EventFile::EventFile(const std::string& folder, double wall_time)
    : path_((fs::path(folder) / file_name(wall_time)).string()) {
  make_directory<CheckpointError>(folder);
  if (const auto why = file_.try_open(path_); !why.empty()) {
    throw CheckpointError(fmt::format("{}: expected to open it, got {}", path_, why));
  }
  std::string bytes;
  pbf_writer writer(bytes);
  writer.add_double(event::kWallTime, wall_time);
  writer.add_string(event::kFileVersion, "brain.Event:2");
  append(bytes);
}

void EventFile::add_scalars(std::int64_t step, double wall_time, const Scalars& values) {
  std::string bytes;
  pbf_writer writer(bytes);
  begin_event(writer, step, wall_time);
  {
    pbf_writer all(writer, event::kSummary);
    for (const auto& [tag, number] : values) {
      pbf_writer one(all, summary::kValue);
      one.add_string(value::kTag, tag);
      one.add_float(value::kSimpleValue, static_cast<float>(number));
    }
  }
  append(bytes);
}

void EventFile::add_text(std::int64_t step, double wall_time, std::string_view tag,
                         std::string_view text) {
  std::string bytes;
  pbf_writer writer(bytes);
  begin_event(writer, step, wall_time);
  {
    pbf_writer all(writer, event::kSummary);
    pbf_writer one(all, summary::kValue);
    one.add_string(value::kTag, tag.data(), tag.size());
    {
      pbf_writer content(one, value::kTensor);
      content.add_enum(tensor::kDtype, tensor::kStringDtype);
      content.add_message(tensor::kShape, "", 0);  // a scalar's
      content.add_bytes(tensor::kStrings, text.data(), text.size());
    }
    pbf_writer about(one, value::kMetadata);
    {
      pbf_writer shown_by(about, metadata::kPlugin);
      shown_by.add_string(plugin::kName, "text");
    }
    about.add_enum(metadata::kDataClass, metadata::kTensorClass);
  }
  append(bytes);
}

void EventFile::add_restart(std::int64_t step, double wall_time) {
  std::string bytes;
  pbf_writer writer(bytes);
  begin_event(writer, step, wall_time);
  {
    pbf_writer log(writer, event::kSessionLog);
    log.add_enum(session_log::kStatus, session_log::kStart);
  }
  append(bytes);
}

void EventFile::append(std::string_view event) {
  if (const auto why = file_.try_append(tfrecord(event)); !why.empty()) {
    throw CheckpointError(fmt::format("{}: expected to append an event, got {}", path_, why));
  }
}

}  // namespace prefopt::detail
