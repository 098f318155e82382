// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <string>
#include <utility>
#include <vector>

namespace prefopt::testing_support {

/// The bytes of a number.
template <class T>
std::string raw(T value) {
  std::string bytes(sizeof value, '\0');
  std::memcpy(bytes.data(), &value, sizeof value);
  return bytes;
}

/// Numbers of the types of value in GGUF.
enum GgufKind : std::uint32_t {
  kUint8,
  kInt8,
  kUint16,
  kInt16,
  kUint32,
  kInt32,
  kFloat32,
  kFlag,
  kText,
  kList,
  kUint64,
  kInt64,
  kFloat64,
};

inline std::string gguf_text(const std::string& text) {
  return raw<std::uint64_t>(text.size()) + text;
}

/// A list of `count` elements of this kind, whose bytes are `elements`.
inline std::string gguf_list(GgufKind kind, std::uint64_t count, const std::string& elements) {
  return raw<std::uint32_t>(kind) + raw(count) + elements;
}

inline std::string gguf_entry(const std::string& key, std::uint32_t kind,
                              const std::string& value) {
  return gguf_text(key) + raw(kind) + value;
}

inline std::string gguf_head(std::uint64_t tensors, std::uint64_t entries,
                             std::uint32_t version = 3) {
  return "GGUF" + raw(version) + raw(tensors) + raw(entries);
}

/// `sizes` are in the order of the file, innermost first.
inline std::string gguf_tensor_info(const std::string& name,
                                    const std::vector<std::uint64_t>& sizes, std::uint32_t type,
                                    std::uint64_t offset) {
  std::string bytes = gguf_text(name) + raw(static_cast<std::uint32_t>(sizes.size()));
  for (const auto size : sizes) bytes += raw(size);
  return bytes + raw(type) + raw(offset);
}

/// A sound file, piece by piece.
class GgufBuilder {
 public:
  /// Replaces the value of a key that is there.
  GgufBuilder& set(const std::string& key, GgufKind kind, const std::string& value) {
    erase(key);
    entries_.emplace_back(key, gguf_entry(key, kind, value));
    return *this;
  }
  GgufBuilder& text(const std::string& key, const std::string& value) {
    return set(key, kText, gguf_text(value));
  }
  GgufBuilder& integer(const std::string& key, std::uint32_t value) {
    return set(key, kUint32, raw(value));
  }
  GgufBuilder& real(const std::string& key, float value) { return set(key, kFloat32, raw(value)); }
  GgufBuilder& flag(const std::string& key, bool value) { return set(key, kFlag, raw(value)); }
  GgufBuilder& erase(const std::string& key) {
    std::erase_if(entries_, [&](const auto& entry) { return entry.first == key; });
    return *this;
  }

  GgufBuilder& tensor(const std::string& name, const std::vector<std::uint64_t>& sizes,
                      std::uint32_t type, const std::string& data) {
    tensors_.push_back({name, sizes, type, data});
    return *this;
  }
  GgufBuilder& floats(const std::string& name, const std::vector<std::uint64_t>& sizes,
                      float value = 0.5F) {
    std::uint64_t count = 1;
    for (const auto size : sizes) count *= size;
    std::string data;
    for (std::uint64_t i = 0; i < count; ++i) data += raw(value);
    return tensor(name, sizes, 0, data);
  }

  std::string bytes(std::uint64_t alignment = 32) const {
    std::string bytes = gguf_head(tensors_.size(), entries_.size());
    for (const auto& [key, entry] : entries_) bytes += entry;
    std::string data;
    const auto pad = [&](std::string& part) {
      part.resize((part.size() + alignment - 1) / alignment * alignment, '\0');
    };
    for (const auto& tensor : tensors_) {
      pad(data);
      bytes += gguf_tensor_info(tensor.name, tensor.sizes, tensor.type, data.size());
      data += tensor.data;
    }
    pad(bytes);
    return bytes + data;
  }

 private:
  struct Tensor {
    std::string name;
    std::vector<std::uint64_t> sizes;
    std::uint32_t type;
    std::string data;
  };

  std::vector<std::pair<std::string, std::string>> entries_;
  std::vector<Tensor> tensors_;
};

}  // namespace prefopt::testing_support
