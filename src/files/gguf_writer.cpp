// SPDX-License-Identifier: Apache-2.0
#include "prefopt/files/gguf_writer.h"

#include <c10/util/StringUtil.h>
#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <limits>
#include <utility>

#include "core/file.h"
#include "files/gguf_encoding.h"
#include "files/gguf_kinds.h"
#include "files/gguf_quantize.h"
#include "prefopt/error.h"

namespace prefopt {
namespace {

using detail::GgufKind;

template <class T>
std::string bytes_of(T value) {
  std::array<char, sizeof value> bytes;
  std::memcpy(bytes.data(), &value, sizeof value);
  return {bytes.data(), bytes.size()};
}

std::string bytes_of_kind(GgufKind kind) { return bytes_of(static_cast<std::uint32_t>(kind)); }

std::string bytes_of_text(std::string_view text) {
  return bytes_of<std::uint64_t>(text.size()) + std::string(text);
}

template <class T>
std::string scalar(GgufKind kind, T value) {
  return bytes_of_kind(kind) + bytes_of(value);
}

template <class Values, class Encode>
std::string list(GgufKind kind, const Values& values, Encode&& encode) {
  std::string bytes =
      bytes_of_kind(GgufKind::kList) + bytes_of_kind(kind) + bytes_of<std::uint64_t>(values.size());
  for (const auto& value : values) bytes += encode(value);
  return bytes;
}

template <class T>
T narrowed(std::string_view key, std::int64_t value) {
  using Limits = std::numeric_limits<T>;
  if (value >= std::int64_t{Limits::min()} && value <= std::int64_t{Limits::max()}) {
    return static_cast<T>(value);
  }
  throw DtypeError(fmt::format("gguf: metadata '{}': expected a value in [{}, {}], got {}", key,
                               Limits::min(), Limits::max(), value));
}

std::uint64_t aligned(std::uint64_t bytes) {
  return (bytes + detail::kGgufAlignment - 1) / detail::kGgufAlignment * detail::kGgufAlignment;
}

std::uint64_t encoded_bytes(const std::vector<std::int64_t>& shape,
                            const detail::GgufEncoding& encoding) {
  std::int64_t values = 1;
  for (const std::int64_t size : shape) values *= size;
  return static_cast<std::uint64_t>(values / encoding.values * encoding.bytes);
}

}  // namespace

void GgufWriter::integer(std::string_view key, std::int64_t value) {
  set(key, scalar(GgufKind::kUint32, narrowed<std::uint32_t>(key, value)));
}

void GgufWriter::integers(std::string_view key, const std::vector<std::int64_t>& values) {
  set(key, list(GgufKind::kInt32, values,
                [&](std::int64_t value) { return bytes_of(narrowed<std::int32_t>(key, value)); }));
}

void GgufWriter::real(std::string_view key, double value) {
  set(key, scalar(GgufKind::kFloat32, static_cast<float>(value)));
}

void GgufWriter::reals(std::string_view key, const std::vector<double>& values) {
  set(key, list(GgufKind::kFloat32, values,
                [](double value) { return bytes_of(static_cast<float>(value)); }));
}

void GgufWriter::flag(std::string_view key, bool value) {
  set(key, scalar(GgufKind::kFlag, value));
}

void GgufWriter::text(std::string_view key, std::string_view value) {
  set(key, bytes_of_kind(GgufKind::kText) + bytes_of_text(value));
}

void GgufWriter::texts(std::string_view key, const std::vector<std::string>& values) {
  set(key, list(GgufKind::kText, values, bytes_of_text));
}

void GgufWriter::copy(const GgufFile& file, std::string_view key) { set(key, file.encoded(key)); }

bool GgufWriter::has(std::string_view key) const {
  return std::any_of(entries_.begin(), entries_.end(),
                     [&](const auto& entry) { return entry.first == key; });
}

void GgufWriter::set(std::string_view key, std::string encoded) {
  for (auto& [known, value] : entries_) {
    if (known != key) continue;
    value = std::move(encoded);
    return;
  }
  entries_.emplace_back(key, std::move(encoded));
}

void GgufWriter::tensor(std::string name, at::Tensor values, std::string_view type) {
  add({std::move(name), values.sizes().vec(), {values}, std::string(type)});
}

void GgufWriter::stack(std::string name, std::vector<at::Tensor> parts, std::string_view type) {
  std::vector<std::int64_t> shape = parts.front().sizes().vec();
  for (const at::Tensor& part : parts) {
    if (part.sizes() == at::IntArrayRef(shape)) continue;
    throw ShapeError(fmt::format("gguf: tensor '{}': expected parts of shape {}, got {}", name,
                                 c10::str(at::IntArrayRef(shape)), c10::str(part.sizes())));
  }
  shape.insert(shape.begin(), std::ssize(parts));
  add({std::move(name), std::move(shape), std::move(parts), std::string(type)});
}

void GgufWriter::add(Tensor tensor) {
  const detail::GgufEncoding* encoding = detail::find_gguf_encoding(tensor.type);
  if (!encoding || !detail::is_written(*encoding)) {
    throw ConfigError(fmt::format(
        "gguf: tensor '{}': expected F64, F32, F16, BF16, Q8_0, Q5_0, Q4_0, Q6_K or Q4_K, got '{}'",
        tensor.name, tensor.type));
  }
  tensors_.push_back(std::move(tensor));
}

std::string GgufWriter::head() const {
  std::string bytes = "GGUF" + bytes_of(detail::kGgufVersion) +
                      bytes_of<std::uint64_t>(tensors_.size()) +
                      bytes_of<std::uint64_t>(entries_.size());
  for (const auto& [key, value] : entries_) bytes += bytes_of_text(key) + value;
  std::uint64_t offset = 0;
  for (const Tensor& tensor : tensors_) {
    const detail::GgufEncoding& encoding = *detail::find_gguf_encoding(tensor.type);
    bytes += bytes_of_text(tensor.name);
    bytes += bytes_of(static_cast<std::uint32_t>(tensor.shape.size()));
    for (auto size = tensor.shape.rbegin(); size != tensor.shape.rend(); ++size) {
      bytes += bytes_of(*size);
    }
    bytes += bytes_of(encoding.id) + bytes_of(offset);
    offset += aligned(encoded_bytes(tensor.shape, encoding));
  }
  bytes.resize(aligned(bytes.size()), '\0');
  return bytes;
}

void GgufWriter::write(const std::string& path) const {
  std::string current;
  std::uint64_t written = 0;
  const auto part = [&](std::size_t i) -> std::string_view {
    if (i == 0) {
      current = head();
    } else {
      const Tensor& tensor = tensors_[i - 1];
      const detail::GgufEncoding& encoding = *detail::find_gguf_encoding(tensor.type);
      const std::string where = fmt::format("{}: tensor '{}'", path, tensor.name);
      current.clear();
      for (const at::Tensor& values : tensor.parts) {
        current += detail::encoded(encoding, values, where);
      }
      current.resize(aligned(current.size()), '\0');
    }
    written += current.size();
    return current;
  };
  if (const std::string why = detail::try_write_parts(path, tensors_.size() + 1, part);
      !why.empty()) {
    throw CheckpointError(
        fmt::format("{}: expected to write {} bytes, got {}", path, written, why));
  }
}

}  // namespace prefopt
